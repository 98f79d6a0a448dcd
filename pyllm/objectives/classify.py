"""Classification of rows or of tokens."""
import numpy as np

from pyllm.autograd import ops
from pyllm.data.batch import IGNORED
from pyllm.objectives.base import Loss, inputs


def classify(model, batch, rng=None, *, weights=None, label_smoothing=0.0):
    """batch: tokens (B, T), labels as targets (B,), or (B, T) for a token classifier -> Loss, the sum of -log p(label), nats.

    weights (L,): what a label's error counts, see class_weights; the sum is divided by the number of targets all the same, so that a step
    does not depend on its split. label_smoothing in [0, 1): the share of the target that is spread over all labels.
    metrics: accuracy. Targets of -100 count for nothing.
    """
    args, options = inputs(batch)
    logits, targets = model(*args, rng=rng, **options), batch.targets
    labels = logits.shape[-1]
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"classify: targets {targets.shape} for logits {logits.shape} of {type(model).__name__}; "
                         f"expected {logits.shape[:-1]}")
    if targets.max() >= labels:
        raise ValueError(f"classify: label {targets.max()}; expected 0 to {labels - 1}. Hint: num_labels of the model's configuration")
    weights = np.ones(labels) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (labels,) or not (np.isfinite(weights).all() and weights.min() >= 0):
        raise ValueError(f"classify: weights {weights}; expected {labels} numbers of at least 0")
    counts = targets != IGNORED
    wanted = np.full((*targets.shape, labels), label_smoothing / labels)
    np.put_along_axis(wanted, np.maximum(targets, 0)[..., None], 1 - label_smoothing + label_smoothing / labels, -1)
    wanted = (wanted * weights * counts[..., None]).astype(logits.dtype)
    right = int(np.count_nonzero((logits.data.argmax(-1) == targets) & counts))
    return Loss(-(ops.log_softmax(logits) * wanted).sum(), batch.count, {"accuracy": right})


def class_weights(labels, classes):
    """labels: (N,) of a training set -> (classes,) float64: inversely proportional to how often each occurs, 1 on average over the set."""
    counts = np.bincount(np.asarray(labels), minlength=classes)
    if len(counts) != classes or not counts.all():
        raise ValueError(f"class_weights: {counts.tolist()} examples of the labels; expected {classes} labels with at least one each")
    return counts.sum() / (classes * counts)
