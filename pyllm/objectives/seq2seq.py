"""Sequence to sequence: the decoder predicts its next token from what the encoder has read."""
from pyllm.objectives.base import predicted


def seq2seq(model, batch, rng=None, *, label_smoothing=0.0, z_loss=0.0):
    """batch: tokens (B, S), decoder_tokens, targets (B, U) -> Loss, the sum of -log p(target) over targets >= 0, nats.

    For translation, summaries, and for T5's and BART's corrupted text. Document k of the decoder's row looks at document k of the
    encoder's. Options as of clm; label_smoothing 0.1 in Vaswani et al. 2017.
    """
    if batch.decoder_tokens is None:
        raise ValueError("seq2seq: the batch has no decoder_tokens; expected the targets, shifted by one behind the start token")
    return predicted(model, batch, rng, label_smoothing, z_loss)
