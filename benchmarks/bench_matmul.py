"""Matrix products at transformer shapes, forward and both backward ones."""
import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K

SHAPES = [  # M, K, N, transposed: "nt" y = x w^T, "nn" dx = dy w, "tn" dw = dy^T x
    (1024, 768, 768, "nt"), (1024, 768, 3072, "nt"), (1024, 3072, 768, "nt"), (1024, 768, 768, "nn"), (768, 1024, 768, "tn"),
    (3072, 1024, 768, "tn"), (128, 768, 768, "nt"), (768, 128, 384, "nt"), (768, 128, 512, "nt"), (128, 768, 512, "tn"),
    (3072, 384, 1536, "nt"), (64, 64, 64, "nn"), (1, 768, 3072, "nt"), (1024, 768, 50257, "nt"), (4096, 4096, 4096, "nn"),
]


def cases(quick, threads):
    torch, draw = torch_or_none(threads), np.random.default_rng(0)
    for m, k, n, kind in SHAPES:
        if quick and m * k * n > 2e9:
            continue
        a = draw.standard_normal((k, m) if kind[0] == "t" else (m, k), np.float32)
        b = draw.standard_normal((n, k) if kind[1] == "t" else (k, n), np.float32)
        c, options = K.empty((m, n)), dict(ta=kind[0] == "t", tb=kind[1] == "t")
        x, y = a.T if options["ta"] else a, b.T if options["tb"] else b

        def check(a=a, b=b, c=c, x=x, y=y, options=options):
            K.matmul(a, b, out=c, **options)
            rows = slice(0, 4)
            close(c[rows], x[rows].astype(np.float64) @ y.astype(np.float64), 1e-5, "matmul")

        peer = None
        if torch:
            tx, ty, tc = torch.from_numpy(a), torch.from_numpy(b), torch.empty(m, n)
            tx, ty = tx.T if options["ta"] else tx, ty.T if options["tb"] else ty
            peer = lambda tx=tx, ty=ty, tc=tc: torch.matmul(tx, ty, out=tc)
        out = np.empty((m, n), np.float32)
        yield Case(f"matmul_{kind}", f"{m} x {k} x {n}", lambda a=a, b=b, c=c, options=options: K.matmul(a, b, out=c, **options), check,
                   flops=2.0 * m * n * k, numpy=lambda x=x, y=y, out=out: np.matmul(x, y, out=out), torch=peer)
