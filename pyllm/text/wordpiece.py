"""WordPiece (Schuster and Nakajima 2012; BERT): the longest piece of the vocabulary again and again, left to right.

The ids equal those of the `tokenizers` package.
"""
import numpy as np

from ..errors import FormatError
from .words import WordTokenizer, char_ends, utf8

try:
    from . import _pieces as loops
except ImportError:  # not compiled: the same in plain Python
    from . import _pieces_py as loops

BERT = {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}


class WordPiece(WordTokenizer):
    """unk_token: what a word becomes that the pieces do not make up, or that is longer than max_chars; prefix: what pieces inside a word
    begin with; the other arguments: see WordTokenizer. Without `parts` BERT's rules for lower case."""

    def __init__(self, vocab, added=(), *, unk_token="[UNK]", prefix="##", max_chars=100, roles=None, config=None, parts=None):
        self.unk_token, self.prefix, self.max_chars = unk_token, prefix, max_chars
        super().__init__(vocab, added, {"unk": unk_token, **(roles or {})}, config, BERT if parts is None else parts)
        rest = [token for token in vocab if token.startswith(prefix) and len(token) > len(prefix)]
        first = [token for token in vocab if token]
        ids = [np.array([vocab[token] for token in group], np.int32) for group in (first, rest)]
        self._loop = loops.WordPieces(list(map(utf8, first)), ids[0], [utf8(token[len(prefix):]) for token in rest], ids[1])

    def _word(self, word):
        found = self._loop.split(utf8(word)) if len(word) <= self.max_chars else None
        if found is None:
            return [self.unk_id], [len(word)]
        sizes = [len(utf8(self._tokens[i])) - (len(self.prefix.encode()) if at else 0) for at, i in enumerate(found)]
        return found, char_ends(word, np.cumsum(sizes).tolist())

    def model(self):
        """The model as tokenizer.json writes it."""
        return {"type": "WordPiece", "unk_token": self.unk_token, "continuing_subword_prefix": self.prefix,
                "max_input_chars_per_word": self.max_chars, "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1]))}

    @classmethod
    def from_json(cls, model, added, roles, config, parts, get):
        """get(key, kind, default): the checked reader of the model's keys."""
        vocab, unk = get("vocab", dict), get("unk_token", str, "[UNK]")
        if unk not in vocab and unk not in {t.content for t in added}:
            raise FormatError(f"model.unk_token is {unk!r:.60}, which the vocabulary lacks")
        return cls(vocab, added, unk_token=unk, prefix=get("continuing_subword_prefix", str, "##"),
                   max_chars=get("max_input_chars_per_word", int, 100), roles=roles, config=config, parts=parts)


class WordLevel(WordTokenizer):
    """Whole words; any other is unk_token. Arguments: see WordTokenizer."""

    def __init__(self, vocab, added=(), *, unk_token="<unk>", roles=None, config=None, parts=None):
        self.unk_token = unk_token
        super().__init__(vocab, added, {"unk": unk_token, **(roles or {})}, config, parts)

    def _word(self, word):
        return [self.vocab.get(word, self.unk_id)], [len(word)]

    def model(self):
        """The model as tokenizer.json writes it."""
        return {"type": "WordLevel", "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])), "unk_token": self.unk_token}

    @classmethod
    def from_json(cls, model, added, roles, config, parts, get):
        """get(key, kind, default): the checked reader of the model's keys."""
        vocab, unk = get("vocab", dict), get("unk_token", str, "<unk>")
        if unk not in vocab and unk not in {t.content for t in added}:
            raise FormatError(f"model.unk_token is {unk!r:.60}, which the vocabulary lacks")
        return cls(vocab, added, unk_token=unk, roles=roles, config=config, parts=parts)
