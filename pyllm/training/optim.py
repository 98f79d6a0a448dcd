"""Optimizers: in-place steps over the parameters of a model."""
import numpy as np

from pyllm import kernels as K
from pyllm.training.groups import path_rates


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) over the trainable parameters of a model.

    betas: decay of the two moments. eps: added to the root of the second. weight_decay: the share of a weight, times lr, that a step
    takes away; weights of two or more dimensions decay, biases and the gains of norms do not. rates: {pattern of paths: factor of lr},
    the first one that is found in a parameter's path counts, see pyllm.training.layerwise. tensorflow: eps is added where TensorFlow's
    Adam adds it, before the second moment is corrected, so first steps are smaller (Huang et al. 2023). `steps` counts steps taken.
    """

    def __init__(self, model, *, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, rates=None, tensorflow=False):
        if not all(0 <= b < 1 for b in betas) or eps <= 0 or weight_decay < 0:
            raise ValueError(f"AdamW: betas={betas}, eps={eps}, weight_decay={weight_decay}; "
                             "expected betas in [0, 1), eps > 0, weight_decay >= 0")
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("AdamW: the model has no parameter with requires_grad")
        self.rates = path_rates(self.parameters, rates or {})
        self.betas, self.eps, self.weight_decay, self.tensorflow, self.steps = betas, eps, weight_decay, tensorflow, 0
        self.m, self.v = ({name: _zeros(p.data) for name, p in self.parameters.items()} for _ in "mv")

    def grad_norm(self):
        """-> float: the root of the sum of squares of all gradients, summed in float64 in the order of the parameters."""
        return sum(K.sum_squares(p.grad) for p in self.parameters.values() if p.grad is not None) ** 0.5

    def step(self, lr, scale=1.0):
        """One step with every gradient times `scale`; a parameter without a gradient stays as it is."""
        self.steps += 1
        eps = self.eps / (1 - self.betas[1] ** self.steps) ** 0.5 if self.tensorflow else self.eps
        for name, p in self.parameters.items():
            if p.grad is not None:
                decay, rate = self.weight_decay if p.ndim >= 2 else 0.0, lr * self.rates.get(name, 1.0)
                K.adamw(p.data, p.grad, self.m[name], self.v[name], rate, *self.betas, eps, decay, self.steps, scale)

    def zero_grad(self):
        """Drops all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def state(self):
        """-> {name: array}: both moments of every parameter, the arrays themselves, and the number of steps."""
        moments = {f"{kind}.{name}": a for kind in "mv" for name, a in getattr(self, kind).items()}
        return {"steps": np.array([self.steps], np.int64), **moments}

    def load_state(self, tensors):
        """Takes what `state` gave; ValueError names all that does not fit."""
        own = self.state()
        wrong = [f"missing: {name}" for name in own if name not in tensors] + [f"unexpected: {name}" for name in tensors if name not in own]
        wrong += [f"{name}: {tensors[name].dtype} {tensors[name].shape}, expected {a.dtype} {a.shape}" for name, a in own.items()
                  if name in tensors and (tensors[name].shape, tensors[name].dtype) != (a.shape, a.dtype)]
        if wrong:
            raise ValueError(f"AdamW.load_state: {len(wrong)} mismatches:\n  " + "\n  ".join(wrong))
        for name, a in own.items():
            a[...] = tensors[name]
        self.steps = int(tensors["steps"][0])


def _zeros(like):
    """Zeros in the kernels' memory: its large pages make the step a third faster."""
    zeros = K.empty(like.shape, like.dtype)
    zeros[...] = 0
    return zeros
