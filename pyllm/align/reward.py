"""Rewards: functions Rollout -> (B,) scores, or (B, T) for rewards step by step. A model that learned them, or a rule."""
from dataclasses import dataclass, replace

import numpy as np

from pyllm.align.policy import chunks
from pyllm.autograd import no_grad
from pyllm.data import collate
from pyllm.data.batch import Batch
from pyllm.data.render import render
from pyllm.nn import Linear
from pyllm.objectives.base import inputs


def rule(function, tokenizer, step=""):
    """function(prompt text, response text) -> number, as a reward: scores of a Rollout (B,).

    step: a text that ends a step, such as a line's end. The function is then asked at the end of each step, with the response so far, and
    its numbers stand on the tokens that end them: scores (B, T), a process reward.
    """
    def scores(rollout):
        prompts = [tokenizer.decode(rollout.prompt(row).tolist(), skip_special=True) for row in range(len(rollout.tokens))]
        if not step:
            return np.array([function(prompt, tokenizer.decode(rollout.response(row).tolist(), skip_special=True))
                             for row, prompt in enumerate(prompts)], np.float64)
        found = np.zeros(rollout.tokens.shape)
        for row, t in np.argwhere(step_ends(rollout, tokenizer, step)):
            said = rollout.tokens[row, rollout.prompt_lengths[row] : t + 2].tolist()
            found[row, t] = function(prompts[row], tokenizer.decode(said, skip_special=True))
        return found

    return scores


def step_ends(rollout, tokenizer, step):
    """-> (B, T) bool: where the token is drawn with which `step`, a text, is complete once more, or with which the response ends."""
    found = np.zeros(rollout.tokens.shape, bool)
    for row, last in enumerate(rollout.last):
        begin, steps = rollout.prompt_lengths[row], 0
        for t in range(begin - 1, last + 1):
            now = tokenizer.decode(rollout.tokens[row, begin : t + 2].tolist()).count(step)
            found[row, t], steps = now > steps or t == last, now
    return found


@dataclass
class RewardModel:
    """A sequence classifier as a reward: gain * output + bias. With one label the output is what it says at each row's last real token.

    label: of a classifier of several, whose log odds are the output. texts: (the policy's tokenizer, the model's own) where they are not
    one and the same: the model then reads prompt and response as a text of its own tokens, its end where it is too long for it.
    Gain and bias are kept in the model's configuration, as reward_gain and reward_bias, so that pyllm.save and pyllm.load keep them too.
    normalize() sets gain and bias so that a sample of responses has mean 0 and deviation 1, fold() puts the gain into the weights, whose
    training then begins there: Ziegler et al. 2019 do both before training, and the first once more behind it.
    """

    model: object
    label: str | None = None
    texts: tuple | None = None
    gain = property(lambda self: self.model.config.extra.get("reward_gain", 1.0))
    bias = property(lambda self: self.model.config.extra.get("reward_bias", 0.0))

    def __post_init__(self):
        labels = self.model.config.labels()
        if self.label is not None:
            names = [self.model.config.extra.get("id2label", {}).get(str(i)) for i in range(labels)]
            if self.label not in names or labels < 2:
                raise ValueError(f"RewardModel: label={self.label!r}; expected one of several, the model has {names}")
            self.column = names.index(self.label)
        elif labels != 1:
            raise ValueError(f"RewardModel: a classifier of {labels} labels; expected num_labels 1 in its configuration, or label=NAME, "
                             "whose log odds are then the reward")

    def __call__(self, rollout):
        """-> (B,) scores of a Rollout."""
        if self.texts is None:
            return self.scores(Batch(rollout.tokens, rollout.targets, rollout.segments))
        theirs, own = self.texts
        texts = [theirs.decode(row[some > 0].tolist(), skip_special=True) for row, some in zip(rollout.tokens, rollout.segments)]
        rows = [render({"text": text, "label": 0, "where": f"response {i}"}, "classification", own, labels=[0], truncation="keep_end",
                       max_length=self.model.config.size("context")) for i, text in enumerate(texts)]
        return self.scores(collate(rows))

    def scores(self, batch):
        """-> (B,) float64: the reward of each row, read at its last real token."""
        with no_grad():
            found = []
            for _, some in chunks(batch):
                args, options = inputs(some)
                output = self.model(*args, **options).data
                if self.label is not None:
                    output = output[:, self.column, None] - np.logaddexp.reduce(np.delete(output, self.column, 1), 1, keepdims=True)
                found.append(output[:, 0])
        return self.gain * np.concatenate(found).astype(np.float64) + self.bias

    def at(self, rollout, where):
        """where: (B, T) bool, such as step_ends -> (B, T) float64: what the model says of prompt and response up to there, 0 elsewhere.

        A process reward, of a model that reads from left to right.
        """
        found = np.zeros(where.shape)
        for t in np.flatnonzero(where.any(0)):
            rows = np.flatnonzero(where[:, t])
            found[rows, t] = self.scores(Batch(*(a[rows, : t + 2] for a in (rollout.tokens, rollout.targets, rollout.segments))))
        return found

    def normalize(self, batches):
        """batches: a sample of what will be scored; sets gain and bias -> self. ValueError for rewards that are all alike."""
        raw = np.concatenate([(self.scores(batch) - self.bias) / self.gain for batch in batches])
        if not np.isfinite(raw).all() or raw.std() < 1e-12:
            raise ValueError(f"RewardModel.normalize: {len(raw)} rewards from {raw.min()} to {raw.max()}; expected finite ones that differ")
        gain = float(1 / raw.std())
        config = self.model.config
        self.model.config = replace(config, extra={**config.extra, "reward_gain": gain, "reward_bias": float(-raw.mean() * gain)})
        return self

    def fold(self):
        """Multiplies the weights of the last layer by the gain, which is then 1; the scores stay as they are -> self."""
        last = [m for _, m in self.model.score_layer.named_modules() if type(m) is Linear][-1]
        for p in last.parameters():
            p.data = p.data * np.float32(self.gain)
        self.model.config = replace(self.model.config, extra={**self.model.config.extra, "reward_gain": 1.0})
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
