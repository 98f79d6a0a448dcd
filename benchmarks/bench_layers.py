"""Norms, activations, gates, dropout, positions, embedding, the fused head with its loss, optimizer: the work between the products."""
from functools import partial

import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import kernels as K
from pyllm.kernels import reference


def cases(quick):
    n, c, wide = 1024, 768, 3072
    for norm in ("layer_norm", "rms_norm"):
        yield Case(f"{norm}_fwd_bwd", f"{n} x {c}", partial(norms, norm, n, c), bytes=4.0 * 5 * n * c)
    for act in ("gelu_tanh", "gelu", "silu"):
        yield Case(f"{act}_fwd_bwd", f"{n} x {wide}", partial(activations, act, n, wide), bytes=4.0 * 5 * n * wide)
    yield Case("swiglu_fwd_bwd", f"{n} x {wide}", partial(gates, n, wide), bytes=4.0 * 8 * n * wide)
    yield Case("dropout_fwd_bwd", f"{n} x {c}", partial(dropouts, n, c), bytes=4.0 * 4 * n * c)
    yield Case("rope_fwd_bwd", "B1 T2048 H9 D64", partial(rotary, 2048, 9, 64), bytes=4.0 * 4 * 2048 * 9 * 64)
    yield Case("softmax_fwd_bwd", "1024 x 1024", partial(softmaxes, 1024, 1024), bytes=4.0 * 5 * 1024 * 1024)
    v = 5000 if quick else 50257
    yield Case("embedding_fwd_bwd", f"{n} of {v} x {c}", partial(embeddings, n, v, c), bytes=4.0 * (3 * n * c + v * c))
    for precision in ("f32", "bf16"):
        for rows, channels, vocabulary in [(768, 128, 65), (1024, 768, 50257)][: 1 if quick else 2]:
            yield Case("head_cross_entropy", f"{rows} x {channels} x {vocabulary}", partial(head, rows, channels, vocabulary, precision),
                       flops=6.0 * rows * channels * vocabulary, precision=precision)
    size = 4_000_000 if quick else 113_000_000
    yield Case("adamw", f"{size // 1_000_000} M", partial(optimizer, size, False), bytes=28.0 * size)
    yield Case("clip_adamw", f"{size // 1_000_000} M", partial(optimizer, size, True), bytes=32.0 * size)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def gradients(function, dy, *inputs):
    """-> PyTorch's forward and backward of function over inputs, or None where it is not installed."""
    torch = torch_or_none()
    if not torch:
        return None
    leaves, grad = [torch.from_numpy(i).requires_grad_() for i in inputs], torch.from_numpy(dy)
    return lambda: torch.autograd.grad(function(torch.nn.functional, *leaves), leaves, grad)


def sides(run, exact, peer, tolerance=2e-5, rows=slice(None)):
    """-> a case's run, check and peers; exact() -> what the rows of run() must be."""
    def check():
        for got, want in zip(run(), exact(), strict=True):
            close(got[rows] if got.shape != want.shape else got, want, tolerance, run.__qualname__)

    return run, check, {"torch": peer}


def norms(norm, n, c):
    x, dy, w, b = normal(n, c), normal(n, c)[::-1].copy(), normal(c), normal(c)
    x8, dy8, w8, b8 = (a.astype(np.float64) for a in (x, dy, w, b))

    def layer_norm(K, x, dy, w, b):
        y, mean, rstd = K.layer_norm(x, w, b, 1e-5)
        return (y, *K.layer_norm_vjp(dy, x, w, mean, rstd))

    def rms_norm(K, x, dy, w, b):
        y, rstd = K.rms_norm(x, w, 1e-6)
        return (y, *K.rms_norm_vjp(dy, x, w, rstd))

    f = {"layer_norm": layer_norm, "rms_norm": rms_norm}[norm]
    peer = gradients(lambda F, x, w, b: F.layer_norm(x, (c,), w, b), dy, x, w, b) if norm == "layer_norm" else (
        gradients(lambda F, x, w: F.rms_norm(x, (c,), w, 1e-6), dy, x, w))
    return sides(lambda: f(K, x, dy, w, b), lambda: f(reference, x8, dy8, w8, b8), peer)


def activations(act, n, c):
    x, few = normal(n, c), normal(n, c)[:8].astype(np.float64)
    peer = gradients(lambda F, x: F.silu(x) if act == "silu" else F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none"), x, x)
    return sides(lambda: (K.activation(x, act), K.activation_vjp(x, x, act)),
                 lambda: (reference.activation(few, act), reference.activation_vjp(few, few, act)), peer, 2e-6, slice(8))


def gates(n, c):
    gate, up = normal(n, c), normal(n, c)[::-1].copy()
    few = [a[:8].astype(np.float64) for a in (gate, up)]
    return sides(lambda: (K.glu(gate, up, "silu"), *K.glu_vjp(up, gate, up, "silu")),
                 lambda: (reference.glu(*few, "silu"), *reference.glu_vjp(few[1], *few, "silu")),
                 gradients(lambda F, gate, up: F.silu(gate) * up, up, gate, up), 2e-6, slice(8))


def dropouts(n, c):
    x, key = normal(n, c), 7
    mask = reference.dropout(np.ones((n, c)), 0.1, key)
    return sides(lambda: (K.dropout(x, 0.1, key), K.dropout(x, 0.1, key)), lambda: (x * mask, x * mask),
                 gradients(lambda F, x: F.dropout(x, 0.1), x, x), 1e-6)


def rotary(t, h, d):
    from pyllm.nn import RotaryTable

    x, at = normal(1, t, h, d), np.arange(t, dtype=np.int32)[None]
    cos, sin = RotaryTable(d)(t - 1)
    torch = torch_or_none()
    if torch:
        c, s = (torch.from_numpy(np.concatenate([a[:t], a[:t]], 1))[None, :, None] for a in (cos, sin))
    peer = gradients(lambda F, x: x * c + torch.cat((-x[..., d // 2 :], x[..., : d // 2]), -1) * s, x, x)
    return sides(lambda: (K.rope(x, cos, sin, at), K.rope(x, cos, sin, at, inverse=True)),
                 lambda: tuple(reference.rope(x.astype(np.float64), cos, sin, at, inverse=back) for back in (False, True)), peer, 1e-6)


def softmaxes(n, v):
    x, dy = normal(n, v), normal(n, v)[::-1].copy()

    def both(K, x, dy):
        y = K.softmax(x)
        return y, K.softmax_vjp(dy, y)

    return sides(lambda: both(K, x, dy), lambda: both(reference, x.astype(np.float64), dy.astype(np.float64)),
                 gradients(lambda F, x: F.softmax(x, -1), dy, x))


def embeddings(n, v, c):
    w, dy = normal(v, c), normal(n, c)
    ids = np.random.default_rng(0).integers(0, v, n).astype(np.int32)
    torch = torch_or_none()
    long = torch and torch.from_numpy(ids).long()
    return sides(lambda: (K.embedding(w, ids), K.embedding_vjp(dy, ids, v)),
                 lambda: (w[ids], reference.embedding_vjp(dy.astype(np.float64), ids, v)),
                 gradients(lambda F, w: F.embedding(long, w), dy, w), 1e-6)


def head_inputs(rows, channels, vocabulary):
    """-> h, w, targets; without a copy of w on the way, since memory is measured over them."""
    draw = np.random.default_rng(0)
    h, w = (draw.standard_normal((n, channels), np.float32) for n in (rows, vocabulary))
    w *= np.float32(0.05)
    return h, w, draw.integers(0, vocabulary, rows).astype(np.int32)


def head(rows, channels, vocabulary, precision):
    """The (rows, vocabulary) logits, their loss and the gradients of h and w. PyTorch in bf16: bfloat16 h and w, the loss in float32."""
    h, w, targets = head_inputs(rows, channels, vocabulary)
    half, few = precision == "bf16", slice(0, 16)

    def run():
        return K.linear_cross_entropy(h, w, None, targets, need=(True, True, False), reduced=half)

    def check():
        loss, dh, *_ = reference.linear_cross_entropy(h[few].astype(np.float64), w.astype(np.float64), None, targets[few],
                                                      need=(True, False, False))
        got = run()
        close(got[0][few], loss, 5e-3 if half else 1e-5, "loss")
        close(got[1][few], dh, 2e-2 if half else 1e-4, "dh")

    return run, check, {"torch": head_peer(h, w, targets, half)}


def head_peer(h, w, targets, half):
    torch = torch_or_none()
    if not torch:
        return None
    dtype = torch.bfloat16 if half else torch.float32
    th, tw, tt = (torch.from_numpy(h).to(dtype).requires_grad_(), torch.from_numpy(w).to(dtype).requires_grad_(),
                  torch.from_numpy(targets).long())
    return lambda: torch.autograd.grad(torch.nn.functional.cross_entropy((th @ tw.T).float(), tt, reduction="sum"), (th, tw))


def optimizer(size, clip):
    """AdamW over one array of `size`, after the norm of its gradient where `clip`. PyTorch: fused, over the same p and g."""
    p, g = K.empty((size,)), K.empty((size,))
    m, v = K.empty((size,)), K.empty((size,))
    for a in (p, g, m, v):
        a.fill(1e-3)
    step = (1e-4, 0.9, 0.95, 1e-8, 0.1, 10)

    def run():
        norm = K.sum_squares(g) ** 0.5 if clip else 0.0
        K.adamw(p, g, m, v, *step, min(1.0, 1.0 / norm) if norm else 1.0)

    def check():
        mine = [x[:1000].copy() for x in (p, g, m, v)]
        exact = [x.astype(np.float64) for x in mine]
        K.adamw(*mine, *step, 1.0)
        reference.adamw(*exact, *step, 1.0)
        close(mine[0], exact[0], 1e-6, "adamw")
        close(K.sum_squares(g[:1000]), float(g[0]) ** 2 * 1000, 1e-6, "the norm")

    torch, peer = torch_or_none(), None
    if torch:
        parameter = torch.nn.Parameter(torch.from_numpy(p))
        parameter.grad = torch.from_numpy(g)
        fused = torch.optim.AdamW([parameter], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

        def peer():
            if clip:
                torch.nn.utils.clip_grad_norm_([parameter], 1e9)  # computes the norm and multiplies, as with a norm that is too large
            fused.step()

    return run, check, {"torch": peer}
