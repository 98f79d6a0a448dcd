"""SimPO: preference optimisation without a reference, on log-probabilities a token."""
from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import check_pairs, constant, pair_metrics, response_lengths, response_log_probs


def simpo(model, batch, rng=None, *, beta=2.0, gamma=0.5):
    """batch: pairs, targets on the responses -> Loss, count = pairs. Meng et al. 2024, eq. 6.

    -log sigmoid(beta (log p_chosen / tokens - log p_rejected / tokens) - gamma); gamma: the margin asked for.
    """
    check_pairs("simpo", batch)
    logp = response_log_probs(model, batch, rng)
    mean = logp / constant(response_lengths(batch), logp)
    each = -ops.log_sigmoid((mean[::2] - mean[1::2]) * beta - gamma)
    rewards = beta * mean.data
    return Loss(each.sum(), len(batch.tokens) // 2, pair_metrics(rewards[::2], rewards[1::2], logp.data[::2], logp.data[1::2]))
