"""Packed weights: matrix x vector over weights far larger than the caches, as % of reading memory; prompts, as % of the dot instructions.

PyTorch: the float32 weight for q8_0 and q4_0 (it has no such product), the bfloat16 one for bf16.
"""
import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import Packed, reference
from pyllm.kernels.packed import FORMATS

I = 4096
PROMPTS = [(64, 768, 3072), (512, 768, 768), (512, 768, 3072), (512, 3072, 768)]  # M, I, O


def repeated(format, megabytes, rng):
    """-> a Packed of so many megabytes: random rows, repeated."""
    small = Packed.quantize(rng.standard_normal((1024, I), np.float32), format)
    times = max(1, round(megabytes * 1e6 / small.nbytes))
    return Packed(format, (1024 * times, I), *(np.concatenate([a] * times) for a in parts(small)))


def parts(w):
    return [a for a in (w.words, w.scales, w.mins) if a is not None]


def checked(w, x):
    """A check of K.linear(x, w) against the reference on the first 64 rows of w."""
    def check():
        close(K.linear(x, w)[:, :64], reference.linear(x.astype(np.float64), first_rows(w, 64)), 1e-5, f"linear with {w.format}")

    return check


def first_rows(w, n):
    """-> the Packed of the first n rows, n a multiple of 32."""
    return Packed(w.format, (n, w.shape[1]), *(a[: n // 32] for a in parts(w)))


def cases(quick, threads):
    torch, rng = torch_or_none(threads), np.random.default_rng(0)
    for format in FORMATS:
        w = repeated(format, 100 if quick else 500, rng)
        for m in (1, 8):
            x, y = rng.standard_normal((m, I), np.float32), K.empty((m, len(w)))
            peer = None
            if torch and format == "bf16":
                tw, tx = torch.from_numpy(w.dequantize()).bfloat16(), torch.from_numpy(x).bfloat16()
                peer = lambda tx=tx, tw=tw: torch.nn.functional.linear(tx, tw)
            yield Case(f"packed_{format}", f"{m} x {I} x {len(w)}", lambda x=x, w=w, y=y: K.linear(x, w, out=y), checked(w, x),
                       bytes=float(w.nbytes), torch=peer, precision=format)
    for m, i, o in PROMPTS[:1] if quick else PROMPTS:
        floats, x = rng.standard_normal((o, i), np.float32), rng.standard_normal((m, i), np.float32)
        for format in FORMATS:
            w, y, peer = Packed.quantize(floats, format), K.empty((m, o)), None
            if torch:
                tw, tx = torch.from_numpy(floats), torch.from_numpy(x)
                if format == "bf16":
                    tw, tx = tw.bfloat16(), tx.bfloat16()
                peer = lambda tx=tx, tw=tw: torch.nn.functional.linear(tx, tw)
            yield Case(f"packed_{format}", f"{m} x {i} x {o}", lambda x=x, w=w, y=y: K.linear(x, w, out=y), checked(w, x),
                       flops=2.0 * m * i * o, torch=peer, precision="bf16" if format == "bf16" else "int8")
