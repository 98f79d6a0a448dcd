"""The hot loops of byte-level BPE in plain Python: the meaning of _bpe.pyx, and what runs where that was not compiled.

Scanner splits, Encoder merges, WordCounter counts words, Trainer learns merges. Both files give the same ids, words and merges.
"""
from heapq import heapify, heappop, heappush

import numpy as np

from .unicode import NEWLINE, SPACE, WHITE

_BLANK = 1 << SPACE | 1 << NEWLINE | 1 << WHITE
_SHORT = ("s", "t", "m", "d")
_LONG = ("re", "ve", "ll")


class Scanner:
    """Splits UTF-8 by a Pattern. A byte that is not UTF-8 counts as a character of class OTHER."""

    def __init__(self, table, rules, contractions, newlines, edge, cased):
        self.table, self.rules, self.contractions, self.newlines, self.edge = table, rules, contractions, newlines, edge
        self.before, self.upper, self.lower = cased

    def words(self, data):
        """data: bytes -> list of bytes whose concatenation is `data`."""
        text = data.decode("utf-8", "surrogateescape")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = self.table[points].tobytes()
        words, i = [], 0
        while i < len(text):
            j = self._next(text, kinds, i)
            words.append(text[i:j].encode("utf-8", "surrogateescape"))
            i = j
        return words

    def _contraction(self, text, i):
        """The end of the contraction whose apostrophe is at i, or 0."""
        tail = text[i + 1:i + 3]
        if self.contractions == 2:
            tail = "".join("s" if c == "\u017f" else c.lower() if c.isascii() else c for c in tail)
        return i + 2 if tail[:1] in _SHORT else i + 3 if tail in _LONG else 0

    def _run(self, kinds, i, members):
        while i < len(kinds) and members >> kinds[i] & 1:
            i += 1
        return i

    def _cased(self, text, kinds, i):
        """The end of the word in upper, title or lower case that starts at i, or 0."""
        starts = [i + 1, i] if self.before >> kinds[i] & 1 else [i]
        for j in starts:  # upper* lower+; where lower+ finds nothing, upper* gives back what is in both sets
            k = self._run(kinds, j, self.upper)
            end = self._run(kinds, k, self.lower)
            while end == k and k > j and not self.lower >> kinds[k - 1] & 1:
                k, end = k - 1, k - 1
            if end > j:
                break
        else:
            end = next((k for j in starts if (k := self._run(kinds, j, self.upper)) > j), 0)
        return (end < len(text) and text[end] == "'" and self._contraction(text, end) or end) if end else 0

    def _next(self, text, kinds, i):
        n, kind = len(text), kinds[i]
        if self.before:
            if end := self._cased(text, kinds, i):
                return end
        elif self.contractions and text[i] == "'":
            if end := self._contraction(text, i):
                return end
        for prefix, body, most, tail in self.rules:
            j = i + 1 if prefix >> kind & 1 and i + 1 < n and body >> kinds[i + 1] & 1 else i
            if body >> kinds[j] & 1:
                stop = min(n, j + most)
                while j < stop and body >> kinds[j] & 1:
                    j += 1
                while j < n and tail >> kinds[j] & 1:
                    j += 1
                return j
        j, line = i, 0
        while j < n and _BLANK >> kinds[j] & 1:
            j += 1
            if kinds[j - 1] == NEWLINE:
                line = j
        if self.newlines and line:
            return line
        return j if j == n or j - i == 1 or self.edge >> kinds[j] & 1 else j - 1


class Encoder:
    """byte_ids:(256,) int32, -1 where the vocabulary lacks the byte; merges:(M, 4) int32 rows left, right, new, rank, lowest first; merges
    of one rank make one token.

    whole: dict bytes -> id of words taken as they are, or None. `dropped`: the last byte that had no id, or -1.
    """

    CACHE = 1 << 16  # words

    def __init__(self, scanner, byte_ids, merges, whole=None):
        self.scanner, self.whole, self.dropped = scanner, whole, -1
        self.byte_ids = byte_ids.tolist()
        self.merges = {(left, right): (rank, new) for left, right, new, rank in merges.tolist()}
        self.cache = {}

    def encode(self, data):
        """data: bytes -> bytearray holding uint32 ids."""
        ids = []
        for word in self.scanner.words(data) if self.scanner else [data] if data else []:
            known = self.cache.get(word)
            if known is None:
                known = self._merge(word)
                if len(word) <= 48:
                    if len(self.cache) >= self.CACHE:
                        self.cache.clear()
                    self.cache[word] = known
            ids += known
        return bytearray(np.array(ids, np.uint32).tobytes())

    def _merge(self, word):
        if self.whole is not None and word in self.whole:
            return [self.whole[word]]
        symbols = []
        for byte in word:
            if self.byte_ids[byte] < 0:
                self.dropped = byte
            else:
                symbols.append(self.byte_ids[byte])
        return self.merged(symbols)

    def merged(self, symbols):
        """symbols: list of the ids of a word's first symbols -> list of ids after merging.

        Repeats the best-ranked merge, leftmost first: a linked list of symbols and a heap of (rank, position).
        """
        n, merges = len(symbols), self.merges
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        heap = [(merges[pair][0], i) for i, pair in enumerate(zip(symbols, symbols[1:])) if pair in merges]
        heapify(heap)
        while heap:
            rank, i = heappop(heap)
            j = after[i]
            found = merges.get((symbols[i], symbols[j])) if symbols[i] >= 0 and j < n else None
            if found is None or found[0] != rank:  # one of the two was merged away in the meantime
                continue
            symbols[i], symbols[j] = found[1], -1
            after[i] = after[j]
            if after[i] < n:
                before[after[i]] = i
                if (right := merges.get((symbols[i], symbols[after[i]]))) is not None:
                    heappush(heap, (right[0], i))
            if before[i] >= 0 and (left := merges.get((symbols[before[i]], symbols[i]))) is not None:
                heappush(heap, (left[0], before[i]))
        return [s for s in symbols if s >= 0]


class WordCounter:
    """Counts words so that they and learning from them take about `limit` bytes: beyond it the rarest are forgotten, down to half."""

    ENTRY, BYTE = 1000, 60  # bytes that a word takes, and each of its bytes, in lists and dicts

    def __init__(self, scanner, limit):
        self.scanner, self.limit = scanner, limit
        self.counts, self.size, self.pruned = {}, 0, 0

    def add(self, data):
        """data: bytes of one text."""
        for word in self.scanner.words(data):
            if word not in self.counts:
                if self.size > self.limit:
                    self._prune()
                self.size += self.ENTRY + self.BYTE * len(word)
            self.counts[word] = self.counts.get(word, 0) + 1

    def _prune(self):
        floor = 1
        while self.size > self.limit // 2:
            floor *= 2
            kept = {word: count for word, count in self.counts.items() if count >= floor}
            self.pruned += len(self.counts) - len(kept)
            self.counts = kept
            self.size = self.ENTRY * len(kept) + self.BYTE * sum(map(len, kept))

    def words(self):
        """-> (text of all words, lengths:(N,) int64, counts:(N,) int64)."""
        return (b"".join(self.counts), np.fromiter(map(len, self.counts), np.int64, len(self.counts)),
                np.fromiter(self.counts.values(), np.int64, len(self.counts)))


class Trainer:
    """Learns merges from counted words. symbols: (S,) int32, the words' first ids; lengths, counts: (N,) int64; tokens: list of str by id,
    extended by every new token; prefix: what tokens inside a word begin with, left out where two are joined."""

    def __init__(self, symbols, lengths, counts, tokens, min_frequency, prefix):
        ids, self.counts, self.prefix = symbols.tolist(), counts.tolist(), len(prefix)
        ends = np.cumsum(lengths).tolist()
        self.symbols = [ids[end - length:end] for end, length in zip(ends, lengths.tolist())]
        self.tokens, self.ids = tokens, {token: i for i, token in enumerate(tokens)}
        self.min_frequency, self.total, where = min_frequency, {}, {}
        for w, symbols in enumerate(self.symbols):
            for pair in zip(symbols, symbols[1:]):
                self.total[pair] = self.total.get(pair, 0) + self.counts[w]
                where.setdefault(pair, {})[w] = None
        self.heap = [(-self.total[pair], pair, tuple(words)) for pair, words in where.items()]
        heapify(self.heap)

    def step(self, vocab_size, most):
        """-> list of at most `most` new merges (left, right, new); empty when nothing is left to merge."""
        merges = []
        while len(merges) < most and len(self.ids) < vocab_size and self.heap:
            count, pair, words = heappop(self.heap)
            if -count != self.total[pair]:  # merges since then took occurrences away
                if self.total[pair] > 0:
                    heappush(self.heap, (-self.total[pair], pair, words))
                continue
            if -count < max(self.min_frequency, 1):
                self.heap.clear()
                break
            token = self.tokens[pair[0]] + self.tokens[pair[1]][self.prefix:]
            new = self.ids.setdefault(token, len(self.tokens))  # two ways of building one token share its id
            if new == len(self.tokens):
                self.tokens.append(token)
            merges.append((*pair, new))
            self._apply(pair, new, words)
        return merges

    def _apply(self, pair, new, words):
        where = {}
        for w in words:
            old, out, i = self.symbols[w], [], 0
            while i < len(old):
                if i + 1 < len(old) and (old[i], old[i + 1]) == pair:
                    changes = [((out[-1], pair[0]), -1), ((out[-1], new), 1)] if out else []
                    if i + 2 < len(old):
                        changes += [((pair[1], old[i + 2]), -1), ((new, old[i + 2]), 1)]
                    for near, sign in changes:
                        self.total[near] = self.total.get(near, 0) + sign * self.counts[w]
                        if sign > 0:
                            where.setdefault(near, {})[w] = None
                    out.append(new)
                    i += 2
                else:
                    out.append(old[i])
                    i += 1
            self.symbols[w] = out
        for near, found in where.items():
            if self.total[near] > 0:
                heappush(self.heap, (-self.total[near], near, tuple(found)))
