"""Packed weights: few rows over 500 MB of weights, as % of reading memory; prompts, as % of the dots of their precision.

PyTorch: bfloat16 for bf16; the float32 weight, which it then has to read, for the others.
"""
from functools import partial

import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import Packed, reference
from pyllm.kernels.packed import FORMATS

MEGABYTES, I = 500, 4096
PROMPTS = [(64, 768, 3072), (512, 768, 768), (512, 768, 3072), (512, 3072, 768)]  # M, I, O


def cases(quick):
    for format in FORMATS:
        block = {"bf16": 64, "q8_0": 34, "q4_0": 18, "q4_1": 20}[format]
        o = int((MEGABYTES / (5 if quick else 1)) * 1e6 / (I // 32 * block)) // 32 * 32
        for m in (1, 8):
            yield Case("packed_linear", f"{m} x {I} x {o} {format}", partial(build, format, m, I, o), bytes=float(o * I // 32 * block))
    for m, i, o in PROMPTS[:1] if quick else PROMPTS:
        for format in FORMATS:
            yield Case("packed_linear", f"{m} x {i} x {o} {format}", partial(build, format, m, i, o), flops=2.0 * m * i * o,
                       precision="bf16" if format == "bf16" else "int8")


def build(format, m, i, o):
    rng = np.random.default_rng(0)
    once = Packed.quantize(rng.standard_normal((min(o, 1024), i), np.float32), format)  # repeated: quantising 500 MB takes longer
    parts = [None if a is None else np.resize(a, (o // 32, *a.shape[1:])) for a in (once.words, once.scales, once.mins)]
    w, x, y = Packed(format, (o, i), *parts), rng.standard_normal((m, i), np.float32), K.empty((m, o))

    def run():
        return K.linear(x, w, out=y)

    def check():
        run()
        for at in (0, o // 32 - 1):
            panel = Packed(format, (32, i), *(a if a is None else a[at : at + 1] for a in parts))
            close(y[:, 32 * at : 32 * at + 32], reference.linear(x.astype(np.float64), panel), 1e-5, f"linear with {format}")

    torch, peers = torch_or_none(), {}
    if torch and o * i < 3e8:
        dtype = torch.bfloat16 if format == "bf16" else torch.float32
        tw, tx = torch.from_numpy(w.dequantize()).to(dtype), torch.from_numpy(x).to(dtype)
        peers["torch"] = lambda: torch.nn.functional.linear(tx, tw)
    return run, check, peers
