"""GPT-2: learned positions or, from scratch, any others; pre-norm blocks, gelu (Radford et al. 2019)."""
from dataclasses import dataclass, field

import numpy as np

from pyllm.autograd import Rng, Tensor, ops
from pyllm.errors import ConfigError
from pyllm.models.base import CausalLM, Config, Trunk
from pyllm.nn import (ACTIVATIONS, BlockPlan, Embedding, Frame, LayerNorm, Linear, Module, RelativeBias, RotaryTable, alibi,
                      attend, sinusoids, split, step, through, virtual)



@dataclass(frozen=True)
class GPT2Config(Config):
    """Keys of the Hugging Face config.json; defaults are GPT-2 small's, without dropout."""

    model_type, architecture, base_architecture = "gpt2", "GPT2LMHeadModel", "GPT2Model"
    SIZES = {"layers": ("n_layer",), "heads": ("n_head",), "width": ("n_embd",), "context": ("n_positions",),
             "dropout": ("embd_pdrop", "resid_pdrop")}
    FIXED = {"add_cross_attention": False}
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # 4 n_embd
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0  # of attention weights
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    position: str = "learned"  # or another of POSITIONS; not a key of the checkpoint's library, which knows the learned ones alone
    bias: bool = True  # of every linear layer and layer norm; False as in nanoGPT
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise ConfigError(f"gpt2 config: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        self.check_activation("activation_function")
        self.check_position(self.n_embd, self.n_head)

    init_std = property(lambda self: self.initializer_range)


class Attention(Module):
    def __init__(self, c, layer, rotary):
        self.c_attn = Linear(c.n_embd, 3 * c.n_embd, c.bias, c.initializer_range)
        self.c_proj = Linear(c.n_embd, c.n_embd, c.bias, c.initializer_range / (2 * c.n_layer) ** 0.5)
        self.heads, self.layer, self.p, self.rotary, self.prefix = c.n_head, layer, c.attn_pdrop, rotary, None
        self.kv_heads, self.head_size = c.n_head, c.n_embd // c.n_head
        self.scale = (c.n_embd // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(self, x, bias, at, segments, cache, rng):
        """x:(B, T, C) -> (B, T, C), before the output projection."""
        qkv = self.c_attn(x)
        if cache is None and bias is None and self.rotary is None and not virtual.size(self.prefix):
            return ops.attention_packed(qkv, heads=self.heads, kv_heads=self.heads, segments=segments, scale=self.scale, p=self.p, rng=rng)
        c, d = x.shape[2], x.shape[2] // self.heads
        q, k, v = (split(qkv[:, :, i : i + c], d) for i in (0, c, 2 * c))
        if self.rotary is not None:
            cos, sin = self.rotary(at.max())
            q, k = (ops.rope(y, cos=cos, sin=sin, positions=at) for y in (q, k))
        return attend(q, k, v, bias, segments=segments, cache=cache, layer=self.layer, prefix=self.prefix, scale=self.scale, p=self.p,
                      rng=rng)


class MLP(Module):
    def __init__(self, c):
        inner = c.n_inner or 4 * c.n_embd
        self.c_fc = Linear(c.n_embd, inner, c.bias, c.initializer_range)
        self.c_proj = Linear(inner, c.n_embd, c.bias, c.initializer_range / (2 * c.n_layer) ** 0.5)
        self.activation = ACTIVATIONS[c.activation_function]


class Block(Module):
    def __init__(self, c, layer, rotary):
        self.ln_1 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.attn = Attention(c, layer, rotary)
        self.ln_2 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.mlp = MLP(c)
        self.p = c.resid_pdrop

    def __call__(self, x, bias=None, *, at, segments, cache, rng):
        heads = self.attn(self.ln_1(x), bias, at, segments, cache, rng and rng.fold(2))
        x = self.attn.c_proj.onto(heads, x, self.p, rng and rng.fold(0))
        return self.mlp.c_proj.onto(self.mlp.c_fc(self.ln_2(x), activation=self.mlp.activation), x, self.p, rng and rng.fold(1))

    def plan(self):
        """-> the same for a step in one call, without a bias."""
        attn, mlp = self.attn, self.mlp
        return BlockPlan(self.ln_1, (attn.c_attn,), attn.c_proj, self.ln_2, mlp.c_fc, mlp.c_proj, mlp.activation, attn.heads, attn.heads,
                         attn.scale, rotary=attn.rotary)


class Body(Trunk):
    """tokens:(B, T) -> (B, T, C)."""

    PREFIX = "transformer."  # absent in the files of the first release
    HEADS = {"sequence": "score", "token": "classifier", "span": "qa_outputs", "value": "classifier"}
    TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # (in, out) in the checkpoint
    IGNORED = (r"h\.\d+\.attn\.(masked_)?bias$",)  # buffers of old checkpoints

    def __init__(self, c, checkpointing=False):
        self.config, self.checkpointing = c, checkpointing
        self.wte, self.prompt = Embedding(c.vocab_size, c.n_embd, c.initializer_range), None
        self.wpe = Embedding(c.n_positions, c.n_embd, c.initializer_range) if c.position == "learned" else None
        self.relative_attention_bias = RelativeBias(c.n_head, False, std=c.initializer_range) if c.position == "t5" else None
        rotary = RotaryTable(c.n_embd // c.n_head) if c.position == "rope" else None
        self.sinusoids = sinusoids(c.n_positions, c.n_embd) if c.position == "sinusoidal" else None
        self.h = [Block(c, i, rotary) for i in range(c.n_layer)]
        self.ln_f = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)

    def embedding(self):
        return self.wte

    def __call__(self, tokens, segments=None, cache=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments, cache)
        at, ahead, skip = *self.standing(tokens, segments, cache, [block.attn.prefix for block in self.h], self.config.n_positions), 0
        x = self.wte(tokens, rng)
        if cache is None:
            x, at, segments, skip = virtual.embedded(self.prompt, x, at, segments, ahead, self.config.position in ("alibi", "t5"))
        hidden = self.run(x, at, segments, cache, rng, ahead)
        return hidden[:, skip:] if skip else hidden

    def frame(self):
        return Frame(self.wte, self.ln_f, self.wpe) if self.config.position in ("learned", "rope") else None

    def run(self, x, at, segments=None, cache=None, rng=None, ahead=0):
        """x:(B, T, C) the embedded tokens at positions at:(B, T), behind `ahead` virtual ones -> (B, T, C)."""
        c = self.config
        if c.position == "learned":
            x = x + self.wpe(at)
        if c.position == "sinusoidal":
            x = x + Tensor(self.sinusoids[at])
        bias, t, starts = (), x.shape[1], np.full(1, ahead) if cache is None else cache.starts
        if c.position == "alibi":
            bias = (Tensor(alibi(c.n_head, t, int(starts.max()) + t, starts)),)
        if c.position == "t5":
            bias = (self.relative_attention_bias(t, int(starts.max()) + t, starts),)
        x = ops.dropout(x, c.embd_pdrop, rng and rng.fold(c.n_layer))
        y = None if bias else step(self.h, x, cache, rng)
        if y is None:
            y = through(self.h, x, *bias, checkpointing=self.checkpointing, rng=rng, at=at, segments=segments, cache=cache)
        return self.ln_f(y)


class GPT2(CausalLM):
    """tokens:(B, T) -> logits (B, T, V). checkpointing: keep no activations inside a block, compute them twice."""

    TRUNK = Body
