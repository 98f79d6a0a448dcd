"""BPE over characters, with bytes for characters that are no tokens: SentencePiece's (Llama 2, Gemma), and the older ones with </w>.

The ids equal those of the `tokenizers` package, and of SentencePiece for its model files.
"""
import re
from functools import cached_property

import numpy as np

from ..errors import FormatError
from . import bpe
from .added import AddedToken
from .words import MARK, WordTokenizer, utf8


class SentencePieceBPE(WordTokenizer):
    """vocab: {token: id}; merges: (left, right) tokens, best first, or rows of ids; unk_token: for a character that is no token, or
    None: it is left out; fuse_unk: several of them are one; byte_fallback: its bytes as <0x..> tokens instead; ignore_merges: a word that
    is a token is taken whole; prefix, suffix: what tokens inside, and at the end of, a word carry; by_token: merges of one token are of
    one rank, as SentencePiece has it. The other arguments: see WordTokenizer."""

    def __init__(self, vocab, merges, added=(), *, unk_token=None, fuse_unk=False, byte_fallback=False, ignore_merges=False, prefix="",
                 suffix="", by_token=False, user_defined=(), roles=None, config=None, parts=None):
        self._merges, self.unk_token, self.fuse_unk, self.byte_fallback = merges, unk_token, fuse_unk, byte_fallback
        self.ignore_merges, self.prefix, self.suffix, self.by_token = ignore_merges, prefix, suffix, by_token
        super().__init__(vocab, added, {**({} if unk_token is None else {"unk": unk_token}), **(roles or {})}, config, parts,
                         user_defined)
        rows = bpe.merge_rows(vocab, merges, prefix, by_token)
        self._encoder = bpe.loops.Encoder(None, np.full(256, -1, np.int32), rows)
        found = [vocab.get(f"<0x{b:02X}>") for b in range(256)] if byte_fallback else []
        self._bytes = dict(enumerate(found)) if found and None not in found else None
        if not (prefix or suffix or ignore_merges):
            made = np.bincount(rows[:, 2], minlength=1)
            self._cut_before_marks([self._tokens[i] for i in np.flatnonzero(made).tolist()])

    @property
    def merges(self):
        """Pairs of tokens, best first."""
        if isinstance(self._merges, np.ndarray):
            self._merges = [(self._tokens[left], self._tokens[right]) for left, right, _ in self._merges.tolist()]
        return self._merges

    @cached_property
    def _sizes(self):
        """-> list: of how many symbols each token is made."""
        single = {*(self._bytes or {}).values(), self.vocab.get(self.unk_token), self.unk_id}
        bare = (token.removeprefix(self.prefix).removesuffix(self.suffix) for token in self._tokens)
        return [1 if i in single else max(1, len(token)) for i, token in enumerate(bare)]

    def _word(self, word, spans):
        vocab = self.vocab
        if self.ignore_merges and word in vocab:
            return [vocab[word]], [0], [len(word)]
        if not spans and not self.prefix and not self.suffix:
            symbols = list(map(vocab.get, word))
            if None not in symbols:
                return self._encoder.merged(symbols), None, None
        symbols, starts, ends, unknown, last = [], [], [], False, len(word) - 1
        for i, c in enumerate(word):
            spelled = c
            if self.prefix and i:
                spelled = self.prefix + spelled
            if self.suffix and i == last:
                spelled += self.suffix
            id = vocab.get(spelled)
            if id is None and self._bytes:
                data = utf8(spelled)
                symbols += [self._bytes[byte] for byte in data]
                starts += [i] * len(data)
                ends += [i + 1] * len(data)
                continue
            if id is None:
                if self.unk_token is None:
                    continue
                id = self.unk_id
                if unknown and self.fuse_unk:
                    ends[-1] = i + 1
                    continue
                unknown = True
            else:
                unknown = False
            symbols.append(id)
            starts.append(i)
            ends.append(i + 1)
        ids, at, first, stops = self._encoder.merged(symbols), 0, [], []
        for id in ids:
            first.append(starts[min(at, len(starts) - 1)])
            at += self._sizes[id]
            stops.append(ends[min(at, len(ends)) - 1])
        return ids, first, stops

    def model(self):
        """The model as tokenizer.json writes it."""
        extra = {**({"by_token": True} if self.by_token else {}), **({"user_defined": self.user_defined} if self.user_defined else {})}
        return {"type": "BPE", "dropout": None, "unk_token": self.unk_token, "continuing_subword_prefix": self.prefix or None,
                "end_of_word_suffix": self.suffix or None, "fuse_unk": self.fuse_unk, "byte_fallback": self.byte_fallback,
                "ignore_merges": self.ignore_merges, "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])),
                "merges": [list(merge) for merge in self.merges], **extra}

    @classmethod
    def train(cls, texts, vocab_size, *, special_tokens=("<unk>", "<s>", "</s>"), min_frequency=2, coverage=0.9995, byte_fallback=True,
              max_memory=1 << 30):
        """Learns merges from an iterable of str. The first special token stands for what is unknown; characters beyond `coverage` of the
        text become bytes. Ids: the special tokens, 256 bytes, the characters, the merges; ties as in ByteLevelBPE.train."""
        from .train import sentencepiece_bpe

        parts = {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK}]}}
        parts["decoder"] = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
        words = re.compile(f"{MARK}*[^{MARK}]+|{MARK}+").findall
        tokens, merges = sentencepiece_bpe(texts, vocab_size, special_tokens, min_frequency, parts, words, coverage, byte_fallback,
                                           max_memory)
        added = [AddedToken(i, content) for i, content in enumerate(dict.fromkeys(special_tokens))]
        return cls({token: i for i, token in enumerate(tokens)}, merges, added, unk_token=tokens[0], fuse_unk=True,
                   byte_fallback=byte_fallback, parts=parts)

    @classmethod
    def from_json(cls, model, added, roles, config, parts, get, merges):
        """get(key, kind, default): the checked reader of the model's keys."""
        vocab, unk = get("vocab", dict), get("unk_token", (str, type(None)), None)
        if unk is not None and unk not in vocab:
            raise FormatError(f"model.unk_token is {unk!r:.60}, which the vocabulary lacks")
        return cls(vocab, merges, added, unk_token=unk, fuse_unk=get("fuse_unk", bool, False), by_token=get("by_token", bool, False),
                   user_defined=get("user_defined", list, []),
                   byte_fallback=get("byte_fallback", bool, False), ignore_merges=get("ignore_merges", bool, False),
                   prefix=get("continuing_subword_prefix", (str, type(None)), None) or "",
                   suffix=get("end_of_word_suffix", (str, type(None)), None) or "", roles=roles, config=config, parts=parts)
