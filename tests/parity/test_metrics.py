"""Metrics give the numbers of scikit-learn and sacrebleu."""
import numpy as np
import pytest

from pyllm import evaluate as E

pytestmark = pytest.mark.parity
sklearn = pytest.importorskip("sklearn.metrics")
sacrebleu = pytest.importorskip("sacrebleu")


@pytest.mark.parametrize("labels, seed", [(2, 0), (3, 1), (7, 2), (30, 3)])
def test_classification_is_scikit_learns(labels, seed):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, labels, 200)
    guess = np.where(draw.random(200) < 0.5, truth, draw.integers(0, max(2, labels // 2), 200))
    assert E.accuracy(guess, truth).value == sklearn.accuracy_score(truth, guess)
    for average in ("macro", "micro", "weighted"):
        assert E.f1(guess, truth, average).value == pytest.approx(sklearn.f1_score(truth, guess, average=average, zero_division=0))
    assert E.f1(guess, truth, 1).value == pytest.approx(sklearn.f1_score(truth, guess, labels=[1], average="macro", zero_division=0))
    assert E.matthews(guess, truth).value == pytest.approx(sklearn.matthews_corrcoef(truth, guess))
    p = draw.dirichlet(np.ones(labels), 200)
    brier = sklearn.brier_score_loss(truth, p, labels=np.arange(labels), scale_by_half=False)
    assert E.calibration(p, truth)["brier"].value == pytest.approx(brier)


WORDS = ["the", "cat", "sat", "on", "a", "mat", ",", "it's", "5.5", "-", "Don't", "naïve", "東京", "\"", "end.", "Über"]


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_translations_are_sacrebleus(references, seed):
    draw = np.random.default_rng(seed)
    text = lambda: " ".join(draw.choice(WORDS, draw.integers(4, 20)))  # noqa: E731
    several = [[text() for _ in range(references)] for _ in range(30)]
    hypotheses = [r[0] if draw.random() < 0.3 else " ".join([*r[0].split()[:-2], *draw.choice(WORDS, 3)]) for r in several]
    columns = list(zip(*several))
    assert E.bleu(hypotheses, several).value == pytest.approx(sacrebleu.corpus_bleu(hypotheses, columns).score)
    assert E.chrf(hypotheses, several).value == pytest.approx(sacrebleu.corpus_chrf(hypotheses, columns).score)
    assert E.ter(hypotheses, several).value == pytest.approx(sacrebleu.corpus_ter(hypotheses, columns).score)


def test_the_interval_of_bleu_is_near_sacrebleus():
    draw = np.random.default_rng(0)
    references = [" ".join(draw.choice(WORDS, 12)) for _ in range(60)]
    hypotheses = [" ".join([*r.split()[: draw.integers(3, 12)], *draw.choice(WORDS, 2)]) for r in references]
    metric = sacrebleu.metrics.BLEU()
    theirs, ours = metric.corpus_score(hypotheses, [references], n_bootstrap=1000), E.bleu(hypotheses, references)
    assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci, rel=0.1)
    assert (ours.high + ours.low) / 2 == pytest.approx(theirs._mean, abs=theirs._ci / 4)
