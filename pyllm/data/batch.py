"""Batch: what a model trains on, (B, T) arrays."""
from dataclasses import dataclass

import numpy as np

IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class Batch:
    """tokens (B, T)  targets (B, T)  segments (B, T) or None, all int32

    tokens: ids. targets: the id each position predicts, IGNORED (-100) for none.
    segments: 0 = padding, k = the k-th document in the row, each one unbroken run; None = every row is one document.
    Raises TypeError or ValueError naming every mismatch.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None = None

    def __post_init__(self):
        arrays = {"tokens": self.tokens, "targets": self.targets}
        if self.segments is not None:
            arrays["segments"] = self.segments
        wrong = [f"{name} is {_describe(a)}" for name, a in arrays.items()
                 if not (isinstance(a, np.ndarray) and a.dtype == np.int32 and a.ndim == 2)]
        if wrong:
            raise TypeError(f"Batch: {'; '.join(wrong)}; expected int32 arrays of shape (B, T)")
        if len({a.shape for a in arrays.values()}) > 1:
            raise ValueError(f"Batch: shapes differ: {', '.join(f'{name} {a.shape}' for name, a in arrays.items())}")
        if not self.tokens.size:
            raise ValueError(f"Batch: empty, shape {self.tokens.shape}; expected at least one row and one column")
        wrong = []
        if self.tokens.min() < 0:
            wrong.append(_first("tokens", self.tokens, self.tokens < 0, "ids from 0"))
        if self.targets.min() < 0 and (bad := (self.targets < 0) & (self.targets != IGNORED)).any():
            wrong.append(_first("targets", self.targets, bad, f"ids from 0, or {IGNORED}"))
        if self.segments is not None:
            wrong += self._check_segments()
        if wrong:
            raise ValueError(f"Batch: {'; '.join(wrong)}")

    def _check_segments(self):
        s = self.segments
        if s.min() < 0:
            return [_first("segments", s, s < 0, "0 for padding, k for the k-th document")]
        wrong = []
        if (bad := (s == 0) & (self.targets != IGNORED)).any():
            wrong.append(_first("targets", self.targets, bad, f"{IGNORED} where segments are 0"))
        before = np.maximum.accumulate(s, axis=1)[:, :-1]  # the highest document so far
        begins = s[:, 1:] != s[:, :-1]
        if (bad := begins & (s[:, 1:] != 0) & (s[:, 1:] <= before)).any():
            wrong.append(_first("segments", s[:, 1:], bad, "each document one unbroken run, in rising order", offset=1))
        return wrong

    @property
    def count(self):
        """How many targets a loss counts."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def rows(self, part):
        """The Batch of some rows (a slice): views, no copies."""
        return Batch(self.tokens[part], self.targets[part], None if self.segments is None else self.segments[part])


def _describe(array):
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _first(name, array, bad, expected, offset=0):
    row, column = np.argwhere(bad)[0]
    return f"{name}[{row}, {column + offset}] is {array[row, column]}, expected {expected}"
