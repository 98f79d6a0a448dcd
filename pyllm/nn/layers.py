"""The layers models are built of. std: standard deviation of the initial weights."""
import numpy as np

from pyllm.autograd import ops
from pyllm.nn.module import Module, normal, parameter


class Layer(Module):
    """What the families' blocks call; what takes a layer's place in a model (see pyllm.peft) is one too."""

    adapter = False

    def onto(self, x, residual, p=0.0, rng=None):
        """-> residual + dropout(self(x)): the end of a branch."""
        return residual + ops.dropout(self(x), p, rng)

    def plain(self):
        """-> the layer of this file that computes the same, or itself where there is none."""
        return self


class Linear(Layer):
    """x:(..., I) -> activation(x @ weight.T + bias) + residual:(..., O); weight:(O, I)."""

    def __init__(self, inputs, outputs, bias=True, std=0.02):
        self.weight = parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias else None
        self.std = std

    def reset(self, rng):
        normal(self.weight, rng, self.std)
        if self.bias is not None:
            self.bias.data[:] = 0

    def __call__(self, x, activation=None, residual=None):
        return ops.linear(x, self.weight, self.bias, residual, activation=activation)

    def onto(self, x, residual, p=0.0, rng=None):
        """One kernel where nothing is dropped."""
        return self(x, residual=residual) if rng is None or p == 0 else super().onto(x, residual, p, rng)


class Embedding(Layer):
    """ids:(...) -> (..., C); weight:(V, C).

    noise: alpha of NEFTune (Jain et al. 2023), 0 for none. Where an rng is given, ids:(B, T) get uniform noise within alpha / (T C)^0.5.
    """

    def __init__(self, rows, channels, std=0.02):
        self.weight = parameter(rows, channels)
        self.std, self.noise = std, 0.0

    def reset(self, rng):
        normal(self.weight, rng, self.std)

    def __call__(self, ids, rng=None):
        x = ops.embedding(self.weight, ids)
        if rng is None or not self.noise:
            return x
        draw = rng.fold("noise").generator().random(x.shape, np.float32)
        return x + (draw - np.float32(0.5)) * np.float32(2 * self.noise / (x.shape[-2] * x.shape[-1]) ** 0.5)


class LayerNorm(Layer):
    """x:(..., C) -> (..., C), Ba et al. 2016."""

    def __init__(self, channels, eps=1e-5, bias=True):
        self.weight = parameter(channels)
        self.bias = parameter(channels) if bias else None
        self.eps = eps

    def reset(self, rng):
        self.weight.data = np.ones_like(self.weight.data)
        if self.bias is not None:
            self.bias.data[:] = 0

    def __call__(self, x):
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Layer):
    """x:(..., C) -> (..., C), Zhang & Sennrich 2019."""

    def __init__(self, channels, eps=1e-6):
        self.weight = parameter(channels)
        self.eps = eps

    def reset(self, rng):
        self.weight.data = np.ones_like(self.weight.data)

    def __call__(self, x):
        return ops.rms_norm(x, self.weight, eps=self.eps)


class OffsetRMSNorm(Layer):
    """The same with 1 + weight: what checkpoints of Gemma hold."""

    def __init__(self, channels, eps=1e-6):
        self.weight = parameter(channels)
        self.eps = eps

    def reset(self, rng):
        self.weight.data = np.zeros_like(self.weight.data)

    def __call__(self, x):
        return ops.rms_norm(x, self.weight + 1, eps=self.eps)
