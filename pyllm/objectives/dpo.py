"""Direct preference optimisation and the losses of its kind that have a reference."""
from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import check_pairs, constant, pair_metrics, reference_log_probs, response_lengths, response_log_probs

DPO_LOSSES = ("sigmoid", "ipo", "hinge", "robust")


def dpo(model, batch, rng=None, *, beta=0.1, loss="sigmoid", label_smoothing=0.0, reference=None):
    """batch: pairs, targets on the responses; extra["ref_logp"] (B,), log p of each response under the reference -> Loss, count = pairs.

    With h = (log p_chosen - log ref_chosen) - (log p_rejected - log ref_rejected), s = label_smoothing:
    sigmoid  -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)              Rafailov et al. 2023; with s: Mitchell 2023 (cDPO)
    robust   (-(1 - s) log sigmoid(beta h) + s log sigmoid(-beta h)) / (1 - 2s) Chowdhury et al. 2024
    hinge    max(0, 1 - beta h)                                                 Zhao et al. 2023 (SLiC)
    ipo      (h of means over tokens - 1 / (2 beta))^2                          Azar et al. 2023, eq. 17; the mean as its authors have it
    reference: a model to compute ref_logp with where the batch has none.
    """
    if loss not in DPO_LOSSES:
        raise ValueError(f"dpo: loss={loss!r}; expected one of {', '.join(DPO_LOSSES)}")
    if not 0 <= label_smoothing < 0.5 or label_smoothing and loss in ("ipo", "hinge"):
        raise ValueError(f"dpo: label_smoothing={label_smoothing} with loss={loss!r}; expected 0 <= label_smoothing < 0.5, "
                         "and of sigmoid or robust alone")
    check_pairs("dpo", batch)
    logp = response_log_probs(model, batch, rng)
    ratio = logp - constant(reference_log_probs("dpo", reference, batch), logp)
    if loss == "ipo":
        mean = ratio / constant(response_lengths(batch), logp)
        each = (mean[::2] - mean[1::2] - 1 / (2 * beta)) ** 2
    else:
        h = (ratio[::2] - ratio[1::2]) * beta
        if loss == "hinge":
            each = ops.maximum(1 - h, constant(0, h))
        else:
            flipped = ops.log_sigmoid(-h) * (-label_smoothing if loss == "robust" else label_smoothing)
            each = -(ops.log_sigmoid(h) * (1 - label_smoothing) + flipped)
            if loss == "robust":
                each = each * (1 / (1 - 2 * label_smoothing))
    rewards = beta * ratio.data
    return Loss(each.sum(), len(batch.tokens) // 2, pair_metrics(rewards[::2], rewards[1::2], logp.data[::2], logp.data[1::2]))
