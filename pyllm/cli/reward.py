"""pyllm reward: a model and preferences -> a reward model in a run folder: accuracy, margin and calibration on held-out pairs.

Its gain and bias, which bring rewards to mean 0 and deviation 1 over the held-out answers, are in the configuration it is saved with.
"""
from dataclasses import dataclass, replace
from functools import partial

from pyllm.cli import preferences
from pyllm.cli import run as runs
from pyllm.cli.adapters import Peft, adapt
from pyllm.cli.config import key
from pyllm.cli.sft import Data


@dataclass(frozen=True)
class Reward(preferences.Preferences):
    ALL = 1e-4
    lr: float = key(0.0, "learning rate at its highest; 0 = 1e-4, of LoRA 1e-3, of other adapters as much more as in sft", 0.0,
                    flags=("lr", "learning-rate"))
    center: float = key(0.0, "weight of the squared sum of a pair's rewards, such as 0.01, which keeps them around 0", 0.0,
                        flags=("center", "center-rewards-coefficient"))
    normalize: bool = key(False, "bring rewards to deviation 1 before training too, not behind it alone")
    sample_tokens: int = key(0, "a reward model writes nothing", 0, 0)


SECTIONS = {"model": preferences.Model, "data": Data, "train": Reward, "peft": Peft}


def add_arguments(parser):
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return reward(runs.settings("reward", args, SECTIONS), args.out, args.resume)


def reward(config, out, resume=False, until=None):
    """Runs a Config of SECTIONS in the folder `out` -> exit code; the rest as pyllm.cli.pretrain.pretrain."""
    from itertools import islice

    from pyllm import objectives, training
    from pyllm.align import RewardModel, agreement
    from pyllm.cli.sft import architecture
    from pyllm.nn import quantize

    checkpoint, base, tokenizer, rows = preferences.begin("reward", config, out, resume, "preference")
    t = config.train
    if architecture(base) == "decoder":
        rows = {part: [tuple(map(to_its_end, pair)) for pair in pairs] for part, pairs in rows.items()}
    quantize(base, "f32")  # the classifier is made of floats; adapt packs what it does not train
    # Without dropout, as Ziegler et al. 2019: a comparison of two answers should not be one of two networks.
    model, fresh, _ = training.transfer(base, "classify", labels=["reward"], dropout=0.0, seed=t.seed)
    print(f"new        {', '.join(fresh) or 'nothing: it is a reward model already'}")

    def held():
        return list(islice(preferences.batches(rows["valid"], model, t, False).once(), t.eval_batches or None))

    if t.normalize:
        RewardModel(model).normalize(held()).fold()
    adapt(model, config.peft, t.seed)

    def evaluate():
        valid = held()
        found = agreement(RewardModel(model).normalize(valid), valid)
        values = {"valid_loss": found.loss, "valid_accuracy": found.accuracy, "valid_margin": found.margin,
                  "valid_calibration_error": found.calibration}
        return found.loss, values, runs.described(values).removeprefix("validation ")

    return preferences.learn("reward", config, out, model, tokenizer, rows, partial(objectives.reward_pairs, centre=t.center), checkpoint,
                             train=preferences.batches(rows["train"], model, t), evaluate=evaluate, until=until)


def to_its_end(row):
    """-> the Row up to the last token of its answer, where a drawn response is scored: a chat template may write more behind that."""
    last = int(row.learned.nonzero()[0][-1]) + 1
    return replace(row, tokens=row.tokens[:last], learned=row.learned[:last])
