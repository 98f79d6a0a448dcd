"""One line a kernel: sample inputs for n rows of c. The generic tests of test_table.py run on every line."""
from dataclasses import dataclass, field
from typing import Callable

import numpy as np

from pyllm.kernels import Packed, reference
from pyllm.kernels.packed import BLOCK, FORMATS


@dataclass(frozen=True)
class Case:
    """`make(rng, n, c) -> args`: float arrays are float32. `rows`: those arguments and outputs with one row (or value) for each of n."""

    kernel: str
    make: Callable
    rows: tuple = (0,)
    out_rows: tuple = (0,)
    kwargs: dict = field(default_factory=dict)
    rtol: float = 5e-5  # of the largest element of an output: sums of c or n terms in float32
    fixed: tuple = ()  # arguments that other dtypes or layouts must not touch
    least: int = 0  # smallest c

    def __str__(self):
        return "-".join([self.kernel, *(str(v) for v in self.kwargs.values())])

    def outputs(self, source, args):
        """The kernel of `source` on copies of args (the last may be a dict of options) -> arrays; what it changes in place is output."""
        if self.kernel == "adamw":
            args = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
            source.adamw(*args, **self.kwargs)
            return args[0], args[2], args[3]
        *args, options = args if args and isinstance(args[-1], dict) else (*args, {})
        out = getattr(source, self.kernel)(*args, **options, **self.kwargs)
        return tuple(np.asarray(o) for o in (out if isinstance(out, tuple) else (out,)) if o is not None)


def x(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def wide(args):
    """float32 arrays as float64, those among the options too."""
    def convert(a):
        return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a

    return [{k: convert(v) for k, v in a.items()} if isinstance(a, dict) else convert(a) for a in args]


def ids(rng, n, high, low=0):
    return rng.integers(low, max(high, 1), n).astype(np.int32)


def norm_inputs(rng, n, c, with_mean):
    """dy, x, w, (mean,) rstd as the forward gives them."""
    dy, a, w = x(rng, n, c), x(rng, n, c) + 1, x(rng, c)
    wide = a.astype(np.float64)
    mean = wide.mean(-1)
    square = wide.var(-1) if with_mean else (wide**2).mean(-1)
    rstd = (1 / np.sqrt(square + 0.1)).astype(np.float32)
    return (dy, a, w, mean.astype(np.float32), rstd) if with_mean else (dy, a, w, rstd)


def probabilities(rng, n, c):
    return reference.softmax(x(rng, n, c)) if c else x(rng, n, c)


ACTIVATIONS = [{"act": act} for act in reference.ACTIVATIONS]
CASES = [
    *(Case("activation", lambda r, n, c: (3 * x(r, n, c),), kwargs=k, rtol=1e-6) for k in ACTIVATIONS),
    *(Case("activation_vjp", lambda r, n, c: (x(r, n, c), 3 * x(r, n, c)), (0, 1), kwargs=k, rtol=2e-6) for k in ACTIVATIONS),
    *(Case("glu", lambda r, n, c: (3 * x(r, n, c), x(r, n, c)), (0, 1), kwargs=k, rtol=1e-6) for k in ACTIVATIONS),
    *(Case("glu_vjp", lambda r, n, c: (x(r, n, c), 3 * x(r, n, c), x(r, n, c)), (0, 1, 2), (0, 1), k, 2e-6) for k in ACTIVATIONS),
    Case("add", lambda r, n, c: (x(r, n, c), x(r, n, c)), (0, 1), rtol=1e-7),
    Case("dropout", lambda r, n, c: (x(r, n, c), 0.3, 2**63 + 12345), rtol=2e-7),
    Case("column_sum", lambda r, n, c: (x(r, n, c),), out_rows=()),
    Case("layer_norm", lambda r, n, c: (x(r, n, c) + 1, x(r, c), x(r, c), 1e-5), out_rows=(0, 1, 2), least=1),
    Case("layer_norm", lambda r, n, c: (x(r, n, c) + 1, x(r, c), None, 1e-5), out_rows=(0, 1, 2), least=1),
    Case("layer_norm_vjp", lambda r, n, c: norm_inputs(r, n, c, True), (0, 1, 3, 4), least=1),
    Case("layer_norm_vjp", lambda r, n, c: norm_inputs(r, n, c, True), (0, 1, 3, 4), kwargs={"need_w": False}, least=1),
    Case("rms_norm", lambda r, n, c: (x(r, n, c) + 1, x(r, c), 1e-5), out_rows=(0, 1), least=1),
    Case("rms_norm_vjp", lambda r, n, c: norm_inputs(r, n, c, False), (0, 1, 3), least=1),
    Case("rms_norm_vjp", lambda r, n, c: norm_inputs(r, n, c, False), (0, 1, 3), kwargs={"need_w": False}, least=1),
    Case("softmax", lambda r, n, c: (5 * x(r, n, c),), rtol=2e-6, least=1),
    Case("softmax_vjp", lambda r, n, c: (x(r, n, c), probabilities(r, n, c)), (0, 1), least=1),
    Case("log_softmax", lambda r, n, c: (5 * x(r, n, c),), rtol=1e-6, least=1),
    Case("log_softmax_vjp", lambda r, n, c: (x(r, n, c), np.log(probabilities(r, n, c))), (0, 1), least=1),
    *(Case("cross_entropy", lambda r, n, c: (5 * x(r, n, c), ids(r, n, c, -1)), (0, 1), (0, 1), k, fixed=(1,), least=1)
      for k in ({}, {"label_smoothing": 0.1, "z_loss": 1e-3})),
    Case("linear_cross_entropy", lambda r, n, c: (x(r, n, 24), x(r, c, 24), None, ids(r, n, c, -1)), (0, 3), (0, 1),
         {"need": (True, True, False)}, rtol=1e-4, fixed=(3,), least=1),
    Case("linear_cross_entropy", lambda r, n, c: (x(r, n, 24), x(r, c, 24), x(r, c), ids(r, n, c, -1)), (0, 3), (0, 1),
         {"label_smoothing": 0.1, "z_loss": 1e-3, "need": (True, True, True)}, rtol=1e-4, fixed=(3,), least=1),
    Case("embedding", lambda r, n, c: (x(r, 65, c), ids(r, n, 65)), (1,), fixed=(1,), rtol=0),
    Case("embedding_vjp", lambda r, n, c: (x(r, n, c), ids(r, n, 65), 65), (0, 1), (), fixed=(1,), least=1),
    Case("sum_squares", lambda r, n, c: (x(r, n, c),), (0,), (), rtol=1e-12),
    Case("adamw", lambda r, n, c: (x(r, n, c), x(r, n, c), x(r, n, c), x(r, n, c) ** 2, 1e-3, 0.9, 0.95, 1e-8, 0.1, 3, 0.5), (0, 1, 2, 3),
         (0, 1, 2), rtol=1e-6, fixed=(0, 2, 3)),
    Case("sample", lambda r, n, c: (3 * x(r, n, c), r.random(n)), (0, 1), rtol=0, fixed=(1,), least=1),
    Case("sample", lambda r, n, c: (3 * x(r, n, c), r.random(n), 0.7, 20, 0.9, 0.02), (0, 1), rtol=0, fixed=(1,), least=1),
]


# ---- kernels whose shapes are no rows of c: layouts and errors have tests of their own; n entries of a batch, c of whatever grows ----


def product(ta=False, tb=False, **options):
    """a:(n, c) b:(c, 67), n rows; options by name, their value the function of (rng, n) that makes them."""
    def make(rng, n, c):
        a, b = x(rng, *((c, n) if ta else (n, c))), x(rng, *((67, c) if tb else (c, 67)))
        return a, b, {"ta": ta, "tb": tb, **{name: f(rng, n) for name, f in options.items()}}

    return make


def attention(*, vjp=False, segments=False, starts=False, bias=False, **options):
    """q:(n, 45, 4, 24) k, v:(n, c, 2, 24); the vjp's first argument is dout, its last two are the forward's outputs."""
    def make(rng, n, c):
        q, k, v, more = x(rng, n, 45, 4, 24), x(rng, n, c, 2, 24), x(rng, n, c, 2, 24), dict(options)
        if segments:
            more["segments"] = tuple(np.sort(rng.integers(0, 3, (n, t)), axis=1).astype(np.int32) for t in (45, c))
        if starts:
            more["starts"] = rng.integers(0, max(c, 1), n)
        if bias:
            more["bias"] = x(rng, 1, 4, 45, c)
        if not vjp:
            return q, k, v, more
        out, lse = reference.attention(*(a.astype(np.float64) for a in (q, k, v)), **more)
        return x(rng, *out.shape), q, k, v, out.astype(np.float32), lse.astype(np.float32), {**more, "need_bias": bias}

    return make


def packed(format, vjp=False, **options):
    """x:(n, c), or dy:(n, 67) for the vjp; w:(67, c) Packed; c rounded up to whole blocks."""
    def make(rng, n, c):
        c = -(-c // BLOCK) * BLOCK
        w = Packed.quantize(x(rng, 67, c), format)
        return x(rng, n, 67 if vjp else c), w, {name: f(rng, n) for name, f in options.items()}

    return make


MASKS = ({}, {"causal": False, "segments": True}, {"window": 50, "starts": True}, {"bias": True, "causal": False})
DROPOUT = {"dropout": 0.2, "key": 2**63 + 12345}
SHAPED = [
    *(Case("matmul", product(ta, tb), () if ta else (0,), rtol=2e-6) for ta in (False, True) for tb in (False, True)),
    Case("matmul", product(tb=True, bias=lambda r, n: x(r, 67), act=lambda r, n: "gelu"), (0,), (0, 1), rtol=2e-6),
    *(Case("matmul", product(ta, tb, reduced=lambda r, n: True), () if ta else (0,), rtol=2e-6)
      for ta in (False, True) for tb in (False, True)),
    *(Case("linear", packed(f), (0,), rtol=2e-6) for f in FORMATS),
    Case("linear", lambda r, n, c: (x(r, n, c), x(r, 67, c)), (0,), rtol=2e-6),
    Case("linear", packed("q8_0", bias=lambda r, n: x(r, 67), act=lambda r, n: "silu"), (0,), (0, 1), rtol=2e-6),
    *(Case("linear_vjp", packed(f, vjp=True), (0,), rtol=2e-6) for f in FORMATS),
    *(Case("attention", attention(**mask), (0, 1, 2), (0, 1), rtol=2e-6) for mask in MASKS),
    *(Case("attention_vjp", attention(vjp=True, **mask), (0, 1, 2, 3, 4, 5), (0, 1, 2), rtol=5e-6) for mask in MASKS),
    Case("attention", attention(**DROPOUT), (), (0, 1), rtol=2e-6),  # a row's mask is of its place in the batch
    Case("attention_vjp", attention(vjp=True, bias=True, **DROPOUT), (), (0, 1, 2), rtol=5e-6),
    *(Case("rope", lambda r, n, c: (x(r, n, 30, 3, 26), x(r, 99, 12), x(r, 99, 12), r.integers(0, 99, (n, 30)).astype(np.int32)), (0, 3),
           kwargs={"interleaved": i}, rtol=1e-6) for i in (False, True)),
]
# Rounds to bfloat16 what it makes itself, not only what it is given: errors have tests of their own, bits do not depend on it.
ROUNDED = [
    *(Case("attention", attention(reduced=True, **mask), (0, 1, 2), (0, 1)) for mask in MASKS),
    *(Case("attention_vjp", attention(vjp=True, reduced=True, **mask), (0, 1, 2, 3, 4, 5), (0, 1, 2)) for mask in MASKS),
    Case("attention", attention(reduced=True, **DROPOUT), (), (0, 1)),
    Case("attention_vjp", attention(vjp=True, reduced=True, **DROPOUT), (), (0, 1, 2)),
    Case("linear_cross_entropy", lambda r, n, c: (x(r, n, 24), x(r, c, 24), x(r, c), ids(r, n, c, -1)), (0, 3), (0, 1),
         {"need": (True, True, True), "reduced": True}),
]
