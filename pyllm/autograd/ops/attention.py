"""Attention and rotary positions."""
from pyllm import kernels as K
from pyllm.autograd.ops.linear import drawn
from pyllm.autograd.tensor import op, reduced


@op
def attention(q, k, v, bias=None, *, causal=True, window=0, segments=None, starts=None, scale=None, p=0.0, rng=None):
    """dropout(softmax(scale * q @ k^T + bias, over the keys a query may see), p, rng) @ v

    q:(B, Tq, H, D) k, v:(B, Tk, Hkv, D), H a multiple of Hkv -> (B, Tq, H, D). segments: (B, T) int32 for self-attention or a pair for
    queries and keys: 0 is padding, equal numbers see each other. window: exactly that many keys, the query's own included. starts:(B,)
    int64: the key index of each row's first query (default Tk - Tq). A query that sees nothing gives 0. Vaswani et al. 2017.
    p, rng: dropout of the weights; the backward draws the same again, nothing of the size (Tq, Tk) is held.
    """
    options = dict(causal=causal, window=window, segments=_pair(segments), starts=starts, bias=bias, scale=scale, **_dropped(p, rng),
                   reduced=reduced())
    out, lse = K.attention(q, k, v, **options)

    def vjp(dy, need):
        return K.attention_vjp(dy, q, k, v, out, lse, need_bias=len(need) > 3 and need[3], **options)[: len(need)]

    return out, vjp


@op
def attention_packed(qkv, *, heads, kv_heads, causal=True, window=0, segments=None, scale=None, p=0.0, rng=None):
    """Self-attention over a fused projection     qkv:(B, T, (heads + 2 kv_heads) D) -> (B, T, heads D); see attention."""
    b, t, width = qkv.shape
    d = width // (heads + 2 * kv_heads)
    options = dict(causal=causal, window=window, segments=_pair(segments), scale=scale, **_dropped(p, rng), reduced=reduced())
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


def _dropped(p, rng):
    return dict(dropout=p, key=rng.key) if drawn("attention", p, rng) else {}


@op
def rope(x, *, cos, sin, positions, interleaved=False):
    """Rotary positions     x:(B, T, H, D) cos, sin:(P, R/2) positions:(B, T) int32 -> (B, T, H, D). Su et al. 2021."""
    y = K.rope(x, cos, sin, positions, interleaved)
    return y, lambda dy, need: K.rope(dy, cos, sin, positions, interleaved, inverse=True)
