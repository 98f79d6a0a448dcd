"""What every causal language model shares: configuration from a dict, checks of the input, logits, the loss's head."""
import dataclasses

import numpy as np

from pyllm.autograd import ops, recording
from pyllm.errors import ConfigError, suggest
from pyllm.nn import Module


class Config:
    """A frozen dataclass with the keys of the Hugging Face config.json; keys it does not know are kept in `extra`.

    ConfigError names every value of the wrong kind or range; a family's own __post_init__ adds what must fit together.
    SIZES: what every family has, by a common name -> this family's keys for it.
    """

    def __post_init__(self):
        wrong = [_mismatch(f, getattr(self, f.name)) for f in dataclasses.fields(self)]
        if any(wrong):
            raise ConfigError(f"{self.model_type} config: " + ", and ".join(filter(None, wrong)))

    @classmethod
    def from_dict(cls, values):
        """values: what a config.json holds; `from_sizes` is for configurations that people write."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}
        unknown = {k: v for k, v in values.items() if k not in known and k not in ("model_type", "architectures")}
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
        """-> what config.json holds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {"model_type": self.model_type, "architectures": [self.architecture], **values, **self.extra}


_KINDS = {  # type of a field -> (what is right, in words)
    bool: (lambda v: type(v) is bool, "true or false"),
    int: (lambda v: type(v) is int and 0 < v < 2**31, "a whole number of at least 1"),
    float: (lambda v: type(v) in (int, float) and 0 <= v < float("inf"), "a number of at least 0"),
    str: (lambda v: type(v) is str, "a text"),
    dict: (lambda v: type(v) is dict, "a table"),
    type(None): (lambda v: v is None, "nothing"),
}


def _mismatch(field, value):
    """-> what is wrong with a field's value, or None."""
    kinds = [_KINDS[kind] for kind in getattr(field.type, "__args__", (field.type,))]
    if not any(right(value) for right, _ in kinds):
        return f"{field.name}={value!r}; expected {' or '.join(words for _, words in kinds)}"
    if field.name.endswith(("pdrop", "dropout")) and value >= 1:
        return f"{field.name}={value!r}; expected a probability below 1"
    return None


class CausalLM(Module):
    """tokens:(B, T) -> logits Tensor (B, T, V). A family defines `hidden`, `head_weight` and a Config."""

    def hidden(self, tokens, segments=None, cache=None, rng=None):
        """tokens:(B, T) -> Tensor (B, T, C): what the head reads. segments as in ops.attention; rng None: no dropout."""
        raise NotImplementedError

    def head_weight(self):
        """-> Tensor (V, C); the embedding's own where tied."""
        raise NotImplementedError

    def __call__(self, tokens, segments=None, cache=None, rng=None):
        """tokens:(B, T) integers -> logits Tensor (B, T, V); ValueError on ids out of range or a row beyond the context."""
        return ops.linear(self.hidden(tokens, segments, cache, rng), self.head_weight())

    def check(self, tokens, segments=None, cache=None):
        """-> tokens as int32 (B, T), segments as int32 (B, T) or None; ValueError says what is wrong."""
        tokens, name = np.asarray(tokens), type(self).__name__
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise ValueError(f"{name}: tokens of shape {tokens.shape} and dtype {tokens.dtype}; expected integers (B, T), not empty")
        low, high, v = int(tokens.min()), int(tokens.max()), self.config.vocab_size
        if low < 0 or high >= v:
            bad = low if low < 0 else high
            where = tuple(int(i) for i in np.argwhere(tokens == bad)[0])
            raise ValueError(f"{name}: token id {bad} at {where}; expected 0..{v - 1}. Hint: is this the model's own tokenizer?")
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
