"""The loss of reward models: comparisons of two answers, or of k in order."""
import numpy as np

from pyllm.autograd import ops
from pyllm.objectives.base import Loss, inputs
from pyllm.objectives.sequences import check_pairs, constant, extra


def reward_pairs(model, batch, rng=None, *, k=2, centre=0.0):
    """batch: rows in groups of k, the best first, then falling; model(tokens, segments) -> (B, 1) rewards -> Loss, count = groups.

    k 2: -log sigmoid(r_chosen - r_rejected - margin), Bradley & Terry 1952; margin: extra["margin"] (B,), that of a pair's first row
    (Touvron et al. 2023, section 3.2.2), 0 where there is none. k > 2: Plackett-Luce, the sum over places j of
    logsumexp(r_j .. r_k) - r_j. centre: weight of (sum of a group's rewards)^2, which keeps rewards around 0 (Eisenstein et al. 2023;
    TRL's center_rewards_coefficient). metrics: accuracy (best above all others), margin (best - mean of the others), mean_reward;
    min_reward and max_reward of a micro-batch.
    """
    check_pairs("reward_pairs", batch, k)
    b = len(batch.tokens)
    args, options = inputs(batch)
    scores = model(*args, rng=rng, **options)
    if scores.shape != (b, 1):
        raise ValueError(f"reward_pairs: the model gives {scores.shape}, expected {(b, 1)}. Hint: a sequence classifier with num_labels 1")
    scores = scores.reshape(b // k, k)
    if k == 2:
        margin = extra("reward_pairs", batch, "margin", (b,))[::2] if "margin" in batch.extra else 0.0
        each = -ops.log_sigmoid(scores[:, 0] - scores[:, 1] - constant(margin, scores))
    else:
        if "margin" in batch.extra:
            raise ValueError("reward_pairs: margins are of pairs; expected k=2")
        each = -ops.log_softmax(scores)[:, 0]
        for place in range(1, k - 1):
            each = each - ops.log_softmax(scores[:, place:])[:, 0]
    total = each.sum()
    if centre:
        total = total + (scores.sum(axis=1) ** 2).sum() * centre
    r = scores.data
    return Loss(total, b // k, {"accuracy": float((r[:, :1] > r[:, 1:]).all(1).sum()), "margin": float((r[:, 0] - r[:, 1:].mean(1)).sum()),
                                "mean_reward": float(np.mean(r, 1).sum()), "min_reward": (float(r.min()), 1),
                                "max_reward": (float(r.max()), 1)})
