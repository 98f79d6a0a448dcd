"""The C++ kernels behind the signatures of reference.py: checks shapes, takes outputs from the pool, calls the table.

An array of another layout is copied; one of another dtype is an error, but for float64, which the reference takes.
"""
from functools import wraps

import numpy as np

from pyllm.extension import load
from pyllm.kernels import reference

_C = load("pyllm._C")
F32 = np.dtype(np.float32)
fma_peak = _C.fma_peak  # rounds -> FLOP done
ACTS = {None: 0, "gelu_tanh": 1, "gelu": 2, "silu": 3, "relu": 4}


def empty(shape, dtype=F32):
    return _C.empty(shape) if dtype == F32 else np.empty(shape, dtype)


def float32(kernel):
    """float64 in the first argument -> the reference; anything but float32 -> TypeError."""
    fallback = getattr(reference, kernel.__name__)

    @wraps(kernel)
    def call(x, *args, **kwargs):
        if x.dtype == F32:
            return kernel(x, *args, **kwargs)
        if x.dtype == np.float64:
            return fallback(x, *args, **kwargs)
        raise TypeError(f"{kernel.__name__}: got {x.dtype}, expected float32 (or float64, which the reference computes)")

    return call


def dense(x):
    """x itself, or a C-contiguous aligned copy of another layout; None stays."""
    return x if x is None or (x.flags.c_contiguous and x.flags.aligned) else np.require(x, requirements="CA")


def expect(ok, text):
    """ValueError(text()) unless ok."""
    if not ok:
        raise ValueError(text())


@float32
def matmul(a, b, *, ta=False, tb=False, bias=None, act=None, residual=None, out=None, accumulate=False):
    a, b = dense(a), dense(b)
    lead = a.shape[:-2]
    m, k = a.shape[:-3:-1] if ta else a.shape[-2:]
    n = b.shape[-2 if tb else -1]
    shape = (*lead, m, n)
    expect(b.shape == (*lead, *((n, k) if tb else (k, n))),
           lambda: f"matmul: a {a.shape} and b {b.shape} do not fit with ta={ta}, tb={tb}: expected b {(*lead, *((n, k) if tb else (k, n)))}")
    expect(bias is None or bias.shape == (n,), lambda: f"matmul: bias {bias.shape}, expected {(n,)}")
    expect(residual is None or residual.shape == shape, lambda: f"matmul: residual {residual.shape}, expected {shape}")
    expect(out is None or out.shape == shape, lambda: f"matmul: out {out.shape}, expected {shape}")
    expect(act in ACTS, lambda: f"matmul: act={act!r}; expected one of {tuple(ACTS)}")
    expect(not accumulate or (bias is act is residual is None and out is not None), lambda: "matmul: accumulate goes with out alone")
    if len(lead) > 1:
        flat = lambda x: None if x is None else dense(x).reshape(-1, *x.shape[-2:])
        c = out if out is not None else empty(shape)
        z = empty(shape) if act else None
        _C.matmul(flat(a), flat(b), c.reshape(-1, m, n), ta, tb, dense(bias), ACTS[act], flat(z), flat(residual), accumulate)
    else:
        c = out if out is not None else empty(shape)
        z = empty(shape) if act else None
        _C.matmul(a, b, c, ta, tb, dense(bias), ACTS[act], z, dense(residual), accumulate)
    return c if act is None else (c, z)


# Kernels that are not compiled yet run in NumPy.
for _name in dir(reference):
    globals().setdefault(_name, getattr(reference, _name))
