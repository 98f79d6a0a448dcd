"""CPO: DPO with a uniform reference, and the likelihood of what was chosen."""
from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import check_pairs, constant, pair_metrics, response_lengths, response_log_probs


def cpo(model, batch, rng=None, *, beta=0.1, alpha=1.0, label_smoothing=0.0):
    """batch: pairs, targets on the responses -> Loss, count = pairs. Xu et al. 2024, eq. 3.

    -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h) - alpha log p_chosen / tokens, with h = log p_chosen - log p_rejected. The
    likelihood is a mean over each response's tokens, not over the batch's: so the split into micro-batches does not matter.
    """
    check_pairs("cpo", batch)
    logp = response_log_probs(model, batch, rng)
    mean = logp / constant(response_lengths(batch), logp)
    h = (logp[::2] - logp[1::2]) * beta
    each = -ops.log_sigmoid(h) * (1 - label_smoothing) - ops.log_sigmoid(-h) * label_smoothing - mean[::2] * alpha
    rewards = beta * logp.data
    return Loss(each.sum(), len(batch.tokens) // 2, pair_metrics(rewards[::2], rewards[1::2], logp.data[::2], logp.data[1::2]))
