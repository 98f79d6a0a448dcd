# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot loops of byte-level BPE: splitting, merging, counting, learning. _bpe_py.py is the same in plain Python."""
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libcpp.algorithm cimport make_heap, pop_heap, push_heap
from libcpp.pair cimport pair

import numpy as np

include "_maps.pxi"

cdef enum:
    SPACE = 1  # as in unicode.py
    NEWLINE = 2
    WHITE = 3
    BLANK = 14  # their set
    RULES = 8
    CACHE = 1 << 16  # words
    SHORT = 48  # words up to this many bytes are cached, and merged by scanning instead of by heap
    NONE = 0x7FFFFFFF

cdef struct Rule:
    uint32_t prefix
    uint32_t body
    uint32_t tail
    int64_t most


cdef class Scanner:
    cdef const uint8_t[::1] view
    cdef text_t table
    cdef Rule rules[RULES]
    cdef int n_rules, contractions
    cdef bint newlines
    cdef uint32_t edge, before, upper, lower

    def __init__(self, table, rules, contractions, newlines, edge, cased):
        if table.shape[0] != 0x110000 or len(rules) > RULES:
            raise ValueError(f"Scanner: {table.shape[0]} classes and {len(rules)} rules, expected 1114112 and at most {RULES}")
        self.view, self.contractions, self.newlines, self.edge = table, contractions, newlines, edge
        self.table, self.n_rules = &self.view[0], len(rules)
        self.before, self.upper, self.lower = cased
        for i, rule in enumerate(rules):
            self.rules[i].prefix, self.rules[i].body, self.rules[i].most, self.rules[i].tail = rule

    def words(self, bytes data):
        """data: bytes -> list of bytes whose concatenation is `data`."""
        cdef text_t s = <text_t>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = 0, j
        found = []
        while i < n:
            j = self.next(s, n, i)
            found.append(data[i:j])
            i = j
        return found

    cdef inline uint32_t kind(self, text_t s, Py_ssize_t n, Py_ssize_t i, int* size) noexcept nogil:
        """The class of the character at i < n as a bit, and its length in bytes."""
        cdef uint32_t c = s[i]
        cdef int more = 1 if c < 0xE0 else 2 if c < 0xF0 else 3, k
        size[0] = 1
        if c < 0x80:
            return 1u << self.table[c]
        if c < 0xC2 or c > 0xF4 or i + more >= n:
            return 1  # a byte that is not UTF-8: OTHER
        c &= 0x3F >> more
        for k in range(1, more + 1):
            if s[i + k] & 0xC0 != 0x80:
                return 1
            c = (c << 6) | (s[i + k] & 0x3F)
        if c < 1u << (5 * more + 1) or 0xD800 <= c <= 0xDFFF or c > 0x10FFFF:
            return 1
        size[0] = more + 1
        return 1u << self.table[c]

    cdef inline Py_ssize_t run(self, text_t s, Py_ssize_t n, Py_ssize_t i, uint32_t members, int64_t most) noexcept nogil:
        cdef int size
        while i < n and most > 0 and self.kind(s, n, i, &size) & members:
            i += size
            most -= 1
        return i

    cdef Py_ssize_t contraction(self, text_t s, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
        """The end of the contraction whose apostrophe is at i, or 0."""
        cdef uint8_t fold = 0x20 if self.contractions == 2 else 0
        cdef uint8_t a = s[i + 1] | fold if i + 1 < n else 0, b = s[i + 2] | fold if i + 2 < n else 0
        if a == c's' or a == c't' or a == c'm' or a == c'd':
            return i + 2
        if (a == c'r' and b == c'e') or (a == c'v' and b == c'e') or (a == c'l' and b == c'l'):
            return i + 3
        if fold and i + 2 < n and s[i + 1] == 0xC5 and s[i + 2] == 0xBF:  # U+017F, an s to case-blind engines
            return i + 3
        return 0

    cdef Py_ssize_t cased(self, text_t s, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
        """The end of the word in upper, title or lower case that starts at i, or 0."""
        cdef int size, skip = 0
        cdef Py_ssize_t j, k, both, end = 0, upper = 0
        cdef uint32_t here
        if self.kind(s, n, i, &size) & self.before:
            skip = size
        while True:  # upper* lower+; where lower+ finds nothing, upper* gives back what is in both sets
            j = k = i + skip
            both = 0
            while k < n:
                here = self.kind(s, n, k, &size)
                if not here & self.upper:
                    break
                k += size
                if here & self.lower:
                    both = k
            if k > j and not upper:
                upper = k
            end = self.run(s, n, k, self.lower, n)
            if end == k:
                end = both
            if end or not skip:
                break
            skip = 0
        end = end or upper
        if end and end < n and s[end] == c"'":
            end = self.contraction(s, n, end) or end
        return end

    cdef Py_ssize_t next(self, text_t s, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
        """The end of the word that starts at i < n."""
        cdef int size, r
        cdef Py_ssize_t j, last, line = 0
        cdef uint32_t first = self.kind(s, n, i, &size), second = 0, here
        if self.before:
            j = self.cased(s, n, i)
            if j:
                return j
        elif self.contractions and s[i] == c"'":
            j = self.contraction(s, n, i)
            if j:
                return j
        j = i + size
        if j < n:
            second = self.kind(s, n, j, &size)
        for r in range(self.n_rules):
            if self.rules[r].prefix & first and self.rules[r].body & second:
                j = self.run(s, n, j, self.rules[r].body, self.rules[r].most)
            elif self.rules[r].body & first:
                j = self.run(s, n, i, self.rules[r].body, self.rules[r].most)
            else:
                continue
            return self.run(s, n, j, self.rules[r].tail, n) if self.rules[r].tail else j
        j = last = i
        here = first
        while j < n:
            here = self.kind(s, n, j, &size)
            if not here & BLANK:
                break
            last = j
            j += size
            if here & (1 << NEWLINE):
                line = j
        if self.newlines and line:
            return line
        return j if j == n or last == i or here & self.edge else last


cdef struct Word:
    uint64_t hash, start, n  # its text is text[start:start + n]; n == 0: a free slot
    int64_t value


cdef class WordTable:
    """bytes -> int64; open addressing, at most half full."""
    cdef vector[Word] slots
    cdef vector[uint8_t] text
    cdef size_t used

    def __cinit__(self):
        self.clear(1 << 12)

    cdef int clear(self, size_t slots) except -1:
        cdef Word free
        free.hash = free.start = free.n = 0
        free.value = 0
        self.slots.assign(slots, free)
        self.used = 0
        return 0

    cdef inline Word* find(self, text_t s, uint64_t n, uint64_t h) noexcept nogil:
        """The word's slot, or the free one where it belongs."""
        cdef uint64_t last = self.slots.size() - 1, i = h & last
        cdef Word* word = &self.slots[i]
        while word.n and (word.hash != h or word.n != n or memcmp(&self.text[word.start], s, n)):
            i = (i + 1) & last
            word = &self.slots[i]
        return word

    cdef int put(self, text_t s, uint64_t n, uint64_t h, int64_t value) except -1:
        cdef Word* word
        if 2 * self.used >= self.slots.size():
            self.rebuild(2 * self.slots.size(), 0)
        word = self.find(s, n, h)
        word.hash, word.n, word.start, word.value = h, n, self.text.size(), value
        self.text.insert(self.text.end(), s, s + n)
        self.used += 1
        return 0

    cdef int rebuild(self, size_t slots, int64_t floor) except -1:
        """Keeps the words whose value is at least `floor`, in `slots` slots."""
        cdef vector[Word] words
        cdef vector[uint8_t] text
        cdef Word word
        words.swap(self.slots)
        text.swap(self.text)
        self.clear(slots)
        for word in words:
            if word.n and word.value >= floor:
                self.put(text.data() + word.start, word.n, word.hash, word.value)
        return 0


cdef class Encoder:
    cdef Scanner scanner
    cdef dict whole
    cdef PairMap merges
    cdef vector[int32_t] new_ids, symbols
    cdef vector[uint32_t] out, known_ids
    cdef WordTable known  # word -> place in known_ids, where the number of its ids and the ids are
    cdef int32_t byte_ids[256]
    cdef public int dropped

    def __init__(self, Scanner scanner, byte_ids, merges, whole=None):
        cdef const int32_t[:, ::1] rows = merges
        cdef Py_ssize_t i
        self.scanner, self.whole, self.dropped, self.merges = scanner, whole, -1, PairMap()
        for i in range(256):
            self.byte_ids[i] = byte_ids[i]
        self.new_ids.resize(1 + (merges[:, 3].max() if len(merges) else 0))
        for i in range(rows.shape[0]):
            self.merges.put((<uint64_t><uint32_t>rows[i, 0] << 32) | <uint32_t>rows[i, 1], rows[i, 3])
            self.new_ids[rows[i, 3]] = rows[i, 2]
        self.known = WordTable()

    def encode(self, bytes data):
        """data: bytes -> bytearray holding uint32 ids."""
        cdef text_t s = <text_t>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = 0, j
        if n >= NONE:
            raise ValueError(f"encode: one text of {n} bytes; at most {NONE - 1} are taken at once: split it into documents")
        self.out.clear()
        while i < n:
            j = self.scanner.next(s, n, i) if self.scanner is not None else n
            if j - i <= SHORT:
                self.look_up(s + i, j - i)
            else:
                self.merge(s + i, j - i)
            i = j
        return PyByteArray_FromStringAndSize(<char*>self.out.data(), 4 * self.out.size())

    def merged(self, list symbols):
        """symbols: list of the ids of a word's first symbols -> list of ids after merging."""
        cdef int32_t symbol
        self.symbols.clear()
        self.out.clear()
        for symbol in symbols:
            self.symbols.push_back(symbol)
        if self.symbols.size() <= SHORT:
            self.merge_short()
        else:
            self.merge_long()
        return list(self.out)

    cdef int look_up(self, text_t s, Py_ssize_t n) except -1:
        """Appends the ids of a word of at most SHORT bytes, from the cache if it is there."""
        cdef uint64_t h = hash_bytes(s, n)
        cdef Word* word = self.known.find(s, n, h)
        cdef size_t i, start = self.out.size()
        cdef uint32_t* ids
        if word.n:
            ids = &self.known_ids[word.value]
            for i in range(ids[0]):
                self.out.push_back(ids[i + 1])
            return 0
        self.merge(s, n)
        if self.known.used >= CACHE:
            self.known = WordTable()
            self.known_ids.clear()
        self.known.put(s, n, h, self.known_ids.size())
        self.known_ids.push_back(<uint32_t>(self.out.size() - start))
        for i in range(start, self.out.size()):
            self.known_ids.push_back(self.out[i])
        return 0

    cdef int merge(self, text_t s, Py_ssize_t n) except -1:
        """Appends the ids of a word, without the cache."""
        cdef Py_ssize_t i
        if self.whole is not None:
            found = self.whole.get(PyBytes_FromStringAndSize(<char*>s, n))
            if found is not None:
                self.out.push_back(found)
                return 0
        self.symbols.clear()
        for i in range(n):
            if self.byte_ids[s[i]] < 0:
                self.dropped = s[i]
            else:
                self.symbols.push_back(self.byte_ids[s[i]])
        if self.symbols.size() <= SHORT:
            return self.merge_short()
        return self.merge_long()

    cdef inline int32_t rank(self, int32_t left, int32_t right) noexcept nogil:
        cdef int32_t found = self.merges.get(left, right)
        return NONE if found < 0 else found

    cdef int merge_short(self) except -1:
        """Looks for the best pair again and again: quick for few symbols."""
        cdef int32_t ranks[SHORT]
        cdef int32_t m = <int32_t>self.symbols.size(), i, best
        cdef int32_t* ids = self.symbols.data()
        for i in range(m - 1):
            ranks[i] = self.rank(ids[i], ids[i + 1])
        while m > 1:
            best = 0
            for i in range(1, m - 1):
                if ranks[i] < ranks[best]:
                    best = i
            if ranks[best] == NONE:
                break
            ids[best] = self.new_ids[ranks[best]]
            m -= 1
            memmove(ids + best + 1, ids + best + 2, 4 * (m - best - 1))
            memmove(ranks + best, ranks + best + 1, 4 * (m - best - 1))
            if best + 1 < m:
                ranks[best] = self.rank(ids[best], ids[best + 1])
            if best > 0:
                ranks[best - 1] = self.rank(ids[best - 1], ids[best])
        for i in range(m):
            self.out.push_back(ids[i])
        return 0

    cdef int merge_long(self) except -1:
        """A linked list of symbols and a heap of ranks and places: n log n whatever the text."""
        cdef vector[int32_t] before, after
        cdef vector[uint64_t] heap  # complements of rank << 32 | place, so that the best is the largest
        cdef int32_t m = <int32_t>self.symbols.size(), i, j, k, rank
        cdef int32_t* ids = self.symbols.data()
        cdef uint64_t top
        before.resize(m)
        after.resize(m)
        for i in range(m):
            before[i], after[i] = i - 1, i + 1
            rank = self.rank(ids[i], ids[i + 1]) if i + 1 < m else NONE
            if rank != NONE:
                heap.push_back(~((<uint64_t>rank << 32) | <uint32_t>i))
        make_heap(heap.begin(), heap.end())
        while heap.size():
            pop_heap(heap.begin(), heap.end())
            top = ~heap.back()
            heap.pop_back()
            i, rank = <int32_t>(top & 0xFFFFFFFF), <int32_t>(top >> 32)
            j = after[i]
            if ids[i] < 0 or j >= m or self.rank(ids[i], ids[j]) != rank:
                continue  # one of the two was merged away in the meantime
            ids[i], ids[j] = self.new_ids[rank], -1
            after[i] = after[j]
            if after[i] < m:
                before[after[i]] = i
            for k in (before[i], i):  # the pairs that the new symbol forms
                if k < 0 or after[k] >= m:
                    continue
                rank = self.rank(ids[k], ids[after[k]])
                if rank != NONE:
                    heap.push_back(~((<uint64_t>rank << 32) | <uint32_t>k))
                    push_heap(heap.begin(), heap.end())
        for i in range(m):
            if ids[i] >= 0:
                self.out.push_back(ids[i])
        if m > 1 << 20:  # a giant's memory is given back
            self.symbols = vector[int32_t]()
        return 0


cdef class WordCounter:
    cdef Scanner scanner
    cdef WordTable table
    cdef size_t limit
    cdef readonly Py_ssize_t pruned

    def __init__(self, Scanner scanner, limit):
        self.scanner, self.limit, self.pruned, self.table = scanner, limit, 0, WordTable()

    def add(self, bytes data):
        """data: bytes of one text."""
        cdef text_t s = <text_t>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = 0, j
        while i < n:
            j = self.scanner.next(s, n, i)
            self.count(s + i, j - i)
            i = j

    cdef int count(self, text_t s, Py_ssize_t n) except -1:
        cdef uint64_t h = hash_bytes(s, n)
        cdef Word* word = self.table.find(s, n, h)
        if word.n:
            word.value += 1
            return 0
        if self.size() > self.limit:
            self.prune()
        return self.table.put(s, n, h, 1)

    cdef inline size_t size(self) noexcept nogil:
        return 16 * self.table.text.size() + 160 * self.table.used  # with what learning from the words takes

    cdef int prune(self) except -1:
        cdef int64_t floor = 1
        cdef size_t before = self.table.used
        while self.size() > self.limit // 2:
            floor *= 2
            self.table.rebuild(self.table.slots.size(), floor)
        self.pruned += before - self.table.used
        return 0

    def words(self):
        """-> (text of all words, lengths:(N,) int64, counts:(N,) int64)."""
        cdef Word word
        cdef Py_ssize_t w = 0
        cdef int64_t[:, ::1] row = np.empty((self.table.used, 3), np.int64)
        for word in self.table.slots:
            if word.n:
                row[w, 0], row[w, 1], row[w, 2] = word.start, word.n, word.value
                w += 1
        rows = np.asarray(row)
        rows = rows[np.argsort(rows[:, 0])]  # in the order of their text
        return (PyBytes_FromStringAndSize(<char*>self.table.text.data(), self.table.text.size()), np.ascontiguousarray(rows[:, 1]),
                np.ascontiguousarray(rows[:, 2]))


# a merge to come: its count, the complement of its pair (so that of equal counts the smaller ids are on top), its list of words
ctypedef pair[int64_t, pair[uint64_t, int64_t]] Candidate


cdef class Trainer:
    cdef vector[int32_t] symbols
    cdef vector[int64_t] starts, counts, totals  # totals: by number of a pair
    cdef vector[int32_t] sizes, fresh  # fresh: the pair's list of words in the current merge, or -1
    cdef vector[uint64_t] pairs
    cdef vector[vector[int32_t]] lists
    cdef vector[int32_t] free_lists, touched
    cdef vector[Candidate] heap
    cdef PairMap numbers
    cdef dict ids
    cdef list tokens
    cdef int64_t min_frequency, prefix

    def __init__(self, symbols, lengths, counts, list tokens, min_frequency, prefix):
        cdef const int64_t[::1] length = lengths, count = counts
        cdef const int32_t[::1] ids = symbols
        cdef Py_ssize_t w, i, n = ids.shape[0]
        cdef int64_t start = 0
        if n and lengths.sum() != n or len(lengths) >= NONE:
            raise ValueError(f"Trainer: lengths add up to {lengths.sum()}, there are {n} symbols")
        self.symbols.resize(n)
        for i in range(n):
            self.symbols[i] = ids[i]
        self.prefix = len(prefix)
        self.numbers, self.tokens, self.ids = PairMap(), tokens, {token: i for i, token in enumerate(tokens)}
        self.min_frequency = max(min_frequency, 1)
        for w in range(length.shape[0]):
            self.starts.push_back(start)
            self.sizes.push_back(<int32_t>length[w])
            self.counts.push_back(count[w])
            for i in range(start, start + length[w] - 1):
                self.change(self.symbols[i], self.symbols[i + 1], count[w], <int32_t>w)
            start += length[w]
        self.push_touched()

    cdef int change(self, int32_t left, int32_t right, int64_t by, int32_t w) except -1:
        """Adds to a pair's total; where the pair is new in word w, notes that."""
        cdef int32_t number = self.numbers.get(left, right)
        cdef vector[int32_t]* words
        if number < 0:
            number = <int32_t>self.pairs.size()
            self.pairs.push_back((<uint64_t><uint32_t>left << 32) | <uint32_t>right)
            self.numbers.put(self.pairs.back(), number)
            self.totals.push_back(0)
            self.fresh.push_back(-1)
        self.totals[number] += by
        if by > 0:
            if self.fresh[number] < 0:
                self.touched.push_back(number)
                if self.free_lists.size():
                    self.fresh[number] = self.free_lists.back()
                    self.free_lists.pop_back()
                else:
                    self.fresh[number] = <int32_t>self.lists.size()
                    self.lists.resize(self.lists.size() + 1)
            words = &self.lists[self.fresh[number]]
            if words.empty() or words.back() != w:
                words.push_back(w)
        return 0

    cdef int push_touched(self) except -1:
        cdef int32_t number
        cdef Candidate found
        for number in self.touched:
            if self.totals[number] > 0:
                found.first, found.second.first, found.second.second = self.totals[number], ~self.pairs[number], self.fresh[number]
                self.heap.push_back(found)
                push_heap(self.heap.begin(), self.heap.end())
            else:
                self.release(self.fresh[number])
            self.fresh[number] = -1
        self.touched.clear()
        return 0

    cdef int release(self, int64_t words) except -1:
        self.lists[words].clear()
        self.lists[words].shrink_to_fit()
        self.free_lists.push_back(<int32_t>words)
        return 0

    def step(self, vocab_size, most):
        """-> list of at most `most` new merges (left, right, new); empty when nothing is left to merge."""
        cdef Candidate top
        cdef uint32_t left, right
        cdef int64_t total
        merges = []
        while len(merges) < most and len(self.ids) < vocab_size and self.heap.size():
            pop_heap(self.heap.begin(), self.heap.end())
            top = self.heap.back()
            self.heap.pop_back()
            left, right = <uint32_t>(~top.second.first >> 32), <uint32_t>~top.second.first
            total = self.totals[self.numbers.get(left, right)]
            if top.first != total:  # merges since then took occurrences away
                if total > 0:
                    top.first = total
                    self.heap.push_back(top)
                    push_heap(self.heap.begin(), self.heap.end())
                else:
                    self.release(top.second.second)
                continue
            if total < self.min_frequency:
                self.heap.clear()
                break
            token = self.tokens[left] + self.tokens[right][self.prefix:]
            new = self.ids.setdefault(token, len(self.tokens))  # two ways of building one token share its id
            if new == len(self.tokens):
                self.tokens.append(token)
            merges.append((left, right, new))
            self.apply(left, right, new, top.second.second)
            self.release(top.second.second)
        return merges

    cdef int apply(self, int32_t left, int32_t right, int32_t new, int64_t words) except -1:
        cdef int32_t w, n, r, out
        cdef int32_t* s
        cdef size_t k
        for k in range(self.lists[words].size()):
            w = self.lists[words][k]
            s, n = &self.symbols[self.starts[w]], self.sizes[w]
            r = out = 0
            while r < n:
                if r + 1 < n and s[r] == left and s[r + 1] == right:
                    if out:
                        self.change(s[out - 1], left, -self.counts[w], w)
                        self.change(s[out - 1], new, self.counts[w], w)
                    if r + 2 < n:
                        self.change(right, s[r + 2], -self.counts[w], w)
                        self.change(new, s[r + 2], self.counts[w], w)
                    s[out] = new
                    r += 2
                else:
                    s[out] = s[r]
                    r += 1
                out += 1
            self.sizes[w] = out
        self.push_touched()
        return 0
