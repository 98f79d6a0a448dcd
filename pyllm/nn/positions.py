"""Where a token stands: position ids from segments or the cache, rotary tables from a configuration."""
import numpy as np


def positions(tokens, segments=None, cache=None, limit=None):
    """tokens:(B, T) -> int32 (B, T), 0 at each document's first token; behind the cached ones with a cache.

    segments: (B, T) int32, 0 = padding, k = k-th document of the row. limit: positions there are; ValueError beyond it.
    """
    b, t = tokens.shape
    if segments is None:
        at = np.arange(t, dtype=np.int32)[None] + (np.zeros((b, 1), np.int32) if cache is None else cache.lengths[:, None].astype(np.int32))
    else:
        index = np.arange(t, dtype=np.int32)[None]
        fresh = np.ones((b, t), bool)
        fresh[:, 1:] = segments[:, 1:] != segments[:, :-1]
        at = index - np.maximum.accumulate(np.where(fresh, index, 0), axis=1)
    if limit is not None and at.size and at.max() >= limit:
        raise ValueError(f"position {at.max()} is beyond the context: the model has {limit} positions. "
                         "Hint: shorten the text or the batch's rows")
    return np.ascontiguousarray(at, np.int32)


class RotaryTable:
    """cos, sin:(P, R/2) of angles p * theta^(-2i/R), grown as longer positions come. Su et al. 2021."""

    def __init__(self, rotary, theta=10000.0):
        self.frequencies = theta ** (-np.arange(0, rotary, 2, dtype=np.float64) / rotary)
        self._tables = None

    def __call__(self, highest):
        """-> cos, sin with at least `highest` + 1 rows."""
        if self._tables is None or len(self._tables[0]) <= highest:
            rows = 1 << max(6, int(highest).bit_length())
            angles = np.arange(rows, dtype=np.float64)[:, None] * self.frequencies
            self._tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return self._tables
