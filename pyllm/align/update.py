"""Steps of an optimizer over a batch that was collected: epochs, minibatches, micro-batches. What PPO and GRPO share."""
import math
from dataclasses import dataclass, field

import numpy as np

from pyllm.align import invariants
from pyllm.align.policy import trimmed
from pyllm.align.rollout import Rollout
from pyllm.objectives.base import means


@dataclass(frozen=True)
class Iteration:
    """What one iteration was. step: iterations so far, this one included. metrics: {name: number}, named as TRL names them.

    rollout: what the policy drew, with everything that was computed for it. seconds: {stage: wall time}.
    """

    step: int
    metrics: dict
    rollout: Rollout
    seconds: dict = field(default_factory=dict)


def updates(name, model, objective, batch, optimizer, rng, *, epochs, minibatches, micro_batch, lr, clip, prepare=None, together=1):
    """epochs * minibatches steps over the rows of `batch` -> {metric: mean over steps}, grad_norm among them.

    Each epoch takes the rows in an order of its own, from rng; a step is a minibatch, its micro-batches' losses summed and divided once by
    the count of all, so their size does not matter. prepare: a function of a minibatch's Batch, such as whitening. together: so many
    neighbours, such as the two of a pair, stay in one micro-batch.
    """
    steps = []
    optimizer.zero_grad()
    for epoch in range(epochs):
        order = rng.fold("order", epoch).generator().permutation(len(batch.tokens) // together)
        for minibatch in np.array_split(order, minibatches):
            whole = batch.rows((minibatch[:, None] * together + np.arange(together)).reshape(-1))
            whole = whole if prepare is None else prepare(whole)
            total, count, metrics = 0.0, 0, {}
            width = (whole.segments > 0).sum(1).reshape(-1, together).max(1)
            rows = np.argsort(width, kind="stable")  # rows of a length side by side, so that little is padding
            rows = (rows[:, None] * together + np.arange(together)).reshape(-1)
            for begin in range(0, len(rows), micro_batch):
                loss = objective(model, trimmed(whole.rows(rows[begin : begin + micro_batch])))
                if not math.isfinite(loss.total.item()):
                    raise FloatingPointError(f"{name}: epoch {epoch + 1}: the loss is {loss.total.item()}. Hint: a lower lr")
                loss.total.backward()
                total, count = total + loss.total.item(), count + loss.count
                loss.add_to(metrics)
                del loss
            metrics = {"loss": total / count, **means(metrics)}
            if not steps:
                invariants.ratio_is_one(metrics)
            norm = optimizer.grad_norm() / count
            if not math.isfinite(norm):
                raise FloatingPointError(f"{name}: epoch {epoch + 1}: the norm of the gradient is {norm}. Hint: a lower lr")
            optimizer.step(lr, (min(1.0, clip / norm) if clip and norm else 1.0) / count)
            optimizer.zero_grad()
            steps.append({**metrics, "grad_norm": norm})
    return {key: float(np.mean([step[key] for step in steps])) for key in steps[0]}


class Patience:
    """Stops a run whose reward says nothing: the same score for every response, iteration after iteration."""

    def __init__(self, name, patience):
        self.name, self.patience, self.waited = name, patience, 0

    def see(self, scores, step):
        """ValueError after `patience` iterations in a row in which all scores were equal; 0 = never."""
        self.waited = self.waited + 1 if np.ptp(scores) == 0 else 0
        if self.patience and self.waited >= self.patience:
            raise ValueError(f"{self.name}: iteration {step}: the reward was the same for all responses, {scores.reshape(-1)[0]}, in "
                             f"{self.waited} iterations in a row: there is nothing to learn from. Hint: patience=0 goes on")


def draw_prompts(prompts, count, rng, step):
    """-> `count` of the prompts for iteration `step` (from 0): each is taken once before any is taken again, in an order from rng."""
    n, found = len(prompts), []
    for at in range(step * count, (step + 1) * count):
        turn, place = divmod(at, n)
        if not found or place == 0:
            order = rng.fold("prompts", turn).generator().permutation(n)
        found.append(prompts[order[place]])
    return found
