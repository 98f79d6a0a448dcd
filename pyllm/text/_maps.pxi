# What the compiled loops share: a hash, and maps from pairs and from words to numbers. Included, so that each module has its own copy in
# reach of inlining.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove
from libcpp.vector cimport vector

ctypedef const uint8_t* text_t


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    x *= 0x9E3779B97F4A7C15ULL
    return x ^ (x >> 32)


cdef inline uint64_t hash_bytes(text_t s, Py_ssize_t n) noexcept nogil:
    cdef uint64_t h = <uint64_t>n, part
    while n >= 8:
        memcpy(&part, s, 8)
        h = mix(h ^ part)
        s += 8
        n -= 8
    part = 0
    memcpy(&part, s, n)
    return mix(h ^ part)


cdef class PairMap:
    """(left, right) -> int32; open addressing, at most half full."""
    cdef vector[uint64_t] keys
    cdef vector[int32_t] values  # -1: free slot
    cdef uint64_t last
    cdef Py_ssize_t used

    def __cinit__(self):
        self.keys.resize(1024)
        self.values.assign(1024, -1)
        self.last = 1023
        self.used = 0

    cdef inline int32_t get(self, uint32_t left, uint32_t right) noexcept nogil:
        cdef uint64_t key = (<uint64_t>left << 32) | right
        cdef uint64_t i = mix(key) & self.last
        while self.values[i] >= 0:
            if self.keys[i] == key:
                return self.values[i]
            i = (i + 1) & self.last
        return -1

    cdef int put(self, uint64_t key, int32_t value) except -1:
        cdef uint64_t i
        if 2 * self.used >= <Py_ssize_t>self.last:
            self.grow()
        i = mix(key) & self.last
        while self.values[i] >= 0 and self.keys[i] != key:
            i = (i + 1) & self.last
        self.used += self.values[i] < 0
        self.keys[i] = key
        self.values[i] = value
        return 0

    cdef int grow(self) except -1:
        cdef vector[uint64_t] keys
        cdef vector[int32_t] values
        cdef size_t i
        keys.swap(self.keys)
        values.swap(self.values)
        self.keys.resize(2 * keys.size())
        self.values.assign(2 * keys.size(), -1)
        self.last = 2 * keys.size() - 1
        self.used = 0
        for i in range(keys.size()):
            if values[i] >= 0:
                self.put(keys[i], values[i])
        return 0


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
