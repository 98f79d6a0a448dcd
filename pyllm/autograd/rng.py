"""Randomness by counters: a key names a stream, so nothing needs to be stored to draw it again."""
import threading

import numpy as np

_M64 = (1 << 64) - 1


def _mix(x):
    """64 bits -> 64 bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _M64
    return x ^ (x >> 31)


class Rng:
    """An immutable 64-bit key. fold(3, "attn") gives the key of a place below; equal paths give equal streams."""

    __slots__ = ("key",)

    def __init__(self, seed):
        self.key = _mix((int(seed) + 0x9E3779B97F4A7C15) & _M64)

    def fold(self, *path):
        """-> the Rng at `path`, whole numbers or strings, below this one."""
        key = self.key
        for part in path:
            if isinstance(part, str):
                part = int.from_bytes(part.encode()[:64], "little") % ((1 << 61) - 1)
            key = _mix((key * 3 + (part + 1) * 0x9E3779B97F4A7C15) & _M64)
        child = object.__new__(Rng)
        child.key = key
        return child

    def generator(self):
        """-> numpy.random.Generator (Philox) at this key."""
        return np.random.Generator(np.random.Philox(key=self.key))

    def uniform(self):
        """-> one float in [0, 1), 53 bits."""
        return (_mix(self.key ^ 0xD1B54A32D192ED03) >> 11) * 2.0**-53

    def __repr__(self):
        return f"Rng(key=0x{self.key:016x})"


class _State(threading.local):
    rng = None


_state = _State()


class drawing:
    """with drawing(rng): what layers inside draw from that get no key by their block, in this thread; None: they draw nothing."""

    def __init__(self, rng):
        self.rng = rng

    def __enter__(self):
        self.before, _state.rng = _state.rng, self.rng

    def __exit__(self, *_):
        _state.rng = self.before


def drawn_from():
    """-> the Rng of the innermost `drawing`, or None."""
    return _state.rng
