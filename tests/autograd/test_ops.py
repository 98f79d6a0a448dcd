"""Every operation of the registry: its gradient is the derivative, float32 agrees with float64, frozen inputs cost nothing."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pyllm import kernels
from pyllm.autograd import REGISTRY, Rng, Tensor, check_vjp, no_grad, ops

_spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("cases.py"))
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

ALL = [pytest.param(case, id=f"{name}-{case.label}") for name, some in cases.CASES.items() for case in some]


def test_every_operation_has_cases():
    assert set(cases.CASES) == set(REGISTRY), "tests/autograd/cases.py: an entry for each operation"


@pytest.mark.parametrize("case", ALL)
def test_vjp_is_the_derivative(case):
    check_vjp(case.function, *case.inputs)


@pytest.mark.parametrize("case", ALL)
def test_float32_agrees_with_float64(case):
    """Value and gradients on every kernel table, float32 beside float64; the dtypes stay."""
    results = {}
    for table in [*kernels.available(), None]:
        dtype = np.float64 if table is None else np.float32
        with kernels.use(table or "reference"):
            inputs = [Tensor(x.astype(dtype), requires_grad=True) for x in case.inputs]
            y = case.function(*inputs)
            g = np.random.default_rng(7).standard_normal(y.shape).astype(y.dtype)
            y.backward(g)
        results[table] = [y.data, *[t.grad for t in inputs]]
        assert all(t.grad.dtype == dtype and t.grad.shape == t.shape for t in inputs)
    for table in kernels.available():
        for got, exact in zip(results[table], results[None]):
            np.testing.assert_allclose(got, exact, rtol=2e-4, atol=3e-6 * np.abs(exact).max(initial=1), err_msg=table)


@pytest.mark.parametrize("case", ALL)
def test_each_input_alone(case):
    """A gradient is the same whatever else is frozen, and a frozen input gets none."""
    def grads(asked):
        inputs = [Tensor(x, requires_grad=i in asked) for i, x in enumerate(case.inputs)]
        y = case.function(*inputs)
        y.backward(np.random.default_rng(7).standard_normal(y.shape))
        return [t.grad for t in inputs]

    together = grads(range(len(case.inputs)))
    for i in range(len(case.inputs)):
        alone = grads({i})
        np.testing.assert_allclose(alone.pop(i), together[i], rtol=1e-12, atol=1e-12)
        assert alone == [None] * len(alone)


@pytest.mark.parametrize("case", ALL)
def test_what_comes_in_stays_untouched(case):
    """Neither inputs nor the gradient handed to backward are written to, and a leaf's gradient is its own."""
    inputs = [Tensor(x.astype(np.float32), requires_grad=True) for x in case.inputs]
    copies = [t.data.copy() for t in inputs]
    y = case.function(*inputs)
    g = np.full(y.shape, 0.5, y.dtype)
    y.backward(g)
    assert all(np.array_equal(t.data, c) for t, c in zip(inputs, copies)) and (g == 0.5).all()
    for i, t in enumerate(inputs):
        others = [g, y.data, *[u.data for u in inputs], *[u.grad for j, u in enumerate(inputs) if j != i]]
        assert not any(np.may_share_memory(t.grad, other) for other in others)


@pytest.mark.parametrize("wrong", [lambda x: ops.exp(x) * x.detach(), lambda x: x * x.detach(), lambda x: Tensor(x.data * 2)])
def test_check_vjp_finds_a_wrong_gradient(wrong):
    with pytest.raises(AssertionError, match="argument 0"):
        check_vjp(wrong, np.array([0.3, -0.7, 1.1]))


# ---- a frozen input costs nothing ------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The kernel calls made: [(name, args, options)]."""
    made = []
    for name in kernels.KERNELS:
        def counted(*args, _kernel=getattr(kernels, name), _name=name, **options):
            made.append((_name, args, options))
            return _kernel(*args, **options)
        monkeypatch.setattr(kernels, name, counted)
    return made


def leaf(*shape, grad=True):
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32), requires_grad=grad)


@pytest.mark.parametrize("x, w, b, expected", [(1, 1, 1, ["column_sum", "linear_vjp", "matmul"]), (1, 0, 0, ["linear_vjp"]),
                                               (0, 1, 0, ["matmul"]), (0, 0, 1, ["column_sum"])])
def test_frozen_linear(calls, x, w, b, expected):
    y = ops.linear(leaf(3, 4, grad=bool(x)), leaf(5, 4, grad=bool(w)), leaf(5, grad=bool(b)))
    calls.clear()
    y.sum().backward()
    assert [name for name, _, _ in calls] == expected


@pytest.mark.parametrize("operation, kernel", [(ops.layer_norm, "layer_norm_vjp"), (ops.rms_norm, "rms_norm_vjp")])
def test_frozen_norm(calls, operation, kernel):
    operation(leaf(2, 4), leaf(4, grad=False)).sum().backward()
    assert [options["need_w"] for name, _, options in calls if name == kernel] == [False]


def test_frozen_head_and_bias(calls):
    ops.linear_cross_entropy(leaf(2, 4), leaf(5, 4, grad=False), None, np.array([1, 2], np.int32)).backward()
    assert [options["need"] for name, _, options in calls if name == "linear_cross_entropy"] == [(True, False, False)]
    ops.attention(leaf(1, 3, 1, 2), leaf(1, 3, 1, 2), leaf(1, 3, 1, 2), leaf(1, 1, 3, 3, grad=False)).sum().backward()
    assert [options["need_bias"] for name, _, options in calls if name == "attention_vjp"] == [False]


def test_nothing_is_recorded_where_nothing_is_asked(calls):
    frozen = ops.linear(leaf(3, 4, grad=False), leaf(5, 4, grad=False))
    with no_grad():
        quiet = ops.linear(leaf(3, 4), leaf(5, 4))
        ops.linear_cross_entropy(leaf(2, 4), leaf(5, 4), None, np.array([1, 2], np.int32))
    assert calls[-1][2]["need"] == (False, False, False)
    for y in (frozen, quiet):
        assert not y.requires_grad
        with pytest.raises(ValueError, match="no_grad"):
            y.sum().backward()


# ---- errors name what came and what was expected ---------------------------------------------------------------------


@pytest.mark.parametrize("call, text", [
    (lambda: ops.linear(leaf(2, 3), leaf(4, 5)), r"linear: x \(2, 3\) has 3 channels, w \(4, 5\) expects 5"),
    (lambda: ops.dropout(leaf(3), 1.0, Rng(0)), r"dropout: p=1.0; expected 0 <= p < 1"),
    (lambda: ops.dropout(leaf(3), -0.1, Rng(0)), r"dropout: p=-0.1; expected 0 <= p < 1"),
    (lambda: leaf(2).backward(), r"a gradient is needed for shape \(2,\)"),
    (lambda: leaf(1).backward(), r"nothing below"),
    (lambda: (leaf(2) * 2).backward(), r"a gradient is needed for shape \(2,\)"),
    (lambda: (leaf(2) * 2).backward(np.ones(3)), r"gradient of shape \(3,\) for a tensor of shape \(2,\)"),
])
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("data", ["text", [None], np.array([1j])])
def test_tensor_of_what_is_no_number(data):
    with pytest.raises(TypeError, match="expected real numbers"):
        Tensor(data)
