"""From logits to a token: one documented order of steps."""
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from pyllm import kernels as K
from pyllm.errors import ConfigError

INFINITY = float("inf")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw. temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int = 0  # the k likeliest; 0 = all
    top_p: float = 1.0  # the smallest set whose probability reaches top_p. Holtzman et al. 2020
    min_p: float = 0.0  # at least min_p times the likeliest. Nguyen et al. 2024
    repetition_penalty: float = 1.0  # of tokens the row holds already, prompt included; 1 = none. Keskar et al. 2019, section 4.1

    def __post_init__(self):
        wrong = [f"{name}={value!r}, expected {expected}" for name, kind, right, expected in (
            ("temperature", Real, lambda x: 0 <= x < INFINITY, "a number of at least 0"),
            ("top_k", Integral, lambda x: x >= 0, "a whole number, 0 for all"),
            ("top_p", Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            ("min_p", Real, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            ("repetition_penalty", Real, lambda x: 0 < x < INFINITY, "a number above 0, 1 for none"),
        ) if not isinstance(value := getattr(self, name), kind) or not right(value)]
        if wrong:
            raise ConfigError(f"sampling: {'; '.join(wrong)}")

    def choose(self, logits, seen, keys):
        """logits:(B, V) seen:(B, V) bool, tokens each row holds, or None; keys: an Rng a row, for this position -> ids:(B,) int32."""
        if self.repetition_penalty != 1:
            logits, held = logits.copy(), logits[seen]
            logits[seen] = np.where(held > 0, held / np.float32(self.repetition_penalty), held * np.float32(self.repetition_penalty))
        uniform = np.zeros(len(logits)) if self.temperature == 0 else np.array([key.uniform() for key in keys])
        return K.sample(logits, uniform, self.temperature, self.top_k, self.top_p, self.min_p)
