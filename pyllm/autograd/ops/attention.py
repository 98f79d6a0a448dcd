"""Attention and rotary positions."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd.ops.linear import dropout
from pyllm.autograd.ops.loss import softmax
from pyllm.autograd.ops.math import matmul, where
from pyllm.autograd.tensor import op, reduced
from pyllm.kernels.reference import attention_mask


@op
def attention(q, k, v, bias=None, *, causal=True, window=0, segments=None, starts=None, scale=None):
    """softmax(scale * q @ k^T + bias, over the keys a query may see) @ v

    q:(B, Tq, H, D) k, v:(B, Tk, Hkv, D), H a multiple of Hkv -> (B, Tq, H, D). segments: (B, T) int32 for self-attention or a pair for
    queries and keys: 0 is padding, equal numbers see each other. window: exactly that many keys, the query's own included. starts:(B,)
    int64: the key index of each row's first query (default Tk - Tq). A query that sees nothing gives 0. Vaswani et al. 2017.
    """
    options = dict(causal=causal, window=window, segments=_pair(segments), starts=starts, bias=bias, scale=scale, reduced=reduced())
    out, lse = K.attention(q, k, v, **options)

    def vjp(dy, need):
        return K.attention_vjp(dy, q, k, v, out, lse, need_bias=len(need) > 3 and need[3], **options)[: len(need)]

    return out, vjp


@op
def attention_packed(qkv, *, heads, kv_heads, causal=True, window=0, segments=None, scale=None):
    """Self-attention over a fused projection     qkv:(B, T, (heads + 2 kv_heads) D) -> (B, T, heads D); see attention."""
    b, t, width = qkv.shape
    d = width // (heads + 2 * kv_heads)
    options = dict(causal=causal, window=window, segments=_pair(segments), scale=scale, reduced=reduced())
    views = split_heads(qkv, heads, kv_heads)
    out, lse = K.attention(*views, **options)

    def vjp(dy, need):
        dqkv = K.empty(qkv.shape, qkv.dtype)
        K.attention_vjp(dy.reshape(out.shape), *views, out, lse, out_grads=split_heads(dqkv, heads, kv_heads), **options)
        return dqkv

    return out.reshape(b, t, heads * d), vjp


def split_heads(qkv, heads, kv_heads):
    """qkv:(B, T, (H + 2 Hkv) D) -> views q:(B, T, H, D), k, v:(B, T, Hkv, D)."""
    b, t, width = qkv.shape
    parts = qkv.reshape(b, t, heads + 2 * kv_heads, width // (heads + 2 * kv_heads))
    return parts[:, :, :heads], parts[:, :, heads : heads + kv_heads], parts[:, :, heads + kv_heads :]


def _pair(segments):
    return segments if segments is None or isinstance(segments, tuple) else (segments, segments)


def attention_with_dropout(q, k, v, bias=None, *, p, rng, causal=True, window=0, segments=None, scale=None):
    """attention(...) whose weights are 0 with probability p, the others times 1 / (1 - p). Tensors q, k, v, bias as in attention.

    Made of operations that hold (B, H, Tq, Tk): for training at such a dropout, at the price of time and memory.
    """
    (b, tq, h, d), (tk, hkv) = q.shape, k.shape[1:3]
    mask = attention_mask(q, k, causal, window, _pair(segments), None)[:, None]
    grouped = q.reshape(b, tq, hkv, h // hkv, d).transpose(0, 2, 3, 1, 4).reshape(b, hkv, h // hkv * tq, d)
    scores = matmul(grouped, k.transpose(0, 2, 3, 1)).reshape(b, h, tq, tk) * (d**-0.5 if scale is None else scale)
    scores = where(scores if bias is None else scores + bias, np.array(-np.inf, q.dtype), condition=mask)
    weights = dropout(softmax(scores), p, rng).reshape(b, hkv, h // hkv * tq, tk)
    out = matmul(weights, v.transpose(0, 2, 1, 3)).reshape(b, hkv, h // hkv, tq, d)
    return out.transpose(0, 3, 1, 2, 4).reshape(b, tq, h, d)


@op
def rope(x, *, cos, sin, positions, interleaved=False):
    """Rotary positions     x:(B, T, H, D) cos, sin:(P, R/2) positions:(B, T) int32 -> (B, T, H, D). Su et al. 2021."""
    y = K.rope(x, cos, sin, positions, interleaved)
    return y, lambda dy, need: K.rope(dy, cos, sin, positions, interleaved, inverse=True)
