"""Every objective: a sum and a count, whatever the split, the packing, the padding, the threads; each against its definition."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build
from pyllm.objectives import ALIGNMENT, OBJECTIVES, class_weights
from tests.objectives import cases
from tests.objectives.cases import CASES, examples, model, packed, padded

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def gradient(case, batches):
    """-> (mean loss, {parameter: gradient of the mean loss}) of a step over micro-batches."""
    net = case.model()
    for p in net.parameters():
        p.grad = None
    total, count = 0.0, 0
    for batch in batches:
        loss = OBJECTIVES[case.objective](net, batch, **case.options)
        if loss.count:
            loss.total.backward()
        total, count = total + loss.total.item(), count + loss.count
    return total / count, {name: p.grad / count for name, p in net.named_parameters() if p.grad is not None}


def same(case, batches, expected):
    """The gradient of the mean loss agrees to 1e-6 with the expected one, relative to the largest element of all."""
    loss, grads = gradient(case, batches)
    largest = max(np.abs(g).max() for g in expected[1].values())
    assert grads.keys() == expected[1].keys() and largest > 1e-3
    assert abs(loss - expected[0]) <= 1e-6 * abs(expected[0])
    for name, g in grads.items():
        assert np.abs(g - expected[1][name]).max() <= 1e-6 * max(largest, 1), name


def test_every_objective_has_a_case():
    assert {case.objective for case in CASES} == OBJECTIVES.keys() - ALIGNMENT.keys()  # those have tests/objectives/test_alignment.py


@EVERY
def test_split_packing_padding_and_threads_leave_the_gradient_unchanged(case):
    rows = examples(case)
    whole = padded(rows, case)
    expected = gradient(case, [whole])
    same(case, [whole.rows(slice(0, 1)), whole.rows(slice(1, 4))], expected)
    same(case, [padded([row], case) for row in rows], expected)
    same(case, [padded(rows, case, right=5)], expected)
    same(case, [padded(rows, case, left=4)], expected)
    if case.rows in ("tokens", "decoder"):
        same(case, [packed(rows)], expected)
        same(case, [packed(rows[:3]), padded(rows[3:], case, left=2)], expected)


@EVERY
def test_threads_leave_every_bit_unchanged(case):
    found = []
    before = K.num_threads()
    try:
        for threads in (1, 2, 3):
            K.set_num_threads(threads)
            loss, grads = gradient(case, [padded(examples(case), case)])
            found.append((loss, {name: g.tobytes() for name, g in grads.items()}))
    finally:
        K.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@EVERY
def test_ignored_targets_do_not_count(case):
    """A batch without any target is a sum of 0 over 0, not a NaN; a row of them changes nothing."""
    batch = padded(examples(case), case)
    nothing = Batch(batch.tokens, np.full_like(batch.targets, IGNORED), batch.segments, batch.decoder_tokens, batch.decoder_segments)
    loss = cases.loss_of(case, nothing, OBJECTIVES)
    assert loss.count == 0 and loss.total.item() == 0 and not any(loss.metrics.values())
    targets = batch.targets.copy()
    targets[1] = IGNORED
    without = Batch(batch.tokens, targets, batch.segments, batch.decoder_tokens, batch.decoder_segments)
    rest = [cases.loss_of(case, padded([row], case), OBJECTIVES) for i, row in enumerate(examples(case)) if i != 1]
    got = cases.loss_of(case, without, OBJECTIVES)
    assert got.count == sum(r.count for r in rest) and abs(got.total.item() - sum(r.total.item() for r in rest)) < 1e-4


# ---- definitions

def log_softmax(x):
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def test_classification_is_weighted_smoothed_and_says_its_accuracy():
    net = model("bert", "BertForSequenceClassification")
    case = next(c for c in CASES if c.name == "classify bert")
    batch = padded(examples(case), case)
    logp, weights, s = log_softmax(net(batch.tokens, batch.segments).data.astype(float)), np.array([0.5, 1, 2]), 0.2
    each = -(1 - s) * weights[batch.targets] * logp[np.arange(4), batch.targets] - s / 3 * (logp * weights).sum(-1)
    loss = OBJECTIVES["classify"](net, batch, weights=weights, label_smoothing=s)
    np.testing.assert_allclose(loss.total.item(), each.sum(), rtol=1e-5)
    assert loss.count == 4 and loss.metrics == {"accuracy": (logp.argmax(-1) == batch.targets).sum()}


def test_a_span_is_two_choices_among_tokens_that_are_not_padding():
    case = next(c for c in CASES if c.name == "span")
    net, batch = case.model(), padded(examples(case), case, right=3)
    scores = net(batch.tokens, batch.segments).data.astype(float)
    expected = 0.0
    for row in range(4):
        for side in range(2):
            n = batch.segments[row].sum()
            expected -= log_softmax(scores[row, :n, side])[batch.targets[row, side]]
    loss = OBJECTIVES["span"](net, batch)
    np.testing.assert_allclose(loss.total.item(), expected, rtol=1e-5)
    assert loss.count == 8


def test_token_types_reach_the_model():
    case = next(c for c in CASES if c.name == "span")
    batch = padded(examples(case), case)
    types = np.ones_like(batch.tokens)
    totals = [OBJECTIVES["span"](case.model(), Batch(batch.tokens, batch.targets, batch.segments, extra=extra)).total.item()
              for extra in ({}, {"types": 0 * types}, {"types": types})]
    assert totals[0] == totals[1] != totals[2]


def test_class_weights_are_one_on_average():
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = class_weights(labels, 3)
    assert abs(weights[labels].mean() - 1) < 1e-12 and weights[1] == 2
    with pytest.raises(ValueError, match=r"\[3, 1, 2, 0\] examples of the labels"):
        class_weights(labels, 4)


def test_distillation_is_its_definition_and_the_teacher_stays_as_it_is():
    case = next(c for c in CASES if c.name == "distill")
    net, teacher, batch = case.model(), case.options["teacher"], padded(examples(case), case)
    log_q, log_p = (log_softmax(m(batch.tokens, batch.segments).data.astype(float) / 2) for m in (net, teacher))
    counts = batch.targets != IGNORED
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)[counts].sum()
    ce = OBJECTIVES["clm"](net, batch).total.item()
    hidden, given = (m.hidden(batch.tokens, batch.segments).data.astype(float) for m in (net, teacher))
    cosine = (hidden * given).sum(-1) / np.linalg.norm(hidden, axis=-1) / np.linalg.norm(given, axis=-1)
    expected = 0.25 * 4 * kl + 0.75 * ce + 0.5 * (1 - cosine)[counts].sum()
    loss = OBJECTIVES["distill"](net, batch, teacher=teacher, alpha=0.25, hidden=0.5)
    np.testing.assert_allclose([loss.total.item(), loss.metrics["kl"], loss.metrics["ce"]], [expected, kl, ce], rtol=1e-5)
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert abs(OBJECTIVES["distill"](net, batch, teacher=net, alpha=1.0).total.item()) < 1e-5  # of itself a model has nothing to learn


def test_distillation_in_chunks_is_the_same(monkeypatch):
    case = next(c for c in CASES if c.name == "distill")
    rows = examples(case, lengths=(30, 30, 30, 30))
    whole = gradient(case, [padded(rows, case)])
    monkeypatch.setattr("pyllm.autograd.ops.loss.LOGITS", 1)  # 64 rows at a time, of 80
    same(case, [padded(rows, case)], whole)


def test_a_teacher_that_does_not_fit_is_named():
    case = next(c for c in CASES if c.name == "distill")
    batch, other = padded(examples(case), case), model("llama")
    with pytest.raises(ValueError, match="alpha=2"):
        OBJECTIVES["distill"](case.model(), batch, teacher=other, alpha=2)
    wide = build({"model_type": "gpt2", "vocab_size": 23, "n_embd": 12, "n_head": 2, "n_layer": 1, "n_positions": 40}, seed=0)
    with pytest.raises(ValueError, match="8 channels, the teacher's have 12"):
        OBJECTIVES["distill"](case.model(), batch, teacher=wide, hidden=1.0)
    longer = build({"model_type": "gpt2", "vocab_size": 24, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 40}, seed=0)
    with pytest.raises(ValueError, match="a vocabulary of 23 tokens, the teacher's has 24"):
        OBJECTIVES["distill"](case.model(), batch, teacher=longer)


@pytest.mark.parametrize("objective, batch, text", [
    ("seq2seq", dict(tokens=[[1, 2]], targets=[[1, 2]]), "no decoder_tokens"),
    ("classify", dict(tokens=[[1, 2]], targets=[[1, 2]]), r"targets \(1, 2\) for logits \(1, 3\)"),
    ("classify", dict(tokens=[[1, 2]], targets=[3]), "label 3; expected 0 to 2"),
    ("span", dict(tokens=[[1, 2]], targets=[[0, 2]]), r"targets\[0\] is \[0, 2\]; expected positions of tokens, 0 to 1"),
    ("span", dict(tokens=[[1, 2, 3]], targets=[[0, 2]], segments=[[1, 1, 0]]), "not of padding"),
    ("span", dict(tokens=[[1, 2, 3]], targets=[[0, 1, 2]]), r"targets \(1, 3\)"),
    ("mlm", dict(tokens=[[1, 2, 3]], targets=[1]), r"targets \(1,\) for hidden states"),
])
def test_a_batch_of_another_kind_is_named(objective, batch, text):
    case = next(c for c in CASES if c.objective == objective)
    with pytest.raises(ValueError, match=text):
        OBJECTIVES[objective](case.model(), Batch(**{k: np.array(v, np.int32) for k, v in batch.items()}))
