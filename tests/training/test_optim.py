"""AdamW against its formula, schedules, averages, early stopping."""
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import training
from tests.training import tiny


def with_gradients(model, seed=0):
    draw = np.random.default_rng(seed)
    for p in model.parameters():
        p.grad = draw.standard_normal(p.shape).astype(p.dtype)
    return model


@pytest.mark.parametrize("tensorflow", [False, True])
def test_adamw_is_its_formula_and_only_matrices_decay(tensorflow):
    model = with_gradients(tiny.filled(tiny.gpt2(), np.float64))
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    optimizer = training.AdamW(model, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5, tensorflow=tensorflow)
    m, v = 0.0, 0.0
    for step in (1, 2, 3):
        with_gradients(model, step)
        gradients = {name: 0.3 * p.grad for name, p in model.named_parameters()}
        optimizer.step(0.01, scale=0.3)
        m = {n: 0.8 * (m[n] if m else 0) + 0.2 * g for n, g in gradients.items()}
        v = {n: 0.9 * (v[n] if v else 0) + 0.1 * g * g for n, g in gradients.items()}
        for name, w in before.items():
            w *= 1 - 0.01 * (0.5 if w.ndim == 2 else 0.0)
            if tensorflow:  # its documentation: a rate that both corrections are in, eps beside the moment as it is
                w -= 0.01 * np.sqrt(1 - 0.9**step) / (1 - 0.8**step) * m[name] / (np.sqrt(v[name]) + 1e-6)
            else:
                w -= 0.01 * (m[name] / (1 - 0.8**step)) / (np.sqrt(v[name] / (1 - 0.9**step)) + 1e-6)
    assert {w.ndim for w in before.values()} == {1, 2} and optimizer.steps == 3
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.data, before[name], rtol=0, atol=1e-13, err_msg=name)


def test_grad_norm_and_zero_grad():
    model = with_gradients(tiny.gpt2())
    optimizer = training.AdamW(model)
    everything = np.concatenate([p.grad.ravel() for p in model.parameters()]).astype(np.float64)
    assert math.isclose(optimizer.grad_norm(), np.linalg.norm(everything), rel_tol=1e-12)
    optimizer.zero_grad()
    assert optimizer.grad_norm() == 0 and all(p.grad is None for p in model.parameters())


def test_frozen_parameters_are_left_alone():
    model = tiny.gpt2().initialize(0)
    frozen = model.get("transformer.wte.weight")
    frozen.requires_grad = False
    optimizer, before = training.AdamW(with_gradients(model)), frozen.data.copy()
    optimizer.step(0.1)
    assert "transformer.wte.weight" not in optimizer.parameters and not any("wte" in name for name in optimizer.state())
    np.testing.assert_array_equal(frozen.data, before)
    for p in model.parameters():
        p.requires_grad = False
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        training.AdamW(model)


@pytest.mark.parametrize("make", [training.AdamW, lambda model: training.EMA(model, 0.9)])
def test_state_round_trip_and_mismatch(make):
    model = with_gradients(tiny.gpt2().initialize(0))
    one = make(model)
    one.step(0.1) if isinstance(one, training.AdamW) else one.update()
    other = make(tiny.gpt2().initialize(1))
    other.load_state({name: array.copy() for name, array in one.state().items()})
    for (name, a), b in zip(one.state().items(), other.state().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    with pytest.raises(ValueError, match="load_state"):
        make(tiny.gpt2(n_embd=16)).load_state(one.state())
    with pytest.raises(ValueError, match="load_state.*"):
        make(tiny.gpt2(n_layer=1)).load_state(one.state())


@pytest.mark.parametrize("bad", [{"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"AdamW: .*{next(iter(bad))}="):
        training.AdamW(tiny.gpt2(), **bad)


# ---- schedules

@given(st.sampled_from(sorted(training.SCHEDULES)), st.floats(1e-6, 1.0), st.integers(1, 400), st.data())
def test_schedules(name, lr, steps, data):
    warmup = data.draw(st.integers(0, steps))
    low = data.draw(st.floats(0, 1)) * lr
    rate = training.SCHEDULES[name](lr, steps, warmup, low)
    rates = [rate(step) for step in range(steps + 3)]
    assert all(0 < r <= lr * (1 + 1e-12) for r in rates[:steps])
    assert rates[:warmup] == pytest.approx([lr * (i + 1) / (warmup + 1) for i in range(warmup)])
    after = rates[warmup:]
    assert all(a >= b - 1e-12 for a, b in zip(after, after[1:]))
    if warmup < steps:
        assert after[0] == pytest.approx(lr)
        assert all(r >= low * (1 - 1e-12) for r in after)
    assert rates[steps:] == [lr if name == "constant" else low] * 3
    assert [rate(step) for step in reversed(range(steps))] == rates[:steps][::-1]


def test_shapes_of_the_schedules():
    assert training.linear(1.0, 110, 10, 0.5)(60) == pytest.approx(0.75)
    assert training.cosine(1.0, 110, 10, 0.2)(60) == pytest.approx(0.6)
    assert training.cosine(1.0, 110, 10, 0.2)(35) == pytest.approx(0.2 + 0.8 * (0.5 + math.sqrt(0.5) / 2))
    wsd = training.wsd(1.0, 110, 10, 0.0, decay=0.2)
    assert wsd(10) == wsd(89) == 1.0 and wsd(95) == pytest.approx(0.5) and wsd(109) < 0.03


@pytest.mark.parametrize("bad", [(1.0, 0), (1.0, 10, 11), (1.0, 10, -1), (1.0, 10, 0, 2.0), (-1.0, 10)])
def test_bad_schedules(bad):
    with pytest.raises(ValueError, match="schedule: lr="):
        training.cosine(*bad)
    with pytest.raises(ValueError, match="decay=0"):
        training.wsd(1.0, 10, decay=0)


# ---- averages

@given(st.floats(0.5, 0.999), st.integers(1, 30))
def test_ema_is_its_recursion(decay, updates):
    model = tiny.filled(tiny.gpt2(n_layer=1), np.float64)
    weight = model.get("transformer.wte.weight")
    ema, expected = training.EMA(model, decay), weight.data.copy()
    for n in range(updates):
        weight.data = np.sin(weight.data + n)
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * weight.data
        ema.update()
    own = weight.data
    with ema.weights():
        np.testing.assert_allclose(weight.data, expected, rtol=0, atol=1e-13)
    assert weight.data is own


def test_ema_gives_the_weights_back_after_an_error():
    model = tiny.gpt2().initialize(0)
    own, ema = model.parameters()[0].data, training.EMA(model, 0.9)
    with pytest.raises(KeyError), ema.weights():
        assert model.parameters()[0].data is not own
        raise KeyError
    assert model.parameters()[0].data is own
    with pytest.raises(ValueError, match="EMA: decay=1"):
        training.EMA(model, 1)


@given(st.lists(st.floats(0, 9), max_size=30), st.integers(0, 4), st.integers(0, 30))
def test_early_stopping(losses, patience, cut):
    """Stops at the first evaluation with `patience` ones behind the best; also when its state went through a checkpoint at `cut`."""
    stopping, answers = training.EarlyStopping(patience), []
    for i, loss in enumerate(losses):
        if i == cut:
            other = training.EarlyStopping(patience)
            other.load_state(stopping.state())
            stopping = other
        answers.append(stopping.update(i, loss))
        best = losses.index(min(losses[: i + 1]))
        assert (stopping.best_step, stopping.best_loss) == (best, losses[best])
        assert answers[-1] == (0 < patience <= i - best)
