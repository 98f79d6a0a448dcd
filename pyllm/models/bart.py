"""BART: post-norm blocks on both sides, learned positions that begin at row 2, gelu (Lewis et al. 2020)."""
from dataclasses import dataclass, field

import numpy as np

from pyllm.autograd import Rng, Tensor, ops
from pyllm.errors import ConfigError
from pyllm.models.base import Config, Count, Headed
from pyllm.models.seq2seq import EncoderDecoder, PairTrunk
from pyllm.nn import ACTIVATIONS, Embedding, LayerNorm, Linear, Module, attend, positions, split, through, virtual

OFFSET = 2  # the first two rows of a position table are never read


@dataclass(frozen=True)
class BartConfig(Config):
    """Keys of the Hugging Face config.json; defaults are BART large's."""

    model_type, architecture, base_architecture = "bart", "BartForConditionalGeneration", "BartModel"
    SIZES = {"layers": ("encoder_layers", "decoder_layers"), "heads": ("encoder_attention_heads", "decoder_attention_heads"),
             "width": ("d_model",), "context": ("max_position_embeddings",), "dropout": ("dropout",)}
    FIXED = {"normalize_before": False, "add_final_layer_norm": False, "normalize_embedding": True, "static_position_embeddings": False,
             "is_decoder": False}
    vocab_size: int = 50265
    d_model: int = 1024
    encoder_layers: int = 12
    encoder_attention_heads: int = 16
    encoder_ffn_dim: int = 4096
    decoder_layers: int = 12
    decoder_attention_heads: int = 16
    decoder_ffn_dim: int = 4096
    max_position_embeddings: int = 1024
    activation_function: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.0  # of attention weights
    activation_dropout: float = 0.0
    scale_embedding: bool = False  # token embeddings times d_model^0.5
    init_std: float = 0.02
    tie_word_embeddings: bool = True
    decoder_start_token_id: Count | None = 2
    forced_bos_token_id: Count | None = None
    forced_eos_token_id: Count | None = 2
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_sizes(cls, values):
        """Without the inner widths, 4 widths."""
        width = values.get("width", values.get("d_model"))
        if isinstance(width, int):
            values = {"encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width, **values}
        return super().from_sizes(values)

    def __post_init__(self):
        super().__post_init__()
        for side in ("encoder", "decoder"):
            if self.d_model % getattr(self, f"{side}_attention_heads"):
                raise ConfigError(f"bart config: d_model={self.d_model} is not a multiple of {side}_attention_heads="
                                  f"{getattr(self, f'{side}_attention_heads')}")
        self.check_activation("activation_function")

    eos = property(lambda self: self.extra.get("eos_token_id", 2))
    starts = property(lambda self: [] if self.decoder_start_token_id is None else [self.decoder_start_token_id])


class Attention(Module):
    def __init__(self, c, heads, layer):
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(c.d_model, c.d_model, True, c.init_std) for _ in range(4))
        self.kv_heads, self.head_size, self.layer, self.p, self.prefix = heads, c.d_model // heads, layer, c.attention_dropout, None

    def keys(self, memory):
        """memory:(B, S, C) -> keys, values:(B, S, H, D)."""
        return split(self.k_proj(memory), self.head_size), split(self.v_proj(memory), self.head_size)

    def __call__(self, x, keys, rng, **options):
        """x:(B, T, C) -> (B, T, C), before the output projection."""
        return attend(split(self.q_proj(x), self.head_size), *keys, layer=self.layer, prefix=self.prefix, p=self.p, rng=rng,
                      **options)


class Block(Module):
    def __init__(self, c, heads, inner, layer, decoder):
        self.self_attn, self.self_attn_layer_norm = Attention(c, heads, layer), LayerNorm(c.d_model)
        self.encoder_attn, self.encoder_attn_layer_norm = (Attention(c, heads, layer), LayerNorm(c.d_model)) if decoder else (None, None)
        self.fc1, self.fc2 = Linear(c.d_model, inner, True, c.init_std), Linear(inner, c.d_model, True, c.init_std)
        self.final_layer_norm = LayerNorm(c.d_model)
        self.activation, self.causal, self.p, self.inner_p = ACTIVATIONS[c.activation_function], decoder, c.dropout, c.activation_dropout

    def __call__(self, x, memory=None, *, segments, cross=None, cache=None, kept=None, rng):
        key = (lambda i: None) if rng is None else rng.fold
        a = self.self_attn
        heads = a(x, a.keys(x), key(2), causal=self.causal, segments=segments, cache=cache)
        x = self.self_attn_layer_norm(a.out_proj.onto(heads, x, self.p, key(0)))
        if self.encoder_attn is not None:
            a = self.encoder_attn
            heads = a(x, a.keys(memory) if kept is None else kept(a, memory), key(4), causal=False, segments=cross)
            x = self.encoder_attn_layer_norm(a.out_proj.onto(heads, x, self.p, key(3)))
        inner = ops.dropout(self.fc1(x, activation=self.activation), self.inner_p, key(5))
        return self.final_layer_norm(self.fc2.onto(inner, x, self.p, key(1)))


class Side(Module):
    def __init__(self, c, layers, heads, inner, decoder):
        self.embed_positions = Embedding(c.max_position_embeddings + OFFSET, c.d_model, c.init_std)
        self.layernorm_embedding = LayerNorm(c.d_model)
        self.layers = [Block(c, heads, inner, i, decoder) for i in range(layers)]
        self.p, self.limit, self.scale = c.dropout, c.max_position_embeddings, c.d_model**0.5 if c.scale_embedding else 1.0
        self.prompt, self.causal = None, decoder

    def __call__(self, x, tokens, *memory, segments, cache=None, checkpointing, rng, **options):
        """x:(B, T, C) the embedded tokens:(B, T) -> (B, T, C)."""
        prefixes = [block.self_attn.prefix for block in self.layers]
        virtual.begin(cache, prefixes, None, None)
        ahead = virtual.size(prefixes[0]) if self.causal and cache is None else 0  # what an encoder adds to its keys has no positions
        at = positions(tokens, segments, cache, self.limit - ahead - virtual.size(self.prompt)) + np.int32(ahead)
        x, at, segments, _ = virtual.embedded(self.prompt, x * self.scale if self.scale != 1 else x, at, segments)
        x = x + self.embed_positions(at + OFFSET)
        x = ops.dropout(self.layernorm_embedding(x), self.p, rng and rng.fold("in"))
        return through(self.layers, x, *memory, checkpointing=checkpointing, rng=rng, segments=segments, cache=cache, **options)


class Body(PairTrunk):
    """tokens:(B, T) -> (B, T, C), see PairTrunk."""

    PREFIX = "model."

    def __init__(self, c, checkpointing=False):
        self.config, self.checkpointing = c, checkpointing
        self.shared = Embedding(c.vocab_size, c.d_model, c.init_std)
        self.encoder = Side(c, c.encoder_layers, c.encoder_attention_heads, c.encoder_ffn_dim, False)
        self.decoder = Side(c, c.decoder_layers, c.decoder_attention_heads, c.decoder_ffn_dim, True)

    def embedding(self):
        return self.shared

    def sides(self):
        return self.encoder, self.decoder

    def encode(self, tokens, segments=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments)
        return self.encoder(self.shared(tokens, rng), tokens, segments=segments, checkpointing=self.checkpointing,
                            rng=rng and rng.fold("encoder"))

    def decode(self, tokens, memory, **options):
        return self.decoder(self.shared(tokens, options["rng"]), tokens, memory, checkpointing=self.checkpointing, **options)


class Bart(EncoderDecoder):
    """tokens:(B, S), decoder_tokens:(B, T) -> logits (B, T, V)."""

    PREFIX, ALSO, TRUNK, OPTIONAL = "model.", ("BartModel",), Body, ("final_logits_bias",)  # files without a head have none
    trunk = property(lambda self: self.model)
    checkpointing = Headed.checkpointing

    def __init__(self, config, checkpointing=False):
        self.config, self.model = config, Body(config, checkpointing)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.d_model, config.vocab_size, False, config.init_std)
        self.final_logits_bias = Tensor(np.zeros((1, config.vocab_size), np.float32))  # not trained

    def embedding(self):
        return self.model.shared

    def sides(self):
        return self.model.encoder, self.model.decoder

    def head_bias(self):
        return self.final_logits_bias.reshape(self.config.vocab_size)

    def encode(self, tokens, segments=None, rng: Rng | None = None):
        return self.model.encode(tokens, segments, rng)

    def decode(self, tokens, memory, **options):
        return self.model.decode(tokens, memory, **options)
