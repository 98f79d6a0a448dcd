"""Causal attention, forward and forward + backward. FLOP: 2 products of the seen half forward, 5 backward."""
import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import reference

SHAPES = [(12, 4, 4, 64, 32), (4, 12, 12, 256, 64), (1, 12, 12, 1024, 64), (1, 9, 3, 2048, 64), (1, 12, 12, 4096, 64)]  # B, H, Hkv, T, D


def cases(quick, threads):
    torch, draw = torch_or_none(threads), np.random.default_rng(0)
    for b, h, hkv, t, d in SHAPES:
        if quick and t > 1024:
            continue
        q, dout = (draw.standard_normal((b, t, h, d), np.float32) for _ in range(2))
        k, v = (draw.standard_normal((b, t, hkv, d), np.float32) for _ in range(2))

        def check(q=q, k=k, v=v, dout=dout):
            n = min(len(q[0]), 300)
            part = [np.ascontiguousarray(x[:1, :n].astype(np.float64)) for x in (q, k, v, dout)]
            want, lse = reference.attention(*part[:3])
            q4, k4, v4, dout4 = (x.astype(np.float32) for x in part)
            out, lse4 = K.attention(q4, k4, v4)
            close(out, want, 1e-5, "attention")
            for got, exact in zip(K.attention_vjp(dout4, q4, k4, v4, out, lse4)[:3],
                                  reference.attention_vjp(part[3], *part[:3], want, lse)):
                close(got, exact, 1e-4, "attention_vjp")

        def both(q=q, k=k, v=v, dout=dout):
            out, lse = K.attention(q, k, v)
            K.attention_vjp(dout, q, k, v, out, lse)

        forward = backward = None
        if torch:
            tq, tk, tv, tdout = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in (q, k, v, dout))
            sdpa = lambda *x, gqa=h != hkv: torch.nn.functional.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=gqa)

            def forward(tq=tq, tk=tk, tv=tv, sdpa=sdpa):
                with torch.no_grad():
                    sdpa(tq, tk, tv)

            def backward(tq=tq, tk=tk, tv=tv, tdout=tdout, sdpa=sdpa):
                leaves = [x.detach().requires_grad_() for x in (tq, tk, tv)]
                sdpa(*leaves).backward(tdout)

        work, shape = 2.0 * b * h * t * (t + 1) / 2 * d, f"B{b} H{h}/{hkv} T{t} D{d}"
        yield Case("attention", shape, lambda q=q, k=k, v=v: K.attention(q, k, v), check, flops=2 * work, torch=forward)
        yield Case("attention_fwd_bwd", shape, both, check, flops=7 * work, torch=backward)
