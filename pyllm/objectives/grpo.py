"""The loss of group relative policy optimisation and its relatives: clipped ratios with advantages that need no value model."""
import numpy as np

from pyllm.autograd import ops
from pyllm.objectives.base import Loss
from pyllm.objectives.ppo import clipped_policy
from pyllm.objectives.sequences import constant, extra

GRPO_LOSSES = ("grpo", "dr_grpo", "dapo", "rloo")


def grpo(model, batch, rng=None, *, loss="dapo", epsilon=0.2, epsilon_high=None, beta=0.0, max_length=None, entropy_coef=0.0,
         temperature=1.0):
    """batch: responses; extra: "advantages" (B,) or (B, T), "logp" (B, T) when they were drawn, "ref_logp" (B, T) if beta -> Loss.

    Each token: max(-A ratio, -A clip(ratio, 1 - epsilon, 1 + epsilon_high)) + beta k3, k3 = e^d - d - 1, d = log ref - log p
    (Shao et al. 2024, eq. 3). `loss` says what is averaged, and the count makes a mean of the sum:
    grpo      a mean over a response's tokens, then over responses. Shao et al. 2024
    dr_grpo   a sum over a response's tokens / max_length, over responses: no bias by length. Liu et al. 2025
    dapo      a mean over all tokens of the step. Yu et al. 2025
    rloo      one ratio for a response, the product of its tokens', then over responses. Ahmadian et al. 2024
    metrics: means over tokens as the loss takes them.
    """
    if loss not in GRPO_LOSSES or loss == "dr_grpo" and not max_length:
        raise ValueError(f"grpo: loss={loss!r}, max_length={max_length}; expected one of {', '.join(GRPO_LOSSES)}, and for dr_grpo the "
                         "length of the longest response there may be")
    b, t = batch.targets.shape
    mask = batch.targets >= 0
    lengths = mask.sum(1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"grpo: row {lengths.argmin()} has an empty response: no target counts")
    advantages = extra("grpo", batch, "advantages", (b,), (b, t)).reshape(b, -1)
    old = extra("grpo", batch, "logp", (b, t))
    hidden = model.hidden(batch.tokens, batch.segments, rng=rng)
    logp, entropy = ops.linear_log_probs_entropy(hidden, model.head_weight(), model.head_bias(), batch.targets, temperature)
    compared, before = logp, old
    if loss == "rloo":
        if advantages.shape[1] > 1:
            raise ValueError(f"grpo: extra['advantages'] of shape {(b, t)}; expected {(b,)} for rloo, whose ratio is a response's")
        compared, before = logp.sum(axis=1, keepdims=True), old.sum(1, keepdims=True)
    each, ratio, clipped = clipped_policy(compared, before, advantages, epsilon, epsilon if epsilon_high is None else epsilon_high)
    if loss == "rloo":  # stands at each of the response's tokens, whose weights sum to 1
        each = each + constant(np.zeros((b, t)), logp)
    mean = mask if loss == "dapo" else mask / lengths
    weight = constant(mask / max_length if loss == "dr_grpo" else mean, logp)
    metrics = {"entropy": entropy.data, "clip_ratio/region_mean": clipped, "clip_ratio/low_mean": clipped & (advantages < 0),
               "clip_ratio/high_mean": clipped & (advantages > 0), "val/ratio": ratio.data,
               "policy/approxkl_avg": 0.5 * np.square(logp.data - old)}
    if beta:
        d = constant(extra("grpo", batch, "ref_logp", (b, t)), logp) - logp
        kl = ops.exp(d) - d - 1
        each, metrics["kl"] = each + kl * beta, kl.data
    total = ((each - entropy * entropy_coef) * weight).sum()
    return Loss(total, int(mask.sum()) if loss == "dapo" else b, {name: float((x * mean).sum()) for name, x in metrics.items()})
