"""Causal language modelling: predict the next token."""
from pyllm.objectives.base import predicted


def clm(model, batch, rng=None, *, label_smoothing=0.0, z_loss=0.0):
    """batch: tokens, targets (B, T) -> Loss, the sum of -log p(target) over targets >= 0, nats.

    Documents that are packed into a row do not see each other (batch.segments). Targets on a part of a row alone make this the loss of
    a completion, or of the suffix of a prefix. rng: the key dropout is drawn from, None for none. label_smoothing in [0, 1): Szegedy et
    al. 2016. z_loss: the weight of logsumexp^2, which keeps logits small (Chowdhery et al. 2022).
    """
    return predicted(model, batch, rng, label_smoothing, z_loss)
