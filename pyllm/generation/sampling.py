"""From logits to a token: one documented order of steps."""
from dataclasses import dataclass

import numpy as np

from pyllm import kernels as K


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw. temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_k: int = 0  # the k likeliest; 0 = all
    top_p: float = 1.0  # the smallest set whose probability reaches top_p
    min_p: float = 0.0  # at least min_p times the likeliest
    repetition_penalty: float = 1.0  # of tokens the row holds already, prompt included; 1 = none. Keskar et al. 2019, section 4.1

    def __post_init__(self):
        wrong = [f"{name}={value!r}, expected {expected}" for name, value, ok, expected in (
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "a number of at least 0"),
            ("top_k", self.top_k, isinstance(self.top_k, (int, np.integer)) and self.top_k >= 0, "a whole number, 0 for all"),
            ("top_p", self.top_p, 0 <= self.top_p <= 1, "0 to 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "a number above 0"),
        ) if not ok]
        if wrong:
            raise ValueError(f"sampling: {'; '.join(wrong)}")

    def choose(self, logits, seen, keys):
        """logits:(B, V) seen:(B, V) bool, tokens each row holds, or None; keys: an Rng a row, for this position -> ids:(B,) int32."""
        if self.repetition_penalty != 1:
            punished = np.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = np.where(seen, punished, logits).astype(np.float32)
        uniform = np.zeros(len(logits)) if self.temperature == 0 else np.array([key.uniform() for key in keys])
        return K.sample(logits, uniform, self.temperature, self.top_k, self.top_p, self.min_p)
