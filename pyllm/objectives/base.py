"""What an objective returns, and what several share: the hidden states of a batch, the loss of a language model's head."""
from dataclasses import dataclass, field

import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.data.batch import IGNORED


@dataclass(frozen=True)
class Loss:
    """A sum and what it is a sum over, never a mean: so any split into micro-batches gives the same step.

    total: scalar Tensor, the sum over valid targets, nats. count: how many targets that were.
    metrics: for the record: {name: a further sum over the same targets, or (a sum, how many it is of)}.
    """

    total: Tensor
    count: int
    metrics: dict = field(default_factory=dict)

    def add_to(self, sums):
        """Adds the metrics to sums: {name: (sum, count)}."""
        for name, value in self.metrics.items():
            value, count = value if isinstance(value, tuple) else (value, self.count)
            before, of = sums.get(name, (0.0, 0))
            sums[name] = before + value, of + count


def means(sums):
    """sums: what Loss.add_to has made -> {name: mean}; no name without anything to count."""
    return {name: value / count for name, (value, count) in sums.items() if count}


def inputs(batch):
    """-> (arguments, options) that a model takes for a Batch; `types` in batch.extra, 0 or 1, are BERT's token types."""
    options = {"types": batch.extra["types"]} if "types" in batch.extra else {}
    if batch.decoder_tokens is None:
        return (batch.tokens, batch.segments), options
    return (batch.tokens, batch.decoder_tokens, batch.segments, batch.decoder_segments), options


def hidden_at_targets(model, batch, rng):
    """-> (hidden states Tensor (..., C) where a language model predicts, their targets (...)): all, or where few count, those.

    An encoder-decoder predicts on the decoder's side.
    """
    args, options = inputs(batch)
    hidden, targets = model.hidden(*args, rng=rng, **options), batch.targets
    if targets.shape != hidden.shape[:2]:
        raise ValueError(f"{type(model).__name__}: targets {targets.shape} for hidden states {hidden.shape}; expected a target a token")
    if 0 < 2 * batch.count < targets.size:  # the head is the widest product: it is spared what is ignored
        at = np.flatnonzero(targets != IGNORED)
        hidden, targets = ops.embedding(hidden.reshape(-1, hidden.shape[-1]), at), targets.reshape(-1)[at]
    return hidden, targets


def predicted(model, batch, rng, label_smoothing, z_loss):
    """-> Loss: the cross-entropy of a language model's predictions, see ops.linear_cross_entropy. (B * T, V) logits are never held."""
    hidden, targets = hidden_at_targets(model, batch, rng)
    total = ops.linear_cross_entropy(hidden, model.head_weight(), model.head_bias(), targets, label_smoothing=label_smoothing,
                                     z_loss=z_loss)
    return Loss(total, batch.count)
