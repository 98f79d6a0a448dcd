"""PPO from a reward, stage by stage (Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022).

Details marked [N] are of openai/lm-human-preferences as "The N Implementation Details of RLHF with PPO" lists them (Huang et al. 2023);
[TRL] is TRL's PPOTrainer, whose names the configuration and the metrics have. Adam's epsilon as TensorFlow adds it [N] is the optimizer's:
AdamW(tensorflow=True); rewards of deviation 1 before training [N] are RewardModel.normalize's.
"""
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from pyllm import objectives
from pyllm.align import invariants
from pyllm.align.advantages import gae, whiten
from pyllm.align.policy import ActorCritic, check_reference, chunks, log_probs
from pyllm.align.reward import check_scores
from pyllm.align.rollout import check_prompts, rollout
from pyllm.align.update import Iteration, Patience, draw_prompts, updates
from pyllm.autograd import Rng, no_grad

ESTIMATORS = {  # of KL(policy || reference) a token from d = log p - log ref, at a token the policy drew. Schulman 2020
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: np.expm1(-d) + d,
}


@dataclass(frozen=True)
class PPOConfig:
    """steps: iterations, each a rollout and its updates. batch: prompts an iteration. Lengths in tokens, divergences in nats."""

    steps: int = 100
    batch: int = 64
    micro_batch: int = 16  # rows of a forward and backward; no result depends on it but memory
    response_length: int = 53
    stop_after: int = 0  # a stop token ends a response from this token on [N: truncate_after 16]
    temperature: float = 0.7  # of the policy and of the reference, everywhere [N]
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    lr: float = 3e-6
    lr_end: float = 0.0  # the learning rate falls to it in a line [N]; equal to lr = constant
    max_grad_norm: float = 1.0  # 0 = no clipping
    kl_coef: float = 0.05
    kl_estimator: str = "k1"
    target_kl: float = 0.0  # nats a response: kl_coef follows it [N: 6.0]; 0 = fixed
    kl_horizon: float = 10_000  # episodes in which a controller that is off by all of it changes by e [N]
    cliprange: float = 0.2
    cliprange_value: float = 0.2  # 0 = values are not clipped
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False  # without a shift of the mean [N: on, TRL: off]
    whiten_advantages: str = "batch"  # [TRL]; "minibatch" [N], or "none"
    missing_eos_penalty: float = 0.0  # taken from the score of a response without a stop token [TRL]
    missing_eos_score: float | None = None  # or put in place of its score [N: -1]
    starts_at_reference: bool = True  # the first rollout's divergence must be 0
    patience: int = 5  # iterations with the same score for all responses before the run stops; 0 = never
    seed: int = 0

    def __post_init__(self):
        wrong = [f"{name}={getattr(self, name)!r}" for name in ("batch", "micro_batch", "response_length", "num_ppo_epochs",
                                                                "num_mini_batches") if getattr(self, name) < 1]
        if self.kl_estimator not in ("k1", "k3"):
            wrong.append(f"kl_estimator={self.kl_estimator!r}, expected k1 or k3")
        if self.whiten_advantages not in ("batch", "minibatch", "none"):
            wrong.append(f"whiten_advantages={self.whiten_advantages!r}, expected batch, minibatch or none")
        if self.num_mini_batches > self.batch:
            wrong.append(f"num_mini_batches={self.num_mini_batches}, expected at most batch={self.batch}")
        if not self.temperature > 0:
            wrong.append(f"temperature={self.temperature}, expected a number above 0")
        if wrong:
            raise ValueError("PPOConfig: " + "; ".join(wrong))


def ppo(policy, reference, prompts, reward, optimizer, config=PPOConfig(), *, stop=(), start=0, kl_coef=None, vocabulary=None):
    """Trains `policy` in place, an iteration for each turn of the caller's loop -> iterator of Iteration.

        actor = ActorCritic(model)
        for it in ppo(actor, frozen_copy(model), prompts, reward, AdamW(actor, weight_decay=0), PPOConfig(steps=50)):
            print(it.step, it.metrics["objective/scores"], it.metrics["objective/kl"])

    policy: an ActorCritic. reference: what it is kept near to. prompts: lists of token ids. reward: a function of a Rollout, see
    pyllm.align.reward. stop: ids that end a response. start, kl_coef: where an interrupted run goes on, and its controller's last value:
    every draw comes from (seed, iteration), so it goes on with the bits of a run that never stopped.
    ValueError before anything is computed for prompts beyond the context, a reference that does not fit; later for a reward that is not
    finite or says nothing. InvariantError for what cannot be.
    """
    if not isinstance(policy, ActorCritic):
        raise TypeError(f"ppo: policy is a {type(policy).__name__}; expected an ActorCritic, with values. Hint: ActorCritic(model)")
    check_reference("ppo", policy.policy, reference)
    check_prompts(policy, prompts, config.response_length)
    return _iterations(policy, reference, prompts, reward, optimizer, config, stop, start, config.kl_coef if kl_coef is None else kl_coef,
                       vocabulary)


def _iterations(policy, reference, prompts, reward, optimizer, c, stop, start, kl_coef, vocabulary):
    keys, patience = Rng(c.seed), Patience("ppo", c.patience)
    objective = partial(objectives.ppo, cliprange=c.cliprange, cliprange_value=c.cliprange_value, vf_coef=c.vf_coef,
                        entropy_coef=c.entropy_coef, temperature=c.temperature)
    for step in range(start, c.steps):
        clock = [time.perf_counter()]
        # 1. Prompts, and responses drawn at the temperature, whole distribution: no cuts, no forced tokens.
        drawn = rollout(policy.policy, draw_prompts(prompts, c.batch, keys, step), max_tokens=c.response_length, temperature=c.temperature,
                        stop=stop, stop_after=c.stop_after, seed=keys.fold("rollout", step), vocabulary=vocabulary,
                        value=policy.value if policy.shared else None)
        clock.append(time.perf_counter())

        # 2. Scores of whole responses; without a stop token a penalty.
        scores = check_scores("ppo", reward(drawn), drawn)
        patience.see(scores, step + 1)
        raw = scores
        scores = penalized(scores, drawn, c)

        # 3. The reference's log-probabilities, in batches, and values that are a model's; the policy's own were kept: the same bits.
        batch = drawn.batch()
        drawn = drawn.with_(ref_logp=log_probs(reference, batch, c.temperature), scores=raw,
                            values=drawn.values if policy.shared else values(policy, batch))
        invariants.masks(drawn)
        if step == 0 and c.starts_at_reference:
            invariants.same_policy(drawn)

        # 4. Rewards: at every token the penalty of the divergence, at the last one the score too [N].
        mask, d = drawn.mask, drawn.logp.astype(np.float64) - drawn.ref_logp
        kl = {name: np.where(mask, estimate(d), 0) for name, estimate in ESTIMATORS.items()}
        penalties = -kl_coef * kl[c.kl_estimator]
        rewards = with_scores(penalties, scores, drawn)

        # 5. Whitened, if asked for; generalised advantages.
        if c.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        advantages, returns = gae(rewards, drawn.values, mask, c.gamma, c.lam)
        if c.whiten_advantages == "batch":
            advantages = whiten(advantages, mask)
        clock.append(time.perf_counter())

        # 6. Epochs of minibatches.
        lr = c.lr + (c.lr_end - c.lr) * step / c.steps
        stats = updates("ppo", policy, objective, drawn.batch(logp=drawn.logp, values=drawn.values, advantages=advantages, returns=returns),
                        optimizer, keys.fold("updates", step), epochs=c.num_ppo_epochs, minibatches=c.num_mini_batches,
                        micro_batch=c.micro_batch, lr=lr, clip=c.max_grad_norm,
                        prepare=whitened if c.whiten_advantages == "minibatch" else None)
        invariants.entropy_is_not_negative(stats["policy/entropy_avg"])
        clock.append(time.perf_counter())

        # 7. What was, over response tokens only; then the controller of the divergence [N].
        stats["val/ratio_var"] = max(stats.pop("val/ratio_square") - stats["val/ratio"] ** 2, 0.0)
        stats = {**summary(drawn, kl, penalties, c), **stats, "objective/kl_coef": kl_coef, "lr": lr, "episode": (step + 1) * c.batch,
                 "eps": c.batch / (clock[-1] - clock[0])}
        yield Iteration(step + 1, {name: float(x) for name, x in stats.items()}, drawn,
                        dict(zip(("rollout", "rewards", "updates"), np.diff(clock).tolist())))
        kl_coef = adapted(kl_coef, kl["k1"].sum(1).mean(), c)


def penalized(scores, drawn, c):
    """-> scores, changed for responses without a stop token."""
    late = ~drawn.ended
    if scores.ndim == 2:
        scores = scores.copy()
        scores[late, drawn.last[late]] -= c.missing_eos_penalty
        return scores
    scores = np.where(late, scores - c.missing_eos_penalty, scores)
    return scores if c.missing_eos_score is None else np.where(late, c.missing_eos_score, scores)


def with_scores(penalties, scores, drawn):
    """penalties:(B, T) -> rewards: with each score on the last token of its response (trl#3750: not on the padding behind it)."""
    if scores.ndim == 2:
        return penalties + scores
    rewards = penalties.copy()
    rewards[np.arange(len(scores)), drawn.last] += scores
    invariants.score_on_last_token(rewards, penalties, scores, drawn)
    return rewards


def values(policy, batch):
    """-> (B, T) float32: the policy's values where a token is drawn, 0 elsewhere."""
    found = np.zeros(batch.targets.shape, np.float32)
    with no_grad():
        for part, some in chunks(batch):
            found[part, : some.tokens.shape[1]] = policy.values(some.tokens, some.segments, policy.hidden(some.tokens, some.segments)).data
    return np.where(batch.targets >= 0, found, 0)


def whitened(batch):
    """-> the Batch with its advantages whitened."""
    return replace(batch, extra={**batch.extra, "advantages": whiten(batch.extra["advantages"], batch.targets >= 0)})


def adapted(kl_coef, kl, c):
    """-> the coefficient after an iteration of divergence `kl`: proportional control, an error counts at most 0.2. Ziegler et al. 2019."""
    return kl_coef * (1 + np.clip(kl / c.target_kl - 1, -0.2, 0.2) * c.batch / c.kl_horizon) if c.target_kl else kl_coef


def summary(drawn, kl, penalties, c):
    """-> metrics of a rollout: sums over a response's tokens, means over responses."""
    scores = drawn.scores if drawn.scores.ndim == 1 else drawn.scores.sum(1)
    bonus = penalties.sum(1).mean()
    return {"objective/kl": kl[c.kl_estimator].sum(1).mean(), **{f"objective/kl_{name}": each.sum(1).mean() for name, each in kl.items()},
            "objective/entropy": -drawn.logp.sum(1).mean(dtype=np.float64), "objective/non_score_reward": bonus,
            "objective/scores": scores.mean(), "objective/rlhf_reward": bonus + scores.mean(), "objective/scores_std": scores.std(),
            "val/num_eos_tokens": int(drawn.ended.sum()), "completions/mean_length": drawn.lengths.mean(),
            "completions/min_length": int(drawn.lengths.min()), "completions/max_length": int(drawn.lengths.max())}
