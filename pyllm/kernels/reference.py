"""Every kernel in plain NumPy: the specification, the oracle of the tests, and what runs where no compiler was found.

float32 or float64 in, the same out. Forward and vjp stand side by side; gradients are d + name; `vjp` functions return one gradient
for each differentiable input. Dimensions: B rows, T positions, C channels, H heads, D head size, V vocabulary, I/O a layer's sizes.
"""
import numpy as np

from pyllm.kernels.packed import BLOCK, Packed


def empty(shape, dtype=np.float32):
    """An array not filled yet; the native one lies in memory that is reused."""
    return np.empty(shape, dtype)


# ---- matmul ----------------------------------------------------------------------------------------------------------


def bf16(x):
    """x rounded to the nearest bfloat16 (8 bits of mantissa, ties to even), in its own dtype."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).astype(x.dtype)


def matmul(a, b, *, ta=False, tb=False, bias=None, act=None, residual=None, out=None, accumulate=False, reduced=False):
    """op(a):(..., M, K) @ op(b):(..., K, N) -> c:(..., M, N); with act -> (c, z), z what went into act.

    c = act(op(a) @ op(b) + bias:(N,)) + residual:(..., M, N); accumulate adds to `out` instead. ta, tb: transpose the last two axes.
    reduced: a and b are rounded to bfloat16, sums are not.
    """
    a, b = (bf16(a), bf16(b)) if reduced else (a, b)
    z = (a.swapaxes(-1, -2) if ta else a) @ (b.swapaxes(-1, -2) if tb else b)
    z = z if bias is None else z + bias
    c = z if act is None else activation(z, act)
    c = c if residual is None else c + residual
    if out is not None:
        np.add(out, c, out=out) if accumulate else np.copyto(out, c)
        c = out
    return c if act is None else (c, z)


def in_precision_of(w, x):
    """x:(M, I) as products with a Packed w take it: rounded to bfloat16, or to int8 times max|x| / 127 of every block of 32."""
    if w.format == "bf16":
        return bf16(x)
    blocks = x.astype(np.float32).reshape(len(x), x.shape[1] // BLOCK, BLOCK)
    most = np.abs(blocks).max(2, keepdims=True, initial=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quants = np.rint(blocks * np.where(most > 1e-35, np.float32(127) / most, np.float32(0)))
        return (quants.astype(x.dtype) * (most / np.float32(127) + 0 * blocks.sum(2, keepdims=True))).reshape(x.shape)


def linear(x, w, *, bias=None, act=None, residual=None, out=None, reduced=False):
    """x:(M, I) w:(O, I), an array or Packed -> act(x @ w.T + bias) + residual:(M, O); see matmul. Packed: x in the precision of w."""
    if isinstance(w, Packed):
        x, w, reduced = in_precision_of(w, x), w.dequantize().astype(x.dtype), False
    return matmul(x, w, tb=True, bias=bias, act=act, residual=residual, out=out, reduced=reduced)


def linear_vjp(dy, w, *, out=None, accumulate=False, reduced=False):
    """dy:(M, O) -> dx = dy @ w:(M, I); of a Packed w the rounding of x counts as the identity. (dw is matmul(dy, x, ta=True).)"""
    w = w.dequantize().astype(dy.dtype) if isinstance(w, Packed) else w
    return matmul(dy, w, out=out, accumulate=accumulate, reduced=reduced)


def column_sum(x):
    """x:(N, C) -> (C,): the sum over rows, in fixed chunks added in order."""
    return x.sum(0)


# ---- element by element ----------------------------------------------------------------------------------------------


def erf(x):
    """x -> erf(x), by math.erf on every element (slow, exact)."""
    import math

    return np.frompyfunc(math.erf, 1, 1)(x).astype(x.dtype)


def activation(x, act):
    """x -> act(x), act one of gelu_tanh, gelu (exact, by erf), silu, relu. Hendrycks & Gimpel 2016; Elfwing et al. 2018."""
    if act == "relu":
        return np.maximum(x, 0)
    if act == "silu":
        return x * _sigmoid(x)
    if act == "gelu":
        return 0.5 * x * (1 + erf(x * np.sqrt(0.5).astype(x.dtype)))
    if act == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(_GELU * (x + 0.044715 * x * x * x)))
    raise ValueError(f"activation: act={act!r}; expected one of {ACTIVATIONS}")


def activation_vjp(dy, x, act):
    """dy, x -> dx."""
    if act == "relu":
        return dy * (x > 0)
    if act == "silu":
        s = _sigmoid(x)
        return dy * s * (1 + x * (1 - s))
    if act == "gelu":
        pdf = np.exp(-0.5 * x * x) * (1 / np.sqrt(2 * np.pi)).astype(x.dtype)
        return dy * (0.5 * (1 + erf(x * np.sqrt(0.5).astype(x.dtype))) + x * pdf)
    if act == "gelu_tanh":
        t = np.tanh(_GELU * (x + 0.044715 * x * x * x))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * _GELU * (1 + 3 * 0.044715 * x * x))
    raise ValueError(f"activation_vjp: act={act!r}; expected one of {ACTIVATIONS}")


ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "relu")
_GELU = float(np.sqrt(2 / np.pi))


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def glu(gate, up, act):
    """gate, up:(..., I) -> act(gate) * up: SwiGLU with silu, GeGLU with gelu. Shazeer 2020."""
    return activation(gate, act) * up


def glu_vjp(dy, gate, up, act):
    """-> dgate, dup."""
    return activation_vjp(dy * up, gate, act), dy * activation(gate, act)


def add(a, b, out=None):
    """a + b, equal shapes; out may be a or b."""
    return np.add(a, b, out=out)


def random_bits(key, counters):
    """counters:(...) uint64 -> (...) uint32: words of the counter-based generator with a 64-bit key, two rounds of a 32-bit finaliser."""
    def mix(h):
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
        return h ^ (h >> np.uint32(16))

    low, high = counters.astype(np.uint32), (counters >> np.uint64(32)).astype(np.uint32)
    h = mix(low * np.uint32(0x9E3779B1) + np.uint32(key & 0xFFFFFFFF))
    return mix(h ^ np.uint32(key >> 32) ^ high * np.uint32(0x85EBCA77))


def dropout(x, p, key):
    """x -> x * mask / (1 - p); element i is kept where bit word i of `key` >= p * 2^32. Its own vjp: the mask is never stored."""
    return x * _keep(np.arange(x.size, dtype=np.uint64).reshape(x.shape), p, key) * x.dtype.type(1 / (1 - p))


def _keep(counters, p, key):
    return random_bits(key, counters) >= np.uint32(round(p * 2**32))


# ---- norms -----------------------------------------------------------------------------------------------------------


def layer_norm(x, w, b, eps):
    """x:(..., C) w, b:(C,) or b None -> y, mean:(...), rstd:(...). Ba et al. 2016; the variance is the biased one."""
    mean = x.mean(-1)
    rstd = 1 / np.sqrt(((x - mean[..., None]) ** 2).mean(-1) + x.dtype.type(eps))
    y = (x - mean[..., None]) * rstd[..., None] * w
    return (y if b is None else y + b), mean, rstd


def layer_norm_vjp(dy, x, w, mean, rstd, need_w=True):
    """-> dx, dw, db; dw and db None without need_w."""
    xhat = (x - mean[..., None]) * rstd[..., None]  # forward: y = xhat * w + b
    g = dy * w
    dx = (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True)) * rstd[..., None]
    axes = tuple(range(x.ndim - 1))
    return dx, ((dy * xhat).sum(axes) if need_w else None), (dy.sum(axes) if need_w else None)


def rms_norm(x, w, eps):
    """x:(..., C) w:(C,) -> y, rstd:(...). Zhang & Sennrich 2019."""
    rstd = 1 / np.sqrt((x * x).mean(-1) + x.dtype.type(eps))
    return x * rstd[..., None] * w, rstd


def rms_norm_vjp(dy, x, w, rstd, need_w=True):
    """-> dx, dw; dw None without need_w."""
    xhat = x * rstd[..., None]  # forward: y = xhat * w
    g = dy * w
    dx = (g - xhat * (g * xhat).mean(-1, keepdims=True)) * rstd[..., None]
    return dx, ((dy * xhat).sum(tuple(range(x.ndim - 1))) if need_w else None)


# ---- softmax and losses ----------------------------------------------------------------------------------------------


def softmax(x):
    """x:(..., V) -> y, rows that sum to 1; a row of -inf alone gives 0."""
    top = x.max(-1, keepdims=True)
    e = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def softmax_vjp(dy, y):
    """-> dx = y * (dy - sum(dy * y))."""
    return y * (dy - (dy * y).sum(-1, keepdims=True))


def log_softmax(x):
    """x:(..., V) -> x - logsumexp(x)."""
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def log_softmax_vjp(dy, y):
    """-> dx = dy - exp(y) * sum(dy)."""
    return dy - np.exp(y) * dy.sum(-1, keepdims=True)


def cross_entropy(logits, targets, label_smoothing=0.0, z_loss=0.0):
    """logits:(N, V) targets:(N,) int, < 0 ignored -> loss:(N,), dlogits:(N, V) = d(sum of loss)/dlogits.

    loss = (1 - s) * nll + s * mean over V of -log p + z * logsumexp^2. Szegedy et al. 2016; z-loss: Chowdhery et al. 2022, section 5.
    """
    n, v = logits.shape
    logp = log_softmax(logits)
    top = logits.max(-1)
    lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    valid, rows = targets >= 0, np.arange(n)
    target = np.where(valid, targets, 0)
    loss = -(1 - label_smoothing) * logp[rows, target] + z_loss * lse**2
    if label_smoothing:
        loss -= label_smoothing * logp.mean(-1)
    dlogits = np.exp(logp) * (1 + 2 * z_loss * lse[:, None]) - logits.dtype.type(label_smoothing / v)
    dlogits[rows, target] -= 1 - label_smoothing
    return np.where(valid, loss, 0), np.where(valid[:, None], dlogits, 0)


def linear_cross_entropy(h, w, b, targets, label_smoothing=0.0, z_loss=0.0, need=(False, False, False), reduced=False):
    """h:(N, C) w:(V, C), an array or Packed, b:(V,) or None -> loss:(N,), dh, dw, db (None where not needed); see cross_entropy."""
    loss, dlogits = cross_entropy(linear(h, w, bias=b, reduced=reduced), targets, label_smoothing, z_loss)
    return (loss, linear_vjp(dlogits, w, reduced=reduced) if need[0] else None,
            matmul(dlogits, h, ta=True, reduced=reduced) if need[1] else None, dlogits.sum(0) if need[2] else None)


# ---- attention and positions -----------------------------------------------------------------------------------------


def attention_mask(q, k, causal, window, segments, starts):
    """-> allowed:(B, Tq, Tk) bool. Query i stands at key index starts[b] + i (default Tk - Tq)."""
    at = np.arange(q.shape[1])[None, :, None] + (k.shape[1] - q.shape[1] if starts is None else starts[:, None, None])
    key = np.arange(k.shape[1])[None, None, :]
    allowed = np.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    if causal:
        allowed &= key <= at
    if window:
        allowed &= key > at - window
        allowed &= causal or key < at + window
    if segments is not None:
        allowed &= (segments[0][:, :, None] == segments[1][:, None, :]) & (segments[0][:, :, None] > 0)
    return allowed


def attention(q, k, v, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None, dropout=0.0, key=0, reduced=False):
    """q:(B, Tq, H, D) k, v:(B, Tk, Hkv, D) -> out:(B, Tq, H, D), lse:(B, H, Tq). Vaswani et al. 2017; GQA: Ainslie et al. 2023.

    H a multiple of Hkv. segments: (q:(B, Tq), k:(B, Tk)) int32, 0 = padding, equal numbers see each other. window: exactly that many
    keys, the query's own included (both sides without causal). starts:(B,) int64, key index of each row's first query. bias: added to
    the scaled scores, (1 or B, 1 or H, Tq, Tk). scale: default D^-0.5. A query with nothing to attend to gives out 0 and lse -inf.
    dropout: the probability of key j for query i of head h in entry b is kept where word 2^32 ((b H + h) Tq + i) + j of `key` is at least
    dropout * 2^32, then times 1 / (1 - dropout). reduced: the factors of every product are rounded to bfloat16, sums and exponentials are
    not.
    """
    cut = bf16 if reduced else lambda x: x
    s = _scores(cut(q), cut(k), causal, window, segments, starts, bias, scale)
    top = s.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isneginf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    p = cut(e) / np.where(total == 0, 1, total) * _dropout_factors(e, dropout, key)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return np.einsum("bhqk,bkhd->bqhd", p, _groups(cut(v), q)), lse


def attention_vjp(dout, q, k, v, out, lse, *, causal=True, window=0, segments=None, starts=None, bias=None, scale=None, dropout=0.0,
                  key=0, reduced=False, need_bias=False, out_grads=None):
    """-> dq, dk, dv, dbias (None without need_bias). out_grads: (dq, dk, dv) to write into, views of a fused array if need be."""
    cut = bf16 if reduced else lambda x: x
    q, k, v, rounded = cut(q), cut(k), cut(v), cut(dout)
    s = _scores(q, k, causal, window, segments, starts, bias, scale)
    p = np.exp(s - np.where(np.isneginf(lse), 0, lse)[..., None])
    kept = _dropout_factors(p, dropout, key)  # forward: out = (p * kept) @ v
    dp = np.einsum("bqhd,bkhd->bhqk", rounded, _groups(v, q)) * kept
    ds = p * (dp - np.einsum("bqhd,bqhd->bhq", dout, out)[..., None])
    c = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)  # forward: s = c * q @ k^T + bias
    dq = c * np.einsum("bhqk,bkhd->bqhd", cut(ds), _groups(k, q))
    dk, dv = c * np.einsum("bhqk,bqhd->bkhd", cut(ds), q), np.einsum("bhqk,bqhd->bkhd", cut(p * kept), rounded)
    split = (*k.shape[:3], q.shape[2] // k.shape[2], k.shape[3])
    dbias = None
    if need_bias:
        dbias = ds.sum(tuple(i for i in (0, 1) if bias.shape[i] == 1 and ds.shape[i] > 1), keepdims=True)
    grads = dq, dk.reshape(split).sum(3), dv.reshape(split).sum(3)
    if out_grads is not None:
        for target, grad in zip(out_grads, grads):
            target[...] = grad
    return *grads, dbias


def _dropout_factors(p, dropout, key):
    """p:(B, H, Tq, Tk) -> what its elements are multiplied with: 0, or 1 / (1 - dropout)."""
    if not dropout:
        return p.dtype.type(1)
    b, h, tq, tk = p.shape
    lines = np.arange(b * h * tq, dtype=np.uint64).reshape(b, h, tq, 1) << np.uint64(32)
    return _keep(lines + np.arange(tk, dtype=np.uint64), dropout, key) * p.dtype.type(1 / (1 - dropout))


def _groups(k, q):
    return np.repeat(k, q.shape[2] // k.shape[2], axis=2)


def _scores(q, k, causal, window, segments, starts, bias, scale):
    s = np.einsum("bqhd,bkhd->bhqk", q, _groups(k, q)) * q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if bias is None else s + bias
    return np.where(attention_mask(q, k, causal, window, segments, starts)[:, None], s, q.dtype.type(-np.inf))


def rope(x, cos, sin, positions, interleaved=False, inverse=False):
    """x:(B, T, H, D) cos, sin:(P, R/2) positions:(B, T) int32 -> rotated copy; R <= D, the rest passes. Su et al. 2021.

    Pairs (i, i + R/2), or (2i, 2i + 1) where interleaved. inverse turns back: the vjp.
    """
    c, s = cos[positions][:, :, None], sin[positions][:, :, None] * (-1 if inverse else 1)
    r, y = 2 * cos.shape[1], x.copy()
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    a, b = x[..., first], x[..., second]
    y[..., first], y[..., second] = a * c - b * s, b * c + a * s
    return y


def embedding(w, ids):
    """w:(V, C), an array or Packed, ids:(...) int32 -> (..., C)."""
    return (w.dequantize() if isinstance(w, Packed) else w)[ids]


def embedding_vjp(dy, ids, rows, out=None):
    """dy:(..., C) -> dw:(rows, C): sums the rows of dy in order of position, onto `out` where it is given."""
    dw = np.zeros((rows, dy.shape[-1]), dy.dtype) if out is None else out
    np.add.at(dw, ids.reshape(-1), dy.reshape(-1, dy.shape[-1]))
    return dw


# ---- optimizer -------------------------------------------------------------------------------------------------------


def sum_squares(x):
    """-> float: the sum of squares in float64, over fixed chunks added in order."""
    return float(np.square(x, dtype=np.float64).sum())


def adamw(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, scale=1.0):
    """In place on p, m, v: one AdamW step (Loshchilov & Hutter 2019) with gradient scale * g; step counts from 1."""
    g = g * p.dtype.type(scale)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p *= 1 - lr * weight_decay
    p -= lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)


# ---- sampling --------------------------------------------------------------------------------------------------------


def kept(x, top_k=0, top_p=1.0, min_p=0.0):
    """x:(V,) float64, logits by the temperature -> what `sample` draws from: ids:(n,) in order of falling probability, p:(n,).

    p are as they were before top-p and min-p, and sum to less than 1.
    """
    order = np.argsort(-x, kind="stable")[: top_k or None]
    p = np.exp(x[order] - x[order[0]])
    p /= p.sum()
    keep = (np.cumsum(p) - p < top_p) & (p >= min_p * p[0])
    keep[0] = True
    return order[keep], p[keep]


def sample(logits, uniform, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """logits:(B, V) uniform:(B,) in [0, 1) -> ids:(B,) int32. Order: temperature, top-k, top-p, min-p, draw; temperature 0 is argmax.

    The draw walks the kept tokens in order of falling probability (equal ones: lower id first). top_k 0 = off. top-p: Holtzman et al. 2020,
    the smallest set whose mass reaches top_p; min-p: Nguyen et al. 2024, probability at least min_p times the largest.
    """
    ids = np.empty(len(logits), np.int32)
    for row, x in enumerate(logits.astype(np.float64)):
        if temperature == 0:
            ids[row] = x.argmax()
            continue
        order, p = kept(x / temperature, top_k, top_p, min_p)
        ids[row] = order[min(np.searchsorted(np.cumsum(p), uniform[row] * p.sum(), side="right"), len(p) - 1)]
    return ids
