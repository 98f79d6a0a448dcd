"""Span extraction: where in a text an answer begins and where it ends."""
import numpy as np

from pyllm.autograd import ops
from pyllm.data.batch import IGNORED
from pyllm.objectives.base import Loss, inputs

FAR = -1e30  # a score whose probability is 0 in float32 and whose gradient is no NaN


def span(model, batch, rng=None):
    """batch: tokens (B, T), targets (B, 2), the first and the last token of the answer -> Loss, the sum of both -log p(position), nats.

    Positions of padding take no part in the softmax, so that the loss does not depend on how far a row is padded. What has no answer
    points at a token that stands for that, as a rule the first; -100 counts for nothing. metrics: accuracy of the positions.
    """
    args, options = inputs(batch)
    b, t = batch.tokens.shape
    scores = model(*args, rng=rng, **options)
    if scores.shape != (b, t, 2) or batch.targets.shape != (b, 2):
        raise ValueError(f"span: scores {scores.shape} of {type(model).__name__}, targets {batch.targets.shape}; "
                         f"expected {(b, t, 2)} and {(b, 2)}")
    real = np.ones((b, t), bool) if batch.segments is None else batch.segments > 0
    at = np.where(batch.targets == IGNORED, real.argmax(1)[:, None], batch.targets)
    if at.max() >= t or not np.take_along_axis(real, at, 1).all():
        row = int(np.argwhere((at >= t) | ~np.take_along_axis(real, np.minimum(at, t - 1), 1))[0, 0])
        raise ValueError(f"span: targets[{row}] is {batch.targets[row].tolist()}; "
                         f"expected positions of tokens, 0 to {t - 1}, not of padding")
    scores = scores.transpose(0, 2, 1)  # (B, 2, T)
    scores = ops.where(scores, np.array(FAR, scores.dtype), condition=real[:, None])
    right = np.count_nonzero((scores.data.argmax(-1) == batch.targets) & (batch.targets != IGNORED))
    return Loss(ops.cross_entropy(scores, batch.targets), batch.count, {"accuracy": int(right)})
