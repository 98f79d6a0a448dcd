"""KTO: responses that are good or bad, not pairs."""
import numpy as np

from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import constant, extra, reference_log_probs, response_lengths, response_log_probs


def kto(model, batch, rng=None, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, reference=None):
    """batch: responses; extra: "label" (B,), 1 desirable, 0 not, "ref_logp" (B,), "kl" (B,) -> Loss, count = rows. Ethayarajh et al. 2024.

    With h = log p - log ref: desirable w (1 - sigmoid(beta (h - kl))), undesirable w (1 - sigmoid(beta (kl - h))), eq. 8. kl: the policy's
    divergence from the reference, one number for all rows of an optimizer step, however it is split into micro-batches: see
    pyllm.align.kto_kl, which estimates it from responses to other prompts.
    """
    b = len(batch.tokens)
    label, kl = extra("kto", batch, "label", (b,)).astype(bool), extra("kto", batch, "kl", (b,))
    if not (lengths := response_lengths(batch)).all():
        raise ValueError(f"kto: row {lengths.argmin()} has an empty response: no target counts. Hint: was it cut off by max_length?")
    if kl.min() < 0 or (kl != kl[0]).any():
        raise ValueError(f"kto: extra['kl'] from {kl.min()} to {kl.max()}; expected one number of at least 0 for all rows")
    logp = response_log_probs(model, batch, rng)
    ratio = logp - constant(reference_log_probs("kto", reference, batch), logp)
    sign = constant(np.where(label, beta, -beta), logp)
    each = (1 - ops.sigmoid((ratio - constant(kl, logp)) * sign)) * constant(np.where(label, desirable_weight, undesirable_weight), logp)
    rewards = beta * ratio.data
    metrics = {f"{name}/{kind}": (float(of[some].sum()), int(some.sum())) for kind, some in (("chosen", label), ("rejected", ~label))
               for name, of in (("rewards", rewards), ("logps", logp.data))}
    return Loss(each.sum(), b, {"kl": float(kl.sum()), **metrics})
