"""What decoder-only families with rotary positions, RMS norms and gated MLPs share. A family is a configuration that says the rest."""
from dataclasses import dataclass, field

from pyllm.autograd import Rng
from pyllm.errors import ConfigError
from pyllm.models.base import CausalLM, Config, Trunk
from pyllm.nn import ACTIVATIONS, Embedding, Frame, RMSNorm, RotaryBlock, RotaryTable, checked_scaling, step, through, virtual

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class DecoderConfig(Config):
    """Keys of the Hugging Face config.json that these families have in common; what differs stands below as properties."""

    SIZES = {"layers": ("num_hidden_layers",), "heads": ("num_attention_heads",), "width": ("hidden_size",),
             "context": ("max_position_embeddings",), "dropout": ("dropout",)}
    FIXED = {"partial_rotary_factor": 1.0, "rope_interleaved": False}
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
    rope_scaling: dict | None = None  # see nn/rotary.py
    initializer_range: float = 0.02
    attention_dropout: float = 0.0  # of attention weights
    tie_word_embeddings: bool = False
    dropout: float = 0.0  # on the residual branches; not a key of the checkpoint's library
    extra: dict = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values):
        """Also reads rope_parameters, where newer files keep rope_theta and rope_scaling, for all layers or for each type of layer."""
        values = dict(values)
        rope = values.pop("rope_parameters", None)
        if rope is not None:
            if not isinstance(rope, dict):
                raise ConfigError(f"{cls.model_type} config: rope_parameters={rope!r}; expected a table")
            nested = {kind: rope[kind] or {} for kind in LAYER_TYPES if kind in rope}
            if not all(isinstance(r, dict) for r in nested.values()):
                raise ConfigError(f"{cls.model_type} config: rope_parameters={rope!r}; expected a table for each type of layer")
            cls.read_rope(values, nested or dict.fromkeys(LAYER_TYPES, rope))
        return super().from_dict(values)

    @classmethod
    def read_rope(cls, values, rope):
        """rope: {type of layer: theta and scaling} -> into the keys of values."""
        one, *others = rope.values()
        if any(other != one for other in others):
            raise ConfigError(f"{cls.model_type} config: rope_parameters={rope!r}; expected the same for every layer")
        values.setdefault("rope_theta", one.get("rope_theta", cls.rope_theta))
        cls.read_scaling(values, one)

    @staticmethod
    def read_scaling(values, rope):
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        if rope.get("partial_rotary_factor") is not None:
            values.setdefault("partial_rotary_factor", rope["partial_rotary_factor"])
        if scaling.get("rope_type", scaling.get("type", "default")) != "default":
            values.setdefault("rope_scaling", scaling)

    @classmethod
    def from_sizes(cls, values):
        """Without intermediate_size, 8/3 of the width up to a multiple of 32: as many weights as an MLP of 4 widths (Shazeer 2020)."""
        width, heads = (values.get(name, values.get(cls.SIZES[name][0])) for name in ("width", "heads"))
        if "intermediate_size" not in values and isinstance(width, int):
            values = {**values, "intermediate_size": -(-8 * width // 96) * 32}
        if heads is not None:  # the family's own grouping and head size belong to its own width
            values = {"num_key_value_heads": None, "head_dim": None, **values}
        return super().from_sizes(values)

    def __post_init__(self):
        super().__post_init__()
        name = self.model_type
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(f"{name} config: num_attention_heads={self.num_attention_heads} is not a multiple of "
                              f"num_key_value_heads={self.kv_heads}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads or self.head_size % 2:
            raise ConfigError(f"{name} config: hidden_size={self.hidden_size} and num_attention_heads={self.num_attention_heads}: "
                              "expected heads of a whole, even size")
        if self.rope_theta <= 0:
            raise ConfigError(f"{name} config: rope_theta={self.rope_theta}; expected a number above 0")
        self.check_activation(self.activation_key)
        object.__setattr__(self, "rope_scaling", checked_scaling(self.rope_scaling))

    kv_heads = property(lambda self: self.num_key_value_heads or self.num_attention_heads)
    head_size = property(lambda self: self.head_dim or self.hidden_size // self.num_attention_heads)
    init_std = property(lambda self: self.initializer_range)
    activation = property(lambda self: ACTIVATIONS[getattr(self, self.activation_key)])

    @property
    def causal(self):
        """Whether a position sees no later one: "is_causal": false makes an encoder of embeddings out of a decoder."""
        return self.extra.get("is_causal") is not False

    # ---- what a family may say otherwise
    activation_key = "hidden_act"
    qkv_bias = out_bias = mlp_bias = False
    qk_norm = sandwich = False  # RMS norms of each query's and key's head; a second norm behind each branch
    norm = RMSNorm  # the class of the norms
    scale = None  # of scores; head_size^-0.5
    embed_scale = 1.0

    def window(self, layer):
        """-> how many keys a query of this layer sees, its own included; 0 for all."""
        return 0

    def rope(self, layer):
        """-> theta, scaling of this layer."""
        return self.rope_theta, self.rope_scaling

    def check_layer_types(self):
        """ConfigError unless layer_types names a known type for every layer."""
        kinds = self.layer_types
        if kinds is not None and (len(kinds) != self.num_hidden_layers or any(kind not in LAYER_TYPES for kind in kinds)):
            raise ConfigError(f"{self.model_type} config: layer_types={kinds!r}; "
                              f"expected {self.num_hidden_layers} of {', '.join(LAYER_TYPES)}")


class Decoder(Trunk):
    """tokens:(B, T) -> (B, T, C)."""

    PREFIX = "model."
    IGNORED = (r"rotary_emb\.inv_freq$",)

    def __init__(self, c, checkpointing=False):
        self.config, self.checkpointing = c, checkpointing
        if c.extra.get("is_causal") is False and any(map(c.window, range(c.num_hidden_layers))):
            raise ConfigError(f"{c.model_type} config: is_causal=False with a window of keys; only one of both is supported")
        tables = {}
        for kind in map(c.rope, range(c.num_hidden_layers)):
            tables.setdefault(repr(kind), RotaryTable(c.head_size, *kind, context=c.max_position_embeddings))
        self.embed_tokens, self.prompt = Embedding(c.vocab_size, c.hidden_size, c.initializer_range), None
        self.layers = [RotaryBlock(c, i, tables[repr(c.rope(i))]) for i in range(c.num_hidden_layers)]
        self.norm = c.norm(c.hidden_size, c.rms_norm_eps)

    def embedding(self):
        return self.embed_tokens

    def __call__(self, tokens, segments=None, cache=None, rng: Rng | None = None):
        tokens, segments = self.check(tokens, segments, cache)
        if cache is not None and not self.config.causal:
            raise ValueError(f"{type(self).__name__}: a cache for a model whose positions see later ones: it predicts no next token")
        prefixes, skip = [block.self_attn.prefix for block in self.layers], 0
        at, ahead = self.standing(tokens, segments, cache, prefixes, self.limit())
        x = self.embed_tokens(tokens, rng)
        if self.config.embed_scale != 1:
            x = x * self.config.embed_scale
        if cache is None:
            x, at, segments, skip = virtual.embedded(self.prompt, x, at, segments, ahead, any(b.self_attn.window for b in self.layers))
        hidden = self.run(x, at, segments, cache, rng)
        return hidden[:, skip:] if skip else hidden

    def run(self, x, at, segments=None, cache=None, rng=None):
        """x:(B, T, C) the embedded tokens at positions at:(B, T) -> (B, T, C)."""
        y = step(self.layers, x, cache, rng)
        if y is None:
            y = through(self.layers, x, checkpointing=self.checkpointing, rng=rng, at=at, segments=segments, cache=cache)
        return self.norm(y)

    def frame(self):
        return Frame(self.embed_tokens, self.norm) if self.config.embed_scale == 1 else None

    def limit(self):
        """-> how many positions there are; dynamic scaling is made for texts beyond the context."""
        scaling = self.config.rope_scaling
        factor = scaling["factor"] if scaling and scaling["rope_type"] == "dynamic" else 1
        return int(self.config.max_position_embeddings * factor)


class DecoderLM(CausalLM):
    """tokens:(B, T) -> logits (B, T, V). checkpointing: keep no activations inside a block, compute them twice."""

    TRUNK = Decoder
