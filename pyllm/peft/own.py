"""A layer with tensors of its own in place of the model's: what trains biases, norms or whole layers."""
import copy

import numpy as np

from pyllm.autograd import Tensor
from pyllm.peft.base import ANY, Adapter, matching


class Own(Adapter):
    """module: a copy of the base layer that shares its tensors, but for those in `trained`, which are its own.

    keys: {attribute of module: name in PEFT's files, below the site}.
    """

    DEPTH = 0

    def __init__(self, layer, site, keys):
        super().__init__(layer, site)
        self.module, self.keys = copy.copy(layer), keys
        self.MERGES = all(vars(layer)[attribute] is not None for attribute in keys)  # a layer of the family has no bias to take it
        for attribute in keys:
            old = vars(layer)[attribute]
            if isinstance(old, Tensor):
                data = old.data.copy()
            elif old is None:  # a bias where there was none
                data = np.zeros(layer.weight.shape[0], np.float32)
            else:
                data = old.dequantize()
            setattr(self.module, attribute, Tensor(data, requires_grad=True))

    def own(self):
        return {key: vars(self.module)[attribute] for attribute, key in self.keys.items()}

    def adapted(self, *args, **options):
        return self.module(*args, **options)

    def onto(self, x, residual, p=0.0, rng=None):
        return (self.module if self.active else self.base_layer).onto(x, residual, p, rng)

    def plain(self):
        return (self.module if self.active else self.base_layer).plain()

    def change(self, weight, bias):
        return self.module.weight, vars(self.module).get("bias")


class Saved(Own):
    """A layer trained whole: one of modules_to_save."""

    def __init__(self, layer, site):
        super().__init__(layer, site, {a: a for a in ("weight", "bias") if vars(layer).get(a) is not None})


def saved_layers(model, endings, method):
    """-> a Saved for each layer that ends so."""
    found = matching(model, list(endings), ANY, method) if endings else {}
    return [Saved(layer, site) for site, layer in found.items()]
