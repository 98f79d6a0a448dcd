"""ORPO: supervised fine-tuning with a penalty by odds, in one step and without a reference."""
from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import check_pairs, constant, pair_metrics, response_lengths, response_log_probs


def orpo(model, batch, rng=None, *, beta=0.1):
    """batch: pairs, targets on the responses -> Loss, count = pairs. Hong et al. 2024, eq. 6; beta is its lambda.

    -log p_chosen - beta log sigmoid(log odds_chosen - log odds_rejected), each p the geometric mean over a response's tokens,
    odds = p / (1 - p).
    """
    check_pairs("orpo", batch)
    logp = response_log_probs(model, batch, rng)
    mean = logp / constant(response_lengths(batch), logp)
    # log(1 - p) of a p that is 1 to the last digit is minus infinity: p is held below 1 by the smallest step.
    p = ops.minimum(ops.exp(mean), constant(1 - 1e-7, mean))
    odds = mean - ops.log(1 - p)
    ratio = ops.log_sigmoid(odds[::2] - odds[1::2])
    each = -mean[::2] - ratio * beta
    rewards = beta * mean.data
    metrics = pair_metrics(rewards[::2], rewards[1::2], logp.data[::2], logp.data[1::2])
    return Loss(each.sum(), len(batch.tokens) // 2, {**metrics, "log_odds_chosen": float((odds.data[::2] - odds.data[1::2]).sum()),
                                                     "log_odds_ratio": float(ratio.data.sum()), "nll_loss": float(-mean.data[::2].sum())})
