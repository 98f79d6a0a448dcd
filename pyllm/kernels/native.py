"""The C++ kernels behind the signatures of reference.py: checks shapes, takes outputs from the pool, calls the table.

An array of another layout is copied, by the binding; one of another dtype is an error, but for float64, which the reference takes.
"""
from functools import wraps

import numpy as np

from pyllm.extension import load
from pyllm.kernels import reference
from pyllm.kernels.packed import Packed

_C = load("pyllm._C")
F32 = np.dtype(np.float32)
fma_peak, int8_peak = _C.fma_peak, _C.int8_peak  # rounds, bf16 -> FLOP done; rounds -> operations done
ACTS = {None: 0, "gelu_tanh": 1, "gelu": 2, "silu": 3, "relu": 4}


def empty(shape, dtype=F32):
    return _C.empty(shape) if dtype == F32 else np.empty(shape, dtype)


def float32(kernel):
    """float64 in the first argument -> the reference; anything but float32 -> TypeError."""
    fallback = getattr(reference, kernel.__name__)

    @wraps(kernel)
    def call(x, *args, **kwargs):
        try:
            if x.dtype == F32:
                return kernel(x, *args, **kwargs)
            if x.dtype == np.float64:
                return fallback(x, *args, **kwargs)
            got = x.dtype
        except AttributeError:
            _not_array(kernel, x, *args, **kwargs)
            raise
        raise TypeError(f"{kernel.__name__}: got {got}, expected float32 (or float64, which the reference computes)")

    return call


def _not_array(kernel, *args, **kwargs):
    """TypeError that names the first argument which should be an array and is none."""
    import inspect

    arrays = ("a", "b", "x", "w", "y", "dy", "gate", "up", "mean", "rstd", "ids", "targets", "logits", "h", "p", "g", "m", "v", "uniform")
    for name, value in inspect.signature(kernel).bind(*args, **kwargs).arguments.items():
        if name in arrays and not isinstance(value, np.ndarray):
            raise TypeError(f"{kernel.__name__}: {name} is {type(value).__name__}, expected a NumPy array") from None


def expect(ok, text):
    """ValueError(text()) unless ok."""
    if not ok:
        raise ValueError(text())


def _drawn(name, p, key):
    """-> what a kernel takes of a probability and a key to draw from: words below p * 2^32 drop."""
    expect(0 <= p < 1 and round(p * 2**32) < 2**32, lambda: f"{name}: dropout p={p!r}, expected 0 <= p < 1")
    expect(0 <= key < 2**64, lambda: f"{name}: dropout key={key!r}, expected 0 <= key < 2^64")
    return round(p * 2**32), int(key)


@float32
def matmul(a, b, *, ta=False, tb=False, bias=None, act=None, residual=None, out=None, accumulate=False, reduced=False):
    lead = a.shape[:-2]
    m, k = a.shape[:-3:-1] if ta else a.shape[-2:]
    n = b.shape[-2 if tb else -1]
    shape, fits = (*lead, m, n), (*lead, n, k) if tb else (*lead, k, n)
    if (b.shape != fits or act not in ACTS or (bias is not None and bias.shape != (n,))
            or (residual is not None and residual.shape != shape)
            or (out is not None and not (out.shape == shape and out.flags.c_contiguous))
            or (accumulate and not (bias is act is residual is None and out is not None))):
        _refuse_matmul(a, b, ta, tb, fits, shape, bias, act, residual, out)
    c = _C.empty(shape) if out is None else out
    z = _C.empty(shape) if act else None
    if len(lead) < 2:
        _C.matmul(a, b, c, ta, tb, bias, ACTS[act], z, residual, accumulate, reduced)
    else:
        flat = lambda x: None if x is None else x.reshape(-1, *x.shape[-2:])
        _C.matmul(flat(a), flat(b), flat(c), ta, tb, bias, ACTS[act], flat(z), flat(residual), accumulate, reduced)
    return c if act is None else (c, z)


def _refuse_matmul(a, b, ta, tb, fits, shape, bias, act, residual, out):
    """ValueError that names what does not fit."""
    expect(b.shape == fits, lambda: f"matmul: a {a.shape} and b {b.shape} do not fit with ta={ta}, tb={tb}: expected b {fits}")
    expect(bias is None or bias.shape == shape[-1:], lambda: f"matmul: bias {bias.shape}, expected {shape[-1:]}")
    expect(residual is None or residual.shape == shape, lambda: f"matmul: residual {residual.shape}, expected {shape}")
    expect(out is None or out.shape == shape and out.flags.c_contiguous,
           lambda: f"matmul: out {out.shape} with strides {out.strides}, expected {shape}, C-contiguous")
    expect(act in ACTS, lambda: f"matmul: act={act!r}; expected one of {tuple(ACTS)}")
    raise ValueError("matmul: accumulate goes with out alone")


@float32
def linear(x, w, *, bias=None, act=None, residual=None, out=None, reduced=False):
    if not isinstance(w, Packed):
        return matmul(x, w, tb=True, bias=bias, act=act, residual=residual, out=out, reduced=reduced)
    shape = len(x), len(w)
    expect(x.ndim == 2 and x.shape[1] == w.shape[1], lambda: f"linear: x {x.shape} and w {w}; expected x (M, {w.shape[1]})")
    for name, a, fits in (("bias", bias, shape[1:]), ("residual", residual, shape), ("out", out, shape)):
        expect(a is None or a.shape == fits, lambda: f"linear: {name} {a.shape}, expected {fits}")
    y, z = _C.empty(shape) if out is None else out, _C.empty(shape) if act else None
    expect(act in ACTS, lambda: f"linear: act={act!r}; expected one of {tuple(ACTS)}")
    _C.packed_linear(w.native, x, y, bias, ACTS[act], z, residual)
    return y if act is None else (y, z)


@float32
def linear_vjp(dy, w, *, out=None, accumulate=False, reduced=False):
    if not isinstance(w, Packed):
        return matmul(dy, w, out=out, accumulate=accumulate, reduced=reduced)
    expect(dy.ndim == 2 and dy.shape[1] == len(w), lambda: f"linear_vjp: dy {dy.shape} and w {w}; expected dy (M, {len(w)})")
    dx = _C.empty((len(dy), w.shape[1])) if out is None else out
    floats = _C.empty((min(len(w), UNPACKED), w.shape[1]))
    for i in range(0, len(w), UNPACKED):
        ids = np.arange(i, min(len(w), i + UNPACKED), dtype=np.int32)
        _C.packed_rows(w.native, ids, floats[: len(ids)])
        matmul(dy[:, i : i + len(ids)], floats[: len(ids)], out=dx, accumulate=accumulate or i > 0, reduced=reduced)
    return dx


UNPACKED = 768  # rows of a packed weight that are floats at a time


# ---- attention and positions ----


def _attention_args(name, q, k, v, causal, window, segments, starts, bias, scale, dropout, key, reduced):
    """Checks, in one look where nothing is special -> the arguments behind out and lse."""
    if not (q.ndim == k.ndim == 4 and k.shape == v.shape and k.shape[::3] == q.shape[::3] and k.shape[2] and q.shape[2] % k.shape[2] == 0
            and q.shape[3] and window >= 0 and q.shape[1] < 2**31 > k.shape[1] and segments is starts is bias is None):
        _check_attention(name, q, k, v, window, segments, starts, bias)
    return (*(segments or (None, None)), starts, bias, min(window, 2**31), q.shape[3]**-0.5 if scale is None else scale, causal, reduced,
            *(_drawn(name, dropout, key) if dropout else (0, 0)))


def _check_attention(name, q, k, v, window, segments, starts, bias):
    """ValueError that names what does not fit."""
    expect(q.ndim == k.ndim == v.ndim == 4, lambda: f"{name}: q {q.shape}, k {k.shape}, v {v.shape}; expected (B, T, H, D) each")
    (b, tq, h, d), (tk, hkv) = q.shape, k.shape[1:3]
    expect(k.shape == v.shape == (b, tk, hkv, d),
           lambda: f"{name}: k {k.shape}, v {v.shape}; expected {(b, tk, hkv, d)} both, to go with q {q.shape}")
    expect(d > 0 and hkv > 0 and h % hkv == 0, lambda: f"{name}: q has {h} heads of size {d}, k and v {hkv}; expected a multiple of {hkv}")
    expect(window >= 0, lambda: f"{name}: window={window}; expected 0 (all keys) or the number of keys a query sees")
    expect(max(tq, tk) < 2**31, lambda: f"{name}: {max(tq, tk)} positions; expected fewer than 2^31")
    if segments is not None:
        expect(len(segments) == 2 and segments[0].shape == (b, tq) and segments[1].shape == (b, tk),
               lambda: f"{name}: segments {tuple(s.shape for s in segments)}; expected ({(b, tq)}, {(b, tk)}), of queries and keys")
    expect(starts is None or starts.shape == (b,), lambda: f"{name}: starts {starts.shape}; expected {(b,)}: one key index a row")
    expect(bias is None or (bias.ndim == 4 and bias.shape[0] in (1, b) and bias.shape[1] in (1, h) and bias.shape[2:] == (tq, tk)),
           lambda: f"{name}: bias {bias.shape}; expected (1 or {b}, 1 or {h}, {tq}, {tk})")


@float32
def attention(q, k, v, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None, dropout=0.0, key=0, reduced=False):
    args = _attention_args("attention", q, k, v, causal, window, segments, starts, bias, scale, dropout, key, reduced)
    b, tq, h, d = q.shape
    out, lse = _C.empty(q.shape), _C.empty((b, h, tq))
    _C.attention(q, k, v, out, lse, *args)
    return out, lse


@float32
def attention_vjp(dout, q, k, v, out, lse, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None, dropout=0.0,
                  key=0, reduced=False, need_bias=False, out_grads=None):
    args = _attention_args("attention_vjp", q, k, v, causal, window, segments, starts, bias, scale, dropout, key, reduced)
    expect(dout.shape == out.shape == q.shape,
           lambda: f"attention_vjp: dout {dout.shape}, out {out.shape}; expected {q.shape}, the shape of q")
    expect(lse.shape == (q.shape[0], q.shape[2], q.shape[1]),
           lambda: f"attention_vjp: lse {lse.shape}; expected (B, H, Tq) to go with q {q.shape}")
    expect(not need_bias or bias is not None, lambda: "attention_vjp: need_bias without a bias")
    grads = tuple(_C.empty(x.shape) for x in (q, k, v)) if out_grads is None else out_grads
    for name, x, to in zip(("dq", "dk", "dv"), (q, k, v), grads):
        expect(to.shape == x.shape, lambda: f"attention_vjp: out_grads {name} {to.shape}, expected {x.shape}")
    dbias = None
    if need_bias:
        dbias = _C.empty(bias.shape)
        dbias.fill(0)
    _C.attention_vjp(dout, q, k, v, out, lse, *args, *grads, dbias)
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
    y = _C.empty(x.shape)
    _C.rope(x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:]), y, cos, sin, positions, 2 * cos.shape[1], interleaved, inverse)
    return y


# ---- element by element ----------------------------------------------------------------------------------------------


def same_shape(name, x, /, **others):
    """ValueError unless the others have the shape of x."""
    for other, a in others.items():
        if a.shape != x.shape:
            raise ValueError(f"{name}: {other} {a.shape}, expected {x.shape}")


def act_code(name, act):
    expect(act is not None and act in ACTS, lambda: f"{name}: act={act!r}; expected one of {reference.ACTIVATIONS}")
    return ACTS[act]


@float32
def activation(x, act):
    code, y = act_code("activation", act), _C.empty(x.shape)
    _C.activation(x, y, code)
    return y


@float32
def activation_vjp(dy, x, act):
    same_shape("activation_vjp", dy, x=x)
    code, dx = act_code("activation_vjp", act), _C.empty(x.shape)
    _C.activation_vjp(dy, x, dx, code)
    return dx


@float32
def glu(gate, up, act):
    same_shape("glu", gate, up=up)
    code, y = act_code("glu", act), _C.empty(gate.shape)
    _C.glu(gate, up, y, code)
    return y


@float32
def glu_vjp(dy, gate, up, act):
    same_shape("glu_vjp", dy, gate=gate, up=up)
    code, dgate, dup = act_code("glu_vjp", act), _C.empty(dy.shape), _C.empty(dy.shape)
    _C.glu_vjp(dy, gate, up, dgate, dup, code)
    return dgate, dup


@float32
def add(a, b, out=None):
    same_shape("add", a, b=b)
    y = _C.empty(a.shape) if out is None else out
    expect(y.shape == a.shape, lambda: f"add: out {y.shape}, expected {a.shape}")
    _C.add(a, b, y)
    return y


random_bits = reference.random_bits


@float32
def dropout(x, p, key):
    y = _C.empty(x.shape)
    _C.dropout(x, y, *_drawn("dropout", p, key), 1 / (1 - p))
    return y


# ---- norms -----------------------------------------------------------------------------------------------------------


def channels(name, x, /, **weights):
    """ValueError unless x has an axis of channels and every weight, where there is one, is (C,)."""
    expect(x.ndim > 0, lambda: f"{name}: x (), expected (..., C)")
    for weight, w in weights.items():
        if w is not None and w.shape != x.shape[-1:]:
            raise ValueError(f"{name}: {weight} {w.shape}, expected {x.shape[-1:]} for x {x.shape}")


def rows_of(name, x, /, **stats):
    """ValueError unless every statistic has one value a row of x."""
    for stat, s in stats.items():
        if s.shape != x.shape[:-1]:
            raise ValueError(f"{name}: {stat} {s.shape}, expected {x.shape[:-1]} for x {x.shape}")


@float32
def column_sum(x):
    expect(x.ndim == 2, lambda: f"column_sum: x {x.shape}, expected (N, C)")
    y = _C.empty(x.shape[1:])
    _C.column_sum(x, y)
    return y


@float32
def layer_norm(x, w, b, eps):
    channels("layer_norm", x, w=w, b=b)
    lead = x.shape[:-1]
    y, mean, rstd = _C.empty(x.shape), _C.empty(lead), _C.empty(lead)
    _C.layer_norm(x, w, b, y, mean, rstd, eps)
    return y, mean, rstd


@float32
def layer_norm_vjp(dy, x, w, mean, rstd, need_w=True):
    same_shape("layer_norm_vjp", x, dy=dy)
    channels("layer_norm_vjp", x, w=w)
    rows_of("layer_norm_vjp", x, mean=mean, rstd=rstd)
    dx = _C.empty(x.shape)
    dw, db = (_C.empty(w.shape), _C.empty(w.shape)) if need_w else (None, None)
    _C.layer_norm_vjp(dy, x, w, mean, rstd, dx, dw, db)
    return dx, dw, db


@float32
def rms_norm(x, w, eps):
    channels("rms_norm", x, w=w)
    y, rstd = _C.empty(x.shape), _C.empty(x.shape[:-1])
    _C.rms_norm(x, w, y, rstd, eps)
    return y, rstd


@float32
def rms_norm_vjp(dy, x, w, rstd, need_w=True):
    same_shape("rms_norm_vjp", x, dy=dy)
    channels("rms_norm_vjp", x, w=w)
    rows_of("rms_norm_vjp", x, rstd=rstd)
    dx, dw = _C.empty(x.shape), _C.empty(w.shape) if need_w else None
    _C.rms_norm_vjp(dy, x, w, rstd, dx, dw)
    return dx, dw


# ---- softmax and losses ----------------------------------------------------------------------------------------------


def _softmax(name, x, log):
    expect(x.ndim > 0, lambda: f"{name}: x (), expected (..., V)")
    y = _C.empty(x.shape)
    _C.softmax(x, y, x.shape[-1], log)
    return y


def _softmax_vjp(name, dy, y, log):
    same_shape(name, dy, y=y)
    expect(y.ndim > 0, lambda: f"{name}: y (), expected (..., V)")
    dx = _C.empty(y.shape)
    _C.softmax_vjp(dy, y, dx, y.shape[-1], log)
    return dx


@float32
def softmax(x):
    return _softmax("softmax", x, False)


@float32
def softmax_vjp(dy, y):
    return _softmax_vjp("softmax_vjp", dy, y, False)


@float32
def log_softmax(x):
    return _softmax("log_softmax", x, True)


@float32
def log_softmax_vjp(dy, y):
    return _softmax_vjp("log_softmax_vjp", dy, y, True)


@float32
def cross_entropy(logits, targets, label_smoothing=0.0, z_loss=0.0):
    expect(logits.ndim == 2, lambda: f"cross_entropy: logits {logits.shape}, expected (N, V)")
    n, v = logits.shape
    targets = _targets("cross_entropy", targets, n, v)
    loss, dlogits = _C.empty((n,)), _C.empty((n, v))
    np.copyto(dlogits, logits)
    _C.cross_entropy(dlogits, targets, loss, v, label_smoothing, z_loss, True)
    return loss, dlogits


@float32
def linear_cross_entropy(h, w, b, targets, label_smoothing=0.0, z_loss=0.0, need=(False, False, False), reduced=False):
    expect(h.ndim == w.ndim == 2 and h.shape[1] == w.shape[1],
           lambda: f"linear_cross_entropy: h {h.shape} and w {w.shape}, expected (N, C) and (V, C)")
    (n, c), v = h.shape, len(w)
    expect(b is None or b.shape == (v,), lambda: f"linear_cross_entropy: b {b.shape}, expected {(v,)}")
    if w.dtype != F32 or (b is not None and b.dtype != F32):
        raise TypeError(f"linear_cross_entropy: w {w.dtype}, b {None if b is None else b.dtype}; expected float32 like h")
    targets = _targets("linear_cross_entropy", targets, n, v)
    packed = isinstance(w, Packed)
    expect(not (packed and need[1]), lambda: f"linear_cross_entropy: a gradient for w {w}, which is frozen")
    loss, dh = _C.empty((n,)), _C.empty((n, c)) if need[0] else None
    dw, db = _C.empty((v, c)) if need[1] else None, _C.empty((v,)) if need[2] else None
    if packed:
        _packed_head(h, w, b, targets, loss, dh, db, label_smoothing, z_loss, need)
    elif v:
        _C.linear_cross_entropy(h, w, b, targets, loss, dh, dw, db, label_smoothing, z_loss, LOGITS, reduced)
    return loss, dh, dw, db


def _packed_head(h, w, b, targets, loss, dh, db, label_smoothing, z_loss, need):
    """linear_cross_entropy of a Packed w, in rows whose number depends on V alone."""
    n, v = len(h), len(w)
    rows = max(64, LOGITS // max(v, 1) // 8 * 8)
    logits = _C.empty((min(n, rows), v))
    if need[2]:
        db[...] = 0
    for i in range(0, n, rows):
        j = min(n, i + rows)
        x = linear(h[i:j], w, bias=b, out=logits[: j - i])
        _C.cross_entropy(x, targets[i:j], loss[i:j], v, label_smoothing, z_loss, any(need))
        if need[0]:
            linear_vjp(x, w, out=dh[i:j])
        if need[2]:
            db += column_sum(x)


LOGITS = 6_450_000  # elements that linear_cross_entropy keeps of its (N, V) logits: 26 MB


def _targets(name, targets, n, v):
    expect(targets.shape == (n,), lambda: f"{name}: targets {targets.shape}, expected {(n,)}")
    return _ids(name, "target", targets, v, ignore=True)


def _ids(name, what, ids, size, ignore=False):
    """ids as int32; IndexError names the first one outside of 0..size-1 (with `ignore` negative ones pass)."""
    if ids.dtype == np.int32:
        bad = _C.first_outside(ids, -(2**31) if ignore else 0, size)
    else:
        if ids.dtype.kind not in "iu":
            raise TypeError(f"{name}: {what}s of {ids.dtype}, expected int32 or another integer type")
        outside = (ids >= size) if ignore else (ids < 0) | (ids >= size)
        bad = int(outside.argmax()) if outside.any() else -1
    if bad >= 0:
        at = tuple(int(i) for i in np.unravel_index(bad, ids.shape))
        raise IndexError(f"{name}: {what} {ids[at]} at position {at[0] if len(at) == 1 else at}, expected 0..{size - 1}"
                         f"{', or a negative one to ignore' if ignore else ''}")
    return ids if ids.dtype == np.int32 else np.maximum(ids.astype(np.int64), -1).astype(np.int32)


# ---- embedding -------------------------------------------------------------------------------------------------------


@float32
def embedding(w, ids):
    expect(w.ndim == 2, lambda: f"embedding: w {w.shape}, expected (V, C)")
    ids = _ids("embedding", "token id", ids, len(w))
    y = _C.empty((*ids.shape, w.shape[1]))
    if isinstance(w, Packed):
        _C.packed_rows(w.native, ids, y)
        return y
    _C.embedding(w, ids, y, w.shape[1])
    return y


@float32
def embedding_vjp(dy, ids, rows, out=None):
    expect(dy.shape[:-1] == ids.shape, lambda: f"embedding_vjp: dy {dy.shape}, expected {(*ids.shape, 'C')} for ids {ids.shape}")
    dw = _C.empty((rows, dy.shape[-1])) if out is None else out
    expect(dw.shape == (rows, dy.shape[-1]), lambda: f"embedding_vjp: out {dw.shape}, expected {(rows, dy.shape[-1])}")
    _C.embedding_vjp(dy, _ids("embedding_vjp", "token id", ids, rows), dw, dy.shape[-1], rows, out is not None)
    return dw


# ---- optimizer -------------------------------------------------------------------------------------------------------


@float32
def sum_squares(x):
    return _C.sum_squares(x)


@float32
def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale=1.0):
    same_shape("adamw", p, g=g, m=m, v=v)
    expect(step >= 1, lambda: f"adamw: step={step}, expected at least 1")
    _C.adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step, scale)


# ---- sampling --------------------------------------------------------------------------------------------------------


@float32
def sample(logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    expect(logits.ndim == 2 and logits.shape[1] > 0, lambda: f"sample: logits {logits.shape}, expected (B, V)")
    expect(uniform.shape == logits.shape[:1], lambda: f"sample: uniform {uniform.shape}, expected {logits.shape[:1]}")
    expect(0 <= temperature < float("inf"), lambda: f"sample: temperature={temperature}, expected 0 <= temperature < inf")
    expect(top_k >= 0, lambda: f"sample: top_k={top_k}, expected 0 (off) or more")
    expect(0 <= top_p <= 1 and 0 <= min_p <= 1, lambda: f"sample: top_p={top_p}, min_p={min_p}, expected 0..1")
    ids = np.empty(len(logits), np.int32)
    _C.sample(logits, uniform, ids, logits.shape[1], temperature, top_k, top_p, min_p)
    return ids
