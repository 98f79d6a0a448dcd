"""PYLLM_DEBUG=1: who spends the time. A kernel notes its work under the operation that called it, or under its own name outside of one.

The report is autograd/debug.py's. Work is counted from shapes: WORK has FLOP and bytes of a kernel; one without an entry shows its time.
"""
import threading
import time
from functools import wraps

import numpy as np

from pyllm.kernels.packed import Packed


class Row:
    """One operation on arrays of certain shapes. work: {(FLOP, bytes, precision): how many kernel calls of that size}."""

    def __init__(self):
        self.calls, self.forward, self.backward, self.work = 0, 0.0, 0.0, {}


rows = {}  # (name, shapes, whether it is a kernel outside of operations) -> Row
span = [None, 0.0]  # when the first call began and the last one ended
_now = threading.local()  # row: what runs in this thread


def row(name, args, outside=False):
    """-> the Row of a call with these arguments."""
    shapes = ", ".join("x".join(map(str, a.shape)) + (f" {a.format}" if isinstance(a, Packed) else "")
                       for a in args[:3] if isinstance(a, (np.ndarray, Packed)) and a.ndim)
    return rows.setdefault((name, shapes, outside), Row())


class inside:
    """with inside(row, backward): the time and the kernels of the block belong to the row."""

    def __init__(self, row, backward=False):
        self.row, self.backward = row, backward

    def __enter__(self):
        self.before, _now.row = getattr(_now, "row", None), self.row
        self.began = time.perf_counter()
        if span[0] is None:
            span[0] = self.began

    def __exit__(self, *_):
        span[1] = time.perf_counter()
        if self.backward:
            self.row.backward += span[1] - self.began
        else:
            self.row.calls += 1
            self.row.forward += span[1] - self.began
        _now.row = self.before


def watched(kernel):
    """A kernel that notes what it does."""
    name = kernel.__name__
    work = WORK.get(name)

    @wraps(kernel)
    def call(*args, **options):
        to = getattr(_now, "row", None)
        if to is None:
            to = row(name, args, outside=True)
            with inside(to):
                result = kernel(*args, **options)
        else:
            result = kernel(*args, **options)
        if work:
            key = (*work(result, *args, **options), precision(*args, **options))
            to.work[key] = to.work.get(key, 0) + 1
        return result

    return call


def precision(*args, reduced=False, **options):
    """-> f32, bf16 or int8: what the products of a kernel with these arguments take."""
    packed = [a.format for a in args if isinstance(a, Packed)]
    return ("bf16" if packed[0] == "bf16" else "int8") if packed else "bf16" if reduced else "f32"


# ---- work: (result, *arguments) of a kernel -> FLOP, bytes it must move -------------------------------------------------


def moved(result, *args, **options):
    """Every array that comes in or goes out, once."""
    arrays = {id(a): a.nbytes for a in (*args, *options.values(), *(result if isinstance(result, tuple) else (result,)))
              if isinstance(a, (np.ndarray, Packed))}
    return 0.0, float(sum(arrays.values()))


def pairs(q, k, causal=True, window=0, segments=None, starts=None):
    """-> how many (query, key) pairs a head sees, summed over the batch; documents are taken to lie in one piece each."""
    b, tq, tk = *q.shape[:2], k.shape[1]
    if segments is not None and segments[0] is segments[1] and causal and not window:
        numbers, highest = segments[0], int(segments[0].max(initial=0))
        _, lengths = np.unique((numbers + np.arange(b)[:, None] * (highest + 1))[numbers > 0], return_counts=True)
        return float((lengths * (lengths + 1) / 2).sum())
    last = (np.full(b, tk - tq) if starts is None else starts)[:, None] + np.arange(tq) if causal else np.full((b, tq), tk - 1)
    seen = np.clip(last + 1, 0, tk)
    return float((np.minimum(seen, window) if window else seen).sum())


def _attention(products, q, k, causal=True, window=0, segments=None, starts=None, **options):
    return 2.0 * products * q.shape[2] * q.shape[3] * pairs(q, k, causal, window, segments, starts)


def _matmul(result, a, b, *, tb=False, **options):
    return 2.0 * a.size * b.shape[-2 if tb else -1], moved(result, a, b, **options)[1]


def _head(result, h, w, b, targets, label_smoothing=0.0, z_loss=0.0, need=(False,) * 3, reduced=False):
    return 2.0 * h.size * len(w) * (1 + need[0] + need[1]), moved(result, h, w)[1]


WORK = {
    "matmul": _matmul,
    "linear": lambda result, x, w, **options: (2.0 * x.size * len(w), moved(result, x, w, **options)[1]),
    "linear_vjp": lambda result, dy, w, **options: (2.0 * dy.size * w.shape[1], moved(result, dy, w, **options)[1]),
    "linear_cross_entropy": _head,
    "attention": lambda result, q, k, v, **o: (_attention(2, q, k, **o), moved(result, q, k, v)[1]),
    "attention_vjp": lambda result, dout, q, k, v, out, lse, **o: (_attention(5, q, k, **o), moved(result, dout, q, k, v, out)[1]),
    "embedding": lambda result, w, ids: (0.0, 2.0 * result.nbytes),  # of the table the rows that are looked up
    "adamw": lambda result, p, *rest, **o: (0.0, 7.0 * p.nbytes),  # p, m, v read and written, g read
    **dict.fromkeys(("column_sum", "activation", "activation_vjp", "glu", "glu_vjp", "add", "dropout", "layer_norm", "layer_norm_vjp",
                     "rms_norm", "rms_norm_vjp", "softmax", "softmax_vjp", "log_softmax", "log_softmax_vjp", "cross_entropy", "rope",
                     "embedding_vjp", "sum_squares", "sample"), moved),
}
