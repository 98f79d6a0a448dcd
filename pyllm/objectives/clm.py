"""Causal language modelling: predict the next token."""
from pyllm.autograd import ops
from pyllm.objectives.base import Loss


def clm(model, batch, rng=None, *, label_smoothing=0.0, z_loss=0.0):
    """batch: tokens, targets (B, T) -> Loss, the sum of -log p(target) over targets >= 0, nats.

    rng: the key dropout is drawn from, None for none. label_smoothing in [0, 1): Szegedy et al. 2016. z_loss: the weight of
    logsumexp^2, which keeps logits small (Chowdhery et al. 2022). The (B * T, V) logits are never held.
    """
    hidden = model.hidden(batch.tokens, batch.segments, rng=rng)
    total = ops.linear_cross_entropy(hidden, model.head_weight(), None, batch.targets, label_smoothing=label_smoothing, z_loss=z_loss)
    return Loss(total, batch.count)
