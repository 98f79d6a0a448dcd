"""Norms, activations, the fused head with its loss, embedding, optimizer: the work between the products."""
import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import reference


def cases(quick, threads):
    torch, draw = torch_or_none(threads), np.random.default_rng(0)
    n, c = 1024, 768
    x, dy = (draw.standard_normal((n, c), np.float32) for _ in range(2))
    w, b = draw.standard_normal(c, np.float32), draw.standard_normal(c, np.float32)

    def torch_layer(function, *inputs):
        if not torch:
            return None
        leaves = [torch.from_numpy(i).requires_grad_() for i in inputs]
        grad = torch.from_numpy(dy if inputs[0].shape == dy.shape else inputs[0])
        return lambda: torch.autograd.grad(function(*leaves), leaves, grad)

    def layer_norm():
        y, mean, rstd = K.layer_norm(x, w, b, 1e-5)
        return (y, *K.layer_norm_vjp(dy, x, w, mean, rstd))

    def rms_norm():
        y, rstd = K.rms_norm(x, w, 1e-6)
        return (y, *K.rms_norm_vjp(dy, x, w, rstd))

    def against(run, exact):
        def check():
            for got, want in zip(run(), exact()):
                close(got, want, 2e-5, run.__name__)
        return check

    wide = [v.astype(np.float64) for v in (x, dy, w, b)]

    def exact_layer_norm():
        y, mean, rstd = reference.layer_norm(wide[0], wide[2], wide[3], 1e-5)
        return (y, *reference.layer_norm_vjp(wide[1], wide[0], wide[2], mean, rstd))

    def exact_rms_norm():
        y, rstd = reference.rms_norm(wide[0], wide[2], 1e-6)
        return (y, *reference.rms_norm_vjp(wide[1], wide[0], wide[2], rstd))

    functional = torch.nn.functional if torch else None
    yield Case("layer_norm_fwd_bwd", f"{n} x {c}", layer_norm, against(layer_norm, exact_layer_norm), bytes=4.0 * 5 * n * c,
               torch=torch_layer(lambda *i: functional.layer_norm(i[0], (c,), i[1], i[2]), x, w, b))
    yield Case("rms_norm_fwd_bwd", f"{n} x {c}", rms_norm, against(rms_norm, exact_rms_norm), bytes=4.0 * 5 * n * c,
               torch=torch_layer(lambda *i: functional.rms_norm(i[0], (c,), i[1], 1e-6), x, w))

    z = draw.standard_normal((n, 3072), np.float32)
    for act, peer in (("gelu_tanh", lambda i: functional.gelu(i, approximate="tanh")), ("gelu", lambda i: functional.gelu(i)),
                      ("silu", lambda i: functional.silu(i))):
        def run(act=act):
            return K.activation(z, act), K.activation_vjp(z, z, act)

        def exact(act=act):
            few = z[:8].astype(np.float64)
            return reference.activation(few, act), reference.activation_vjp(few, few, act)

        def check(run=run, exact=exact, act=act):
            for got, want in zip(run(), exact()):
                close(got[:8], want, 2e-6, act)

        yield Case(f"{act}_fwd_bwd", f"{n} x 3072", run, check, bytes=4.0 * 5 * z.size, torch=torch_layer(peer, z))

    for rows, channels, vocabulary in [(768, 128, 65), (1024, 768, 50257)][: 1 if quick else 2]:
        h = draw.standard_normal((rows, channels), np.float32)
        head = draw.standard_normal((vocabulary, channels), np.float32) * np.float32(0.05)
        targets = draw.integers(0, vocabulary, rows).astype(np.int32)

        def run(h=h, head=head, targets=targets):
            return K.linear_cross_entropy(h, head, None, targets, need=(True, True, False))

        def check(run=run, h=h, head=head, targets=targets):
            few = slice(0, 16)
            loss, dh, _, _ = reference.linear_cross_entropy(h[few].astype(np.float64), head.astype(np.float64), None, targets[few],
                                                                   need=(True, False, False))
            got = run()
            close(got[0][few], loss, 1e-5, "loss")
            close(got[1][few], dh, 1e-4, "dh")

        peer = None
        if torch:
            th, tw, tt = torch.from_numpy(h).requires_grad_(), torch.from_numpy(head).requires_grad_(), torch.from_numpy(targets).long()
            peer = lambda th=th, tw=tw, tt=tt: torch.autograd.grad(functional.cross_entropy(th @ tw.T, tt, reduction="sum"), (th, tw))
        yield Case("head_cross_entropy", f"{rows} x {channels} x {vocabulary}", run, check,
                   flops=6.0 * rows * channels * vocabulary, torch=peer)

    size = 4_000_000 if quick else 100_000_000
    p, g, m, v = (np.zeros(size, np.float32) + np.float32(1e-3) for _ in range(4))

    def adamw():
        K.adamw(p, g, m, v, 1e-4, 0.9, 0.95, 1e-8, 0.1, 10, 1.0)

    def check_adamw():
        mine = [x[:1000].copy() for x in (p, g, m, v)]
        exact = [x.astype(np.float64) for x in mine]
        K.adamw(*mine, 1e-4, 0.9, 0.95, 1e-8, 0.1, 10, 1.0)
        reference.adamw(*exact, 1e-4, 0.9, 0.95, 1e-8, 0.1, 10, 1.0)
        close(mine[0], exact[0], 1e-6, "adamw")

    peer = None
    if torch:
        parameter = torch.nn.Parameter(torch.full((size,), 1e-3))
        parameter.grad = torch.full((size,), 1e-3)
        optimizer = torch.optim.AdamW([parameter], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        peer = optimizer.step
    yield Case("adamw", f"{size // 1_000_000} M", adamw, check_adamw, bytes=28.0 * size, torch=peer)
