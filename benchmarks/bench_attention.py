"""Causal attention, forward and forward + backward. FLOP: 2 products of the seen half forward, 5 backward."""
from functools import partial

import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import reference

SHAPES = [(12, 4, 4, 64, 32), (4, 12, 12, 256, 64), (1, 12, 12, 1024, 64), (1, 9, 3, 2048, 64), (1, 12, 12, 4096, 64)]  # B, H, Hkv, T, D


def cases(quick):
    for precision in ("f32", "bf16"):
        for b, h, hkv, t, d in SHAPES:
            if quick and t > 1024:
                continue
            work, shape = 2.0 * b * h * t * (t + 1) / 2 * d, f"B{b} H{h}/{hkv} T{t} D{d}"
            for name, products in (("attention", 2), ("attention_fwd_bwd", 7)):
                yield Case(name, shape, partial(build, b, h, hkv, t, d, precision, products > 2), flops=products * work,
                           precision=precision)


def build(b, h, hkv, t, d, precision, backward):
    draw, half = np.random.default_rng(0), precision == "bf16"
    q, dout = (draw.standard_normal((b, t, h, d), np.float32) for _ in range(2))
    k, v = (draw.standard_normal((b, t, hkv, d), np.float32) for _ in range(2))
    options = dict(reduced=half)

    def forward():
        return K.attention(q, k, v, **options)

    def both():
        out, lse = forward()
        return K.attention_vjp(dout, q, k, v, out, lse, **options)

    def check():
        n = min(t, 300)
        part = [np.ascontiguousarray(x[:1, :n].astype(np.float64)) for x in (q, k, v, dout)]
        want, lse = reference.attention(*part[:3])
        q4, k4, v4, dout4 = (x.astype(np.float32) for x in part)
        out, lse4 = K.attention(q4, k4, v4, **options)
        close(out, want, 2e-2 if half else 1e-5, "attention")
        for got, exact in zip(K.attention_vjp(dout4, q4, k4, v4, out, lse4, **options)[:3],
                              reference.attention_vjp(part[3], *part[:3], want, lse)):
            close(got, exact, 4e-2 if half else 1e-4, "attention_vjp")

    return both if backward else forward, check, {"torch": peer(q, k, v, dout, half, backward)}


def peer(q, k, v, dout, half, backward):
    """-> scaled_dot_product_attention over (B, H, T, D), in bfloat16 tensors where `half`; None without PyTorch."""
    torch = torch_or_none()
    if not torch:
        return None
    dtype = torch.bfloat16 if half else torch.float32
    tq, tk, tv, tdout = (torch.from_numpy(x).transpose(1, 2).contiguous().to(dtype) for x in (q, k, v, dout))
    sdpa = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=q.shape[2] != k.shape[2])

    @torch.no_grad()
    def forward():
        sdpa(tq, tk, tv)

    def both():
        leaves = [x.detach().requires_grad_() for x in (tq, tk, tv)]
        sdpa(*leaves).backward(tdout)

    return both if backward else forward
