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


# ---- attention and positions ----


def _heads(x):
    """(B, T, H, D) itself where its last two axes are dense (a slice of a fused projection or of a cache), else a copy."""
    b, t, h, d = x.shape
    s = x.strides
    ok = x.flags.aligned and (d < 2 or s[3] == 4) and (h < 2 or s[2] == 4 * d) and s[0] % 4 == s[1] % 4 == 0
    return x if ok else np.require(x, requirements="CA")


def _attention_args(name, q, k, v, causal, window, segments, starts, bias, scale):
    """Checks -> (q, k, v), and the arguments behind out and lse."""
    expect(q.ndim == k.ndim == v.ndim == 4, lambda: f"{name}: q {q.shape}, k {k.shape}, v {v.shape}; expected (B, T, H, D) each")
    (b, tq, h, d), (tk, hkv) = q.shape, k.shape[1:3]
    expect(k.shape == v.shape == (b, tk, hkv, d), lambda: f"{name}: k {k.shape}, v {v.shape}; expected {(b, tk, hkv, d)} both, to go with q {q.shape}")
    expect(d > 0 and hkv > 0 and h % hkv == 0, lambda: f"{name}: q has {h} heads of size {d}, k and v {hkv}; expected a multiple of {hkv}")
    expect(window >= 0, lambda: f"{name}: window={window}; expected 0 (all keys) or the number of keys a query sees")
    expect(max(tq, tk) < 2**31, lambda: f"{name}: {max(tq, tk)} positions; expected fewer than 2^31")
    if segments is not None:
        expect(len(segments) == 2 and segments[0].shape == (b, tq) and segments[1].shape == (b, tk),
               lambda: f"{name}: segments {tuple(s.shape for s in segments)}; expected ({(b, tq)}, {(b, tk)}): those of the queries, of the keys")
    expect(starts is None or starts.shape == (b,), lambda: f"{name}: starts {starts.shape}; expected {(b,)}: one key index a row")
    expect(bias is None or (bias.ndim == 4 and bias.shape[0] in (1, b) and bias.shape[1] in (1, h) and bias.shape[2:] == (tq, tk)),
           lambda: f"{name}: bias {bias.shape}; expected (1 or {b}, 1 or {h}, {tq}, {tk})")
    q_segments, k_segments = (None, None) if segments is None else map(dense, segments)
    scale = d**-0.5 if scale is None else float(scale)
    return (_heads(q), _heads(k), _heads(v)), (q_segments, k_segments, dense(starts), dense(bias), min(window, 2**31), scale, causal)


@float32
def attention(q, k, v, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None):
    qkv, args = _attention_args("attention", q, k, v, causal, window, segments, starts, bias, scale)
    b, tq, h, d = q.shape
    out, lse = empty(q.shape), empty((b, h, tq))
    _C.attention(*qkv, out, lse, *args)
    return out, lse


@float32
def attention_vjp(dout, q, k, v, out, lse, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None, need_bias=False,
                  out_grads=None):
    qkv, args = _attention_args("attention_vjp", q, k, v, causal, window, segments, starts, bias, scale)
    expect(dout.shape == out.shape == q.shape, lambda: f"attention_vjp: dout {dout.shape}, out {out.shape}; expected {q.shape}, the shape of q")
    expect(lse.shape == (q.shape[0], q.shape[2], q.shape[1]), lambda: f"attention_vjp: lse {lse.shape}; expected (B, H, Tq) to go with q {q.shape}")
    expect(not need_bias or bias is not None, lambda: "attention_vjp: need_bias without a bias")
    grads = tuple(empty(x.shape) for x in (q, k, v)) if out_grads is None else out_grads
    for name, x, to in zip(("dq", "dk", "dv"), (q, k, v), grads):
        expect(to.shape == x.shape and _heads(to) is to, lambda: f"attention_vjp: out_grads {name} {to.shape} with strides {to.strides}; expected "
               f"{x.shape} with its last two axes dense")
    dbias = None
    if need_bias:
        dbias = empty(bias.shape)
        dbias.fill(0)
    _C.attention_vjp(dense(dout), *qkv, dense(out), dense(lse), *args, *grads, dbias)
    return *grads, dbias


@float32
def rope(x, cos, sin, positions, interleaved=False, inverse=False):
    expect(x.ndim == 4 and positions.shape == x.shape[:2],
           lambda: f"rope: x {x.shape}, positions {positions.shape}; expected (B, T, H, D) and (B, T)")
    expect(cos.ndim == 2 and cos.shape == sin.shape and 2 * cos.shape[1] <= x.shape[3],
           lambda: f"rope: cos {cos.shape}, sin {sin.shape}; expected (P, R/2) both, R at most the head size {x.shape[3]}")
    expect(positions.size == 0 or (positions.min() >= 0 and positions.max() < len(cos)),
           lambda: f"rope: positions from {positions.min()} to {positions.max()}; expected 0 to {len(cos) - 1}, the rows of cos. "
                   "Hint: the sequence may be longer than the model's context")
    y = empty(x.shape)
    rows = _heads(x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:]))
    _C.rope(rows, y, dense(cos), dense(sin), dense(positions), 2 * cos.shape[1], interleaved, inverse)
    return y


# Kernels that are not compiled yet run in NumPy.
for _name in dir(reference):
    globals().setdefault(_name, getattr(reference, _name))
