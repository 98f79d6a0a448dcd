"""Bottleneck adapters: Houlsby et al. 2019, Pfeiffer et al. 2020, and the parallel ones of He et al. 2021. Names as in AdapterHub."""
import re
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.errors import ConfigError
from pyllm.nn import ACTIVATIONS, Linear
from pyllm.peft.base import NORMS, Adapter, Method, candidates
from pyllm.peft.folder import unknown_keys

INITS = ("bert", "mam_adapter", "houlsby")
ENDS = {  # model_type -> the layers that end the branches: attention, feed-forward; the norm behind the latter, if one is
    "gpt2": (r"h\.\d+\.attn\.c_proj", r"h\.\d+\.mlp\.c_proj", None),
    "bert": (r"layer\.\d+\.attention\.output\.dense", r"layer\.\d+\.output\.dense", r"layer\.\d+\.output\.LayerNorm"),
    "bart": (r"layers\.\d+\.self_attn\.out_proj", r"layers\.\d+\.fc2", r"layers\.\d+\.final_layer_norm"),
    "t5": (r"layer\.0\.SelfAttention\.o", r"layer\.\d\.DenseReluDense\.wo", None),
    "gemma3_text": (r"layers\.\d+\.post_attention_layernorm", r"layers\.\d+\.post_feedforward_layernorm", None),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), (r"layers\.\d+\.self_attn\.o_proj", r"layers\.\d+\.mlp\.down_proj", None)),
}


class Bottleneck(Adapter):
    """scaling * up(activation(down(x))), down:(D, C), up:(C, D); where x comes from and what it is added to is the subclass's."""

    KEYS = {"down": "adapter_down.0.weight", "down_bias": "adapter_down.0.bias", "up": "adapter_up.weight", "up_bias": "adapter_up.bias"}
    DEPTH, MERGES = 2, False

    def __init__(self, layer, site, method, rng):
        super().__init__(layer, site)
        width = layer.weight.shape[0]
        inner, draw = max(1, width // method.reduction), rng.generator()
        shapes = (inner, width), (width, inner)
        if method.init == "mam_adapter":
            down, up = draw.uniform(-(width**-0.5), width**-0.5, shapes[0]), np.zeros(shapes[1])
        elif method.init == "bert":
            down, up = (0.02 * draw.standard_normal(shape) for shape in shapes)
        else:
            down, up = (0.01 * _truncated(draw, shape) for shape in shapes)
        self.down, self.up, self.down_bias, self.up_bias = (Tensor(a.astype(np.float32), requires_grad=True) for a in
                                                            (down, up, np.zeros(inner), np.zeros(width)))
        self.activation, self.scaling = ACTIVATIONS[method.activation], method.scaling

    def squeezed(self, x, onto):
        """onto + what the bottleneck makes of x."""
        y = ops.linear(x, self.down, self.down_bias, activation=self.activation)
        if self.scaling == 1:
            return ops.linear(y, self.up, self.up_bias, onto)
        return onto + ops.linear(y, self.up, self.up_bias) * self.scaling


def _truncated(draw, shape):
    """-> standard normal numbers, those beyond 2 drawn again."""
    x = draw.standard_normal(shape)
    while (far := np.abs(x) > 2).any():
        x[far] = draw.standard_normal(int(far.sum()))
    return x


class Behind(Bottleneck):
    """h = what the branch gives: residual + h + bottleneck(h)."""

    def adapted(self, x):
        h = self.base_layer(x)
        return self.squeezed(h, h)

    def onto(self, x, residual, p=0.0, rng=None):
        if not self.active:
            return self.base_layer.onto(x, residual, p, rng)
        h = ops.dropout(self.base_layer(x), p, rng)
        return self.squeezed(h, h + residual)


class OnTheSum(Bottleneck):
    """z = residual + what the branch gives: z + bottleneck(z)."""

    def onto(self, x, residual, p=0.0, rng=None):
        z = self.base_layer.onto(x, residual, p, rng)
        return self.squeezed(z, z) if self.active else z


class AroundTheNorm(Bottleneck):
    """z = residual + what the branch gives, in place of the norm behind it: norm(z + bottleneck(norm(z)))."""

    def adapted(self, z):
        return self.base_layer(self.squeezed(self.base_layer(z), z))


class Beside(Bottleneck):
    """residual + what the branch gives + bottleneck(residual)."""

    def onto(self, x, residual, p=0.0, rng=None):
        z = self.base_layer.onto(x, residual, p, rng)
        return self.squeezed(residual, z) if self.active else z


@dataclass(frozen=True)
class Bottlenecks(Method):
    """What the three methods share. reduction: the model's width over the bottleneck's. activation: as in a config.json.

    init: bert (deviation 0.02), mam_adapter (the second layer zero: the model starts unchanged) or houlsby (deviation 0.01, truncated).
    """

    reduction: int = 16
    activation: str = "swish"
    init: str = "bert"
    scaling: float = 1.0

    LAYERS = (Linear, *NORMS)
    EXACT = property(lambda self: self.init == "mam_adapter")
    HUB = {}  # AdapterHub's names for where the method's adapters are

    def __post_init__(self):
        if type(self.reduction) is not int or self.reduction < 1 or self.activation not in ACTIVATIONS or self.init not in INITS:
            raise ConfigError(f"{self.NAME}: reduction={self.reduction}, activation={self.activation!r}, init={self.init!r}; expected a "
                              f"whole number of at least 1, one of {', '.join(ACTIVATIONS)}, one of {', '.join(INITS)}")

    def ends(self, attention, feedforward, norm):
        """-> [(expression of the sites, Bottleneck class)] of a family."""
        raise NotImplementedError

    def place(self, model, targets, rng):
        kind = model.config.model_type
        if targets is not None or kind not in ENDS:
            raise ConfigError(f"inject: {self.NAME}: targets={targets!r} for {kind}; it stands behind the branches of every block of "
                              f"{', '.join(ENDS)}. Hint: targets=None")
        known = candidates(model, self.LAYERS)
        return [adapter(layer, site, self, rng.fold(site)) for site, layer in known.items() for end, adapter in self.ends(*ENDS[kind])
                if re.search(rf"(^|\.){end}$", site)]

    def to_peft(self, model, placed):
        return {"reduction": self.reduction, "activation": self.activation, "scaling": self.scaling}

    @classmethod
    def from_peft(cls, config, where):
        own = ("reduction", "activation", "scaling")
        unknown_keys(config, own, {}, where)
        return cls(**{key: config[key] for key in own if key in config})


@dataclass(frozen=True)
class Houlsby(Bottlenecks):
    """Behind attention and behind the feed-forward layers, on what they give. Houlsby et al. 2019."""

    NAME = "houlsby"
    HUB = {"mh_adapter": True, "output_adapter": True, "original_ln_before": False, "is_parallel": False}

    def ends(self, attention, feedforward, norm):
        return [(attention, Behind), (feedforward, Behind)]


@dataclass(frozen=True)
class Pfeiffer(Bottlenecks):
    """Behind the feed-forward layers, on their sum with the residual, behind its norm where there is one. Pfeiffer et al. 2020."""

    activation: str = "relu"

    NAME = "pfeiffer"
    HUB = {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "is_parallel": False}

    def ends(self, attention, feedforward, norm):
        return [(norm, AroundTheNorm) if norm else (feedforward, OnTheSum)]


@dataclass(frozen=True)
class Parallel(Bottlenecks):
    """Beside the feed-forward layers, from the residual. He et al. 2021."""

    reduction: int = 2
    activation: str = "relu"
    init: str = "mam_adapter"
    scaling: float = 4.0

    NAME = "parallel"
    HUB = {"mh_adapter": False, "output_adapter": True, "original_ln_before": False, "is_parallel": True}

    def ends(self, attention, feedforward, norm):
        return [(feedforward, Beside)]
