"""Matrix products at transformer shapes, forward and both backward ones, and with what is fused into them."""
from functools import partial

import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import reference

BLOCK = [(1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768)]  # M, K, N
SHAPES = [  # transposed: "nt" y = x w^T, "nn" dx = dy w, "tn" dw = dy^T x
    *((m, k, n, "nt") for m, k, n in BLOCK), *((m, n, k, "nn") for m, k, n in BLOCK), *((n, m, k, "tn") for m, k, n in BLOCK),
    (128, 768, 768, "nt"), (768, 128, 384, "nt"), (768, 128, 512, "nt"), (128, 768, 512, "tn"), (3072, 384, 1536, "nt"),
    (64, 64, 64, "nn"), (1, 768, 3072, "nt"), (8, 768, 3072, "nt"), (1024, 768, 50257, "nt"), (4096, 4096, 4096, "nn"),
]
FUSED = [(1024, 768, 3072, "bias gelu"), (1024, 3072, 768, "bias residual")]


def cases(quick):
    for precision in ("f32", "bf16"):
        for m, k, n, kind in SHAPES:
            if not quick or m * k * n <= 2e9:
                yield Case(f"matmul_{kind}", f"{m} x {k} x {n}", partial(product, m, k, n, kind, precision), flops=2.0 * m * n * k,
                           precision=precision)
        for m, k, n, kind in FUSED[: 1 if quick else 2]:
            yield Case("linear_fused", f"{m} x {k} x {n} {kind}", partial(fused, m, k, n, kind, precision), flops=2.0 * m * n * k,
                       precision=precision)


def exact(a, b, precision):
    """-> op(a) @ op(b) in float64, of the operands as the precision takes them."""
    return np.matmul(*(reference.bf16(x).astype(np.float64) if precision == "bf16" else x.astype(np.float64) for x in (a, b)))


def product(m, k, n, kind, precision):
    draw = np.random.default_rng(0)
    ta, tb, half = kind[0] == "t", kind[1] == "t", precision == "bf16"
    a = draw.standard_normal((k, m) if ta else (m, k), np.float32)
    b = draw.standard_normal((n, k) if tb else (k, n), np.float32)
    c, x, y = K.empty((m, n)), a.T if ta else a, b.T if tb else b

    def run():
        K.matmul(a, b, ta=ta, tb=tb, out=c, reduced=half)

    def check():
        run()
        close(c[:4], exact(x[:4], y, precision), 1e-5, "matmul")

    torch, peers = torch_or_none(), {}
    if not half:
        out = np.empty((m, n), np.float32)
        peers["numpy"] = lambda: np.matmul(x, y, out=out)
    if torch:
        dtype = torch.bfloat16 if half else torch.float32
        tx, ty, tc = torch.from_numpy(a).to(dtype), torch.from_numpy(b).to(dtype), torch.empty(m, n, dtype=dtype)
        tx, ty = tx.T if ta else tx, ty.T if tb else ty
        peers["torch"] = lambda: torch.matmul(tx, ty, out=tc)
    return run, check, peers


def fused(m, k, n, kind, precision):
    draw, half, gelu = np.random.default_rng(0), precision == "bf16", "gelu" in kind
    x, w, b, r = (draw.standard_normal(shape, np.float32) for shape in ((m, k), (n, k), n, (m, n)))
    options = dict(act="gelu_tanh") if gelu else dict(residual=r)

    def run():
        return K.matmul(x, w, tb=True, bias=b, reduced=half, **options)

    def check():
        z = exact(x[:4], w.T, precision) + b
        close((run()[0] if gelu else run())[:4], reference.activation(z, "gelu_tanh") if gelu else z + r[:4], 1e-5,
              "linear")

    torch, peers = torch_or_none(), {}
    if torch:
        dtype = torch.bfloat16 if half else torch.float32
        tx, tw, tb, tr = (torch.from_numpy(i).to(dtype) for i in (x, w, b, r))
        linear, gelu_of = torch.nn.functional.linear, torch.nn.functional.gelu
        peers["torch"] = (lambda: gelu_of(linear(tx, tw, tb), approximate="tanh")) if gelu else lambda: linear(tx, tw, tb) + tr
    return run, check, peers
