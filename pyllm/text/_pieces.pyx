# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot loops over vocabularies of pieces: the longest piece again and again, the best path. _pieces_py.py: the same in plain Python."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport INFINITY, exp, log1p

include "_maps.pxi"

cdef enum:
    NONE = 0x7FFFFFFF


cdef inline double log_add(double a, double b) noexcept nogil:
    if a < b:
        a, b = b, a
    return a if b == -INFINITY else a + log1p(exp(b - a))


cdef class Trie:
    """bytes -> number. Node 0 is the root."""
    cdef PairMap children
    cdef vector[int32_t] values  # of each node, -1: none

    def __cinit__(self):
        self.children = PairMap()
        self.values.push_back(-1)

    cdef int put(self, bytes key, int32_t value) except -1:
        cdef text_t s = <text_t>PyBytes_AS_STRING(key)
        cdef Py_ssize_t i
        cdef int32_t node = 0, child
        for i in range(PyBytes_GET_SIZE(key)):
            child = self.children.get(node, s[i])
            if child < 0:
                child = <int32_t>self.values.size()
                self.children.put((<uint64_t><uint32_t>node << 32) | s[i], child)
                self.values.push_back(-1)
            node = child
        self.values[node] = value
        return 0

    cdef inline int32_t step(self, int32_t node, uint8_t byte) noexcept nogil:
        return self.children.get(node, byte)


cdef class WordPieces:
    cdef Trie first, rest

    def __init__(self, first, first_ids, rest, rest_ids):
        self.first, self.rest = Trie(), Trie()
        for piece, id in zip(first, first_ids.tolist()):
            self.first.put(piece, id)
        for piece, id in zip(rest, rest_ids.tolist()):
            self.rest.put(piece, id)

    def split(self, bytes word):
        """word: bytes -> list of ids, or None where no piece fits."""
        cdef text_t s = <text_t>PyBytes_AS_STRING(word)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(word), i = 0, j, end
        cdef int32_t node, found
        cdef Trie trie = self.first
        ids = []
        while i < n:
            node, found, end, j = 0, -1, i, i
            while j < n:
                node = trie.step(node, s[j])
                if node < 0:
                    break
                j += 1
                if trie.values[node] >= 0:
                    found, end = trie.values[node], j
            if found < 0:
                return None
            ids.append(found)
            i, trie = end, self.rest
        return ids


cdef class Lattice:
    cdef Trie trie
    cdef vector[double] scores, best_scores, ahead, behind  # scores: by number of a piece
    cdef vector[int32_t] ids, starts, best_ids
    cdef int32_t unk_id
    cdef double unk_score

    def __init__(self, pieces, ids, scores, unk_id, unk_score):
        cdef const double[::1] score = scores
        cdef const int32_t[::1] id = ids
        cdef Py_ssize_t k
        self.trie, self.unk_id, self.unk_score = Trie(), unk_id, unk_score
        for k, piece in enumerate(pieces):
            self.trie.put(piece, <int32_t>k)
            self.scores.push_back(score[k])
            self.ids.push_back(id[k])

    cdef inline int size(self, uint8_t lead) noexcept nogil:
        """Bytes of the character that starts with `lead`."""
        return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4

    cdef inline void relax(self, Py_ssize_t i, Py_ssize_t j, int32_t id, double score) noexcept nogil:
        score += self.best_scores[i]
        if self.starts[j] < 0 or score > self.best_scores[j]:
            self.best_scores[j], self.starts[j], self.best_ids[j] = score, <int32_t>i, id

    def best(self, bytes data, bint whole=True):
        """data: bytes, UTF-8 -> (list of ids, list of ends), None where there is no path. whole: may one piece be everything?"""
        cdef text_t s = <text_t>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i, j
        cdef int32_t node, piece, last = -2
        cdef bint single
        if n >= NONE:
            raise ValueError(f"encode: one text of {n} bytes; at most {NONE - 1} are taken at once: split it into documents")
        self.best_scores.assign(n + 1, 0.0)
        self.starts.assign(n + 1, -1)
        self.best_ids.assign(n + 1, -1)
        for i in range(n):
            if i and self.starts[i] < 0:
                continue
            node, single = 0, False
            for j in range(i, n):
                node = self.trie.step(node, s[j])
                if node < 0:
                    break
                piece = self.trie.values[node]
                if piece >= 0:
                    single |= j + 1 == i + self.size(s[i])
                    if whole or j + 1 - i < n:
                        self.relax(i, j + 1, self.ids[piece], self.scores[piece])
            j = i + self.size(s[i])
            if not single and self.unk_id >= 0 and j <= n and (whole or j - i < n):
                self.relax(i, j, self.unk_id, self.unk_score)
        if n and self.starts[n] < 0:
            return None
        found, ends = [], []
        j = n
        while j > 0:
            if not (last == self.unk_id and self.best_ids[j] == self.unk_id):
                found.append(self.best_ids[j])
                ends.append(j)
            last = self.best_ids[j]
            j = self.starts[j]
        if n > 1 << 20:  # a giant's memory is given back
            self.best_scores, self.starts, self.best_ids = vector[double](), vector[int32_t](), vector[int32_t]()
        return found[::-1], ends[::-1]

    def expect(self, bytes text, lengths, counts, double[::1] expected):
        """text: bytes of N words; lengths, counts: (N,) int64; expected: (V,) float64, to which each piece's expected count is added."""
        cdef const int64_t[::1] length = lengths, count = counts
        cdef text_t s = <text_t>PyBytes_AS_STRING(text)
        cdef Py_ssize_t w, n, i
        cdef double total = 0.0
        for w in range(length.shape[0]):
            n = length[w]
            self.ahead.assign(n + 1, -INFINITY)
            self.behind.assign(n + 1, -INFINITY)
            self.ahead[0] = self.behind[n] = 0.0
            for i in range(n):
                if s[i] & 0xC0 != 0x80:
                    self.spread(s, n, i, 0, 0.0, expected)
            for i in range(n - 1, -1, -1):
                if s[i] & 0xC0 != 0x80:
                    self.spread(s, n, i, 1, 0.0, expected)
            for i in range(n):
                if s[i] & 0xC0 != 0x80:
                    self.spread(s, n, i, 2, <double>count[w], expected)
            total += count[w] * self.ahead[n]
            s += n
        return total

    cdef inline void spread(self, text_t s, Py_ssize_t n, Py_ssize_t i, int what, double count, double[::1] expected) noexcept nogil:
        """Over the pieces that start at byte i: 0 adds to the sums ahead, 1 to those behind, 2 to the expected counts."""
        cdef int32_t node = 0, piece
        cdef Py_ssize_t j
        cdef bint single = False
        for j in range(i, n):
            node = self.trie.step(node, s[j])
            if node < 0:
                break
            piece = self.trie.values[node]
            if piece >= 0:
                single |= j + 1 == i + self.size(s[i])
                self.edge(n, i, j + 1, self.ids[piece], self.scores[piece], what, count, expected)
        if not single:
            self.edge(n, i, i + self.size(s[i]), self.unk_id, self.unk_score, what, count, expected)

    cdef inline void edge(self, Py_ssize_t n, Py_ssize_t i, Py_ssize_t j, int32_t id, double score, int what, double count,
                          double[::1] expected) noexcept nogil:
        if what == 0:
            self.ahead[j] = log_add(self.ahead[j], self.ahead[i] + score)
        elif what == 1:
            self.behind[i] = log_add(self.behind[i], self.behind[j] + score)
        else:
            expected[id] += count * exp(self.ahead[i] + score + self.behind[j] - self.ahead[n])
