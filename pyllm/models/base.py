"""What every model shares: configuration from a dict, checks of the input; what every language model shares: logits, the loss's head."""
import dataclasses

import numpy as np

from pyllm.autograd import ops, recording
from pyllm.errors import ConfigError, suggest
from pyllm.nn import ACTIVATIONS, Linear, Module, positions, virtual


EVERYWHERE = {"quantization_config": None}  # FIXED of every family: GPTQ, AWQ, bitsandbytes ... hold other tensors than weights


class Config:
    """A frozen dataclass with the keys of the Hugging Face config.json; keys it does not know are kept in `extra`.

    ConfigError names every value of the wrong kind or range; a family's own __post_init__ adds what must fit together.
    architecture: the name of the language model; base_architecture: of the family without a head. SIZES: what every family has, by a
    common name -> this family's keys for it. FIXED: keys of other variants of the family -> the one value that is computed here; another
    is refused, never ignored.
    """

    FIXED = {}
    head_dropout = property(lambda self: self.extra.get("classifier_dropout") or 0.0)  # before the layer of a classifier

    def __post_init__(self):
        wrong = [_mismatch(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        if any(wrong):
            raise ConfigError(f"{self.model_type} config: " + ", and ".join(filter(None, wrong)))

    @classmethod
    def from_dict(cls, values):
        """values: what a config.json holds; `from_sizes` is for configurations that people write."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}
        unknown = {k: v for k, v in values.items() if k not in known and k not in ("model_type", "architectures")}
        wrong = [f"{key}={unknown[key]!r:.80}; only {right!r} is supported" for key, right in {**cls.FIXED, **EVERYWHERE}.items()
                 if unknown.get(key) not in (right, None)]
        if wrong:
            raise ConfigError(f"{cls.model_type} config: " + ", and ".join(wrong))
        return cls(**{k: v for k, v in values.items() if k in known}, extra=unknown)

    @classmethod
    def from_sizes(cls, values):
        """values: layers, heads, width, context, dropout, the same for every family, and keys of the family's own.

        An unknown key is a ConfigError that names the nearest known one.
        """
        known = [*cls.SIZES, *(f.name for f in dataclasses.fields(cls) if f.name != "extra")]
        for key in values:
            if key not in known:
                raise ConfigError(f"model.{key}: not a key of {cls.model_type}.{suggest(key, known)} Known: {', '.join(known)}")
        return cls.from_dict({own: value for key, value in values.items() for own in cls.SIZES.get(key, (key,))})

    def size(self, name):
        """-> layers, heads, width or context, whatever the family calls it."""
        return getattr(self, self.SIZES[name][0])

    def to_dict(self):
        """-> what config.json holds; not the keys that nobody set, since an explicit null is not the same everywhere."""
        values = {f.name: value for f in dataclasses.fields(self)
                  if f.name != "extra" and not (value := getattr(self, f.name)) is f.default is None}
        return {"model_type": self.model_type, "architectures": [self.architecture], **values, **self.extra}

    def labels(self):
        """-> how many labels a classifier of this configuration tells apart; transformers' 2 where the file does not say."""
        named = self.extra.get("id2label")
        return self.extra.get("num_labels", len(named) if isinstance(named, dict) else 2)

    def untied(self):
        """-> the same for a model whose head has its own weights."""
        return dataclasses.replace(self, tie_word_embeddings=False)

    def check_activation(self, key):
        """ConfigError unless the value of `key` is a known activation."""
        if getattr(self, key) not in ACTIVATIONS:
            raise ConfigError(f"{self.model_type} config: {key}={getattr(self, key)!r}; expected one of {', '.join(ACTIVATIONS)}")

    def check_position(self, width, heads):
        """ConfigError unless `position` is one of POSITIONS that fits."""
        if self.position not in POSITIONS:
            raise ConfigError(f"{self.model_type} config: position={self.position!r}; expected one of {', '.join(POSITIONS)}")
        if self.position == "rope" and width // heads % 2:
            raise ConfigError(f"{self.model_type} config: a width of {width} and {heads} heads: rope wants heads of an even size")


# How a token knows where it stands: vectors added to the embeddings (learned, sinusoidal), rotations (rope), biases of scores (alibi, t5)
POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "t5")


class Count(int):
    """The type of a field that may be 0."""


_KINDS = {  # type of a field -> (what is right, in words)
    bool: (lambda v: type(v) is bool, "true or false"),
    int: (lambda v: type(v) is int and 0 < v < 2**31, "a whole number of at least 1"),
    Count: (lambda v: type(v) is int and 0 <= v < 2**31, "a whole number of at least 0"),
    float: (lambda v: type(v) in (int, float) and 0 <= v < float("inf"), "a number of at least 0"),
    str: (lambda v: type(v) is str, "a text"),
    dict: (lambda v: type(v) is dict, "a table"),
    list: (lambda v: type(v) is list, "a list"),
    type(None): (lambda v: v is None, "nothing"),
}


def _mismatch(field, value):
    """-> what is wrong with a field's value, or None."""
    kinds = [_KINDS[kind] for kind in getattr(field.type, "__args__", (field.type,))]
    if not any(right(value) for right, _ in kinds):
        return f"{field.name}={value!r}; expected {' or '.join(words for _, words in kinds)}"
    if field.name.endswith(("pdrop", "dropout", "dropout_prob", "dropout_rate")) and value is not None and value >= 1:
        return f"{field.name}={value!r}; expected a probability below 1"
    return None


def check_tokens(name, tokens, vocabulary, segments=None, cache=None):
    """-> tokens as int32 (B, T), segments as int32 (B, T) or None; ValueError says what is wrong."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
        raise ValueError(f"{name}: tokens of shape {tokens.shape} and dtype {tokens.dtype}; expected integers (B, T), not empty")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        where = tuple(int(i) for i in np.argwhere(tokens == bad)[0])
        raise ValueError(f"{name}: token id {bad} at {where}; expected 0..{vocabulary - 1}. Hint: is this the model's own tokenizer?")
    if segments is not None:
        segments = np.ascontiguousarray(segments, np.int32)
        if segments.shape != tokens.shape:
            raise ValueError(f"{name}: segments {segments.shape}, expected the shape of tokens {tokens.shape}")
    if cache is not None:
        if segments is not None:
            raise ValueError(f"{name}: segments and a cache exclude each other: the rows of a cache are one document each")
        if len(cache.lengths) != len(tokens):
            raise ValueError(f"{name}: a cache of {len(cache.lengths)} rows for tokens {tokens.shape}")
        if recording():
            raise ValueError(f"{name}: no gradient flows through a cache. Hint: with no_grad()")
    return np.ascontiguousarray(tokens, np.int32), segments


def edge_token(hidden, segments=None, first=False):
    """hidden:(B, T, C) -> (B, C) of each row's last (or first) token that is not padding. segments:(B, T), 0 = padding."""
    b, t, _ = hidden.shape
    real = np.ones((b, t), bool) if segments is None else np.asarray(segments) > 0
    if real.shape != (b, t):
        raise ValueError(f"segments {real.shape}, expected {(b, t)}")
    at = real.argmax(1) if first else t - 1 - real[:, ::-1].argmax(1)
    return hidden[np.arange(b), at]


class Trunk(Module):
    """A family without a head; defines `embedding`, the Embedding of its tokens, and a call that gives hidden states (B, T, C).

    PREFIX: its path inside a model with a head; the names in a checkpoint may come with or without it. HEADS: what
    the heads of models/heads.py are called beside it. TRANSPOSED: endings of the weights that checkpoints hold as (in, out). IGNORED:
    patterns of tensors that carry no weights. RENAMED: (pattern, replacement) of names that older files use. OPTIONAL:
    parameters that a file may lack, zeros then. CAUSAL: a position sees no later one. generation: None, or what generation_config.json
    holds.
    """

    PREFIX, CAUSAL, TRANSPOSED, IGNORED, RENAMED, OPTIONAL, HEAD = "", True, (), (), (), (), None
    generation = None
    HEADS = {"sequence": "score", "token": "score", "span": "qa_outputs", "value": "score"}
    architecture = property(lambda self: self.config.base_architecture)

    @classmethod
    def alone(cls, config):
        """-> the model that base_architecture is."""
        return cls(config)

    for_sequences = for_tokens = alone  # what a classifier of sequences, or of tokens, is built on

    def aliases(self):
        """-> {name a checkpoint may hold: the parameter it is a copy of}."""
        return {}

    def check(self, tokens, segments=None, cache=None):
        """See check_tokens."""
        return check_tokens(type(self).__name__, tokens, self.config.vocab_size, segments, cache)

    def begins(self):
        """-> the module in which a prompt stands."""
        return self

    def frame(self):
        """-> what stands before and behind the blocks, a Frame; or None where that is more than it says."""
        return None

    def standing(self, tokens, segments, cache, prefixes, limit):
        """-> at:(B, T) the tokens' positions behind the prefixes of the layers, and how many positions those take.

        A cache that is still empty gets the virtual tokens first, and counts them itself. limit: positions there are.
        """
        virtual.begin(cache, prefixes, self.prompt, lambda x, at: self.run(x, at, cache=cache))
        ahead = virtual.size(prefixes[0]) if cache is None else 0
        used = ahead + virtual.size(self.prompt) if cache is None else 0
        return positions(tokens, segments, cache, limit - used) + np.int32(ahead), ahead

    def pooled(self, hidden, tokens, segments):
        """hidden:(B, T, C) -> (B, C): what a classifier of sequences reads, the last token."""
        return edge_token(hidden, segments)

    def sequence_layer(self, labels):
        """-> the layer of a classifier of sequences."""
        return Linear(self.config.size("width"), labels, not self.CAUSAL, self.config.init_std)

    def scores(self, layer, pooled, rng):
        """pooled:(B, C) -> (B, labels), by what sequence_layer gives; dropout before it where the family has it there."""
        return layer(pooled if self.CAUSAL else ops.dropout(pooled, self.config.head_dropout, rng and rng.fold("head")))


class Headed(Module):
    """A trunk at its own PREFIX and a head beside it, so that the paths are the names in the checkpoint.

    HEAD: the path of a language model's head where it is not tied, None for other heads. generation: see Trunk.
    """

    HEAD = generation = None

    def __init__(self, trunk):
        self.config, self.PREFIX = trunk.config, trunk.PREFIX
        setattr(self, self.PREFIX[:-1], trunk)

    TRANSPOSED = property(lambda self: self.trunk.TRANSPOSED)
    IGNORED = property(lambda self: self.trunk.IGNORED)
    RENAMED = property(lambda self: self.trunk.RENAMED)
    OPTIONAL = property(lambda self: self.trunk.OPTIONAL)

    @property
    def trunk(self):
        return vars(self)[self.PREFIX[:-1]]

    @property
    def checkpointing(self):
        """Keep no activations inside a block, compute them twice."""
        return self.trunk.checkpointing

    @checkpointing.setter
    def checkpointing(self, value):
        self.trunk.checkpointing = value

    def aliases(self):
        return {self.PREFIX + alias: self.PREFIX + name for alias, name in self.trunk.aliases().items()}


def trunk_of(model):
    """-> what stands below the model's head, or the model itself where that is no part of its own."""
    return model.trunk if isinstance(model, Headed) else model


class LanguageModel(Headed):
    """Hidden states -> logits Tensor (B, T, V): the embedding's own matrix, or `lm_head` where the configuration does not tie them.

    A family's subclass names its trunk. ALSO: further architectures of config.json that are this model. OTHERS: {architecture: class} of
    models without a head beside the trunk.
    """

    TRUNK, ALSO, HEAD, OTHERS = Trunk, (), "lm_head", {}
    architecture = property(lambda self: self.config.architecture)

    def __init__(self, config, checkpointing=False, head="lm_head"):
        super().__init__(self.TRUNK(config, checkpointing))
        self.lm_head = None
        if head and not config.tie_word_embeddings:
            self.lm_head = Linear(config.size("width"), config.vocab_size, False, config.init_std)

    def head_weight(self):
        """-> Tensor (V, C); the embedding's own where tied."""
        return self.trunk.embedding().weight if self.lm_head is None else self.lm_head.weight

    def head_bias(self):
        """-> Tensor (V,), or None."""
        return None

    def hidden(self, *args, **options):
        """-> Tensor (B, T, C): what the head reads; arguments as of the call."""
        return self.trunk(*args, **options)

    def __call__(self, *args, **options):
        return ops.linear(self.hidden(*args, **options), self.head_weight(), self.head_bias())

    def aliases(self):
        if self.lm_head is not None:
            return super().aliases()
        tied = self.head_weight()
        return {**super().aliases(), "lm_head.weight": next(n for n, p in self.named_parameters() if p is tied)}


class CausalLM(LanguageModel):
    """tokens:(B, T) -> logits Tensor (B, T, V). ValueError on ids out of range or a row beyond the context."""

    def hidden(self, tokens, segments=None, cache=None, rng=None):
        """tokens:(B, T) -> Tensor (B, T, C): what the head reads. segments as in ops.attention; rng None: no dropout."""
        return self.trunk(tokens, segments, cache, rng)

    def __call__(self, tokens, segments=None, cache=None, rng=None):
        return ops.linear(self.hidden(tokens, segments, cache, rng), self.head_weight())

    def check(self, tokens, segments=None, cache=None):
        """See check_tokens."""
        return self.trunk.check(tokens, segments, cache)

    def frame(self):
        """See Trunk; with the head."""
        frame = self.trunk.frame()
        return frame and dataclasses.replace(frame, head=self.head_weight())
