"""Hypothesis strategies that all tests share: sizes around the registers' widths, and memory layouts of one and the same array."""
import numpy as np
from hypothesis import strategies as st

WIDTHS = (4, 8, 16)
EDGES = sorted({0, 1, 2, 3, 5, *(w + d for w in WIDTHS for d in (-1, 0, 1)), 33, 63, 64, 65, 67, 127, 129})
LAYOUTS = ("C", "F", "negative", "broadcast", "sliced", "read-only", "misaligned")


def sizes(least=0):
    """A size: 0, 1, a register's width and its neighbours, odd ones, now and then a larger one."""
    return st.one_of(st.sampled_from([n for n in EDGES if n >= least]), st.integers(max(least, 130), 400))


def layouts():
    """The name of a layout for `lay_out`."""
    return st.sampled_from(LAYOUTS)


def lay_out(x, layout):
    """The values of x (its first row everywhere for "broadcast") in another memory layout."""
    if layout == "C":
        return np.ascontiguousarray(x)
    if layout == "F":
        return np.asfortranarray(x)
    if layout == "negative":
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1] if x.ndim else x
    if layout == "broadcast":
        return np.broadcast_to(x[:1], x.shape) if x.ndim and x.shape[0] else x
    if layout == "sliced":
        wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1] + 1), x.dtype) if x.ndim else x
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "read-only":
        y = x.copy()
        y.flags.writeable = False
        return y
    if layout == "misaligned":
        y = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
        y[...] = x
        return y
    raise ValueError(layout)
