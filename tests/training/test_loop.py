"""The loop: any split into micro-batches and any packing is the same step; what goes wrong is said before the weights are touched."""
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import training
from pyllm.autograd import ops
from pyllm.data.batch import IGNORED, Batch
from pyllm.data.packing import next_token, pack
from pyllm.objectives import Loss, clm
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]


def ragged(rows=6, length=8):
    """Rows with different numbers of targets, one of them without any."""
    ids = np.random.default_rng(0).integers(0, tiny.V, (rows, length + 1)).astype(np.int32)
    targets = ids[:, 1:].copy()
    for row in range(rows):
        targets[row, : row * 2] = IGNORED
    return Batch(ids[:, :-1].copy(), targets)


def weights_after(parts, dtype, **options):
    """-> all weights after 3 steps on the same rows, split into micro-batches of these sizes."""
    model, batch = tiny.filled(tiny.gpt2(), dtype), ragged()
    ends = [0, *itertools.accumulate(parts)]
    micro = [batch.rows(slice(a, b)) for a, b in itertools.pairwise(ends)]
    optimizer = training.AdamW(model)
    records = list(training.train(model, clm, itertools.cycle(micro), optimizer, steps=3, lr=1e-2, accumulate=len(parts), **options))
    return np.concatenate([p.data.ravel() for p in model.parameters()]), records


@given(st.permutations([1, 1, 2, 2]), st.sampled_from([None, 0.3]))
def test_any_split_into_micro_batches_is_the_same_step(parts, clip):
    whole, records = weights_after([6], np.float64, clip=clip)
    split, others = weights_after(parts, np.float64, clip=clip)
    np.testing.assert_allclose(split, whole, rtol=0, atol=1e-10)  # a key's bias has gradient 0, whose rounding AdamW magnifies
    for a, b in zip(records, others, strict=True):
        assert a.tokens == b.tokens == ragged().count and math.isclose(a.loss, b.loss, rel_tol=1e-13)
        assert math.isclose(a.grad_norm, b.grad_norm, rel_tol=1e-12)


def test_a_split_that_is_a_mean_of_means_would_show():
    whole, _ = weights_after([6], np.float64)
    model, batch = tiny.filled(tiny.gpt2(), np.float64), ragged()

    def mean(model, batch, rng=None):
        loss = clm(model, batch, rng)
        return Loss(loss.total / max(loss.count, 1), 1)

    halves = itertools.cycle([batch.rows(slice(0, 3)), batch.rows(slice(3, 6))])
    list(training.train(model, mean, halves, training.AdamW(model), steps=3, lr=1e-2, accumulate=2))
    assert np.abs(np.concatenate([p.data.ravel() for p in model.parameters()]) - whole).max() > 1e-5


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.sampled_from(["gpt2", "llama"]))
def test_packed_documents_are_documents_alone(lengths, family):
    model = tiny.filled(getattr(tiny, family)(), np.float64)
    documents = [next_token((np.arange(n) * (i + 2) + i) % tiny.V) for i, n in enumerate(lengths)]
    loss = clm(model, pack(documents, 10))
    loss.total.backward()
    packed = {name: p.grad for name, p in model.named_parameters()}
    total, count = 0.0, 0
    for p in model.parameters():
        p.grad = None
    for tokens, targets in documents:
        alone = clm(model, Batch(tokens[None].astype(np.int32), targets[None].astype(np.int32)))
        alone.total.backward()
        total, count = total + alone.total.item(), count + alone.count
    assert count == loss.count and math.isclose(total, loss.total.item(), rel_tol=1e-12)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(packed[name], p.grad, rtol=0, atol=1e-7 if family == "llama" else 1e-12, err_msg=name)


def test_dropout_is_of_the_seed_the_step_and_the_micro_batch():
    def losses(seed, start=0, accumulate=1):
        model = tiny.filled(tiny.gpt2(resid_pdrop=0.5))
        records = training.train(model, clm, itertools.repeat(ragged()), training.AdamW(model), steps=start + 2, start=start, lr=0.0,
                                 accumulate=accumulate, seed=seed)
        return [r.loss for r in records]

    first, second = losses(1)
    assert losses(1) == [first, second] and first != second
    assert losses(1, start=1)[0] == second and losses(2)[0] != first
    assert losses(1, accumulate=2)[0] != first


def test_records():
    model = tiny.filled(tiny.gpt2())

    def objective(model, batch, rng=None):
        loss = clm(model, batch, rng)
        return Loss(loss.total, loss.count, {"rows": len(batch.tokens)})

    records = list(training.train(model, objective, itertools.repeat(ragged()), training.AdamW(model), steps=5, start=2,
                                  lr=lambda step: step / 1e4, accumulate=2))
    assert [r.step for r in records] == [3, 4, 5] and [r.lr for r in records] == [2e-4, 3e-4, 4e-4]
    for r in records:
        assert r.tokens == 2 * ragged().count and r.metrics == {"rows": 12 / r.tokens} and r.grad_norm > 0
        assert r.seconds > 0 and r.tokens_per_second == r.tokens / r.seconds and r.peak_memory_mb > 1
    assert all(p.grad is None for p in model.parameters())


def test_the_cursor_of_the_data_is_exact_between_records():
    given = []
    batches = (given.append(i) or ragged() for i in itertools.count())
    model = tiny.filled(tiny.gpt2())
    for record in training.train(model, clm, batches, training.AdamW(model), steps=3, lr=1e-3, accumulate=2):
        assert len(given) == 2 * record.step


def snapshot(model):
    return [p.data.copy() for p in model.parameters()]


@pytest.mark.parametrize("accumulate, where", [(1, "step 2:"), (3, "step 2, micro-batch 1 of 3:")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(accumulate, where):
    model = tiny.filled(tiny.gpt2())
    records = training.train(model, clm, itertools.repeat(ragged()), training.AdamW(model), steps=5, lr=1e-3, accumulate=accumulate)
    next(records)
    model.get("transformer.h.1.mlp.c_fc.weight").data[0, 0] = np.nan
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=f"{where} the loss is nan.*PYLLM_DEBUG=2"):
        next(records)
    for a, b in zip(before, snapshot(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    model = tiny.filled(tiny.gpt2())

    def objective(model, batch, rng=None):
        loss = clm(model, batch, rng)
        return Loss(ops.power(loss.total - loss.total.item(), exponent=0.5), loss.count)  # the root of 0: finite, its slope is not

    before = snapshot(model)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="step 1.*gradient is (inf|nan)"):
        next(training.train(model, objective, [ragged()], training.AdamW(model), steps=1, lr=1e-3))
    for a, b in zip(before, snapshot(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_debug_names_the_operation():
    code = ("import numpy as np\nfrom tests.training import tiny, test_loop\nfrom pyllm import training\nfrom pyllm.objectives import clm\n"
            "model = tiny.filled(tiny.gpt2())\nmodel.get('transformer.h.1.mlp.c_fc.weight').data[0, 0] = np.inf\n"
            "next(training.train(model, clm, [test_loop.ragged()], training.AdamW(model), steps=1, lr=1e-3))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYLLM_DEBUG": "2", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "FloatingPointError: train: step 1: linear: the output is not finite" in done.stderr


@pytest.mark.parametrize("options, text", [
    ({"accumulate": 0}, "accumulate=0"), ({"steps": 1.5}, "steps=1.5"), ({"start": -1}, "start=-1"), ({"clip": 0}, "clip=0"),
    ({"clip": -1.0}, "clip=-1"),
])
def test_bad_arguments_are_named_at_once(options, text):
    model = tiny.filled(tiny.gpt2())
    with pytest.raises(ValueError, match=f"train: {text}"):
        training.train(model, clm, [], training.AdamW(model), **{"steps": 1, "lr": 1e-3, **options})


def test_precision_is_of_the_steps_alone():
    """precision="bf16" trains as a scope around every step does, and leaves the caller's own scope alone."""
    import pyllm
    from pyllm.autograd.tensor import reduced

    def losses(**options):
        model = tiny.filled(tiny.gpt2())
        records = training.train(model, clm, [ragged()] * 3, training.AdamW(model), steps=3, lr=1e-2, **options)
        found = []
        for record in records:
            found.append(record.loss)
            assert not reduced() or "precision" not in options
        return found

    with pyllm.precision("bf16"):
        scoped = losses()
    assert losses(precision="bf16") == scoped != losses() == losses(precision="f32")
    with pytest.raises(ValueError, match="precision: 'f16'; expected one of f32, bf16"):
        losses(precision="f16")


def test_no_targets_and_no_batches():
    model, batch = tiny.filled(tiny.gpt2()), ragged()
    empty = Batch(batch.tokens, np.full_like(batch.targets, IGNORED))
    with pytest.raises(ValueError, match="step 1: every target of its 2 micro-batches is ignored"):
        next(training.train(model, clm, [empty, empty], training.AdamW(model), steps=1, lr=1e-3, accumulate=2))
    records = training.train(model, clm, [batch, empty, batch], training.AdamW(model), steps=2, lr=1e-3, accumulate=2)
    assert next(records).tokens == batch.count
    with pytest.raises(ValueError, match="step 2, micro-batch 2 of 2: the batches ended after 1 of 2 steps"):
        next(records)


def test_evaluate():
    model, batch = tiny.filled(tiny.gpt2(resid_pdrop=0.5)), ragged()
    found = training.evaluate(model, clm, [batch.rows(slice(0, 2)), batch.rows(slice(2, 6))], bytes_per_token=2.5)
    logits = model(batch.tokens).data.astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = batch.targets != IGNORED
    expected = -np.take_along_axis(logp, np.where(valid, batch.targets, 0)[..., None], -1)[..., 0][valid].mean()
    assert math.isclose(found.loss, expected, rel_tol=1e-6) and found.tokens == batch.count
    assert found.perplexity == math.exp(found.loss) and math.isclose(found.bits_per_byte, found.loss / math.log(2) / 2.5)
    assert training.evaluate(model, clm, [batch]).bits_per_byte is None
    with pytest.raises(ValueError, match="evaluate: no target"):
        training.evaluate(model, clm, [])
    model.parameters()[0].data[...] = np.nan
    with pytest.raises(FloatingPointError, match="evaluate: the loss is nan"):
        training.evaluate(model, clm, [batch])
