"""Batch: what a model trains on, arrays of B rows."""
from dataclasses import dataclass, field

import numpy as np

IGNORED = -100  # a target that no loss counts


@dataclass(frozen=True)
class Batch:
    """tokens (B, T)  targets (B, T)  segments (B, T) or None, all int32

    tokens: ids. targets: the id each position predicts, IGNORED (-100) for none. segments: 0 = padding, k = the k-th document in the row,
    each one unbroken run; None = every row is one document.
    decoder_tokens (B, U), decoder_segments (B, U) or None: of an encoder-decoder, whose targets are (B, U).
    Targets of whole rows are labels (B,) or spans (B, 2): first and last token. Pairs are neighbours: row 2i chosen, row 2i + 1 rejected.
    extra: {name: array of B rows}, what else an objective asks for, such as rewards.
    Raises TypeError or ValueError naming every mismatch.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None = None
    decoder_tokens: np.ndarray | None = None
    decoder_segments: np.ndarray | None = None
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        sides = {name: a for name in ("tokens", "segments", "decoder_tokens", "decoder_segments")
                 if (a := getattr(self, name)) is not None or name == "tokens"}
        wrong = [f"{name} is {_describe(a)}" for name, a in sides.items() if not _is_int32(a, 2)]
        if not _is_int32(self.targets, 1, 2):
            wrong.append(f"targets is {_describe(self.targets)}")
        if wrong:
            raise TypeError(f"Batch: {'; '.join(wrong)}; expected int32 arrays of shape (B, T)")
        predicted = "tokens" if self.decoder_tokens is None else "decoder_tokens"
        b, shape = len(self.tokens), sides[predicted].shape
        if self.targets.shape not in (shape, (b,), (b, 2)):
            wrong.append(f"{predicted} {shape}, targets {self.targets.shape}")
        wrong += [f"{side} {sides[side].shape if side in sides else None}, {name} {sides[name].shape}" for side, name in
                  (("tokens", "segments"), ("decoder_tokens", "decoder_segments"))
                  if name in sides and (side not in sides or sides[name].shape != sides[side].shape)]
        wrong += [f"tokens {self.tokens.shape}, {name} {np.shape(a)}" for name, a in {predicted: sides[predicted], **self.extra}.items()
                  if np.shape(a)[:1] != (b,)]
        if wrong:
            raise ValueError(f"Batch: shapes differ: {'; '.join(wrong)}")
        if not self.tokens.size or not sides[predicted].size:
            raise ValueError(f"Batch: empty, shape {shape}; expected at least one row and one column")
        wrong += [_first(name, sides[name], sides[name] < 0, "ids from 0") for name in ("tokens", "decoder_tokens")
                  if name in sides and sides[name].min() < 0]
        if self.targets.min() < 0 and (bad := (self.targets < 0) & (self.targets != IGNORED)).any():
            wrong.append(_first("targets", self.targets, bad, f"ids from 0, or {IGNORED}"))
        for name in ("segments", "decoder_segments"):
            if name in sides:
                targets = self.targets if self.targets.shape == shape and sides[name].shape == shape else None
                wrong += _wrong_segments(name, sides[name], targets if name.startswith("d") == predicted.startswith("d") else None)
        if wrong:
            raise ValueError(f"Batch: {'; '.join(wrong)}")

    @property
    def count(self):
        """How many targets a loss counts."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def rows(self, part):
        """The Batch of some rows (a slice): views, no copies."""
        arrays = (None if a is None else a[part] for a in (self.segments, self.decoder_tokens, self.decoder_segments))
        return Batch(self.tokens[part], self.targets[part], *arrays, {name: a[part] for name, a in self.extra.items()})


def _wrong_segments(name, s, targets):
    """s:(B, T) targets: of the same positions, or None -> what is wrong, a list."""
    if s.min() < 0:
        return [_first(name, s, s < 0, "0 for padding, k for the k-th document")]
    wrong = []
    if targets is not None and (bad := (s == 0) & (targets != IGNORED)).any():
        wrong.append(_first("targets", targets, bad, f"{IGNORED} where {name} are 0"))
    before = np.maximum.accumulate(s, axis=1)[:, :-1]  # the highest document so far
    begins = s[:, 1:] != s[:, :-1]
    if (bad := begins & (s[:, 1:] != 0) & (s[:, 1:] <= before)).any():
        wrong.append(_first(name, s[:, 1:], bad, "each document one unbroken run, in rising order", offset=1))
    return wrong


def _is_int32(array, *dimensions):
    return isinstance(array, np.ndarray) and array.dtype == np.int32 and array.ndim in dimensions


def _describe(array):
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _first(name, array, bad, expected, offset=0):
    at = np.argwhere(bad)[0]
    place = ", ".join(map(str, (*at[:-1], at[-1] + offset)))
    return f"{name}[{place}] is {array[tuple(at)]}, expected {expected}"
