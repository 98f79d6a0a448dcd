"""The losses of proximal policy optimisation: a clipped policy, a clipped value, a bonus for entropy."""
import numpy as np

from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.sequences import constant, extra


def ppo(model, batch, rng=None, *, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, entropy_coef=0.0, temperature=1.0):
    """model: an ActorCritic; batch: rollouts; extra, all (B, T): "logp", "values" when they were made, "advantages", "returns" -> Loss.

    Count = response tokens. Schulman et al. 2017, eq. 7 and 9. With ratio = p / p_old:
    policy   max(-A ratio, -A clip(ratio, 1 - c, 1 + c))
    value    vf_coef * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2; cliprange_value 0 = no clipping
    """
    shape = batch.targets.shape
    old, values, advantages, returns = (extra("ppo", batch, key, shape) for key in ("logp", "values", "advantages", "returns"))
    mask = batch.targets >= 0
    hidden = model.hidden(batch.tokens, batch.segments, rng=rng)
    logp, entropy = ops.linear_log_probs_entropy(hidden, model.head_weight(), model.head_bias(), batch.targets, temperature)
    policy, ratio, clipped = clipped_policy(logp, old, advantages, cliprange, cliprange)
    v = model.values(batch.tokens, batch.segments, hidden, rng=rng)
    target, before = constant(returns, v), constant(values, v)
    squares = (v - target) ** 2
    bound = squares
    if cliprange_value:
        bound = (before + clip(v - before, -cliprange_value, cliprange_value) - target) ** 2
    value = ops.maximum(squares, bound)
    on = constant(mask, logp)
    each = policy * on + value * on * (vf_coef / 2) - entropy * entropy_coef
    log_ratio = np.where(mask, logp.data - old, 0)
    metrics = {"policy/approxkl_avg": 0.5 * np.square(log_ratio).sum(), "policy/clipfrac_avg": clipped[mask].sum(),
               "loss/policy_avg": policy.data[mask].sum(), "loss/value_avg": value.data[mask].sum() / 2,
               "val/clipfrac_avg": (bound.data > squares.data)[mask].sum(), "policy/entropy_avg": entropy.data.sum(),
               "val/ratio": ratio.data[mask].sum(), "val/ratio_square": np.square(ratio.data[mask]).sum()}
    return Loss(each.sum(), int(mask.sum()), {name: float(x) for name, x in metrics.items()})


def clipped_policy(logp, old, advantages, low, high):
    """logp: Tensor; arrays that broadcast to it -> (loss Tensor, ratio Tensor, where the clipped one is the larger: bool)."""
    ratio, a = ops.exp(logp - constant(old, logp)), constant(-np.asarray(advantages), logp)
    free, bound = ratio * a, clip(ratio, 1 - low, 1 + high) * a
    return ops.maximum(free, bound), ratio, bound.data > free.data


def clip(x, low, high):
    """-> x held between low and high; no gradient beyond."""
    return ops.minimum(ops.maximum(x, constant(low, x)), constant(high, x))
