"""Sample inputs of every operation: name -> [Case]. The inputs are float64 arrays; what is not differentiated goes into the function.

Sizes include 0, 1 and odd numbers. A case's function takes one Tensor for each input and gives a Tensor.
"""
from dataclasses import dataclass
from typing import Callable

import numpy as np

from pyllm.autograd import REGISTRY, Rng, ops
from pyllm.nn import RotaryTable


@dataclass(frozen=True)
class Case:
    label: str
    function: Callable
    inputs: tuple

    def __str__(self):
        return self.label


def draw(*shape, seed=0, low=None):
    """float64, standard normal; with low: of size at least `low`, away from kinks and poles."""
    x = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return x if low is None else np.where(np.abs(x) < low, np.copysign(low, x), x)


CASES = {}


def case(name, label, function, *inputs):
    CASES.setdefault(name, []).append(Case(label, function, inputs))


# ---- arithmetic ------------------------------------------------------------------------------------------------------

BROADCAST = [((3, 5), (3, 5)), ((3, 5), (5,)), ((1,), (2, 1, 3)), ((2, 1, 4), (3, 1)), ((), (3, 2)), ((0, 3), (1, 3)), ((1, 1), (1,))]
for one, two in BROADCAST:
    a, b = draw(*one), draw(*two, seed=1, low=0.3)
    for operation in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
        case(operation, f"{one}-{two}", REGISTRY[operation], a, b)
    condition = draw(*np.broadcast_shapes(one, two), seed=2) > 0
    case("where", f"{one}-{two}", lambda a, b, condition=condition: ops.where(a, b, condition=condition), a, b)

for shape in ((4, 7), (1,), (), (0, 3), (2, 0)):
    x = draw(*shape)
    for operation in ("exp", "tanh", "sigmoid", "log_sigmoid"):
        case(operation, str(shape), REGISTRY[operation], x)
    case("log", str(shape), ops.log, np.abs(x) + 0.2)
    for exponent in (2, 3, 0.5, -1):
        case("power", f"{shape}-{exponent}", lambda x, e=exponent: ops.power(x, exponent=e), np.abs(x) + 0.3)
for shape, axis in (((3, 4), None), ((3, 4), 0), ((2, 3, 4), (0, 2)), ((2, 3), -1), ((), None), ((0, 3), 0), ((1, 1), 1)):
    for keepdims in (False, True):
        case("sum", f"{shape}-{axis}-{keepdims}", lambda x, a=axis, k=keepdims: ops.sum(x, axis=a, keepdims=k), draw(*shape))
        if np.prod(shape):
            case("sum", f"mean-{shape}-{axis}-{keepdims}", lambda x, a=axis, k=keepdims: ops.mean(x, axis=a, keepdims=k), draw(*shape))

for one, two in (((2, 3), (3, 4)), ((5, 1, 3), (5, 3, 2)), ((2, 2, 1, 7), (2, 2, 7, 1)), ((0, 3), (3, 2)), ((2, 0), (0, 3)),
                 ((9, 17), (17, 8))):
    case("matmul", f"{one}-{two}", ops.matmul, draw(*one), draw(*two, seed=1))

# ---- shapes ----------------------------------------------------------------------------------------------------------

for shape, new in (((2, 6), (3, 4)), ((4,), (2, 1, 2)), ((2, 3), (-1,)), ((), (1, 1)), ((0, 2), (2, 0))):
    case("reshape", f"{shape}-{new}", lambda x, n=new: ops.reshape(x, shape=n), draw(*shape))
for shape, axes in (((2, 3), (1, 0)), ((2, 3, 4), (1, 2, 0)), ((2, 3, 4), (2, 0, 1)), ((1, 5), (1, 0)), ((0, 3), (1, 0)), ((3,), (0,))):
    case("transpose", f"{shape}-{axes}", lambda x, a=axes: ops.transpose(x, axes=a), draw(*shape))
for label, index in {"row": 1, "slice": slice(1, 3), "step": slice(None, None, -2), "none": slice(0, 0), "twice": np.array([2, 0, 2, 2]),
                     "pairs": (np.array([0, 3, 0]), np.array([1, 1, 1])), "mask": np.array([True, False, True, True])}.items():
    case("take", label, lambda x, i=index: ops.take(x, index=i), draw(4, 5))
for axis, shapes in ((0, [(2, 3), (1, 3), (0, 3)]), (1, [(2, 3), (2, 1)]), (-1, [(2, 2, 1), (2, 2, 4), (2, 2, 2)]), (0, [(3,)])):
    case("concat", f"{axis}-{shapes}", lambda *xs, a=axis: ops.concat(*xs, axis=a), *[draw(*s, seed=i) for i, s in enumerate(shapes)])

# ---- layers ----------------------------------------------------------------------------------------------------------

for lead, width, out in (((3,), 4, 5), ((2, 3), 1, 1), ((0,), 3, 2), ((2, 2), 9, 17), ((1,), 8, 16)):
    x, w, b, r = draw(*lead, width), draw(out, width, seed=1), draw(out, seed=2), draw(*lead, out, seed=3)
    case("linear", f"{lead}-{width}-{out}", ops.linear, x, w)
    case("linear", f"{lead}-{width}-{out}-residual", lambda x, w, r: ops.linear(x, w, None, r), x, w, r)
    for act in (None, "gelu", "gelu_tanh", "silu"):
        case("linear", f"{lead}-{width}-{out}-{act}", lambda x, w, b, r, a=act: ops.linear(x, w, b, r, activation=a), x, w, b, r)
for shape in ((3, 5), (1,), (2, 0), (17,)):
    for kind in ("gelu", "gelu_tanh", "silu", "relu"):
        case("activation", f"{shape}-{kind}", lambda x, k=kind: ops.activation(x, kind=k), draw(*shape, low=0.01))
        case("glu", f"{shape}-{kind}", lambda g, u, k=kind: ops.glu(g, u, kind=k), draw(*shape, low=0.01), draw(*shape, seed=1))
    case("_dropout", str(shape), lambda x: ops.dropout(x, 0.4, Rng(3)), draw(*shape))
for rows, ids in ((5, [[0, 4, 4], [2, 4, 0]]), (1, [0, 0]), (3, np.zeros((0,))), (7, [[[3]]])):
    case("embedding", f"{rows}-{np.shape(ids)}", lambda w, i=np.asarray(ids, np.int32): ops.embedding(w, i), draw(rows, 3))
for shape in ((4, 6), (2, 3, 1), (1, 17), (0, 3), (5,)):
    x, w, b = draw(*shape), draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    case("layer_norm", f"{shape}", lambda x, w, b: ops.layer_norm(x, w, b, eps=0.1), x, w, b)
    case("layer_norm", f"{shape}-without-b", lambda x, w: ops.layer_norm(x, w, eps=0.1), x, w)
    case("rms_norm", f"{shape}", lambda x, w: ops.rms_norm(x, w, eps=0.1), x, w)

# ---- losses ----------------------------------------------------------------------------------------------------------

for shape in ((3, 5), (2, 2, 1), (0, 4), (1, 33)):
    x = draw(*shape)
    case("softmax", str(shape), ops.softmax, x)
    case("log_softmax", str(shape), ops.log_softmax, x)
for n, c, v, smoothing, z in ((4, 3, 7, 0, 0), (1, 1, 1, 0, 0), (6, 5, 33, 0.1, 0), (5, 2, 9, 0, 0.01), (3, 4, 8, 0.2, 0.1),
                              (0, 2, 3, 0, 0)):
    targets = (np.arange(n) * 5 % v).astype(np.int32)
    targets[1::3] = -100
    options = dict(label_smoothing=smoothing, z_loss=z)
    label = f"{n}-{c}-{v}-{smoothing}-{z}"
    case("cross_entropy", label, lambda x, t=targets, o=options: ops.cross_entropy(x, t, **o), draw(n, v))
    case("cross_entropy", f"scaled-{label}", lambda x, t=targets, o=options: ops.cross_entropy(x, t, **o) * 0.25, draw(n, v))
    h, w, b = draw(n, c), draw(v, c, seed=1), draw(v, seed=2)
    case("linear_cross_entropy", label, lambda h, w, b, t=targets, o=options: ops.linear_cross_entropy(h, w, b, t, **o), h, w, b)
    case("linear_cross_entropy", f"no-bias-{label}",
         lambda h, w, t=targets, o=options: ops.linear_cross_entropy(h, w, None, t, **o) * 3.0, h, w)
case("linear_cross_entropy", "two-leading-axes",
     lambda h, w: ops.linear_cross_entropy(h, w, None, np.array([[0, 3, -1], [2, 2, 1]], np.int32)),
     draw(2, 3, 4), draw(5, 4, seed=1))
for n, c, v, temperature in ((4, 3, 7, 1.0), (1, 1, 1, 1.0), (6, 5, 33, 0.7), (0, 2, 3, 1.0), (5, 2, 9, 2.0)):
    targets = (np.arange(n) * 5 % v).astype(np.int32)
    targets[1::3] = -100
    h, w, b = draw(n, c), draw(v, c, seed=1), draw(v, seed=2)
    for entropy in (False, True):
        case("_linear_log_probs", f"{n}-{c}-{v}-{temperature}-{entropy}",
             lambda h, w, b, t=targets, o=dict(temperature=temperature, entropy=entropy): REGISTRY["_linear_log_probs"](h, w, b, t, **o),
             h, w, b)
case("_linear_log_probs", "two-leading-axes-no-bias",
     lambda h, w: ops.linear_log_probs(h, w, None, np.array([[0, 3, -1], [2, 2, 1]], np.int32)), draw(2, 3, 4), draw(5, 4, seed=1))

for n, v, temperature in ((1, 1, 1.0), (6, 7, 2.0)):
    targets = (np.arange(n) % v).astype(np.int32)
    targets[1::3] = -100
    teacher = draw(n, 5, seed=3), draw(v, 5, seed=4), None
    case("linear_kl", f"{n}-{v}-{temperature}",
         lambda h, w, b, t=targets, o=temperature, given=teacher: ops.linear_kl(h, w, b, *given, t, temperature=o),
         draw(n, 4), draw(v, 4, seed=1), draw(v, seed=2))

# ---- attention -------------------------------------------------------------------------------------------------------

SEGMENTS = np.array([[0, 1, 1, 1, 2], [1, 1, 2, 2, 0]], np.int32)
VARIANTS = {  # label -> (B, Tq, Tk, H, Hkv, D), options
    "causal": ((2, 5, 5, 2, 2, 3), {}),
    "open": ((1, 4, 4, 1, 1, 1), dict(causal=False)),
    "grouped": ((2, 3, 3, 4, 2, 2), {}),
    "multi-query": ((1, 6, 6, 3, 1, 5), {}),
    "window": ((1, 7, 7, 1, 1, 2), dict(window=3)),
    "window-of-one": ((1, 4, 4, 1, 1, 2), dict(window=1)),
    "two-sided-window": ((1, 7, 7, 1, 1, 2), dict(window=2, causal=False)),
    "segments": ((2, 5, 5, 2, 1, 2), dict(segments=SEGMENTS)),
    "open-segments": ((2, 5, 5, 1, 1, 2), dict(segments=SEGMENTS, causal=False)),
    "cross": ((1, 3, 6, 2, 2, 3), dict(causal=False)),
    "cross-segments": ((2, 2, 5, 1, 1, 2), dict(causal=False, segments=(np.array([[1, 2], [0, 1]], np.int32), SEGMENTS))),
    "behind-a-cache": ((1, 2, 6, 2, 1, 2), {}),
    "starts": ((2, 2, 5, 1, 1, 2), dict(starts=np.array([1, 3]))),
    "scale": ((1, 3, 3, 1, 1, 4), dict(scale=0.3)),
    "dropout": ((2, 5, 5, 2, 2, 3), dict(p=0.3, rng=Rng(3))),
    "dropout-grouped-window": ((1, 7, 7, 4, 2, 2), dict(p=0.3, rng=Rng(4), window=3)),
    "dropout-open-segments": ((2, 5, 5, 2, 1, 2), dict(p=0.3, rng=Rng(5), segments=SEGMENTS, causal=False)),
    "dropout-cross": ((2, 3, 6, 2, 2, 3), dict(p=0.3, rng=Rng(6), causal=False)),
    "one": ((1, 1, 1, 1, 1, 1), {}),
    "none": ((0, 3, 3, 1, 1, 2), {}),
}
for label, ((b, tq, tk, h, hkv, d), options) in VARIANTS.items():
    q, k, v = draw(b, tq, h, d), draw(b, tk, hkv, d, seed=1), draw(b, tk, hkv, d, seed=2)
    case("attention", label, lambda q, k, v, o=options: ops.attention(q, k, v, **o), q, k, v)
    for rows, heads in sorted({(b, h), (1, h), (b, 1), (1, 1)}) if b else ():
        case("attention", f"{label}-bias-{rows}-{heads}", lambda q, k, v, bias, o=options: ops.attention(q, k, v, bias, **o),
             q, k, v, draw(rows, heads, tq, tk, seed=3))
    if tq == tk and "starts" not in options and not isinstance(options.get("segments"), tuple):
        case("attention_packed", label, lambda x, h=h, g=hkv, o=options: ops.attention_packed(x, heads=h, kv_heads=g, **o),
             draw(b, tq, (h + 2 * hkv) * d))
for d, rotary in ((4, 4), (6, 4), (2, 2)):
    for interleaved in (False, True):
        cos, sin = RotaryTable(rotary)(9)
        at = np.array([[0, 5, 9], [3, 0, 1]], np.int32)
        case("rope", f"{d}-{rotary}-{interleaved}",
             lambda x, o=dict(cos=cos, sin=sin, positions=at, interleaved=interleaved): ops.rope(x, **o), draw(2, 3, 2, d))
