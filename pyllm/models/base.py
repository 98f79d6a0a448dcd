"""What every causal language model shares: configuration from a dict, checks of the input, logits, the loss's head."""
import dataclasses

import numpy as np

from pyllm.autograd import ops
from pyllm.errors import ConfigError, suggest
from pyllm.nn import Module


class Config:
    """A frozen dataclass with the keys of the Hugging Face config.json; keys it does not know are kept in `extra`."""

    @classmethod
    def from_dict(cls, values, strict=False):
        """strict: an unknown key is an error that names the nearest known one (configurations people write)."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.name != "extra"}
        unknown = {k: v for k, v in values.items() if k not in known and k not in ("model_type", "architectures")}
        if strict and unknown:
            key = next(iter(unknown))
            raise ConfigError(f"model.{key}: not a key of {cls.model_type}.{suggest(key, known)} Known: {', '.join(known)}")
        for key, value in values.items():
            if key in known and value is not None:
                _check(cls, known[key], value)
        return cls(**{k: v for k, v in values.items() if k in known}, extra=unknown)

    def to_dict(self):
        """-> what config.json holds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return {"model_type": self.model_type, "architectures": [self.architecture], **values, **self.extra}


def _check(cls, field, value):
    default, where = field.default, f"{cls.model_type} config: {field.name}"
    if isinstance(default, bool):
        ok, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int) or field.type in ("int", int):
        ok, expected = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31, "a whole number of at least 1"
    elif isinstance(default, float):
        ok, expected = isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value) and value >= 0, "a number of at least 0"
    else:
        ok, expected = True, ""
    if not ok:
        raise ConfigError(f"{where}={value!r}; expected {expected}")


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

    def check(self, tokens, segments=None):
        """-> tokens as int32 (B, T), segments as int32 (B, T) or None; ValueError says what is wrong."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise ValueError(f"{type(self).__name__}: tokens of shape {tokens.shape} and dtype {tokens.dtype}; expected integers (B, T), not empty")
        low, high, v = int(tokens.min()), int(tokens.max()), self.config.vocab_size
        if low < 0 or high >= v:
            bad = low if low < 0 else high
            where = tuple(int(i) for i in np.argwhere(tokens == bad)[0])
            raise ValueError(f"{type(self).__name__}: token id {bad} at {where}; expected 0..{v - 1}. Hint: is this the model's own tokenizer?")
        if segments is not None:
            segments = np.ascontiguousarray(segments, np.int32)
            if segments.shape != tokens.shape:
                raise ValueError(f"{type(self).__name__}: segments {segments.shape}, expected the shape of tokens {tokens.shape}")
        return np.ascontiguousarray(tokens, np.int32), segments
