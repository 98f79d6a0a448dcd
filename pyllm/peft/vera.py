"""VeRA: one pair of random matrices for all layers, frozen; two learned vectors a layer (Kopiczko et al. 2023)."""
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.errors import ConfigError, FormatError
from pyllm.peft.base import LinearAdapter, Method, condensed
from pyllm.peft.folder import unknown_keys
from pyllm.peft.lora import QV

SHARED = ("base_model.vera_A", "base_model.vera_B")


@dataclass(frozen=True)
class VeRA(Method):
    """W x + b * (B (d * (A x))), A:(R, I) B:(O, R) of the largest layer, of which smaller ones take a corner; b zeros, d of `d_initial`."""

    rank: int = 256
    d_initial: float = 0.1

    NAME, PEFT, TARGETS, RATE = "vera", "VERA", QV, 5e-3

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"VeRA: rank={self.rank!r}; expected a whole number of at least 1")

    def place(self, model, targets, rng):
        placed = super().place(model, targets, rng)
        widest, tallest = (max(a.base_layer.weight.shape[side] for a in placed) for side in (1, 0))
        shared = [Tensor(_uniform(rng.fold(name), shape)) for name, shape in zip("AB", ((self.rank, widest), (tallest, self.rank)))]
        for adapter in placed:
            adapter.shared = shared
        return placed

    def adapter(self, layer, site, rng):
        return VeRALinear(layer, site, self)

    def to_peft(self, model, placed):
        turned = any(f"{a.site}.weight".endswith(model.TRANSPOSED) for a in placed)
        return {"target_modules": condensed([a.site for a in placed], model, self.LAYERS), "r": self.rank, "d_initial": self.d_initial,
                "save_projection": True, "projection_prng_key": 0, "fan_in_fan_out": turned, "bias": "none"}

    @classmethod
    def from_peft(cls, config, where):
        known = ("r", "d_initial", "projection_prng_key", "save_projection", "vera_dropout", "init_weights")
        unknown_keys(config, known, {"bias": "none"}, where)
        if not config.get("save_projection", True):
            raise FormatError(f"load: {where}: save_projection=false: the file lacks the random matrices, another library's numbers")
        return cls(config["r"], config.get("d_initial", 0.1))

    def to_files(self, tensors, adapters):
        shared = next(a.shared for a in adapters if type(a) is VeRALinear)
        return tensors | dict(zip(SHARED, (t.data for t in shared)))

    def from_files(self, tensors, placed):
        given, shared = dict(tensors), next(a.shared for a in placed if type(a) is VeRALinear)
        for name, tensor in zip(SHARED, shared):
            array = given.pop(name, None)
            if array is None or array.shape != tensor.shape:
                raise FormatError(f"load: vera: {name}: {None if array is None else array.shape}, expected {tensor.shape}. "
                                  "Hint: is it an adapter for this base?")
            tensor.data = np.array(array, np.float32)
        return given


def _uniform(rng, shape):
    edge = (6 / shape[1]) ** 0.5
    return rng.generator().uniform(-edge, edge, shape).astype(np.float32)


class VeRALinear(LinearAdapter):
    """lambda_b:(O,) lambda_d:(R,); shared: the frozen A and B of all layers."""

    KEYS = {"lambda_b": "vera_lambda_b", "lambda_d": "vera_lambda_d"}

    def __init__(self, layer, site, method):
        super().__init__(layer, site)
        self.lambda_b = Tensor(np.zeros(layer.weight.shape[0], np.float32), requires_grad=True)
        self.lambda_d = Tensor(np.full(method.rank, method.d_initial, np.float32), requires_grad=True)

    def _corner(self):
        """-> A:(R, I) and B:(O, R) of this layer."""
        (a, b), (outputs, inputs) = self.shared, self.bottom.weight.shape
        return Tensor(np.ascontiguousarray(a.data[:, :inputs])), Tensor(b.data[:outputs])

    def adapted(self, x, residual):
        a, b = self._corner()
        delta = ops.linear(ops.linear(x, a) * self.lambda_d, b) * self.lambda_b
        return self.base_layer(x, residual=delta if residual is None else delta + residual)

    def change(self, weight, bias):
        a, b = self._corner()
        return weight + ops.matmul(b * self.lambda_d, a) * self.lambda_b.reshape(-1, 1), bias
