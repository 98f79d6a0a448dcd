"""BERT: both directions, post-norm blocks, learned positions or, from scratch, others; masked language modelling (Devlin et al. 2019)."""
from dataclasses import dataclass, field

import numpy as np

from pyllm.autograd import Rng, Tensor, ops
from pyllm.errors import ConfigError
from pyllm.models.base import Config, LanguageModel, Trunk, edge_token
from pyllm.nn import (ACTIVATIONS, Embedding, LayerNorm, Linear, Module, RelativeBias, RotaryTable, alibi, attend, parameter, positions,
                      sinusoids, split, through, virtual)


@dataclass(frozen=True)
class BertConfig(Config):
    """Keys of the Hugging Face config.json; defaults are BERT base's."""

    model_type, architecture, base_architecture = "bert", "BertForMaskedLM", "BertModel"
    SIZES = {"layers": ("num_hidden_layers",), "heads": ("num_attention_heads",), "width": ("hidden_size",),
             "context": ("max_position_embeddings",), "dropout": ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1  # of attention weights
    classifier_dropout: float | None = None  # hidden_dropout_prob
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    position: str = "learned"  # or another of POSITIONS; not a key of the checkpoint's library, which knows the learned ones alone
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_sizes(cls, values):
        """Without intermediate_size, 4 widths."""
        width = values.get("width", values.get("hidden_size"))
        if "intermediate_size" not in values and isinstance(width, int):
            values = {**values, "intermediate_size": 4 * width}
        return super().from_sizes(values)

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"bert config: hidden_size={self.hidden_size} is not a multiple of "
                              f"num_attention_heads={self.num_attention_heads}")
        self.check_activation("hidden_act")
        self.check_position(self.hidden_size, self.num_attention_heads)

    init_std = property(lambda self: self.initializer_range)
    head_dropout = property(lambda self: self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout)


class Embeddings(Module):
    def __init__(self, c):
        std = c.initializer_range
        self.word_embeddings = Embedding(c.vocab_size, c.hidden_size, std)
        self.position_embeddings = Embedding(c.max_position_embeddings, c.hidden_size, std) if c.position == "learned" else None
        self.sinusoids = sinusoids(c.max_position_embeddings, c.hidden_size) if c.position == "sinusoidal" else None
        self.token_type_embeddings = Embedding(c.type_vocab_size, c.hidden_size, std)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)

    def __call__(self, x, at, types):
        """x:(B, T, C) word embeddings at:(B, T) types:(B, T) -> (B, T, C)."""
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(at)
        if self.sinusoids is not None:
            x = x + Tensor(self.sinusoids[at])
        return self.LayerNorm(x + self.token_type_embeddings(types))


class Heads(Module):
    def __init__(self, c, rotary):
        self.rotary = rotary
        self.query, self.key, self.value = (Linear(c.hidden_size, c.hidden_size, True, c.initializer_range) for _ in range(3))
        self.kv_heads, self.head_size = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        self.p, self.prefix = c.attention_probs_dropout_prob, None

    def __call__(self, x, bias, at, segments, rng):
        """x:(B, T, C) -> (B, T, C), before the output projection."""
        q, k, v = (split(p(x), self.head_size) for p in (self.query, self.key, self.value))
        if self.rotary is not None:
            cos, sin = self.rotary(at.max())
            q, k = (ops.rope(y, cos=cos, sin=sin, positions=at) for y in (q, k))
        return attend(q, k, v, bias, causal=False, segments=segments, prefix=self.prefix, p=self.p, rng=rng)


class Output(Module):
    """norm(residual + dropout(dense(x)))"""

    def __init__(self, c, inputs):
        self.dense = Linear(inputs, c.hidden_size, True, c.initializer_range)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.p = c.hidden_dropout_prob

    def __call__(self, x, residual, rng):
        return self.LayerNorm(self.dense.onto(x, residual, self.p, rng))


class Attention(Module):
    def __init__(self, c, rotary):
        self.self, self.output = Heads(c, rotary), Output(c, c.hidden_size)


class Intermediate(Module):
    def __init__(self, c):
        self.dense = Linear(c.hidden_size, c.intermediate_size, True, c.initializer_range)
        self.activation = ACTIVATIONS[c.hidden_act]


class Block(Module):
    def __init__(self, c, rotary):
        self.attention, self.intermediate, self.output = Attention(c, rotary), Intermediate(c), Output(c, c.intermediate_size)

    def __call__(self, x, bias=None, *, at, segments, rng):
        x = self.attention.output(self.attention.self(x, bias, at, segments, rng and rng.fold(2)), x, rng and rng.fold(0))
        inner = self.intermediate.dense(x, activation=self.intermediate.activation)
        return self.output(inner, x, rng and rng.fold(1))


class Encoder(Module):
    def __init__(self, c):
        rotary = RotaryTable(c.hidden_size // c.num_attention_heads) if c.position == "rope" else None
        self.layer = [Block(c, rotary) for _ in range(c.num_hidden_layers)]
        self.relative_attention_bias = RelativeBias(c.num_attention_heads, True, std=c.initializer_range) if c.position == "t5" else None


class Pooler(Module):
    def __init__(self, c):
        self.dense = Linear(c.hidden_size, c.hidden_size, True, c.initializer_range)


class Bert(Trunk):
    """tokens:(B, T) -> (B, T, C). segments as in ops.attention; types:(B, T), 0 or 1: the first or second text of a pair."""

    PREFIX, CAUSAL = "bert.", False
    IGNORED = (r"embeddings\.position_ids$",)
    RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    HEADS = {"sequence": "classifier", "token": "classifier", "span": "qa_outputs", "value": "classifier"}

    def __init__(self, c, checkpointing=False, pooler=False):
        self.config, self.checkpointing = c, checkpointing
        self.embeddings, self.encoder, self.prompt = Embeddings(c), Encoder(c), None
        self.pooler = Pooler(c) if pooler else None

    @classmethod
    def alone(cls, c):
        return cls(c, pooler=c.extra.get("add_pooling_layer", True) is not False)  # models of vectors alone may have none

    for_sequences = alone

    def embedding(self):
        return self.embeddings.word_embeddings

    def __call__(self, tokens, segments=None, types=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments)
        c = self.config
        types = np.zeros_like(tokens) if types is None else self.check_types(types, tokens)
        at = positions(tokens, segments, limit=c.max_position_embeddings - virtual.size(self.prompt))
        x, at, segments, skip = virtual.embedded(self.prompt, self.embeddings.word_embeddings(tokens, rng), at, segments,
                                                 ordered=c.position in ("alibi", "t5"))
        x = self.embeddings(x, at, np.pad(types, ((0, 0), (skip, 0))))
        x = ops.dropout(x, c.hidden_dropout_prob, rng and rng.fold(c.num_hidden_layers))
        x = through(self.encoder.layer, x, *self.biases(x.shape[1]), checkpointing=self.checkpointing, rng=rng, at=at, segments=segments)
        return x[:, skip:] if skip else x

    def biases(self, t):
        """-> (Tensor (1, H, T, keys),) that is added to all scores, or (); the prefix's keys are the first."""
        c, ahead = self.config, virtual.size(self.encoder.layer[0].attention.self.prefix)
        if c.position == "alibi":
            return (Tensor(alibi(c.num_attention_heads, t, ahead + t, np.full(1, ahead), causal=False)),)
        return (self.encoder.relative_attention_bias(t, ahead + t, np.full(1, ahead)),) if c.position == "t5" else ()

    def check_types(self, types, tokens):
        types = np.asarray(types)
        if types.shape != tokens.shape or types.dtype.kind not in "iu" or types.min() < 0 or types.max() >= self.config.type_vocab_size:
            raise ValueError(f"Bert: types of shape {types.shape} and dtype {types.dtype}; expected {tokens.shape}, whole numbers "
                             f"0..{self.config.type_vocab_size - 1}")
        return np.ascontiguousarray(types, np.int32)

    def pooled(self, hidden, tokens, segments):
        """hidden:(B, T, C) -> (B, C): tanh of a layer over the first token, which classifiers read."""
        return ops.tanh(self.pooler.dense(edge_token(hidden, segments, first=True)))


class Transform(Module):
    def __init__(self, c):
        self.dense = Linear(c.hidden_size, c.hidden_size, True, c.initializer_range)
        self.LayerNorm = LayerNorm(c.hidden_size, c.layer_norm_eps)
        self.activation = ACTIVATIONS[c.hidden_act]

    def __call__(self, x):
        return self.LayerNorm(self.dense(x, activation=self.activation))


class Predictions(Module):
    def __init__(self, c):
        self.transform = Transform(c)
        self.bias = parameter(c.vocab_size)
        self.decoder = None if c.tie_word_embeddings else Linear(c.hidden_size, c.vocab_size, False, c.initializer_range)

    def reset(self, rng):
        self.bias.data[:] = 0


class MaskedHead(Module):
    def __init__(self, c):
        self.predictions = Predictions(c)


class BertLM(LanguageModel):
    """tokens:(B, T) -> logits (B, T, V) of every position, masked or not."""

    TRUNK, ALSO, HEAD = Bert, ("BertForPreTraining",), "cls.predictions.decoder"
    IGNORED = (*Bert.IGNORED, r"pooler\.dense\.(weight|bias)$", r"^cls\.seq_relationship\.(weight|bias)$")  # parts that predict no tokens

    def __init__(self, config, checkpointing=False):
        super().__init__(config, checkpointing, head=None)
        self.cls = MaskedHead(config)

    def head_weight(self):
        decoder = self.cls.predictions.decoder
        return self.bert.embedding().weight if decoder is None else decoder.weight

    def head_bias(self):
        return self.cls.predictions.bias

    def hidden(self, tokens, segments=None, types=None, rng=None):
        """tokens:(B, T) -> Tensor (B, T, C): what the head reads."""
        return self.cls.predictions.transform(self.bert(tokens, segments, types, rng))

    def aliases(self):
        tied = {} if self.cls.predictions.decoder else {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
        return {**tied, "cls.predictions.decoder.bias": "cls.predictions.bias"}
