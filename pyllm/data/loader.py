"""Batches for training (endless, shuffled, resumable anywhere) and for validation (once, in order), in O(1) memory.

An epoch cuts the stream into windows of T tokens. Their first start moves by a random phase each epoch, so that borders fall
elsewhere; the cut-off first and last window are padded. Each token is predicted exactly once an epoch. Their order is a
permutation that is computed, not stored: a Feistel network keyed by (seed, epoch) whose values outside 0..n-1 are sent through
again until they are inside (Black and Rogaway 2002, cycle walking). So the whole state is two whole numbers.
"""
from functools import lru_cache

import numpy as np

from pyllm.data.packing import packed_windows, window

ROUNDS = 6


class Cursor:
    """Abstract. An endless stream of shuffled epochs, and where it stands: `epoch` counts from 0, `position` the units of it given so far.

    A subclass gives `count(epoch)`, the units of an epoch, and `identity()`, what a state has to agree on, for JSON. seed: the order
    depends on it and on the epoch alone. shuffle=False: in order.
    """

    def __init__(self, seed, shuffle):
        if type(seed) is not int or not 0 <= seed < 1 << 63:
            raise ValueError(f"{type(self).__name__}: seed is {seed!r}, expected a whole number from 0 to 2^63 - 1")
        self.seed, self.shuffle = seed, bool(shuffle)
        self.epoch, self.position = 0, 0

    def __iter__(self):
        return self

    def count(self, epoch):
        """Units of an epoch, at least 1."""
        raise NotImplementedError

    def identity(self):
        """{name: value}: what a state has to agree on beside the seed."""
        raise NotImplementedError

    def take(self, n):
        """The next n units, over the end of an epoch -> [(epoch, first, stop), ...]: places in the order of that epoch."""
        taken = []
        while n:
            epoch, first, count = self.epoch, self.position, self.count(self.epoch)
            stop = min(first + n, count)
            taken.append((epoch, first, stop))
            n, self.position = n - (stop - first), stop
            if stop == count:
                self.epoch, self.position = epoch + 1, 0
        return taken

    def state(self):
        """The data cursor, for JSON: what `load_state` needs to go on with the very next batch."""
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "shuffle": self.shuffle, **self.identity()}

    def load_state(self, state):
        """Go on where `state` was taken; the number of rows may have changed. ValueError names all that does not fit."""
        mine, name = self.state(), f"{type(self).__name__}.load_state"
        if not isinstance(state, dict) or state.keys() != mine.keys():
            raise ValueError(f"{name}: {state!r}, expected a dict with the keys {', '.join(mine)}")
        hints = {"fingerprint": " (the data have changed since the state was saved)"}
        wrong = [f"{key} is {mine[key]!r} here and {state[key]!r} in the state{hints.get(key, '')}"
                 for key in mine if key not in ("epoch", "position") and state[key] != mine[key]]
        epoch, position = state["epoch"], state["position"]
        if not wrong:
            if type(epoch) is not int or epoch < 0:
                wrong.append(f"epoch is {epoch!r}, expected a whole number from 0")
            elif type(position) is not int or not 0 <= position < self.count(epoch):
                wrong.append(f"position is {position!r}, expected 0 to {self.count(epoch) - 1}")
        if wrong:
            raise ValueError(f"{name}: {'; '.join(wrong)}")
        self.epoch, self.position = epoch, position


class Loader(Cursor):
    """Endless iterator of Batch (B, T) over a TokenShards.

    batch: rows. length: T. shuffle=False: in order, without phase. A batch at the end of an epoch is filled up from the next one.
    corrupted: None, or what becomes of the windows (see pyllm.data.corruptions); a row draws from (seed, epoch, its window), so that
    every epoch corrupts anew, a resumed run as one that never stopped, and any batch size gives the same rows.
    """

    def __init__(self, shards, batch, length, seed, shuffle=True, corrupted=None):
        _check("Loader", shards, batch, length)
        super().__init__(seed, shuffle)
        self.shards, self.batch, self.corrupted = shards, batch, corrupted
        self.length = length if corrupted is None else corrupted.window(length)

    def __next__(self):
        starts, keys = [], []
        for epoch, begin, stop in self.take(self.batch):
            first, count = self._windows(epoch)
            index = np.arange(begin, stop)
            if self.shuffle:
                index = permute(index, count, key(self.seed, epoch, 0))
            starts += (first + index * self.length).tolist()
            keys += [key(self.seed, epoch, 2, int(i)) for i in index] if self.corrupted else []
        return _batch(self.shards, starts, self.length, self.corrupted, keys)

    def _windows(self, epoch):
        """(start of the first window, number of windows) of an epoch; the first start may be negative."""
        predictable = len(self.shards) - 1
        phase = key(self.seed, epoch, 1) % self.length if self.shuffle and predictable > self.length else 0
        first = phase - self.length if phase else 0
        return first, -(-(predictable - first) // self.length)

    def count(self, epoch):
        return self._windows(epoch)[1]

    def identity(self):
        corrupted = {"corruption": self.corrupted.name} if self.corrupted else {}
        return {"length": self.length, "fingerprint": self.shards.fingerprint, **corrupted}


def validation(shards, batch, length, corrupted=None):
    """Iterate once over a TokenShards in order: Batch (B, T), the last with the rows that are left, its last row padded.

    Every token but the first of each document is predicted exactly once; stop early with itertools.islice. corrupted: as of Loader; a
    window is corrupted the same way every time.
    """
    _check("validation", shards, batch, length)
    length = length if corrupted is None else corrupted.window(length)
    last = len(shards) - 1
    for start in range(0, last, batch * length):
        starts = range(start, min(start + batch * length, last), length)
        yield _batch(shards, starts, length, corrupted, [key(0, 3, at) for at in starts] if corrupted else [])


def _batch(shards, starts, length, corrupted, keys):
    if corrupted is None:
        return packed_windows(shards, starts, length)
    return corrupted.batch([window(shards, start, length) for start in starts], keys)


def _check(name, shards, batch, length):
    if len(shards) < 2:
        raise ValueError(f"{name}: {len(shards)} tokens, expected at least 2")
    for argument, value in (("batch", batch), ("length", length)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: {argument} is {value!r}, expected a whole number of at least 1")


# ---- the computed permutation

def permute(index, size, key):
    """(n,) int64 in 0..size-1 -> (n,) int64: where a permutation of 0..size-1, named by `key` (64 bits), sends them."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    round_keys = _mix(np.array([key], np.uint64) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * _GOLDEN)

    def walk(x):
        left, right = x >> half, x & low
        for k in round_keys:
            left, right = right, left ^ (_mix(right ^ k) & low)
        return left << half | right

    x = walk(np.asarray(index, np.int64).astype(np.uint64))
    while (outside := x >= size).any():
        x[outside] = walk(x[outside])
    return x.astype(np.int64)


@lru_cache(maxsize=64)
def key(*numbers):
    """64 well-mixed bits from whole numbers, as an int."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = _mix(state + _GOLDEN ^ np.uint64(number))
    return int(state[0])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x):
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) on a uint64 array: wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
