# What the compiled loops share: a hash, and a map from pairs to numbers. Included, so that each module has its own copy in reach of inlining.
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
