"""WordPiece (Schuster and Nakajima 2012; BERT): the longest piece of the vocabulary again and again, left to right.

The ids equal those of the `tokenizers` package.
"""
import numpy as np

from ..errors import FormatError
from .added import AddedToken
from .template import around
from .words import WordTokenizer, char_spans, utf8

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
        self._unknown = self.id(unk_token)  # whatever the role "unk" says
        rest = [token for token in vocab if token.startswith(prefix) and len(token) > len(prefix)]
        first = [token for token in vocab if token]
        ids = [np.array([vocab[token] for token in group], np.int32) for group in (first, rest)]
        self._loop = loops.WordPieces(list(map(utf8, first)), ids[0], [utf8(token[len(prefix):]) for token in rest], ids[1])

    def _word(self, word, spans):
        found = self._loop.split(utf8(word)) if len(word) <= self.max_chars else None
        if found is None:
            return [self._unknown], [0], [len(word)]
        if not spans:
            return found, None, None
        sizes = [len(utf8(self._tokens[i])) - (len(self.prefix.encode()) if at else 0) for at, i in enumerate(found)]
        return found, *char_spans(word, np.cumsum(sizes).tolist())

    def model(self):
        """The model as tokenizer.json writes it."""
        return {"type": "WordPiece", "unk_token": self.unk_token, "continuing_subword_prefix": self.prefix,
                "max_input_chars_per_word": self.max_chars, "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1]))}

    @classmethod
    def train(cls, texts, vocab_size, *, special_tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), min_frequency=2, lowercase=True,
              limit_alphabet=1000, max_memory=1 << 30):
        """Learns pieces as BPE learns merges, the way of `tokenizers`, from an iterable of str, with BERT's rules for splitting.

        Ids: the special tokens, of which [UNK] is one, the `limit_alphabet` most frequent characters, these inside words, the pieces. Of
        equally frequent pairs the one of smaller ids is first. [CLS] and [SEP] go around a text where they are among the special tokens.
        """
        from .train import word_piece

        parts = {**BERT, "normalizer": {**BERT["normalizer"], "lowercase": lowercase}}
        tokens = word_piece(texts, vocab_size, ["[UNK]", *special_tokens] if "[UNK]" not in special_tokens else special_tokens,
                            min_frequency, parts, "##", limit_alphabet, max_memory)
        if {"[CLS]", "[SEP]"} <= set(special_tokens):
            parts["post_processor"] = around("[CLS]", "[SEP]", tokens, sep=True)
        added = [AddedToken(tokens.index(content), content) for content in dict.fromkeys(["[UNK]", *special_tokens])]
        return cls({token: i for i, token in enumerate(tokens)}, added, parts=parts)

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
        self._unknown = self.id(unk_token)

    def _word(self, word, spans):
        return [self.vocab.get(word, self._unknown)], [0], [len(word)]

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
