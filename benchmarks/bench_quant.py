"""Packed weights: matrix x vector over weights far larger than the caches, as % of reading memory; prompts, as % of the dot instructions.

PyTorch: the float32 weight for q8_0 and q4_0 (it has no such product), the bfloat16 one for bf16.
"""
from functools import partial

import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import Packed, reference
from pyllm.kernels.packed import FORMATS

I = 4096
PROMPTS = [(64, 768, 3072), (512, 768, 768), (512, 768, 3072), (512, 3072, 768)]  # M, I, O


def cases(quick):
    for format, block in FORMATS.items():
        times = max(1, round((100 if quick else 500) * 1e6 * 32 / (1024 * I * block)))
        for m in (1, 8):
            yield Case(f"packed_{format}", f"{m} x {I} x {1024 * times}", partial(streaming, format, times, m), precision=format,
                       bytes=1024.0 * times * I * block / 32)
    for m, i, o in PROMPTS[:1] if quick else PROMPTS:
        for format in FORMATS:
            yield Case(f"packed_{format}", f"{m} x {i} x {o}", partial(prompt, format, m, i, o), precision=format, flops=2.0 * m * i * o)


def streaming(format, times, m):
    """Random rows of weights, repeated, times m vectors."""
    rng = np.random.default_rng(0)
    small = Packed.quantize(rng.standard_normal((1024, I), np.float32), format)
    w = Packed(format, (1024 * times, I), *(np.concatenate([a] * times) for a in (small.words, small.scales, small.mins) if a is not None))
    torch = torch_or_none()
    return sides(w, rng.standard_normal((m, I), np.float32),
                 torch and format == "bf16" and torch.from_numpy(small.dequantize()).bfloat16().repeat(times, 1))


def prompt(format, m, i, o):
    rng = np.random.default_rng(0)
    floats, x = rng.standard_normal((o, i), np.float32), rng.standard_normal((m, i), np.float32)
    torch = torch_or_none()
    tw = torch and torch.from_numpy(floats).to(torch.bfloat16 if format == "bf16" else torch.float32)
    return sides(Packed.quantize(floats, format), x, tw)


def sides(w, x, tw):
    """w: Packed, x:(M, I), tw: PyTorch's weight or a false value -> run, check against the first 64 rows of w, peers."""
    y, peer = K.empty((len(x), len(w))), None
    if tw is not None and tw is not False:
        import torch

        tx = torch.from_numpy(x).to(tw.dtype)
        peer = lambda: torch.nn.functional.linear(tx, tw)

    def check():
        first = Packed(w.format, (64, w.shape[1]), *(a[:2] for a in (w.words, w.scales, w.mins) if a is not None))
        close(K.linear(x, w)[:, :64], reference.linear(x.astype(np.float64), first), 1e-5, f"linear with {w.format}")

    return lambda: K.linear(x, w, out=y), check, {"torch": peer}
