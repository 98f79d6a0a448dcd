"""Losses of objectives are those of PyTorch over the same logits, and of transformers over the same weights."""
import numpy as np
import pytest

from pyllm.data.batch import IGNORED, Batch
from pyllm.objectives import OBJECTIVES
from tests.objectives.cases import CASES, examples, padded

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
F = torch.nn.functional


def case_of(name):
    case = next(c for c in CASES if c.name == name)
    return case.model(), padded(examples(case), case)


def mean(loss):
    return loss.total.item() / loss.count


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["clm gpt2", "mlm", "seq2seq t5", "seq2seq bart"])
def test_language_models(name, smoothing):
    model, batch = case_of(name)
    sides = () if batch.decoder_tokens is None else (batch.decoder_tokens,)
    more = () if batch.decoder_tokens is None else (batch.decoder_segments,)
    logits = torch.from_numpy(model(batch.tokens, *sides, batch.segments, *more).data)
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).long().flatten(), label_smoothing=smoothing)
    loss = OBJECTIVES[name.split()[0]](model, batch, label_smoothing=smoothing)
    assert mean(loss) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["classify bert", "classify llama", "classify_tokens"])
def test_classifiers_with_weights(name, smoothing):
    """PyTorch divides by the sum of the weights, a step here by the number of targets: the sums are the same."""
    model, batch = case_of(name)
    weights = torch.tensor([0.5, 1.0, 2.0])
    logits, targets = torch.from_numpy(model(batch.tokens, batch.segments).data), torch.from_numpy(batch.targets).long().flatten()
    expected = F.cross_entropy(logits.reshape(-1, 3), targets, weights, label_smoothing=smoothing, reduction="sum")
    loss = OBJECTIVES[name.split()[0]](model, batch, weights=weights.numpy(), label_smoothing=smoothing)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_spans_are_transformers_loss_without_padding():
    """transformers lets padding take part in the softmax; on rows without it the means agree: (begin + end) / 2."""
    model, _ = case_of("span")
    case = next(c for c in CASES if c.name == "span")
    batch = padded(examples(case, lengths=(8, 8, 8)), case)
    scores, at = torch.from_numpy(model(batch.tokens, batch.segments).data), torch.from_numpy(batch.targets).long()
    expected = (F.cross_entropy(scores[..., 0], at[:, 0]) + F.cross_entropy(scores[..., 1], at[:, 1])) / 2
    assert mean(OBJECTIVES["span"](model, batch)) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_with_its_gradient(temperature):
    case = next(c for c in CASES if c.name == "distill")
    model, batch = case.model(), padded(examples(case), case)
    hidden = torch.from_numpy(model.hidden(batch.tokens, batch.segments).data).requires_grad_()
    head = torch.from_numpy(model.head_weight().data.copy()).requires_grad_()
    logits, counts = hidden @ head.T, torch.from_numpy(batch.targets != IGNORED)
    given = torch.from_numpy(case.options["teacher"](batch.tokens, batch.segments).data)
    log_q, p = (f(x[counts] / temperature, -1) for f, x in ((F.log_softmax, logits), (F.softmax, given)))
    expected = F.kl_div(log_q, p, reduction="sum") * temperature**2
    for parameter in model.parameters():
        parameter.grad = None
    loss = OBJECTIVES["distill"](model, batch, teacher=case.options["teacher"], temperature=temperature, alpha=1.0)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-4)
    (final := model.trunk.ln_f.weight).grad = None
    loss.total.backward()
    expected.backward()
    normed = (hidden.detach() - torch.from_numpy(model.trunk.ln_f.bias.data)) / torch.from_numpy(final.data)
    np.testing.assert_allclose(final.grad, (hidden.grad * normed).sum((0, 1)).numpy(), atol=1e-3, rtol=1e-3)


def test_a_whole_row_of_ignored_targets_is_nothing():
    model, batch = case_of("clm gpt2")
    none = Batch(batch.tokens, np.full_like(batch.targets, IGNORED), batch.segments)
    logits = torch.from_numpy(model(batch.tokens, batch.segments).data)
    assert F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(none.targets).long().flatten()).isnan()  # what a mean makes of it
    loss = OBJECTIVES["clm"](model, none)
    assert (loss.total.item(), loss.count) == (0, 0)
