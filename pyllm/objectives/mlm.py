"""Masked language modelling: tell what stood where a token was masked."""
from pyllm.objectives.base import predicted


def mlm(model, batch, rng=None, *, label_smoothing=0.0, z_loss=0.0):
    """batch: tokens, some of them masked, and targets (B, T), what stood there -> Loss, the sum of -log p(target) over targets >= 0, nats.

    A position predicts itself, not the next one (see pyllm.data.corrupt.mask_tokens). The head reads the masked positions alone.
    Devlin et al. 2019. Options as of clm.
    """
    return predicted(model, batch, rng, label_smoothing, z_loss)
