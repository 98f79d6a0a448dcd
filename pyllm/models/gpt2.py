"""GPT-2: learned positions, pre-norm blocks, gelu (Radford et al. 2019)."""
import warnings
from dataclasses import dataclass, field

from pyllm.autograd import Rng, checkpoint, ops
from pyllm.errors import ConfigError
from pyllm.models.base import CausalLM, Config
from pyllm.nn import BlockPlan, Embedding, LayerNorm, Linear, Module, positions, step

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}


@dataclass(frozen=True)
class GPT2Config(Config):
    """Keys of the Hugging Face config.json; defaults are GPT-2 small's, without dropout."""

    model_type, architecture = "gpt2", "GPT2LMHeadModel"
    SIZES = {"layers": ("n_layer",), "heads": ("n_head",), "width": ("n_embd",), "context": ("n_positions",),
             "dropout": ("embd_pdrop", "resid_pdrop")}
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
    attn_pdrop: float = 0.0  # kept for the file; attention weights are never dropped
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    bias: bool = True  # of every linear layer and layer norm; False as in nanoGPT
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise ConfigError(f"gpt2 config: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(f"gpt2 config: activation_function={self.activation_function!r}; expected one of {', '.join(ACTIVATIONS)}")


class Attention(Module):
    def __init__(self, c, layer):
        self.c_attn = Linear(c.n_embd, 3 * c.n_embd, c.bias, c.initializer_range)
        self.c_proj = Linear(c.n_embd, c.n_embd, c.bias, c.initializer_range / (2 * c.n_layer) ** 0.5)
        self.heads, self.layer = c.n_head, layer
        self.scale = (c.n_embd // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1

    def __call__(self, x, segments, cache):
        """x:(B, T, C) -> (B, T, C), before the output projection."""
        qkv = self.c_attn(x)
        if cache is None:
            return ops.attention_packed(qkv, heads=self.heads, kv_heads=self.heads, segments=segments, scale=self.scale)
        q, k, v = ops.split_heads(qkv.data, self.heads, self.heads)
        k, v = cache.append(self.layer, k, v)
        return ops.attention(q, k, v, starts=cache.lengths, scale=self.scale).reshape(*x.shape)


class MLP(Module):
    def __init__(self, c):
        inner = c.n_inner or 4 * c.n_embd
        self.c_fc = Linear(c.n_embd, inner, c.bias, c.initializer_range)
        self.c_proj = Linear(inner, c.n_embd, c.bias, c.initializer_range / (2 * c.n_layer) ** 0.5)
        self.activation = ACTIVATIONS[c.activation_function]


class Block(Module):
    def __init__(self, c, layer):
        self.ln_1 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.attn = Attention(c, layer)
        self.ln_2 = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)
        self.mlp = MLP(c)
        self.p = c.resid_pdrop

    def __call__(self, x, segments, cache, rng):
        x = add_projection(self.attn.c_proj, self.attn(self.ln_1(x), segments, cache), x, self.p, rng and rng.fold(0))
        return add_projection(self.mlp.c_proj, self.mlp.c_fc(self.ln_2(x), activation=self.mlp.activation), x, self.p, rng and rng.fold(1))

    def plan(self):
        """-> the same for a step in one call."""
        attn, mlp = self.attn, self.mlp
        return BlockPlan(self.ln_1, (attn.c_attn,), attn.c_proj, self.ln_2, mlp.c_fc, mlp.c_proj, mlp.activation, attn.heads, attn.heads,
                         attn.scale)


def add_projection(linear, x, residual, p, rng):
    """residual + dropout(linear(x)): one kernel where nothing is dropped."""
    if rng is None or p == 0:
        return linear(x, residual=residual)
    return residual + ops.dropout(linear(x), p, rng)


class Body(Module):
    def __init__(self, c):
        self.wte = Embedding(c.vocab_size, c.n_embd, c.initializer_range)
        self.wpe = Embedding(c.n_positions, c.n_embd, c.initializer_range)
        self.h = [Block(c, i) for i in range(c.n_layer)]
        self.ln_f = LayerNorm(c.n_embd, c.layer_norm_epsilon, c.bias)


class GPT2(CausalLM):
    """tokens:(B, T) -> logits (B, T, V). checkpointing: keep no activations inside a block, compute them twice.

    Dropout acts on the embeddings and the residual branches; attn_pdrop, on attention weights, is not applied and training says so.
    """

    TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # (in, out) in the checkpoint
    IGNORED = (r"h\.\d+\.attn\.(masked_)?bias$",)  # buffers of old checkpoints
    PREFIX = "transformer."  # absent in the files of the first release

    def __init__(self, config, checkpointing=False):
        self.config, self.checkpointing = config, checkpointing
        self.transformer = Body(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.n_embd, config.vocab_size, False, config.initializer_range)

    def head_weight(self):
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens, segments=None, cache=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments, cache)
        body, c = self.transformer, self.config
        if rng is not None and c.attn_pdrop:
            warnings.warn(f"gpt2: attn_pdrop={c.attn_pdrop} is not applied: dropout acts on embeddings and residual branches", stacklevel=3)
        x = body.wte(tokens) + body.wpe(positions(tokens, segments, cache, limit=c.n_positions))
        x = ops.dropout(x, c.embd_pdrop, rng and rng.fold(c.n_layer))
        if cache is not None and (y := step(body.h, x, cache, rng)) is not None:
            return body.ln_f(y)
        for i, block in enumerate(body.h):
            key = rng and rng.fold(i)
            if self.checkpointing:
                x = checkpoint(lambda x, block=block, key=key: block(x, segments, cache, key), x)
            else:
                x = block(x, segments, cache, key)
        return body.ln_f(x)
