"""What WordPiece, Unigram and BPE over characters share: a text is cut into words, each word is looked up or encoded once."""
import re
from itertools import chain

import numpy as np

from ..errors import FormatError
from .base import Tokenizer, by_id
from .decode import Contents
from .pattern import any_of
from .pre_tokenize import by_delimiters, by_words, pre_tokenizer

LONG = 48  # characters; longer words are not remembered
MANY = 1 << 16  # words
MARK = "\u2581"  # a space, as pieces spell it


class Known(dict):
    """word -> what `encode(word)` gave, for at most MANY words of at most LONG characters."""

    def __init__(self, encode):
        self.encode = encode

    def __missing__(self, word):
        found = self.encode(word)
        if len(word) <= LONG:
            if len(self) >= MANY:
                self.clear()
            self[word] = found
        return found


class WordTokenizer(Tokenizer):
    """Abstract. A subclass gives `_word(word, spans) -> (list of ids, list of their starts, list of their ends in the word, in
    characters)`; without `spans` the ids alone count.

    vocab: {token: id}; added: AddedTokens; together ids 0 .. V-1; user_defined: ids of tokens that are found in normalized text and
    taken whole, as SentencePiece has it; the other arguments: see Tokenizer.
    """

    def __init__(self, vocab, added, roles, config, parts, user_defined=()):
        self.vocab, self.user_defined = vocab, sorted(user_defined)
        tokens = by_id(vocab, added)
        parts = dict(parts or {})
        spec = parts.get("pre_tokenizer")
        self._steps, self._cuts = [] if spec is None else [pre_tokenizer(spec)], []
        later, first = (Contents(parts.get("decoder"), tokens, at_first) for at_first in (False, True))
        super().__init__(tokens, later, added, roles, config, parts, first)
        if not all(type(i) is int and 0 <= i < len(tokens) and tokens[i] for i in self.user_defined):
            raise FormatError(f"user_defined holds {self.user_defined[:5]}, expected ids below {len(tokens)}")
        self._user = {tokens[i]: i for i in self.user_defined}
        if self._user:
            self._cuts.append(by_delimiters(re.compile(any_of(self._user)), "Isolated"))
        self._known = Known(lambda word: self._whole(word, False)[0])
        self._spans = Known(lambda word: self._whole(word, True))

    def _whole(self, word, spans):
        return self._word(word, spans) if word not in self._user else ([self._user[word]], [0], [len(word)])

    def _word(self, word, spans):
        """One word, not empty."""
        raise NotImplementedError

    def words(self, text, src=None, start=0):
        """Normalized text -> (list of words, None or list of (n,) places in the original)."""
        words, srcs = [text], None if src is None else [src]
        for step in (*self._steps, *self._cuts):
            words, srcs = step(words, srcs, start == 0)
        return words, srcs

    def _cut_before_marks(self, tokens):
        """Lets text be cut before runs of MARKs, where that changes no id: no token reaches across. tokens: all that text can become."""
        inside = {c for token in tokens if MARK in token[1:] for c in re.findall(f"([^{MARK}])(?={MARK})", token)}
        if self._steps or len(inside) > 64:
            return
        joined = f"|(?<=[{''.join(map(re.escape, sorted(inside)))}]){MARK}+" if inside else ""
        run = f"(?:[^{MARK}]+{joined})+" if joined else f"[^{MARK}]+"
        self._cuts += [by_words(re.compile(f"{MARK}*{run}|{MARK}+"))]

    def _encode_text(self, text, src, start):
        words, srcs = self.words(text, src, start)
        if srcs is None:
            return np.array(list(chain.from_iterable(map(self._known.__getitem__, words))), np.uint32), None
        found = [self._spans[word] for word in words]
        ids, starts, ends = (np.fromiter(chain.from_iterable(part[k] for part in found), np.int64) for k in range(3))
        sizes = np.array([len(word) for word in words], np.int64)  # places in words -> places in all words, one behind the other
        base = np.repeat(np.cumsum(sizes) - sizes, [len(part[0]) for part in found])
        places = np.concatenate([src[:0], *srcs])
        return ids.astype(np.uint32), np.stack([places[base + starts], places[base + ends - 1] + 1], 1)


def utf8(text):
    return text.encode("utf-8", "surrogatepass")


def char_spans(word, ends):
    """Byte places in the word's UTF-8 where tokens end -> their starts and ends in characters."""
    if not word.isascii():
        data, done, places = utf8(word), 0, []
        for end in ends:
            places.append((places[-1] if places else 0) + len(data[done:end].decode("utf-8", "replace")))
            done = end
        ends = places
    return [0, *ends[:-1]], ends
