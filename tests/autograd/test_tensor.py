"""The tape: accumulation, aliasing, reuse, no_grad, checkpoint, threads. Random graphs against finite differences in float64."""
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.autograd import Rng, Tensor, check_vjp, checkpoint, no_grad, ops, recording

RNG = np.random.default_rng(0)


def leaf(*shape, dtype=np.float32):
    return Tensor(np.random.default_rng(sum(shape) + len(shape)).standard_normal(shape).astype(dtype), requires_grad=True)


# ---- random graphs ---------------------------------------------------------------------------------------------------

UNARY = [ops.tanh, ops.sigmoid, lambda x: ops.exp(x * 0.1), lambda x: ops.activation(x, kind="gelu"), lambda x: x * x, lambda x: -x,
         lambda x: x.transpose(1, 0).transpose(1, 0), lambda x: x.reshape(9).reshape(3, 3), lambda x: x[::-1], ops.softmax,
         lambda x: ops.rms_norm(x, x[0], eps=0.1), lambda x: ops.concat(x[:1], x[1:]), lambda x: x + x]
BINARY = [ops.add, ops.subtract, ops.multiply, ops.matmul, lambda a, b: ops.linear(a, b, b[0], a), lambda a, b: a + b[0],
          lambda a, b: a * b.sum(axis=0), lambda a, b: checkpoint(lambda a, b: ops.tanh(a) * b, a, b),
          lambda a, b: ops.where(a, b, condition=np.eye(3, dtype=bool))]
STEPS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8)


@given(steps=STEPS, seed=st.integers(0, 99))
def test_random_graphs(steps, seed):
    """Each step applies an operation to any earlier values, leaves included, so tensors are used many times over."""
    def graph(x, y):
        values = [x, y]
        for which, left, right in steps:
            a, b = values[left % len(values)], values[right % len(values)]
            choice = which % (len(UNARY) + len(BINARY))
            z = UNARY[choice](a) if choice < len(UNARY) else BINARY[choice - len(UNARY)](a, b)
            values.append(ops.tanh(z))  # keeps numbers near 1
        return values[-1] + values[len(values) // 2] * 0.5

    draw = np.random.default_rng(seed)
    check_vjp(graph, draw.standard_normal((3, 3)), draw.standard_normal((3, 3)), seed=seed, rtol=1e-4, atol=1e-6)


def test_residual_stream():
    """y = x + f(x) many times over: each branch's gradient is added once, into memory that is nobody else's."""
    x, w = leaf(4, 5, dtype=np.float64), leaf(5, 5, dtype=np.float64)

    def stream(x, w):
        for _ in range(6):
            x = x + ops.linear(ops.rms_norm(x, w[0], eps=0.1), w)
            x = ops.linear(x, w, None, x)
        return x

    check_vjp(stream, x.data * 0.3, w.data * 0.3, rtol=1e-4)


@pytest.mark.parametrize("twice", [lambda x: x + x, lambda x: x * 2, lambda x: ops.add(x, x), lambda x: x.reshape(6) + x.reshape(6),
                                   lambda x: ops.concat(x, x), lambda x: x - -x, lambda x: ops.where(x, x, condition=x.data > 0) + x])
def test_a_tensor_used_twice(twice):
    x = leaf(2, 3)
    twice(x).sum().backward()
    assert (x.grad == 2).all()


def test_gradients_accumulate_over_backwards():
    x = leaf(3)
    for _ in range(3):
        (x * 2).sum().backward()
    assert (x.grad == 6).all()
    x.grad = None
    (x * 5).sum().backward()
    assert (x.grad == 5).all()


def test_gradients_do_not_share_memory():
    """Two leaves that receive the same array each keep their own; so does the caller's."""
    a, b, c = leaf(2, 3), leaf(2, 3), leaf(6)
    g = np.ones((2, 3), np.float32)
    (a + b + c.reshape(2, 3)).backward(g)
    a.grad += 10
    assert (b.grad == 1).all() and (c.grad == 1).all() and (g == 1).all()


def test_only_what_leads_to_the_result_gets_a_gradient():
    x, y = leaf(3), leaf(3)
    unused = x * y
    (x * 2).sum().backward()
    assert y.grad is None and unused.grad is None and (x.grad == 2).all()


def test_backward_order_of_a_diamond():
    """A value is sent on only when all that use it have sent theirs, however long their ways are."""
    x = leaf(4, dtype=np.float64)

    def diamond(x):
        y = ops.tanh(x)
        long = y
        for _ in range(5):
            long = ops.tanh(long) + y
        return y * long

    check_vjp(diamond, x.data)


def test_a_deep_graph_needs_no_recursion():
    x = leaf(1)
    y = x
    for _ in range(5000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad == 1


def test_float32_parameters_below_a_float64_loss_get_float32_gradients():
    """Losses are summed in float64; a penalty added to one must not make its branch float64."""
    w, x = leaf(5, 4), leaf(3, 4)
    loss = ops.linear_cross_entropy(x, w, None, np.array([0, 1, 4], np.int32))
    assert loss.dtype == np.float64
    (loss * 0.5 + (w * w).sum() * 0.01).backward()
    assert w.grad.dtype == x.grad.dtype == np.float32


def test_gradients_that_add_themselves():
    """A weight used twice, a tied embedding, micro-batches: products and rows are added where the sum stands, as separate ones would be."""
    draw = np.random.default_rng(0)
    ids, other = np.int32([[1, 0, 1]]), draw.standard_normal((4, 6)).astype(np.float32)

    def gradients(sharing):
        w, x = Tensor(draw_w, requires_grad=True), Tensor(draw_x, requires_grad=True)
        uses = [ops.linear(ops.embedding(w, ids), w).sum(), (ops.linear(x, w) * 2).sum(), ops.linear(x, Tensor(other)).sum()]
        if sharing:
            (uses[0] + uses[1] + uses[2]).backward()
            return w.grad, x.grad
        grads = []
        for use in uses:
            w.grad = x.grad = None
            use.backward()
            grads.append([np.zeros_like(t.data) if t.grad is None else t.grad.copy() for t in (w, x)])
        return np.sum([g for g, _ in grads], 0), np.sum([g for _, g in grads], 0)

    draw_w, draw_x = draw.standard_normal((5, 6)).astype(np.float32), draw.standard_normal((3, 6)).astype(np.float32)
    for together, apart in zip(gradients(True), gradients(False)):
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)


def test_results_made_again_give_the_bits_of_those_kept(monkeypatch):
    """Norms, gates and activations are made again for the vjps that want them, once for all of them, and not kept in between."""
    import weakref

    from pyllm.autograd import tensor

    draw, alive = np.random.default_rng(1), []
    arrays = [draw.standard_normal(s).astype(np.float32) for s in ((5, 8), (8,), (12, 8), (12, 8), (8, 12), (8, 12), (9, 8))]

    def gradients():
        x, gain, a, b, c, d, e = leaves = [Tensor(y, requires_grad=True) for y in arrays]
        y = ops.rms_norm(x, gain)
        inner = ops.glu(ops.linear(y, a), ops.linear(y, b))
        z = ops.layer_norm(ops.linear(inner, c, None, x), gain)
        alive[:] = [weakref.ref(t.data) for t in (y, inner)]
        out = ops.linear(ops.linear(z, a, activation="gelu_tanh"), d)
        del y, inner, z
        loss = (ops.linear(out, e) * 3).sum()
        held = [r() is not None for r in alive]
        loss.backward()
        return held, [t.grad for t in leaves]

    kept, expected = gradients()
    monkeypatch.setattr(tensor, "AGAIN", 0)
    made, got = gradients()
    assert all(kept) and not any(made)
    for g, e in zip(got, expected):
        np.testing.assert_array_equal(g, e)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_a_second_backward_is_an_error():
    x = leaf(3)
    y = x * 2
    z = y.sum()
    z.backward()
    with pytest.raises(ValueError, match="used up"):
        z.backward()
    with pytest.raises(ValueError, match="used up"):
        (y * 3).sum().backward()


def test_a_vjp_with_the_wrong_number_of_gradients():
    from pyllm.autograd.tensor import REGISTRY, op

    @op
    def broken(a, b):
        return a + b, lambda dy, need: (dy,)

    del REGISTRY["broken"]
    with pytest.raises(ValueError, match="shorter|longer"):
        broken(leaf(2), leaf(2)).sum().backward()


def test_an_operation_that_fails_leaves_the_tape_usable():
    x = leaf(2, 3)
    with pytest.raises(ValueError):
        ops.linear(x, leaf(4, 5))
    (x * 3).sum().backward()
    assert (x.grad == 3).all()


# ---- no_grad ---------------------------------------------------------------------------------------------------------


def test_no_grad_nests_and_survives_errors():
    with no_grad():
        with no_grad():
            pass
        assert not recording()
    assert recording()
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert recording()


def test_no_grad_is_of_its_thread():
    """One thread that generates must not switch off the recording of another that trains."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def generate():
        with no_grad():
            entered.set()
            leave.wait(10)
            seen.append(recording())

    worker = threading.Thread(target=generate)
    worker.start()
    assert entered.wait(10)
    try:
        assert recording()
        x = leaf(3)
        (x * 2).sum().backward()
        assert (x.grad == 2).all()
    finally:
        leave.set()
        worker.join()
    assert seen == [False] and recording()


def test_detach():
    x = leaf(3)
    (x.detach() * x).sum().backward()
    assert np.array_equal(x.grad, x.data)


# ---- checkpoint ------------------------------------------------------------------------------------------------------


def block(x, w, key):
    h = ops.linear(ops.rms_norm(x, w[0]), w, activation="silu")
    return x + ops.dropout(h, 0.3, key)


@pytest.mark.parametrize("key", [None, Rng(5)])
@pytest.mark.parametrize("nested", [False, True])
def test_checkpoint_gives_the_same_bits(key, nested):
    results = []
    for use in (False, True):
        x, w = leaf(7, 6), leaf(6, 6)
        y = x * 1.5
        for i in range(3):
            def layer(x, i=i):
                return block(x, w, key and key.fold(i))
            def twice(x, layer=layer):
                return checkpoint(layer, checkpoint(layer, x)) if use and nested else layer(layer(x))
            y = checkpoint(twice, y) if use else twice(y)
        y.sum().backward()
        results.append((y.data, x.grad, w.grad))
    for plain, saved in zip(*results):
        assert np.array_equal(plain, saved)


def test_checkpoint_keeps_nothing_and_runs_twice():
    runs = []

    def layer(x, w):
        runs.append(recording())
        return ops.linear(x, w)

    x, w = leaf(3, 4), leaf(4, 4)
    y = checkpoint(layer, x, w)
    assert runs == [False]
    y.sum().backward()
    assert runs == [False, True] and x.grad is not None and w.grad is not None
    with no_grad():
        assert not checkpoint(layer, x, w).requires_grad


def test_checkpoint_of_a_frozen_input_trains_the_parameters():
    x, w = Tensor(leaf(3, 4).data), leaf(4, 4)
    checkpoint(lambda x: ops.linear(x, w), x).sum().backward()
    assert x.grad is None and w.grad is not None


# ---- random numbers --------------------------------------------------------------------------------------------------


def test_rng_is_a_path():
    assert Rng(1).fold("a", 2).key == Rng(1).fold("a").fold(2).key
    keys = {Rng(s).fold(*path).key for s in range(5) for path in [(), (0,), (1,), ("a",), ("b",), ("a", 0), (0, "a"), ("ab",), (0, 0)]}
    assert len(keys) == 45
    assert Rng(-1).key != Rng(1).key


@given(seed=st.integers(0, 2**63), p=st.floats(0.01, 0.99))
def test_dropout_keeps_the_right_share(seed, p):
    y = ops.dropout(Tensor(np.ones(20000, np.float32)), p, Rng(seed)).data
    assert abs((y != 0).mean() - (1 - p)) < 6 * (p * (1 - p) / 20000) ** 0.5
    assert np.allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)


def test_dropout_without_rng_is_the_tensor_itself():
    x = leaf(4)
    assert ops.dropout(x, 0.5, None) is x and ops.dropout(x, 0, Rng(0)) is x


# ---- PYLLM_DEBUG -----------------------------------------------------------------------------------------------------


def debug(level, code):
    import os

    program = f"import numpy as np\nfrom pyllm.autograd import Tensor, ops\nx = Tensor(np.ones((2, 3)), requires_grad=True)\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYLLM_DEBUG": level})


def test_debug_1_prints_a_profile():
    run = debug("1", "(ops.tanh(x) * x).sum().backward()")
    assert run.returncode == 0 and run.stdout == ""
    head, _, *lines = run.stderr.splitlines()
    assert head.startswith("PYLLM_DEBUG=1: ")
    counts = {line.split()[0]: line.split()[1:3] for line in lines[:3]}
    assert counts == {"tanh": ["2x3", "1"], "multiply": ["2x3,", "2x3"], "sum": ["2x3", "1"]}
    assert lines[-2].startswith("between") and lines[-1].endswith("100.0 %")


def test_debug_1_explains_a_training_step():
    """Every millisecond has a name: operations, kernels of the optimizer, and what lies between."""
    run = debug("1", """
from pyllm import data, objectives, training
from pyllm.models import GPT2, GPT2Config
model = GPT2(GPT2Config(vocab_size=64, n_positions=32, n_embd=256, n_layer=2, n_head=2)).initialize(0)
batch = data.Batch(*np.random.default_rng(0).integers(0, 64, (2, 4, 32)).astype(np.int32))
list(training.train(model, objectives.clm, [batch] * 3, training.AdamW(model), steps=3, lr=1e-3))""")
    assert run.returncode == 0, run.stderr
    lines = run.stderr.splitlines()[2:]
    top = [line for line in lines if not line.startswith((" ", "kernels", "all"))]
    assert abs(sum(float(line.split()[-2]) for line in top) - 100) < 1.5
    kind = {line.split()[0]: line for line in top}
    assert "GFLOP/s" in kind["linear"] and "GB/s" in kind["layer_norm"]
    assert re.match(r"linear +24 ", kind["linear"]) and "GB/s" in kind["adamw"] and "sum_squares" in kind
    assert "kernels outside of operations (optimizer, sampling, sums of gradients)" in lines


def test_the_profile_of_known_work():
    """10 products of 2e9 FLOP in 0.4 s at 100 GFLOP/s, and 1e9 bytes in 0.1 s at 20 GB/s: half of each limit."""
    from pyllm.autograd import debug
    from pyllm.kernels.profile import Row

    products, norms = Row(), Row()
    products.calls, products.forward, products.backward, products.work = 10, 0.1, 0.3, {(2e9, 1e6, "f32"): 10}
    norms.calls, norms.forward, norms.work = 1, 0.1, {(0.0, 1e9, "f32"): 1}
    lines = debug.report({("linear", "8x8", False): products, ("norm", "8", True): norms}, 1.0, {"f32": 100.0}, 20.0)
    assert lines[2].split() == ["linear", "8x8", "10", "100.0", "300.0", "50.0", "GFLOP/s", "50", "%", "40.0", "%"]
    assert lines[4].split() == ["norm", "8", "1", "100.0", "10.0", "GB/s", "50", "%", "10.0", "%"]
    assert lines[5].split()[-3:] == ["500.0", "50.0", "%"]


def test_debug_2_names_the_operation():
    run = debug("2", "np.seterr(all='ignore')\nops.log(x - 1).sum()")
    assert run.returncode == 1 and "FloatingPointError: log: the output is not finite, first at (0, 0) of shape (2, 3)" in run.stderr
    run = debug("2", "np.seterr(all='ignore')\ny = ops.power(x - 1, exponent=0.5).sum()\ny.backward()")
    assert run.returncode == 1 and "FloatingPointError: power: the gradient of argument 0 is not finite" in run.stderr
    assert debug("2", "ops.tanh(x).sum().backward()").returncode == 0


def test_debug_3_draws_the_graph():
    run = debug("3", "(ops.tanh(x) * x).sum().backward()")
    assert run.returncode == 0
    lines = run.stderr.splitlines()
    assert lines[0] == "digraph pyllm {" and lines[-1] == "}"
    assert [name in run.stderr for name in ('"tanh (2, 3)"', '"multiply (2, 3)"', '"sum ()"')] == [True] * 3
    nodes = {line.split()[0] for line in lines if "label" in line}
    assert len(nodes) == 3 and any(f"-> {n};" in run.stderr for n in nodes)


def test_debug_of_another_value():
    run = debug("loud", "")
    assert run.returncode == 1 and "PYLLM_DEBUG='loud': expected 0, 1, 2 or 3" in run.stderr
