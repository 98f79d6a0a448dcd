"""The hot loops over vocabularies of pieces in plain Python: the meaning of _pieces.pyx, and what runs where that was not compiled.

WordPieces takes the longest piece again and again (WordPiece); Lattice finds the best path and expected counts (Unigram).
"""
import math

import numpy as np


class WordPieces:
    """first, rest: lists of bytes, pieces that begin a word and pieces that go on in it, with their ids (int32)."""

    def __init__(self, first, first_ids, rest, rest_ids):
        self.tables = [dict(zip(first, first_ids.tolist())), dict(zip(rest, rest_ids.tolist()))]
        self.longest = [max(map(len, pieces), default=0) for pieces in (first, rest)]

    def split(self, word):
        """word: bytes -> list of ids, or None where no piece fits."""
        ids, i, table, longest = [], 0, self.tables[0], self.longest[0]
        while i < len(word):
            for j in range(min(len(word), i + longest), i, -1):
                if (found := table.get(word[i:j])) is not None:
                    break
            else:
                return None
            ids.append(found)
            i, table, longest = j, self.tables[1], self.longest[1]
        return ids


class Lattice:
    """pieces: list of bytes; ids: (P,) int32; scores: (P,) float64; a character that is no piece has unk_id and unk_score (-1: none)."""

    def __init__(self, pieces, ids, scores, unk_id, unk_score):
        self.table = dict(zip(pieces, zip(ids.tolist(), scores.tolist())))
        self.longest = max(map(len, pieces), default=0)
        self.unk_id, self.unk_score = unk_id, unk_score

    def _nodes(self, data, i):
        """Yields (end, id, score) of the pieces that start at byte i, shortest first, and of the unknown character."""
        step = 1 if data[i] < 0xC0 else 2 if data[i] < 0xE0 else 3 if data[i] < 0xF0 else 4
        single = False
        for j in range(i + 1, min(len(data), i + self.longest) + 1):
            if (found := self.table.get(data[i:j])) is not None:
                single |= j == i + step
                yield j, *found
        if not single:
            yield i + step, self.unk_id, self.unk_score

    def best(self, data, whole=True):
        """data: bytes, UTF-8 -> (list of ids, list of ends), None where there is no path. whole: may one piece be everything?

        Unknown characters side by side are one.
        """
        n = len(data)
        scores, starts, ids = [0.0] + [-math.inf] * n, [-1] * (n + 1), [-1] * (n + 1)
        for i in range(n):
            if i and starts[i] < 0:
                continue
            for j, id, score in self._nodes(data, i):
                if (whole or j - i < n) and (starts[j] < 0 or scores[i] + score > scores[j]) and (id >= 0):
                    scores[j], starts[j], ids[j] = scores[i] + score, i, id
        if n and starts[n] < 0:
            return None
        found, ends, j = [], [], n
        while j > 0:
            if not (found and found[-1] == ids[j] == self.unk_id):
                found.append(ids[j])
                ends.append(j)
            j = starts[j]
        return found[::-1], ends[::-1]

    def expect(self, text, lengths, counts, expected):
        """text: bytes of N words; lengths, counts: (N,) int64; expected: (V,) float64, to which each piece's expected count is added.

        -> sum over words of count * log probability (forward-backward).
        """
        total, start = 0.0, 0
        for length, count in zip(lengths.tolist(), counts.tolist()):
            word, start = text[start:start + length], start + length
            edges = [(i, *node) for i in range(length) if word[i] & 0xC0 != 0x80 for node in self._nodes(word, i)]
            ahead, behind = [-math.inf] * (length + 1), [-math.inf] * (length + 1)
            ahead[0] = behind[length] = 0.0
            for i, j, _, score in edges:
                ahead[j] = np.logaddexp(ahead[j], ahead[i] + score)
            for i, j, _, score in reversed(edges):
                behind[i] = np.logaddexp(behind[i], behind[j] + score)
            for i, j, id, score in edges:
                expected[id] += count * math.exp(ahead[i] + score + behind[j] - ahead[length])
            total += count * ahead[length]
        return total
