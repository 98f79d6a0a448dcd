"""Characters as tokens: the smallest tokenizer, for small corpora and first experiments."""
import numpy as np

from ..errors import FormatError
from ..progress import Progress
from .added import AddedToken
from .base import Tokenizer, by_id, checked_specials, checked_texts


class CharTokenizer(Tokenizer):
    """vocab: {character: id}; added: AddedTokens; together ids 0 .. V-1. Encoding any other character is a ValueError."""

    def __init__(self, vocab, added=(), *, roles=None, config=None, parts=None):
        for token in vocab:
            if len(token) != 1 and token not in {t.content for t in added}:
                raise FormatError(f"CharTokenizer: {token!r:.60} is not one character")
        self.vocab = vocab
        tokens = by_id(vocab, added)
        super().__init__(tokens, [token.encode() for token in tokens], added, roles, config,
                         {**(parts or {}), "decoder": {"type": "Fuse"}})
        points = {ord(token): i for token, i in vocab.items() if len(token) == 1}
        self._table = np.full(max(points, default=0) + 1, -1, np.int64)
        self._table[list(points)] = list(points.values())

    def model(self):
        """The model as tokenizer.json writes it."""
        return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])), "merges": []}

    @classmethod
    def train(cls, texts, *, special_tokens=()):
        """Vocabulary: the special tokens, then the sorted characters of an iterable of str. ValueError for no text."""
        specials, found = checked_specials(special_tokens), set()
        with Progress(None, "collect characters", unit="chars") as bar:
            for text in checked_texts(texts):
                found.update(text)
                bar.update(len(text))
        if not found:
            raise ValueError("train: there is no text in `texts`")
        if bad := sorted(c for c in found if "\ud800" <= c <= "\udfff"):
            raise ValueError(f"train: the text holds lone surrogates, which are not characters: {', '.join(map(ascii, bad[:5]))}")
        tokens = list(dict.fromkeys([*specials, *sorted(found)]))
        added = [AddedToken(i, content) for i, content in enumerate(specials)]
        return cls({token: i for i, token in enumerate(tokens)}, added)

    def _encode_text(self, text, src, start):
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._table[np.minimum(points, self._table.size - 1)]
        unknown = (ids < 0) | (points >= self._table.size)
        if unknown.any():
            i = int(unknown.argmax())
            raise ValueError(f"encode: character {ascii(text[i])} (U+{points[i]:04X}) at position {start + i} is not among the "
                             f"{len(self.vocab)} of this CharTokenizer; train it on text that has it, or use ByteLevelBPE")
        return ids.astype(np.uint32), None if src is None else np.stack([src, src + 1], 1)
