"""Llama: rotary positions, RMS norm, SwiGLU, grouped heads (Touvron et al. 2023)."""
from dataclasses import dataclass, field

from pyllm.autograd import Rng, checkpoint, ops
from pyllm.errors import ConfigError
from pyllm.models.base import CausalLM, Config
from pyllm.models.gpt2 import ACTIVATIONS, add_projection
from pyllm.nn import BlockPlan, Embedding, Linear, Module, RMSNorm, RotaryTable, positions, step


@dataclass(frozen=True)
class LlamaConfig(Config):
    """Keys of the Hugging Face config.json; defaults are Llama 2 7B's."""

    model_type, architecture = "llama", "LlamaForCausalLM"
    SIZES = {"layers": ("num_hidden_layers",), "heads": ("num_attention_heads",), "width": ("hidden_size",),
             "context": ("max_position_embeddings",), "dropout": ("dropout",)}
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # num_attention_heads
    head_dim: int | None = None  # hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    dropout: float = 0.0  # on the residual branches; not a key of the checkpoint's library
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values):
        """Also reads rope_parameters, where newer files keep rope_theta and rope_scaling."""
        values = dict(values)
        rope = values.pop("rope_parameters", None)
        if rope:
            values.setdefault("rope_theta", rope.get("rope_theta", cls.rope_theta))
            if rope.get("rope_type", "default") != "default":
                values.setdefault("rope_scaling", rope)
        return super().from_dict(values)

    @classmethod
    def from_sizes(cls, values):
        """Without intermediate_size, 8/3 of the width up to a multiple of 32: as many weights as an MLP of 4 widths (Shazeer 2020)."""
        width = values.get("width", values.get("hidden_size"))
        if "intermediate_size" not in values and isinstance(width, int):
            values = {**values, "intermediate_size": -(-8 * width // 96) * 32}
        return super().from_sizes(values)

    def __post_init__(self):
        super().__post_init__()
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(f"llama config: num_attention_heads={self.num_attention_heads} is not a multiple of "
                              f"num_key_value_heads={self.kv_heads}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads or self.head_size % 2:
            raise ConfigError(f"llama config: hidden_size={self.hidden_size} and num_attention_heads={self.num_attention_heads}: "
                              "expected heads of a whole, even size")
        if self.rope_theta <= 0:
            raise ConfigError(f"llama config: rope_theta={self.rope_theta}; expected a number above 0")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"llama config: hidden_act={self.hidden_act!r}; expected one of {', '.join(ACTIVATIONS)}")
        if (self.rope_scaling or {}).get("rope_type", (self.rope_scaling or {}).get("type", "default")) != "default":
            raise ConfigError(f"llama config: rope_scaling={self.rope_scaling}: scaled rotary positions are not supported yet")

    kv_heads = property(lambda self: self.num_key_value_heads or self.num_attention_heads)
    head_size = property(lambda self: self.head_dim or self.hidden_size // self.num_attention_heads)


class Attention(Module):
    def __init__(self, c, layer, rotary):
        d, std = c.head_size, c.initializer_range
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * d, c.attention_bias, std)
        self.k_proj = Linear(c.hidden_size, c.kv_heads * d, c.attention_bias, std)
        self.v_proj = Linear(c.hidden_size, c.kv_heads * d, c.attention_bias, std)
        self.o_proj = Linear(c.num_attention_heads * d, c.hidden_size, c.attention_bias, std / (2 * c.num_hidden_layers) ** 0.5)
        self.head_size, self.layer, self.rotary = d, layer, rotary

    def __call__(self, x, at, segments, cache):
        """x:(B, T, C) at:(B, T) positions -> (B, T, H D), before the output projection."""
        b, t, _ = x.shape
        q, k, v = (p(x).reshape(b, t, -1, self.head_size) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = self.rotary(int(at.max()))
        q, k = (ops.rope(y, cos=cos, sin=sin, positions=at) for y in (q, k))
        if cache is None:
            out = ops.attention(q, k, v, segments=segments)
        else:
            keys, values = cache.append(self.layer, k.data, v.data)
            out = ops.attention(q, keys, values, starts=cache.lengths)
        return out.reshape(b, t, -1)


class MLP(Module):
    def __init__(self, c):
        std = c.initializer_range
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, c.mlp_bias, std)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, c.mlp_bias, std / (2 * c.num_hidden_layers) ** 0.5)
        self.activation = ACTIVATIONS[c.hidden_act]

    def __call__(self, x):
        """x:(B, T, C) -> (B, T, I), before the down projection."""
        return ops.glu(self.gate_proj(x), self.up_proj(x), kind=self.activation)


class Block(Module):
    def __init__(self, c, layer, rotary):
        self.self_attn = Attention(c, layer, rotary)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.p = c.dropout

    def __call__(self, x, at, segments, cache, rng):
        heads = self.self_attn(self.input_layernorm(x), at, segments, cache)
        x = add_projection(self.self_attn.o_proj, heads, x, self.p, rng and rng.fold(0))
        return add_projection(self.mlp.down_proj, self.mlp(self.post_attention_layernorm(x)), x, self.p, rng and rng.fold(1))

    def plan(self):
        """-> the same for a step in one call."""
        a, mlp = self.self_attn, self.mlp
        return BlockPlan(self.input_layernorm, (a.q_proj, a.k_proj, a.v_proj), a.o_proj, self.post_attention_layernorm, mlp.up_proj,
                         mlp.down_proj, mlp.activation, a.q_proj.weight.shape[0] // a.head_size, a.k_proj.weight.shape[0] // a.head_size,
                         a.head_size**-0.5, gate=mlp.gate_proj, rotary=a.rotary)


class Body(Module):
    def __init__(self, c):
        rotary = RotaryTable(c.head_size, c.rope_theta)
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size, c.initializer_range)
        self.layers = [Block(c, i, rotary) for i in range(c.num_hidden_layers)]
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Llama(CausalLM):
    """tokens:(B, T) -> logits (B, T, V). checkpointing: keep no activations inside a block, compute them twice."""

    TRANSPOSED = ()
    IGNORED = (r"rotary_emb\.inv_freq$",)
    PREFIX = "model."

    def __init__(self, config, checkpointing=False):
        self.config, self.checkpointing = config, checkpointing
        self.model = Body(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, False, config.initializer_range)

    def head_weight(self):
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens, segments=None, cache=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments, cache)
        at = positions(tokens, segments, cache, limit=self.config.max_position_embeddings)
        x = self.model.embed_tokens(tokens)
        if cache is not None and (y := step(self.model.layers, x, cache, rng)) is not None:
            return self.model.norm(y)
        for i, block in enumerate(self.model.layers):
            key = rng and rng.fold(i)
            if self.checkpointing:
                x = checkpoint(lambda x, block=block, key=key: block(x, at, segments, cache, key), x)
            else:
                x = block(x, at, segments, cache, key)
        return self.model.norm(x)
