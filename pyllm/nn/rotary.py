"""Rotary tables, and what stretches them beyond the context a model was trained with. Su et al. 2021."""
import math

import numpy as np

from pyllm.errors import ConfigError

# rope_type -> the keys it cannot do without; each must be a number above 0
SCALINGS = {"default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
            "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
OPTIONAL = ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def checked_scaling(scaling):
    """scaling: rope_scaling of a config.json, old ("type") or new ("rope_type"), or None -> with rope_type, or None for no scaling.

    ConfigError: an unknown type, a missing or impossible number.
    """
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise ConfigError(f"rope_scaling: rope_type={kind!r}; expected one of {', '.join(SCALINGS)}")
    for key in (*SCALINGS[kind], *OPTIONAL):
        value = scaling.get(key)
        if value is None and key not in SCALINGS[kind]:
            continue
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ConfigError(f"rope_scaling: {kind} with {key}={value!r}; expected a number above 0")
    if kind == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        raise ConfigError(f"rope_scaling: low_freq_factor={scaling['low_freq_factor']} is not below "
                          f"high_freq_factor={scaling['high_freq_factor']}")
    return None if kind == "default" else {**{k: v for k, v in scaling.items() if k != "type"}, "rope_type": kind}


def plain_frequencies(rotary, theta):
    """-> (R/2,) float32: theta^(-2i/R), rounded where checkpoints were made: at position 8000 a bit is 5e-4 radians."""
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    return 1 / (float(theta) ** exponents.astype(np.float64)).astype(np.float32)


def linear(f, s, **_):
    """Chen et al. 2023: every position divided by the factor."""
    return f / s["factor"], 1.0


def dynamic(f, s, *, rotary, theta, context, highest):
    """NTK-aware, bloc97 and emozilla 2023: theta grows with the text once it is longer than the context."""
    length = max(highest + 1, context)
    grown = s["factor"] * length / context - (s["factor"] - 1)
    return plain_frequencies(rotary, theta * grown ** (rotary / (rotary - 2))), 1.0


def llama3(f, s, *, context, **_):
    """Llama 3.1: long waves divided by the factor, short ones kept, a ramp between. Dubey et al. 2024."""
    trained, low, high = s.get("original_max_position_embeddings") or context, s["low_freq_factor"], s["high_freq_factor"]
    waves = trained * f / (2 * np.pi)  # how many of each fit in the trained context
    keep = np.clip((waves - low) / (high - low), 0, 1)
    return (1 - keep) * f / s["factor"] + keep * f, 1.0


def yarn(f, s, *, rotary, theta, context, **_):
    """Peng et al. 2023: a ramp over the pairs from kept to divided, and a warmer softmax through the size of cos and sin."""
    trained, factor = s.get("original_max_position_embeddings") or context, s["factor"]

    def pair(turns):  # the pair that turns so many times over the trained context
        return rotary * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(s.get("beta_fast") or 32), pair(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    divided = np.clip((np.arange(rotary // 2) - low) / (high - low if high != low else 0.001), 0, 1)

    def warmth(m=1):
        return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0

    size = s.get("attention_factor")
    if size is None:
        both = s.get("mscale") and s.get("mscale_all_dim")
        size = warmth(s["mscale"]) / warmth(s["mscale_all_dim"]) if both else warmth()
    return f / factor * divided + f * (1 - divided), float(size)


SCALE = {"linear": linear, "dynamic": dynamic, "llama3": llama3, "yarn": yarn}


class RotaryTable:
    """cos, sin:(P, R/2) of the angles p * frequency, grown as longer positions come.

    scaling: what `checked_scaling` gives; context: the positions of the configuration. "dynamic" follows the longest text of a call,
    as where its checkpoints come from: beyond the context a token's rotation depends on how long the text is by now.
    """

    def __init__(self, rotary, theta=10000.0, scaling=None, context=0):
        self.rotary, self.theta, self.scaling, self.context = rotary, theta, scaling, context
        self.follows = scaling is not None and scaling["rope_type"] == "dynamic"
        self._tables = None

    def frequencies(self, highest=0):
        """-> (R/2,) float32 radians a position, and the size of cos and sin, for texts up to position `highest`."""
        f = plain_frequencies(self.rotary, self.theta)
        if self.scaling is None:
            return f, 1.0
        f, size = SCALE[self.scaling["rope_type"]](f.astype(np.float64), self.scaling, rotary=self.rotary, theta=self.theta,
                                                   context=self.context, highest=highest)
        return f.astype(np.float32), size

    def __call__(self, highest):
        """-> cos, sin with at least `highest` + 1 rows."""
        highest = int(highest)
        if self.follows and highest >= self.context:
            if self._tables is None or len(self._tables[0]) != highest + 1:
                self._tables = self._make(highest + 1, highest)
        elif self._tables is None or len(self._tables[0]) <= highest or self.follows and len(self._tables[0]) > self.context:
            rows = 1 << max(6, highest.bit_length())
            self._tables = self._make(min(rows, self.context) if self.follows else rows, highest)
        return self._tables

    def _make(self, rows, highest):
        frequencies, size = self.frequencies(highest)
        angles = (np.arange(rows, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
        return (size * np.cos(angles)).astype(np.float32), (size * np.sin(angles)).astype(np.float32)
