"""pyllm kto: a model and answers that are good or bad (prompt, completion, label) -> a model that knows, in a run folder."""
from dataclasses import dataclass, replace
from functools import partial

from pyllm.cli import preferences
from pyllm.cli import run as runs
from pyllm.cli.adapters import Peft, adapt
from pyllm.cli.config import key
from pyllm.cli.sft import Data


@dataclass(frozen=True)
class KTO(preferences.Preferences):
    batch: int = key(16, "answers of a micro-batch; the divergence is estimated over the whole step", 1)
    beta: float = key(0.1, "how much answers may move away from the reference's, less for more", 0.0)
    desirable_weight: float = key(1.0, "of the good answers; worth more where they are fewer", 0.0)
    undesirable_weight: float = key(1.0, "of the bad answers", 0.0)


SECTIONS = {"model": preferences.Model, "data": Data, "train": KTO, "peft": Peft}


def add_arguments(parser):
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return kto(runs.settings("kto", args, SECTIONS), args.out, args.resume)


class Compared:
    """Batches whose rows know the policy's divergence from the reference, one number for all micro-batches of a step."""

    def __init__(self, batches, t, policy, reference):
        self.batches, self.t, self.policy, self.reference, self.ready = batches, t, policy, reference, []

    def __iter__(self):
        return self

    def __next__(self):
        if not self.ready:  # a step begins: its weights are those that the estimate is of
            from pyllm.autograd import precision

            some = [next(self.batches) for _ in range(self.t.accumulate)]
            with precision(self.t.precision):
                self.ready = with_kl(some, self.policy, self.reference)
        return self.ready.pop(0)

    def state(self):
        return self.batches.state()

    def load_state(self, state):
        self.batches.load_state(state)


def with_kl(some, policy, reference):
    """Batches of one step -> the same with extra["kl"]: the mean of their estimates, weighted by rows."""
    import numpy as np

    from pyllm.align import kto_kl

    rows = np.array([len(batch.tokens) for batch in some])
    several = rows > 1
    kl = [kto_kl(policy, reference, batch) for batch, enough in zip(some, several) if enough]
    mean = float(np.average(kl, weights=rows[several])) if kl else 0.0
    return [replace(batch, extra={**batch.extra, "kl": np.full(len(batch.tokens), mean)}) for batch in some]


def kto(config, out, resume=False, until=None):
    """Runs a Config of SECTIONS in the folder `out` -> exit code; the rest as pyllm.cli.pretrain.pretrain."""
    from itertools import islice

    from pyllm import objectives, training
    from pyllm.align import reference_of
    from pyllm.autograd import precision
    from pyllm.cli.dpo import without_dropout
    from pyllm.cli.sft import architecture
    from pyllm.errors import ConfigError

    checkpoint, model, tokenizer, rows = preferences.begin("kto", config, out, resume, "unpaired")
    t = config.train
    if architecture(model) != "decoder":
        raise ConfigError(f"kto: {config.model.path} is an {architecture(model)}; expected a decoder")
    good = sum(bool(row.extra["label"]) for row in rows["train"])
    if good in (0, len(rows["train"])):
        raise ConfigError(f"kto: {good} of {len(rows['train'])} answers are good; expected some of each")
    adapt(model, config.peft, t.seed)
    reference = reference_of(model)
    preferences.remember(rows, model, t)
    objective = without_dropout(partial(objectives.kto, beta=t.beta, desirable_weight=t.desirable_weight,
                                        undesirable_weight=t.undesirable_weight))

    if not checkpoint:
        first, = with_kl([preferences.together(rows["train"][: t.batch], model)], model, reference)
        preferences.starts_at_reference(model, objective, first, t)

    def evaluate():
        valid = preferences.batches(rows["valid"], model, t, False)
        with precision(t.precision):
            found = training.evaluate(model, objective, with_kl(list(islice(valid.once(), t.eval_batches or None)), model, reference))
        values = {"valid_loss": found.loss, **{f"valid_{name}": value for name, value in found.metrics.items()}}
        if {"rewards/chosen", "rewards/rejected"} <= found.metrics.keys():
            values["valid_rewards/margins"] = values["valid_rewards/chosen"] - values["valid_rewards/rejected"]
        return found.loss, values, runs.described(values).removeprefix("validation ")

    return preferences.learn("kto", config, out, model, tokenizer, rows, objective, checkpoint, evaluate=evaluate,
                             train=Compared(preferences.batches(rows["train"], model, t), t, model, reference),
                             sample=preferences.answers(model, tokenizer, rows["valid"], t.sample_tokens), until=until)
