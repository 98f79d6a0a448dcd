"""Rewards: functions Rollout -> (B,) scores, or (B, T) for rewards step by step. A model that learned them, or a rule."""
from dataclasses import dataclass, replace

import numpy as np

from pyllm.align.policy import chunks
from pyllm.autograd import no_grad
from pyllm.data.batch import Batch
from pyllm.objectives.base import inputs


def rule(function, tokenizer):
    """function(prompt text, response text) -> number, as a reward: scores of a Rollout (B,)."""
    def scores(rollout):
        return np.array([function(tokenizer.decode(rollout.prompt(row).tolist(), skip_special=True),
                                  tokenizer.decode(rollout.response(row).tolist(), skip_special=True))
                         for row in range(len(rollout.tokens))], np.float64)

    return scores


@dataclass
class RewardModel:
    """A sequence classifier with one label, which reads each row's last real token, as a reward: gain * output + bias.

    Both are kept in the model's configuration, as reward_gain and reward_bias, so that pyllm.save and pyllm.load keep them too.
    normalize() sets gain and bias so that a sample of responses has mean 0 and deviation 1, before and after training: Ziegler et al.
    2019.
    """

    model: object
    gain = property(lambda self: self.model.config.extra.get("reward_gain", 1.0))
    bias = property(lambda self: self.model.config.extra.get("reward_bias", 0.0))

    def __post_init__(self):
        labels = self.model.config.labels()
        if labels != 1:
            raise ValueError(f"RewardModel: a classifier of {labels} labels; expected num_labels 1 in its configuration")

    def __call__(self, rollout):
        """-> (B,) scores of a Rollout."""
        return self.scores(Batch(rollout.tokens, rollout.targets, rollout.segments))

    def scores(self, batch):
        """-> (B,) float64: the reward of each row, read at its last real token."""
        with no_grad():
            found = []
            for _, some in chunks(batch):
                args, options = inputs(some)
                found.append(self.model(*args, **options).data[:, 0])
        return self.gain * np.concatenate(found).astype(np.float64) + self.bias

    def normalize(self, batches):
        """batches: a sample of what will be scored; sets gain and bias -> self. ValueError for rewards that are all alike."""
        raw = np.concatenate([(self.scores(batch) - self.bias) / self.gain for batch in batches])
        if not np.isfinite(raw).all() or raw.std() < 1e-12:
            raise ValueError(f"RewardModel.normalize: {len(raw)} rewards from {raw.min()} to {raw.max()}; expected finite ones that differ")
        gain = float(1 / raw.std())
        config = self.model.config
        self.model.config = replace(config, extra={**config.extra, "reward_gain": gain, "reward_bias": float(-raw.mean() * gain)})
        return self


@dataclass(frozen=True)
class Agreement:
    """What a reward model makes of pairs it has not seen. accuracy: share of pairs whose chosen row has the larger reward, of ties half.

    margin: mean of chosen - rejected. calibration: expected error of sigmoid(difference) as the probability that a pair is as labelled,
    over ten bins (Guo et al. 2017); the likelier answer is taken as the prediction. loss: -log sigmoid(difference), mean, nats.
    """

    accuracy: float
    margin: float
    calibration: float
    loss: float
    pairs: int


def agreement(reward, batches):
    """reward: a RewardModel; batches of pairs, rows 2i chosen, 2i + 1 rejected -> Agreement. Differences are taken without the gain."""
    scores = np.concatenate([reward.scores(batch) for batch in batches]) / reward.gain
    d = scores[::2] - scores[1::2]
    if not len(d):
        raise ValueError("agreement: no pairs")
    right = (d > 0) + 0.5 * (d == 0)
    sure = 1 / (1 + np.exp(-np.abs(d)))  # of the likelier answer, from 0.5 to 1
    bins = np.minimum(((sure - 0.5) * 20).astype(int), 9)
    error = sum(abs(sure[bins == i].mean() - right[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins))
    return Agreement(float(right.mean()), float(d.mean()), float(error), float(np.logaddexp(0, -d).mean()), len(d))


def check_scores(name, scores, rollout):
    """-> scores as float64; ValueError unless (B,) or (B, T), finite, and 0 beside the response."""
    scores = np.asarray(scores, np.float64)
    if scores.shape not in (rollout.lengths.shape, rollout.tokens.shape):
        raise ValueError(f"{name}: the reward gives {scores.shape}; expected {rollout.lengths.shape}, or {rollout.tokens.shape} for "
                         "rewards step by step")
    if not np.isfinite(scores).all():
        row = int(np.argwhere(~np.isfinite(scores))[0][0])
        raise ValueError(f"{name}: the reward of response {row} is {scores[~np.isfinite(scores)][0]}; expected finite numbers")
    if scores.ndim == 2 and scores[~rollout.mask].any():
        raise ValueError(f"{name}: rewards step by step are not 0 beside the response; expected 0 where rollout.mask is False")
    return scores
