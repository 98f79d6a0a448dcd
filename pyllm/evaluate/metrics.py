"""A score with its confidence interval; metrics of classification and of calibration. NumPy only, no network.

Every metric is made of statistics an example, (N, K), and of a function of their sum: so one bootstrap serves all.
"""
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95  # of every interval
RESAMPLES = 1000
CHUNK = 2**22  # weights of resamples that are in memory at a time


@dataclass(frozen=True)
class Score:
    """value, of `count` examples, and a 95 % interval from low to high. signature: how it was counted, as text."""

    name: str
    value: float
    low: float
    high: float
    count: int
    signature: str

    def __float__(self):
        return float(self.value)

    def __str__(self):
        digits = 2 if max(abs(self.value), abs(self.high)) >= 2 else 4
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def proportion(name, right, signature="", *, count=None):
    """right: (N,) bool, or how many of `count` -> Score: the share, with Wilson's interval (1927), which holds near 0 and 1 too."""
    n = len(right) if count is None else count
    _some(name, n)
    k = int(np.count_nonzero(right) if count is None else right)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    p, middle = k / n, (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (n * p * (1 - p) + z * z / 4) ** 0.5
    low, high = max(0.0, middle - half) if k else 0.0, min(1.0, middle + half) if k < n else 1.0
    return Score(name, p, low, high, n, _signed(name, signature, "ci:wilson"))


def bootstrap(name, statistics, value, signature="", *, seed=0):
    """statistics: (N, K) of N examples; value: their sum, (..., K) -> (...) -> Score, the interval by resampling examples.

    Percentiles of 1000 resamples (Efron 1979); the same for the same seed.
    """
    statistics = np.asarray(statistics, np.float64)
    if statistics.ndim != 2:
        raise ValueError(f"{name}: statistics {statistics.shape}; expected (N, K), a row an example")
    n = len(statistics)
    _some(name, n)
    draw, values = np.random.default_rng(seed), []
    for begin in range(0, RESAMPLES, step := max(1, CHUNK // n)):
        picks = draw.integers(0, n, (min(step, RESAMPLES - begin), n))
        weights = np.stack([np.bincount(row, minlength=n) for row in picks])
        values.append(value(weights @ statistics))
    low, high = np.nanquantile(np.concatenate(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    signature = _signed(name, signature, f"ci:bootstrap{RESAMPLES}-{seed}")
    return Score(name, float(value(statistics.sum(0))), float(low), float(high), n, signature)


def mean(name, values, signature="", *, seed=0):
    """values: (N,) -> Score: their mean."""
    values = np.asarray(values, np.float64)
    return bootstrap(name, np.stack([values, np.ones_like(values)], 1), lambda s: s[..., 0] / s[..., 1], signature, seed=seed)


def _some(name, n):
    if not n:
        raise ValueError(f"{name}: no examples; expected at least one")


def _signed(name, signature, interval):
    return "|".join(filter(None, (name, signature, interval)))


def _aligned(name, predictions, labels):
    """-> both as arrays; ValueError unless there are as many of each."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or predictions.shape != labels.shape:
        raise ValueError(f"{name}: {predictions.shape} predictions for {labels.shape} labels; expected one each, (N,)")
    _some(name, len(labels))
    return predictions, labels


# ---- classification

def accuracy(predictions, labels):
    """(N,) each, numbers or texts -> Score: the share that is right."""
    predictions, labels = _aligned("accuracy", predictions, labels)
    return proportion("accuracy", predictions == labels)


def f1(predictions, labels, average="macro", *, seed=0):
    """(N,) each -> Score: the harmonic mean of precision and recall.

    average: macro, the mean over the labels that occur in either; weighted, over labels by how often they are right; micro, over all
    decisions; or a label, which is then the positive one. A label never predicted nor found counts as 0.
    """
    predictions, labels = _aligned("f1", predictions, labels)
    names, both = np.unique(np.concatenate([predictions, labels]), return_inverse=True)
    guess, truth = (np.eye(len(names))[part] for part in both.reshape(2, -1))
    kinds = {"macro": lambda f, support: (f * (support[0] > 0)).sum(-1) / (support[0] > 0).sum(-1),
             "weighted": lambda f, support: (f * support[1]).sum(-1) / support[1].sum(-1)}
    chosen = np.flatnonzero(names == average) if average not in (*kinds, "micro") else ()
    if average not in (*kinds, "micro") and not len(chosen):
        raise ValueError(f"f1: average={average!r}; expected macro, micro, weighted or one of the labels {names.tolist()}")

    def value(sums):
        hits, guesses, truths = np.split(sums, 3, -1)
        if average == "micro":
            hits, guesses, truths = (a.sum(-1, keepdims=True) for a in (hits, guesses, truths))
        each = _ratio(2 * hits, guesses + truths)
        return kinds[average](each, (guesses + truths, truths)) if average in kinds else each[..., chosen[0] if len(chosen) else 0]

    return bootstrap("f1", np.concatenate([guess * truth, guess, truth], 1), value, f"average:{average}", seed=seed)


def matthews(predictions, labels, *, seed=0):
    """(N,) each -> Score: Matthews' correlation, for any number of labels (Gorodkin 2004); 0 where either side is constant."""
    predictions, labels = _aligned("matthews", predictions, labels)
    names, both = np.unique(np.concatenate([predictions, labels]), return_inverse=True)
    guess, truth = (np.eye(len(names))[part] for part in both.reshape(2, -1))

    def value(sums):
        right, guesses, truths = sums[..., 0], sums[..., 1 : 1 + len(names)], sums[..., 1 + len(names) :]
        n = guesses.sum(-1)
        spread = (n**2 - (guesses**2).sum(-1)) * (n**2 - (truths**2).sum(-1))
        return _ratio(right * n - (guesses * truths).sum(-1), np.sqrt(spread))

    return bootstrap("matthews", np.concatenate([(guess * truth).sum(1, keepdims=True), guess, truth], 1), value, seed=seed)


def _ratio(a, b):
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(b)), where=b != 0)


# ---- calibration

def calibration(probabilities, labels, *, bins=10, seed=0):
    """probabilities: (N, L), rows that sum to 1; labels: (N,) in 0..L-1 -> {"ece", "brier"} of Score, for both less is better.

    ece: expected calibration error (Guo et al. 2017): how far, on average, the confidence of the first choice is from its accuracy, over
    `bins` bins of equal width. brier: the mean squared distance between the row and the truth, 0 to 2 (Brier 1950).
    """
    p, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or labels.shape != p.shape[:1] or labels.dtype.kind not in "iu" or not len(p):
        raise ValueError(f"calibration: probabilities {p.shape}, labels {labels.dtype} {labels.shape}; "
                         "expected (N, L) and whole numbers (N,)")
    if labels.min() < 0 or labels.max() >= p.shape[1] or not (np.abs(p.sum(1) - 1) < 1e-3).all() or p.min() < 0:
        raise ValueError(f"calibration: labels {labels.min()} to {labels.max()} and rows that sum to {p.sum(1).min():.3f} to "
                         f"{p.sum(1).max():.3f}; expected labels in 0 to {p.shape[1] - 1} and probabilities that sum to 1")
    confidence, right = p.max(1), p.argmax(1) == labels
    bin_ = np.eye(bins)[np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)]

    def ece(sums):
        count, gap = np.split(sums, 2, -1)
        return np.abs(gap).sum(-1) / count.sum(-1)

    squared = ((p - np.eye(p.shape[1])[labels]) ** 2).sum(1)
    return {"ece": bootstrap("ece", np.concatenate([bin_, bin_ * (confidence - right)[:, None]], 1), ece, f"bins:{bins}", seed=seed),
            "brier": mean("brier", squared, "range:0-2", seed=seed)}
