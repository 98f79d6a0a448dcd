"""pyllm dpo: a model and preferences -> a model that prefers as they do, in a run folder. DPO and its relatives."""
from dataclasses import dataclass
from functools import partial

from pyllm.cli import preferences
from pyllm.cli import run as runs
from pyllm.cli.adapters import Peft, adapt
from pyllm.cli.config import key
from pyllm.cli.sft import Data

LOSSES = ("sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "cpo")  # the first four are DPO's, which have a reference
BETAS = {"simpo": 2.0}  # where 0.1 is not the published value


@dataclass(frozen=True)
class DPO(preferences.Preferences):
    loss: str = key("sigmoid", "DPO's sigmoid, ipo, hinge, robust, with a reference; simpo, orpo, cpo, without", choices=LOSSES)
    beta: float = key(0.0, "how much answers may move away from the reference's, less for more; 0 = the method's own, mostly 0.1", 0.0)
    gamma: float = key(0.5, "simpo's margin", 0.0)
    label_smoothing: float = key(0.0, "share of pairs that are labelled the wrong way round", 0.0, 0.49)


SECTIONS = {"model": preferences.Model, "data": Data, "train": DPO, "peft": Peft}


def add_arguments(parser):
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return dpo(runs.settings("dpo", args, SECTIONS), args.out, args.resume)


def dpo(config, out, resume=False, until=None):
    """Runs a Config of SECTIONS in the folder `out` -> exit code; the rest as pyllm.cli.pretrain.pretrain."""
    from pyllm import objectives
    from pyllm.errors import ConfigError

    checkpoint, model, tokenizer, rows = preferences.begin("dpo", config, out, resume, "preference")
    t = config.train
    adapt(model, config.peft, t.seed)
    options = {"beta": t.beta or BETAS.get(t.loss, 0.1)}
    if t.label_smoothing and t.loss not in ("sigmoid", "robust", "cpo"):
        raise ConfigError(f"train.label_smoothing={t.label_smoothing}: of the losses sigmoid, robust and cpo; loss is {t.loss}")
    if t.loss in ("simpo", "orpo", "cpo"):
        options.update({"simpo": {"gamma": t.gamma}, "cpo": {"label_smoothing": t.label_smoothing}}.get(t.loss, {}))
        objective = partial(objectives.PREFERENCES[t.loss], **options)
    else:
        objective = partial(objectives.dpo, loss=t.loss, label_smoothing=t.label_smoothing, **options)
        preferences.remember(rows, model, t)
        if not checkpoint:
            preferences.starts_at_reference(model, objective, preferences.together(rows["train"][: t.batch], model), t)
    return preferences.learn("dpo", config, out, model, tokenizer, rows, without_dropout(objective), checkpoint,
                             train=preferences.batches(rows["train"], model, t),
                             sample=preferences.answers(model, tokenizer, rows["valid"], t.sample_tokens), until=until)


def without_dropout(objective):
    """-> the objective without dropout: noise in log-probabilities would be noise in what they are compared with (trl#744)."""
    return lambda model, batch, rng=None: objective(model, batch)
