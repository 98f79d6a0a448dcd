"""T5, v1.0 and v1.1 (Flan): relative positions as a bias, RMS norms before each branch, scores without a scale (Raffel et al. 2020)."""
from dataclasses import dataclass, field, replace

import numpy as np

from pyllm.autograd import Rng, ops
from pyllm.errors import ConfigError
from pyllm.models.base import Config, Count, Trunk
from pyllm.models.seq2seq import EncoderDecoder, PairTrunk
from pyllm.nn import Embedding, Linear, Module, RelativeBias, RMSNorm, attend, split, through, virtual

KINDS = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True), "gelu": ("gelu", False),
         "gated-relu": ("relu", True)}  # feed_forward_proj -> activation, gated


@dataclass(frozen=True)
class T5Config(Config):
    """Keys of the Hugging Face config.json; defaults are T5 small's."""

    model_type, architecture, base_architecture = "t5", "T5ForConditionalGeneration", "T5Model"
    SIZES = {"layers": ("num_layers",), "heads": ("num_heads",), "width": ("d_model",), "context": ("n_positions",),
             "dropout": ("dropout_rate",)}
    FIXED = {"is_decoder": False}
    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None  # num_layers
    num_heads: int = 8
    n_positions: int = 512  # of training; positions are relative, longer texts are read all the same
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None  # by d_model^-0.5 before the head; as tie_word_embeddings says where newer files do not
    decoder_start_token_id: Count | None = None  # pad_token_id
    pad_token_id: Count | None = None  # 0
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_sizes(cls, values):
        """Without d_kv and d_ff: the width divided among the heads, and 4 widths."""
        width, heads = (values.get(name, values.get(cls.SIZES[name][0], default)) for name, default in (("width", 512), ("heads", 8)))
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            values = {"d_kv": max(1, width // heads), "d_ff": 4 * width, **values}
        return super().from_sizes(values)

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_start_token_id is None:  # written out: the library of these checkpoints asks for it
            object.__setattr__(self, "decoder_start_token_id", self.pad_token_id or 0)
        if self.feed_forward_proj not in KINDS:
            raise ConfigError(f"t5 config: feed_forward_proj={self.feed_forward_proj!r}; expected one of {', '.join(KINDS)}")
        if self.relative_attention_num_buckets % 4 or self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ConfigError(f"t5 config: relative_attention_num_buckets={self.relative_attention_num_buckets}, "
                              f"relative_attention_max_distance={self.relative_attention_max_distance}; expected a multiple of 4 of "
                              "buckets, and a distance of more than half of them")

    def untied(self):
        return replace(self, tie_word_embeddings=False, scale_decoder_outputs=self.scaled)

    decoder_layers = property(lambda self: self.num_decoder_layers or self.num_layers)
    init_std = property(lambda self: self.initializer_factor)
    scaled = property(lambda self: self.tie_word_embeddings if self.scale_decoder_outputs is None else self.scale_decoder_outputs)
    eos = property(lambda self: self.extra.get("eos_token_id", 1))
    starts = property(lambda self: [self.decoder_start_token_id])


class Attention(Module):
    """Heads over x itself, or over the encoder's memory. bias: the first layer's table for all, or None."""

    def __init__(self, c, layer, bias=None):
        inner, f = c.num_heads * c.d_kv, c.initializer_factor
        self.q = Linear(c.d_model, inner, False, f * (c.d_model * c.d_kv) ** -0.5)
        self.k, self.v = (Linear(c.d_model, inner, False, f * c.d_model**-0.5) for _ in range(2))
        self.o = Linear(inner, c.d_model, False, f * inner**-0.5)
        self.relative_attention_bias = bias
        self.kv_heads, self.head_size, self.layer, self.p, self.prefix = c.num_heads, c.d_kv, layer, c.dropout_rate, None

    def keys(self, memory):
        """memory:(B, S, C) -> keys, values:(B, S, H, D)."""
        return split(self.k(memory), self.head_size), split(self.v(memory), self.head_size)

    def __call__(self, x, keys, bias, rng, **options):
        """x:(B, T, C) -> (B, T, H D), before the output projection."""
        return attend(split(self.q(x), self.head_size), *keys, bias, scale=1.0, layer=self.layer, prefix=self.prefix, p=self.p, rng=rng,
                      **options)


def _bias(c, bidirectional):
    return RelativeBias(c.num_heads, bidirectional, c.relative_attention_num_buckets, c.relative_attention_max_distance,
                        c.initializer_factor * c.d_model**-0.5)


class SelfAttention(Module):
    def __init__(self, c, layer, causal):
        self.SelfAttention = Attention(c, layer, _bias(c, not causal) if layer == 0 else None)
        self.layer_norm = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.causal, self.p = causal, c.dropout_rate

    def __call__(self, x, bias, segments, cache, rng):
        a, y = self.SelfAttention, self.layer_norm(x)
        heads = a(y, a.keys(y), bias, rng and rng.fold(1), causal=self.causal, segments=segments, cache=cache)
        return a.o.onto(heads, x, self.p, rng and rng.fold(0))


class CrossAttention(Module):
    def __init__(self, c, layer):
        self.EncDecAttention = Attention(c, layer)
        self.layer_norm = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.p = c.dropout_rate

    def __call__(self, x, memory, segments, kept, rng):
        a = self.EncDecAttention
        keys = a.keys(memory) if kept is None else kept(a, memory)
        heads = a(self.layer_norm(x), keys, None, rng and rng.fold(1), causal=False, segments=segments)
        return a.o.onto(heads, x, self.p, rng and rng.fold(0))


class Dense(Module):
    """wo(dropout(act(wi(x)))), or with a gate: act(wi_0(x)) * wi_1(x)."""

    def __init__(self, c):
        self.activation, gated = KINDS[c.feed_forward_proj]
        f = c.initializer_factor
        self.wi = None if gated else Linear(c.d_model, c.d_ff, False, f * c.d_model**-0.5)
        self.wi_0, self.wi_1 = (Linear(c.d_model, c.d_ff, False, f * c.d_model**-0.5) if gated else None for _ in range(2))
        self.wo = Linear(c.d_ff, c.d_model, False, f * c.d_ff**-0.5)

    def __call__(self, x):
        """x:(B, T, C) -> (B, T, I), before the output projection."""
        if self.wi is not None:
            return self.wi(x, activation=self.activation)
        return ops.glu(self.wi_0(x), self.wi_1(x), kind=self.activation)


class FeedForward(Module):
    def __init__(self, c):
        self.DenseReluDense = Dense(c)
        self.layer_norm = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.p = c.dropout_rate

    def __call__(self, x, rng):
        inner = ops.dropout(self.DenseReluDense(self.layer_norm(x)), self.p, rng and rng.fold(1))
        return self.DenseReluDense.wo.onto(inner, x, self.p, rng and rng.fold(0))


class Block(Module):
    def __init__(self, c, layer, decoder):
        cross = [CrossAttention(c, layer)] if decoder else []
        self.layer = [SelfAttention(c, layer, decoder), *cross, FeedForward(c)]

    def __call__(self, x, bias, memory=None, *, segments, cross=None, cache=None, kept=None, rng):
        x = self.layer[0](x, bias, segments, cache, rng and rng.fold(0))
        if len(self.layer) == 3:
            x = self.layer[1](x, memory, cross, kept, rng and rng.fold(2))
        return self.layer[-1](x, rng and rng.fold(1))


class Stack(Module):
    def __init__(self, c, layers, decoder):
        self.block = [Block(c, i, decoder) for i in range(layers)]
        self.final_layer_norm = RMSNorm(c.d_model, c.layer_norm_epsilon)
        self.p, self.prompt = c.dropout_rate, None

    def __call__(self, x, *memory, segments, cache=None, checkpointing, rng, **options):
        """x:(B, T, C) -> (B, T, C); the first block's table of biases serves all."""
        prefixes = [block.layer[0].SelfAttention.prefix for block in self.block]
        virtual.begin(cache, prefixes, None, None)
        x, _, segments, _ = virtual.embedded(self.prompt, x, None, segments, ordered=True)
        t, starts = x.shape[1], np.full(1, virtual.size(prefixes[0])) if cache is None else cache.starts
        bias = self.block[0].layer[0].SelfAttention.relative_attention_bias(t, int(starts.max()) + t, starts)
        x = ops.dropout(x, self.p, rng and rng.fold("in"))
        x = through(self.block, x, bias, *memory, checkpointing=checkpointing, rng=rng, segments=segments, cache=cache,
                    **options)
        return ops.dropout(self.final_layer_norm(x), self.p, rng and rng.fold("out"))


class Body(PairTrunk):
    """tokens:(B, T) -> (B, T, C), see PairTrunk."""

    PREFIX = "transformer."
    HEADS = {**PairTrunk.HEADS, "token": "classifier"}
    IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)  # in old files; never read

    def __init__(self, c, checkpointing=False):
        self.config, self.checkpointing = c, checkpointing
        self.shared = Embedding(c.vocab_size, c.d_model, c.initializer_factor)
        self.encoder, self.decoder = Stack(c, c.num_layers, False), Stack(c, c.decoder_layers, True)

    @classmethod
    def for_tokens(cls, config):
        return Encoder(config)

    def embedding(self):
        return self.shared

    def sides(self):
        return self.encoder, self.decoder

    def encode(self, tokens, segments=None, rng: Rng | None = None):
        return _encoded(self, tokens, segments, rng)

    def decode(self, tokens, memory, **options):
        return self.decoder(self.shared(tokens, options["rng"]), memory, checkpointing=self.checkpointing, **options)


class Encoder(Trunk):
    """tokens:(B, T) -> (B, T, C), by the encoder alone."""

    PREFIX, CAUSAL, HEADS = "transformer.", False, Body.HEADS
    IGNORED = (r"^decoder\.", r"^lm_head\.weight$")  # of files of the whole model
    architecture = "T5EncoderModel"

    def __init__(self, c, checkpointing=False):
        self.config, self.checkpointing = c, checkpointing
        self.shared, self.encoder = Embedding(c.vocab_size, c.d_model, c.initializer_factor), Stack(c, c.num_layers, False)

    def embedding(self):
        return self.shared

    def begins(self):
        return self.encoder

    def __call__(self, tokens, segments=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments)
        hidden = _encoded(self, tokens, segments, rng)
        return hidden if hidden.shape[1] == tokens.shape[1] else hidden[:, hidden.shape[1] - tokens.shape[1] :]  # a prompt stands first

    def aliases(self):
        return {"encoder.embed_tokens.weight": "shared.weight"}


def _encoded(model, tokens, segments, rng):
    tokens, segments = model.check(tokens, segments)
    return model.encoder(model.shared(tokens, rng), checkpointing=model.checkpointing, rng=rng and rng.fold("encoder"), segments=segments)


class T5(EncoderDecoder, Body):
    """tokens:(B, S), decoder_tokens:(B, T) -> logits (B, T, V)."""

    PREFIX, TRUNK, IGNORED, OTHERS = "", Body, Body.IGNORED, {"T5EncoderModel": Encoder}

    def __init__(self, config, checkpointing=False):
        Body.__init__(self, config, checkpointing)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.d_model, config.vocab_size, False, config.initializer_factor)

    def decode(self, tokens, memory, **options):
        x = Body.decode(self, tokens, memory, **options)
        return x * self.config.d_model**-0.5 if self.config.scaled else x
