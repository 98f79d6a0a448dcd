"""What the families' attentions and blocks share: heads, caches, grouped rotary attention, residual branches, checkpointing."""
from pyllm.autograd import checkpoint, drawing, ops
from pyllm.nn.layers import Linear
from pyllm.nn.module import Module, normal, parameter
from pyllm.nn.positions import distances, relative_buckets
from pyllm.nn.step import BlockPlan
from pyllm.nn.virtual import attended, size

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}


def split(x, size):
    """x:(B, T, H D) -> (B, T, H, D)."""
    return x.reshape(*x.shape[:2], -1, size)


def attend(q, k, v, bias=None, *, causal=True, window=0, segments=None, cache=None, layer=None, prefix=None, scale=None, p=0.0,
           rng=None):
    """q:(B, Tq, H, D) k, v:(B, Tk, Hkv, D) -> (B, Tq, H D); see ops.attention. k and v go behind what `layer` of the cache holds.

    prefix: keys and values before them, see virtual.py; a cache holds its own. p: dropout of the attention weights, with rng.
    """
    if cache is None and size(prefix):
        k, v, segments = attended(prefix, k, v, segments, ordered=window > 0 or bias is not None)
    if cache is not None:
        k, v = cache.append(layer, k.data, v.data)
        if bias is not None:  # as wide as the keys there are, not as the room for them
            k, v = k[:, : bias.shape[3]], v[:, : bias.shape[3]]
        out = ops.attention(q, k, v, bias, causal=causal, window=window, starts=cache.starts, scale=scale)
    else:
        out = ops.attention(q, k, v, bias, causal=causal, window=window, segments=segments, scale=scale, p=p, rng=rng)
    return out.reshape(*q.shape[:2], -1)


def through(layers, x, *tensors, checkpointing, rng, **options):
    """x through each layer(x, *tensors, rng=, **options); tensors: what else a gradient flows to. Layer i draws from rng.fold(i)."""
    for i, layer in enumerate(layers):
        def call(*inputs, layer=layer, key=rng and rng.fold(i)):
            with drawing(key):  # inside, so that a checkpointed layer draws the same again
                return layer(*inputs, rng=key, **options)

        x = checkpoint(call, x, *tensors) if checkpointing else call(x, *tensors)
    return x


class RelativeBias(Module):
    """weight:(buckets, H), added to the scores: a number for each head and bucket of distances. Raffel et al. 2020."""

    def __init__(self, heads, bidirectional, buckets=32, farthest=128, std=0.02):
        self.weight = parameter(buckets, heads)
        self.bidirectional, self.farthest, self.std = bidirectional, farthest, std

    def reset(self, rng):
        normal(self.weight, rng, self.std)

    def __call__(self, queries, keys, starts):
        """starts:(S,) key index of the first query -> Tensor (S, H, queries, keys)."""
        buckets = relative_buckets(distances(queries, keys, starts), self.bidirectional, len(self.weight), self.farthest)
        return ops.embedding(self.weight, buckets).transpose(0, 3, 1, 2)


class RotaryAttention(Module):
    """Self-attention with rotary positions and grouped heads. c: a DecoderConfig, which says what the family adds."""

    def __init__(self, c, layer, rotary):
        d, std = c.head_size, c.initializer_range
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * d, c.qkv_bias, std)
        self.k_proj = Linear(c.hidden_size, c.kv_heads * d, c.qkv_bias, std)
        self.v_proj = Linear(c.hidden_size, c.kv_heads * d, c.qkv_bias, std)
        self.o_proj = Linear(c.num_attention_heads * d, c.hidden_size, c.out_bias, std / (2 * c.num_hidden_layers) ** 0.5)
        self.q_norm, self.k_norm = (c.norm(d, c.rms_norm_eps) if c.qk_norm else None for _ in range(2))
        self.heads, self.kv_heads, self.head_size = c.num_attention_heads, c.kv_heads, d
        self.layer, self.rotary, self.causal = layer, rotary, c.causal
        self.window, self.scale, self.p, self.prefix = c.window(layer), c.scale, c.attention_dropout, None

    def __call__(self, x, at, segments, cache, rng):
        """x:(B, T, C) at:(B, T) positions -> (B, T, H D), before the output projection."""
        q, k, v = (split(p(x), self.head_size) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = self.rotary(at.max())
        q, k = (ops.rope(y, cos=cos, sin=sin, positions=at) for y in (q, k))
        return attend(q, k, v, causal=self.causal, window=self.window, segments=segments, cache=cache, layer=self.layer,
                      prefix=self.prefix, scale=self.scale, p=self.p, rng=rng)


class GatedMLP(Module):
    """SwiGLU, or GeGLU with a gelu. Shazeer 2020."""

    def __init__(self, c):
        std = c.initializer_range
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, c.mlp_bias, std / (2 * c.num_hidden_layers) ** 0.5)
        self.activation = c.activation

    def __call__(self, x):
        """x:(B, T, C) -> (B, T, I), before the down projection."""
        return ops.glu(self.gate_proj(x), self.up_proj(x), kind=self.activation)


class RotaryBlock(Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); c.sandwich: each branch goes through a second norm before it is added."""

    def __init__(self, c, layer, rotary):
        self.self_attn = RotaryAttention(c, layer, rotary)
        self.mlp = GatedMLP(c)
        self.input_layernorm, self.post_attention_layernorm = self._norm(c), self._norm(c)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = (self._norm(c) if c.sandwich else None for _ in range(2))
        self.p = c.dropout

    @staticmethod
    def _norm(c):
        return c.norm(c.hidden_size, c.rms_norm_eps)

    def __call__(self, x, at, segments, cache, rng):
        heads = self.self_attn(self.input_layernorm(x), at, segments, cache, rng and rng.fold(2))
        keys = rng and rng.fold(0), rng and rng.fold(1)
        if self.pre_feedforward_layernorm is None:
            x = self.self_attn.o_proj.onto(heads, x, self.p, keys[0])
            return self.mlp.down_proj.onto(self.mlp(self.post_attention_layernorm(x)), x, self.p, keys[1])
        x = self.post_attention_layernorm.onto(self.self_attn.o_proj(heads), x, self.p, keys[0])
        inner = self.mlp.down_proj(self.mlp(self.pre_feedforward_layernorm(x)))
        return self.post_feedforward_layernorm.onto(inner, x, self.p, keys[1])

    def plan(self):
        """-> the same for a step in one call, None with sandwich norms."""
        a, mlp = self.self_attn, self.mlp
        if self.pre_feedforward_layernorm is not None:
            return None
        return BlockPlan(self.input_layernorm, (a.q_proj, a.k_proj, a.v_proj), a.o_proj, self.post_attention_layernorm, mlp.up_proj,
                         mlp.down_proj, mlp.activation, a.heads, a.kv_heads,
                         a.head_size**-0.5 if a.scale is None else a.scale, gate=mlp.gate_proj, q_norm=a.q_norm, k_norm=a.k_norm,
                         rotary=a.rotary, window=a.window)
