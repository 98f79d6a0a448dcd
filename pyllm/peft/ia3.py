"""IA3: what layers give, or what goes into them, times a learned vector (Liu et al. 2022)."""
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor
from pyllm.peft.base import LinearAdapter, Method, _ends, condensed
from pyllm.peft.folder import unknown_keys

_FEEDFORWARD = {"t5": ["wo"], "gpt2": ["mlp.c_proj"], "bert": ["output.dense"], "bart": ["fc2"],
                **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text"), ["down_proj"])}


@dataclass(frozen=True)
class IA3(Method):
    """Keys and values, and what goes into the second layer of the MLP, times vectors that begin as ones.

    feedforward: endings of the targets whose input is scaled; None: the family's own.
    """

    feedforward: tuple | None = None

    NAME, PEFT, RATE = "ia3", "IA3", 5e-3
    TARGETS = {"t5": ["k", "v", "wo"], "gpt2": ["c_attn", "mlp.c_proj"], "bert": ["key", "value", "output.dense"],
               "bart": ["q_proj", "v_proj", "fc2"], **dict.fromkeys(("llama", "mistral"), ["k_proj", "v_proj", "down_proj"]),
               **dict.fromkeys(("qwen2", "qwen3", "gemma3_text"), ["q_proj", "v_proj", "down_proj"])}

    def place(self, model, targets, rng):
        placed = super().place(model, targets, rng)
        for adapter in placed:
            adapter.choose(any(_ends(adapter.site, e) for e in self._feedforward(model)))
        return placed

    def _feedforward(self, model):
        return _FEEDFORWARD.get(model.config.model_type, ()) if self.feedforward is None else self.feedforward

    def adapter(self, layer, site, rng):
        return Scaled(layer, site)

    def to_peft(self, model, placed):
        sites = [a.site for a in placed]
        inner = [s for s in sites if any(_ends(s, e) for e in self._feedforward(model))]
        turned = any(f"{site}.weight".endswith(model.TRANSPOSED) for site in sites)
        return {"target_modules": condensed(sites, model, self.LAYERS), "fan_in_fan_out": turned,
                "feedforward_modules": condensed(inner, model, self.LAYERS) if inner else []}

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, ("feedforward_modules", "init_ia3_weights"), {}, where)
        return cls(feedforward=tuple(config.get("feedforward_modules") or ()))


class Scaled(LinearAdapter):
    """ia3_l:(O, 1) over what the layer gives, or (1, I) over what goes into it."""

    KEYS = {"ia3_l": "ia3_l"}

    def choose(self, inner):
        """inner: whether it is the input that is scaled."""
        outputs, inputs = self.base_layer.weight.shape
        self.inner, self.ia3_l = inner, Tensor(np.ones((1, inputs) if inner else (outputs, 1), np.float32), requires_grad=True)

    def adapted(self, x, residual):
        if self.inner:
            return self.base_layer(x * self.ia3_l, residual=residual)
        y = self.base_layer(x) * self.ia3_l.reshape(-1)
        return y if residual is None else y + residual

    def change(self, weight, bias):
        return weight * self.ia3_l, bias if bias is None or self.inner else bias * self.ia3_l.reshape(-1)
