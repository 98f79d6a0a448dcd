"""Every operation beside PyTorch in float64, value and gradients, in float32 on every kernel table.

pytest -m parity tests/parity
"""
import numpy as np
import pytest

from pyllm import kernels
from pyllm.autograd import Tensor, ops

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


@pytest.fixture(params=kernels.available())
def compare(request):
    """compare(ours, peer, *arrays): both are functions of one tensor for each array; value and gradients must agree."""
    import torch

    def check(ours, peer, *arrays, tolerance=3e-6):
        arrays = [a.astype(np.float32) for a in arrays]
        mine, theirs = [Tensor(a, requires_grad=True) for a in arrays], [torch.from_numpy(a).double().requires_grad_() for a in arrays]
        y, expected = ours(*mine), peer(*theirs)
        g = np.random.default_rng(3).standard_normal(y.shape)
        y.backward(g)
        expected.backward(torch.from_numpy(g).reshape(expected.shape))
        for got, want in [(y.data, expected.detach()), *[(m.grad, t.grad) for m, t in zip(mine, theirs)]]:
            want = want.numpy()
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1, np.abs(want).max(initial=0)))

    with kernels.use(request.param):
        yield check


def draw(*shape, seed=0, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 33, 17), (7, 128, 65), (64, 1, 129)])
@pytest.mark.parametrize("act", [None, "gelu", "gelu_tanh", "silu", "relu"])
def test_linear(compare, shape, act):
    import torch.nn.functional as F

    acts = {None: lambda z: z, "gelu": F.gelu, "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "silu": F.silu, "relu": F.relu}
    m, k, n = shape
    compare(lambda x, w, b, r: ops.linear(x, w, b, r, activation=act), lambda x, w, b, r: acts[act](F.linear(x, w, b)) + r,
            draw(m, k), draw(n, k, seed=1, scale=k**-0.5), draw(n, seed=2), draw(m, n, seed=3))


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "silu", "relu"])
def test_activations_over_their_whole_range(compare, kind):
    import torch.nn.functional as F

    peer = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "relu": F.relu}[kind]
    x = np.concatenate([np.linspace(-12, 12, 4003), [-200.0, -30.0, 30.0, 200.0]])
    compare(lambda x: ops.activation(x, kind=kind), peer, x)
    compare(lambda g, u: ops.glu(g, u, kind=kind), lambda g, u: peer(g) * u, x, draw(len(x)))


@pytest.mark.parametrize("shape", [(4, 8), (1, 1), (3, 5, 33), (2, 768), (65, 17)])
def test_norms(compare, shape):
    import torch.nn.functional as F

    x, w, b = draw(*shape) * 3 + 1, draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    compare(lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-2),
            lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-2), x, w, b, tolerance=1e-5)
    compare(lambda x, w: ops.layer_norm(x, w, eps=1e-2), lambda x, w: F.layer_norm(x, x.shape[-1:], w, None, 1e-2), x, w, tolerance=1e-5)
    compare(lambda x, w: ops.rms_norm(x, w, eps=1e-2), lambda x, w: F.rms_norm(x, x.shape[-1:], w, 1e-2), x, w, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 5, 33), (4, 5000)])
def test_softmax(compare, shape):
    import torch.nn.functional as F

    compare(ops.softmax, lambda x: F.softmax(x, -1), draw(*shape, scale=5))
    compare(ops.log_softmax, lambda x: F.log_softmax(x, -1), draw(*shape, scale=5))


@pytest.mark.parametrize("n, v", [(1, 2), (7, 33), (64, 1000), (3, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy(compare, n, v, smoothing):
    """torch smooths towards the uniform distribution over all V classes too; ignored targets give nothing."""
    import torch
    import torch.nn.functional as F

    targets = np.random.default_rng(n).integers(0, v, n).astype(np.int32)
    targets[1::4] = -100
    wanted = torch.from_numpy(targets).long()

    def peer(x):
        return F.cross_entropy(x, wanted, reduction="sum", label_smoothing=smoothing)

    compare(lambda x: ops.cross_entropy(x, targets, label_smoothing=smoothing), peer, draw(n, v, scale=4))
    c = 19
    compare(lambda h, w, b: ops.linear_cross_entropy(h, w, b, targets, label_smoothing=smoothing), lambda h, w, b: peer(F.linear(h, w, b)),
            draw(n, c), draw(v, c, seed=1), draw(v, seed=2))

    def with_z(x):
        return peer(x) + 0.01 * (torch.logsumexp(x, -1) ** 2)[wanted >= 0].sum()

    compare(lambda x: ops.cross_entropy(x, targets, label_smoothing=smoothing, z_loss=0.01), with_z, draw(n, v, scale=2))


@pytest.mark.parametrize("b, tq, tk, h, hkv, d", [(2, 5, 5, 4, 4, 8), (1, 1, 1, 1, 1, 1), (2, 33, 33, 6, 2, 16), (1, 70, 70, 3, 1, 64),
                                                  (2, 4, 9, 2, 2, 5), (1, 129, 129, 1, 1, 32)])
@pytest.mark.parametrize("mask", ["open", "causal", "window", "segments", "bias"])
def test_attention(compare, b, tq, tk, h, hkv, d, mask):
    import torch
    import torch.nn.functional as F

    allowed = np.ones((b, 1, tq, tk), bool)
    at, key = np.arange(tq)[:, None] + tk - tq, np.arange(tk)
    options = dict(causal=mask != "open")
    if mask != "open":
        allowed &= key <= at
    if mask == "window":
        options["window"] = 3
        allowed &= key > at - 3
    if mask == "segments":
        keys = np.sort(np.random.default_rng(tk).integers(1, 4, (b, tk)), 1).astype(np.int32)
        options["segments"] = (np.ascontiguousarray(keys[:, tk - tq :]), keys)
        allowed &= (keys[:, None, tk - tq :, None] == keys[:, None, None])
    blocked = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~torch.from_numpy(allowed), -torch.inf)

    def peer(q, k, v, bias=None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, blocked if bias is None else blocked + bias, enable_gqa=h != hkv)
        return out.transpose(1, 2)

    biases = [draw(1, h, tq, tk, seed=3)] if mask == "bias" else []
    compare(lambda *x: ops.attention(*x, **options), peer,
            draw(b, tq, h, d), draw(b, tk, hkv, d, seed=1), draw(b, tk, hkv, d, seed=2), *biases)


@pytest.mark.parametrize("rows, c", [(5, 3), (1, 1), (300, 65)])
def test_embedding(compare, rows, c):
    import torch
    import torch.nn.functional as F

    ids = np.random.default_rng(rows).integers(0, rows, (4, 7)).astype(np.int32)
    compare(lambda w: ops.embedding(w, ids), lambda w: F.embedding(torch.from_numpy(ids).long(), w), draw(rows, c))


@pytest.mark.parametrize("size", [1, 17, 5000])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw(size, decay):
    import torch

    for table in kernels.available():
        with kernels.use(table):
            p, m, v = draw(size).astype(np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
            theirs = torch.from_numpy(p.copy()).double().requires_grad_()
            optimizer = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.99), eps=1e-6, weight_decay=decay)
            for step in range(1, 8):
                g = draw(size, seed=step)
                kernels.adamw(p, g.astype(np.float32), m, v, 0.03, 0.9, 0.99, 1e-6, decay, step, 0.5)
                theirs.grad = torch.from_numpy(0.5 * g.astype(np.float32).astype(np.float64))
                optimizer.step()
            np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("operation", ["exp", "log", "tanh", "sigmoid", "add", "subtract",
                                       "multiply", "divide", "maximum", "minimum", "matmul"])
def test_arithmetic(compare, operation):
    import torch

    unary = operation in ("exp", "log", "tanh", "sigmoid")
    x = np.abs(draw(5, 5)) + 0.1
    compare(getattr(ops, operation), getattr(torch, operation), *([x] if unary else [x, draw(5, 5, seed=1)]), tolerance=1e-5)
