"""Learning from the better of one's own responses: best of n, rejection sampling, online DPO."""
import time
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyllm import objectives
from pyllm.align.policy import check_reference, with_reference
from pyllm.align.reward import check_scores
from pyllm.align.rollout import check_prompts, rollout
from pyllm.align.update import Iteration, Patience, draw_prompts, updates
from pyllm.autograd import Rng


def best_of_n(policy, prompts, reward, n, **options):
    """n responses to each prompt, drawn as `rollout` does with `options` -> Rollout of each one's best, of equals the first."""
    if n < 1:
        raise ValueError(f"best_of_n: n={n}; expected at least 1")
    drawn = rollout(policy, prompts, copies=n, **options)
    scores = check_scores("best_of_n", reward(drawn), drawn)
    scores = scores if scores.ndim == 1 else scores.sum(1)
    return drawn.with_(scores=scores).rows(np.arange(len(prompts)) * n + scores.reshape(-1, n).argmax(1))


@dataclass(frozen=True)
class SelectionConfig:
    """steps: iterations. batch: prompts an iteration, num_generations responses each, the best kept (rejection sampling) or two (DPO)."""

    steps: int = 100
    batch: int = 16
    num_generations: int = 2
    micro_batch: int = 16  # rows of a forward and backward, even for pairs
    max_completion_length: int = 64
    temperature: float = 1.0
    epochs: int = 1
    lr: float = 5e-7
    max_grad_norm: float = 1.0  # 0 = no clipping
    beta: float = 0.1  # of DPO
    loss: str = "sigmoid"  # of DPO, see objectives.dpo
    missing_eos_penalty: float = 0.0
    patience: int = 5  # iterations with the same score for all responses before the run stops; 0 = never
    seed: int = 0

    def __post_init__(self):
        if self.num_generations < 2 or self.batch < 1 or self.micro_batch < 2 or self.micro_batch % 2:
            raise ValueError(f"SelectionConfig: num_generations={self.num_generations}, batch={self.batch}, "
                             f"micro_batch={self.micro_batch}; expected at least 2 responses to choose from, a prompt, "
                             "an even number of rows")


def rejection_sampling(policy, prompts, reward, optimizer, config=SelectionConfig(), *, stop=(), start=0, vocabulary=None):
    """Fine-tunes `policy` in place on the best of its responses to each prompt -> iterator of Iteration.

    Touvron et al. 2023, section 3.2.3. Arguments and errors as of `ppo`.
    """
    check_prompts(policy, prompts, config.max_completion_length)
    return _iterations("rejection_sampling", policy, None, prompts, reward, optimizer, config, stop, start, vocabulary)


def online_dpo(policy, reference, prompts, reward, optimizer, config=SelectionConfig(), *, stop=(), start=0, vocabulary=None):
    """DPO on the best and the worst of the policy's own responses to each prompt -> iterator of Iteration. Guo et al. 2024.

    Prompts whose best and worst score alike teach nothing and are left out. Arguments and errors as of `ppo`.
    """
    check_reference("online_dpo", policy, reference)
    check_prompts(policy, prompts, config.max_completion_length)
    return _iterations("online_dpo", policy, reference, prompts, reward, optimizer, config, stop, start, vocabulary)


def _iterations(name, policy, reference, prompts, reward, optimizer, c, stop, start, vocabulary):
    keys, patience = Rng(c.seed), Patience(name, c.patience)
    for step in range(start, c.steps):
        clock = [time.perf_counter()]
        drawn = rollout(policy, draw_prompts(prompts, c.batch, keys, step), copies=c.num_generations, max_tokens=c.max_completion_length,
                        temperature=c.temperature, stop=stop, seed=keys.fold("rollout", step), vocabulary=vocabulary)
        raw = check_scores(name, reward(drawn), drawn)
        raw = raw if raw.ndim == 1 else raw.sum(1)
        patience.see(raw, step + 1)
        drawn, scores = drawn.with_(scores=raw), np.where(drawn.ended, raw, raw - c.missing_eos_penalty).reshape(-1, c.num_generations)
        best, worst = (np.arange(c.batch) * c.num_generations + f(1) for f in (scores.argmax, scores.argmin))
        differ = np.ptp(scores, axis=1) > 0
        stats = {}
        if reference is None:
            stats = updates(name, policy, objectives.clm, drawn.rows(best).batch(), optimizer, keys.fold("updates", step), epochs=c.epochs,
                            minibatches=1, micro_batch=c.micro_batch, lr=c.lr, clip=c.max_grad_norm)
        elif differ.any():
            pairs = with_reference(drawn.rows(np.stack([best, worst], 1)[differ].reshape(-1)).batch(), reference)
            stats = updates(name, policy, partial(objectives.dpo, beta=c.beta, loss=c.loss), pairs, optimizer, keys.fold("updates", step),
                            epochs=c.epochs, minibatches=1, micro_batch=c.micro_batch, lr=c.lr, clip=c.max_grad_norm, together=2)
        seconds = time.perf_counter() - clock[0]
        stats = {"reward": raw.mean(), "reward_std": scores.std(1, ddof=1).mean(), "reward/best": raw[best].mean(),
                 "frac_reward_zero_std": 1 - differ.mean(), **stats, "completions/mean_length": drawn.lengths.mean(),
                 "completions/clipped_ratio": 1 - drawn.ended.mean(), "lr": c.lr, "eps": len(raw) / seconds}
        yield Iteration(step + 1, {key: float(x) for key, x in stats.items()}, drawn, {"all": seconds})
