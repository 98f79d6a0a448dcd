"""Policies from rewards without a value model: several responses a prompt are each other's baseline.

One procedure, and ALGORITHMS says what differs: the loss's mean, the advantages, where the divergence from the reference is taken off.
"""
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyllm import objectives
from pyllm.align import invariants
from pyllm.align.advantages import gae, group_advantages, whiten
from pyllm.align.policy import check_reference, log_probs
from pyllm.align.ppo import ESTIMATORS, with_scores
from pyllm.align.reward import check_scores
from pyllm.align.rollout import check_prompts, rollout
from pyllm.align.update import Iteration, Patience, draw_prompts, updates
from pyllm.autograd import Rng

# name: (loss of objectives.grpo, estimator of advantages, where beta * KL goes: the loss, the score, or every token's reward)
ALGORITHMS = {
    "grpo": ("grpo", "grpo", "loss"),  # Shao et al. 2024
    "dr_grpo": ("dr_grpo", "dr_grpo", "loss"),  # Liu et al. 2025
    "dapo": ("dapo", "grpo", "loss"),  # Yu et al. 2025; epsilon_high 0.28 and filter_equal are its too
    "rloo": ("rloo", "rloo", "score"),  # Ahmadian et al. 2024
    "reinforce++": ("dapo", "reinforce++", "tokens"),  # Hu et al. 2025
}


@dataclass(frozen=True)
class GRPOConfig:
    """steps: iterations. batch: prompts an iteration, num_generations responses each. Names and defaults are TRL's where it has them."""

    algorithm: str = "grpo"
    steps: int = 100
    batch: int = 8
    num_generations: int = 8
    micro_batch: int = 16  # rows of a forward and backward; no result depends on it but memory
    max_completion_length: int = 256
    temperature: float = 1.0
    num_iterations: int = 1  # epochs over a rollout
    num_mini_batches: int = 1
    lr: float = 1e-6
    lr_end: float = 0.0  # the learning rate falls to it in a line; equal to lr = constant
    max_grad_norm: float = 1.0  # 0 = no clipping
    beta: float = 0.0  # weight of the divergence from the reference; 0 = none, and no reference is needed
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None = epsilon
    entropy_coef: float = 0.0
    mask_truncated_completions: bool = False  # responses without a stop token count for nothing
    filter_equal: bool = False  # prompts whose responses all have the same score count for nothing, not even in the mean
    missing_eos_penalty: float = 0.0  # taken from the score of a response without a stop token
    starts_at_reference: bool = True  # the first rollout's divergence must be 0
    patience: int = 5  # iterations with the same score for all responses before the run stops; 0 = never
    seed: int = 0

    def __post_init__(self):
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"GRPOConfig: algorithm={self.algorithm!r}; expected one of {', '.join(ALGORITHMS)}")
        wrong = [f"{name}={getattr(self, name)!r}" for name in ("batch", "micro_batch", "max_completion_length", "num_iterations",
                                                                "num_mini_batches") if getattr(self, name) < 1]
        if self.num_generations < 2:
            wrong.append(f"num_generations={self.num_generations}, expected at least 2: they are each other's baseline")
        if not self.temperature > 0:
            wrong.append(f"temperature={self.temperature}, expected a number above 0")
        if wrong:
            raise ValueError("GRPOConfig: " + "; ".join(wrong))


def grpo(policy, reference, prompts, reward, optimizer, config=GRPOConfig(), *, stop=(), start=0, vocabulary=None):
    """Trains `policy` in place, an iteration for each turn of the caller's loop -> iterator of Iteration.

    policy: a CausalLM. reference: what it is kept near to, None where beta is 0. Rewards of steps are added up. The other arguments and
    the errors are those of `ppo`.
    """
    if reference is not None:
        check_reference("grpo", policy, reference)
    elif config.beta:
        raise ValueError(f"grpo: beta={config.beta} without a reference. Hint: pyllm.align.frozen_copy(policy), or beta=0")
    check_prompts(policy, prompts, config.max_completion_length)
    return _iterations(policy, reference, prompts, reward, optimizer, config, stop, start, vocabulary)


def _iterations(policy, reference, prompts, reward, optimizer, c, stop, start, vocabulary):
    keys, patience = Rng(c.seed), Patience("grpo", c.patience)
    loss, estimator, where = ALGORITHMS[c.algorithm]
    objective = partial(objectives.grpo, loss=loss, epsilon=c.epsilon, epsilon_high=c.epsilon_high, max_length=c.max_completion_length,
                        beta=c.beta if where == "loss" else 0.0, entropy_coef=c.entropy_coef, temperature=c.temperature)
    for step in range(start, c.steps):
        clock = [time.perf_counter()]
        # 1. Prompts, several responses to each.
        drawn = rollout(policy, draw_prompts(prompts, c.batch, keys, step), copies=c.num_generations, max_tokens=c.max_completion_length,
                        temperature=c.temperature, stop=stop, seed=keys.fold("rollout", step), vocabulary=vocabulary)
        clock.append(time.perf_counter())

        # 2. Scores of whole responses.
        scores = check_scores("grpo", reward(drawn), drawn)
        if scores.ndim == 2:
            scores = scores.sum(1)
        patience.see(scores, step + 1)
        drawn = drawn.with_(scores=scores)
        scores = np.where(drawn.ended, scores, scores - c.missing_eos_penalty)

        # 3. The divergence from the reference, at every token.
        d = np.zeros(drawn.logp.shape)
        if reference is not None:
            drawn = drawn.with_(ref_logp=log_probs(reference, drawn.batch(), c.temperature))
            d = drawn.logp.astype(np.float64) - drawn.ref_logp
            if step == 0 and c.starts_at_reference:
                invariants.same_policy(drawn)
        invariants.masks(drawn)

        # 4. Advantages, of responses or of tokens.
        if where == "tokens":
            rewards = with_scores(-c.beta * d, scores, drawn)
            advantages = whiten(gae(rewards, np.zeros_like(rewards), drawn.mask, 1.0, 1.0)[0], drawn.mask)
        else:
            advantages = group_advantages(scores - c.beta * d.sum(1) if where == "score" else scores, c.num_generations, estimator)

        # 5. Which responses count.
        groups = scores.reshape(-1, c.num_generations)
        equal = np.repeat(np.ptp(groups, axis=1) == 0, c.num_generations)
        counts = np.ones(len(scores), bool)
        if c.mask_truncated_completions:
            counts &= drawn.ended
        if c.filter_equal:
            counts &= ~equal
        extra = {"logp": drawn.logp, "advantages": advantages}
        if reference is not None:
            extra["ref_logp"] = drawn.ref_logp
        clock.append(time.perf_counter())

        # 6. Epochs of minibatches.
        lr, stats = c.lr + (c.lr_end - c.lr) * step / c.steps, {}
        if counts.any():
            stats = updates("grpo", policy, objective, drawn.batch(**extra).rows(np.flatnonzero(counts)), optimizer,
                            keys.fold("updates", step), epochs=c.num_iterations, minibatches=min(c.num_mini_batches, int(counts.sum())),
                            micro_batch=c.micro_batch, lr=lr, clip=c.max_grad_norm)
            invariants.entropy_is_not_negative(stats["entropy"])
        clock.append(time.perf_counter())

        # 7. What was, over response tokens only.
        stats = {"reward": drawn.scores.mean(), "reward_std": groups.std(1, ddof=1).mean(), "frac_reward_zero_std": equal.mean(),
                 **stats, "completions/mean_length": drawn.lengths.mean(),
                 "completions/min_length": drawn.lengths.min(), "completions/max_length": drawn.lengths.max(),
                 "completions/clipped_ratio": 1 - drawn.ended.mean(),
                 **{f"completions/{name}_terminated_length": of(drawn.lengths[drawn.ended]) if drawn.ended.any() else 0 for name, of in
                    (("mean", np.mean), ("min", np.min), ("max", np.max))}, "num_tokens": drawn.lengths.sum(), "lr": lr,
                 "step_time": clock[-1] - clock[0], "eps": len(scores) / (clock[-1] - clock[0])}
        if reference is not None:  # without one nobody knows the divergence; 0 would be a claim
            stats |= {"objective/kl": d.sum(1).mean(), **{f"objective/kl_{name}": estimate(d).sum(1).mean() for name, estimate in
                                                          ESTIMATORS.items()}}
        yield Iteration(step + 1, {name: float(x) for name, x in stats.items()}, drawn,
                        dict(zip(("rollout", "rewards", "updates"), np.diff(clock).tolist())))
