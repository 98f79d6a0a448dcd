"""Unigram language model (Kudo 2018, arXiv:1804.10959): the most probable way to write a word in pieces.

The ids equal those of the `tokenizers` package, and of SentencePiece for its model files.
"""
import math

import numpy as np

from ..errors import FormatError
from .added import AddedToken
from .pattern import short
from .words import MARK, WordTokenizer, char_spans, utf8

try:
    from . import _pieces as loops
except ImportError:  # not compiled: the same in plain Python
    from . import _pieces_py as loops

UNKNOWN = 10.0  # how much worse than the worst piece an unknown character is, in log probability


class Unigram(WordTokenizer):
    """pieces: list of (token, log probability) by id; unk_id: its id or None; byte_fallback: unknown characters become <0x..> tokens;
    unused: ids that text never becomes. The other arguments: see WordTokenizer."""

    def __init__(self, pieces, added=(), *, unk_id=0, byte_fallback=False, unused=(), user_defined=(), roles=None, config=None,
                 parts=None):
        self.pieces, self._unknown, self.byte_fallback, self.unused = pieces, unk_id, byte_fallback, sorted(unused)
        vocab = {token: i for i, (token, _) in enumerate(pieces)}
        if len(vocab) != len(pieces):
            raise FormatError(f"Unigram: {len(pieces) - len(vocab)} pieces stand twice in the vocabulary")
        unk = {} if unk_id is None else {"unk": pieces[unk_id][0]}
        super().__init__(vocab, added, {**unk, **(roles or {})}, config, parts, user_defined)
        self._bytes = [vocab.get(f"<0x{b:02X}>") for b in range(256)] if byte_fallback else []
        if None in self._bytes:
            self._bytes = []
        # control and byte tokens come from the text by their own ways alone
        out = {*self.unused, *self.user_defined, *self._bytes, *(t.id for t in self.added if t.special)}
        kept = [(token, i, score) for i, (token, score) in enumerate(pieces) if token and i not in out]
        worst = min((score for _, score in pieces), default=0.0) - UNKNOWN
        self._lattice = loops.Lattice([utf8(token) for token, _, _ in kept], np.array([i for _, i, _ in kept], np.int32),
                                      np.array([score for *_, score in kept], np.float64), -1 if unk_id is None else unk_id, worst)

        if MARK in vocab:
            self._cut_before_marks([token for token, *_ in kept])

    def _word(self, word, spans):
        found = self._lattice.best(utf8(word))
        if found is None:
            raise ValueError(f"encode: {word!r:.60} holds a character that this Unigram lacks, and it has no unk_id and no bytes")
        ids, through_bytes = found[0], self._bytes and self._unknown in found[0]
        if not spans and not through_bytes:
            return ids, None, None
        starts, ends = char_spans(word, found[1])
        if not through_bytes:
            return ids, starts, ends
        out, first, stops = [], [], []
        for id, a, b in zip(ids, starts, ends):
            new = [self._bytes[byte] for byte in utf8(word[a:b])] if id == self._unknown else [id]
            out += new
            first += [a] * len(new)
            stops += [b] * len(new)
        return out, first, stops

    def model(self):
        """The model as tokenizer.json writes it."""
        extra = {key: ids for key, ids in (("unused", self.unused), ("user_defined", self.user_defined)) if ids}
        return {"type": "Unigram", "unk_id": self._unknown, "vocab": [list(piece) for piece in self.pieces],
                "byte_fallback": self.byte_fallback, **extra}

    @classmethod
    def train(cls, texts, vocab_size=8000, *, special_tokens=("<unk>", "<s>", "</s>"), seed_size=1_000_000, shrinking=0.75, rounds=2,
              max_memory=1 << 30):
        """Learns pieces from an iterable of str by EM with pruning. The first special token stands for unknown characters; `rounds` of EM
        come before each pruning, which keeps the part `shrinking`. A space becomes U+2581 before the word."""
        from .train import unigram

        parts = {"pre_tokenizer": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True}}
        parts["decoder"] = parts["pre_tokenizer"]
        pieces = unigram(texts, vocab_size, special_tokens, parts, loops, seed_size, shrinking, rounds, max_memory)
        return cls(pieces, [AddedToken(i, content) for i, (content, _) in enumerate(pieces[:len(special_tokens)])], parts=parts)

    @classmethod
    def from_json(cls, model, added, roles, config, parts, get):
        """get(key, kind, default): the checked reader of the model's keys."""
        pieces, unk = get("vocab", list), model.get("unk_id")
        unused, user_defined = get("unused", list, []), get("user_defined", list, [])
        for i, piece in enumerate(pieces):
            if (not isinstance(piece, list) or len(piece) != 2 or not isinstance(piece[0], str) or type(piece[1]) not in (int, float)
                    or not math.isfinite(piece[1])):
                raise FormatError(f"model.vocab[{i}] is {short(piece)}, expected [token, log probability]")
        if unk is not None and (type(unk) is not int or not 0 <= unk < len(pieces)):
            raise FormatError(f"model.unk_id is {short(unk)}, expected an id below {len(pieces)} or null")
        if not all(type(i) is int for i in unused):
            raise FormatError(f"model.unused is {short(unused)}, expected ids")
        return cls([(token, float(score)) for token, score in pieces], added, unk_id=unk, byte_fallback=get("byte_fallback", bool, False),
                   unused=unused, user_defined=user_defined, roles=roles, config=config, parts=parts)
