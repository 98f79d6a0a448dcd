"""What pyllm reward, dpo and kto share: examples of preferences, a run in its folder (pyllm.cli.run), held-out accuracy and margins."""
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pyllm.cli import run as runs
from pyllm.cli.config import key
from pyllm.cli.sft import Finetune


@dataclass(frozen=True)
class Model:
    path: str = key("", "a model folder, a .gguf file, or a run folder", flags=("model",))


@dataclass(frozen=True)
class Preferences(Finetune):
    ALL = 1e-6
    epochs: float = key(1.0, "times that the examples are read", 0.0)
    batch: int = key(8, "examples of a micro-batch; a pair is one", 1)
    lr: float = key(0.0, "learning rate at its highest; 0 = 1e-6, of LoRA 1e-5, of other adapters as much more as in sft", 0.0,
                    flags=("lr", "learning-rate"))
    warmup_ratio: float = key(0.1, "share of the steps in which the learning rate rises", 0.0, 1.0)
    weight_decay: float = key(0.0, "AdamW's decay of matrices, times the learning rate", 0.0)
    sample_tokens: int = key(48, "tokens of the samples at every evaluation; 0 = none", 0)


def begin(verb, config, out, resume, kind):
    """-> (checkpoint to go on from or None, model, tokenizer, {"train", "valid"}: lists of Rows, or of pairs of them).

    config.train gets its learning rate. ConfigError for examples that are not of `kind`, or that would spoil the run.
    """
    from pyllm.cli.adapters import rated
    from pyllm.cli.sft import look, open_model, read, render
    from pyllm.errors import ConfigError

    checkpoint, path = runs.newest(verb, out, resume), config.model.path
    config.train = rated(config.train, config.peft)
    model, tokenizer = open_model(path, packed=path.endswith(".gguf") and config.peft.base != "f32")
    found = read(config.data)
    if found["train"].kind != kind:
        keys = {"preference": "prompt, chosen, rejected", "unpaired": "prompt, completion, label"}[kind]
        raise ConfigError(f"{verb}: {config.data.path} has examples of kind {found['train'].kind}; expected {kind}: {keys}")
    if config.data.check and not checkpoint:
        look(config.data, model, tokenizer, found, None)
    rows = render(config, model, tokenizer, found, None)
    if kind == "preference":
        rows = {part: without_equals(verb, part, pairs) for part, pairs in rows.items()}
    return checkpoint, model, tokenizer, rows


def without_equals(verb, part, pairs):
    """-> the pairs whose chosen and rejected answers differ; says how many do not, ConfigError where none does."""
    from pyllm.errors import ConfigError

    kept = [pair for pair in pairs if pair[0].tokens.tolist() != pair[1].tokens.tolist()]
    if not kept:
        raise ConfigError(f"{verb}: in all {len(pairs)} pairs of {part} the chosen answer is the rejected one")
    if len(kept) < len(pairs):
        print(f"{part:<10} {len(pairs) - len(kept):,} pairs dropped: chosen equals rejected, as far as length leaves them whole")
    return kept


def batches(items, model, t, shuffle=True):
    """-> Batches over Rows or pairs of Rows, t.batch of them in each."""
    from pyllm.data.batches import Batches

    lengths = [max(map(len, item)) if isinstance(item, tuple) else len(item) for item in items]
    return Batches(lengths, lambda bins: together([items[i] for some in bins for i in some], model), batch=t.batch, seed=t.seed,
                   shuffle=shuffle)


def together(items, model):
    """-> a Batch of Rows or of pairs of them, in their order."""
    from pyllm.cli.sft import architecture
    from pyllm.data import collate

    return collate(items, start=model.config.starts[0] if architecture(model) == "encoder-decoder" else None)


def remember(rows, model, t):
    """Puts log p of each response under `model`, which does not learn yet, into every Row's extra: the reference, computed once.

    Without its adapters; in the precision of the training, whose log-probabilities are compared with these.
    """
    from pyllm import peft
    from pyllm.align import with_reference
    from pyllm.autograd import precision
    from pyllm.data.render import rows_of
    from pyllm.progress import Progress

    items = [item for part in rows.values() for item in part]
    with peft.disabled(model), precision(t.precision), Progress(len(items), "reference", "example") as bar:
        for begin in range(0, len(items), t.batch):
            some = items[begin : begin + t.batch]
            known = with_reference(together(some, model), model).extra["ref_logp"]
            for row, logp in zip(rows_of(some), known.tolist()):
                row.extra["ref_logp"] = logp
            bar.update(len(some))


def starts_at_reference(model, objective, batch, t):
    """InvariantError unless the rewards of a batch are 0, as they are before the first update: the policy is its reference."""
    from pyllm import peft
    from pyllm.align.invariants import TOLERANCE, require
    from pyllm.autograd import precision
    from pyllm.training import evaluate

    if all(a.method.EXACT for a in peft.adapters(model)):
        with precision(t.precision):
            found = evaluate(model, objective, [batch]).metrics
        apart = max(abs(found.get(f"rewards/{name}", 0.0)) for name in ("chosen", "rejected"))
        require(apart <= TOLERANCE, "rewards are 0 before the first update", f"they are up to {apart:.3g}")


def learn(verb, config, out, model, tokenizer, rows, objective, checkpoint, *, train, evaluate=None, sample=None, until=None):
    """Runs the training -> exit code. train: endless Batches. evaluate: as pyllm.cli.run has it; None: the objective on rows["valid"]."""
    from pyllm import peft, training
    from pyllm.autograd import precision
    from pyllm.io.files import write_toml

    out, t = Path(out), config.train
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / "config.resolved.toml", config.table())
    an_epoch = max(1, -(-len(rows["train"]) // t.batch) // t.accumulate)
    steps = t.steps or max(1, round(t.epochs * an_epoch))
    print(f"model      {type(model).__name__}, {model.config.model_type}, {peft.report(model).total:,} parameters")
    print(f"steps      {steps:,}; {an_epoch:,} are an epoch; learning rate {t.lr:g}", flush=True)

    def scores():
        with precision(t.precision):
            found = training.evaluate(model, objective, islice(batches(rows["valid"], model, t, False).once(), t.eval_batches or None))
        values = {"valid_loss": found.loss, **{f"valid_{name}": value for name, value in found.metrics.items()}}
        return found.loss, values, runs.described(values).removeprefix("validation ")

    code = runs.run(verb, out, replace(t, eval_every=t.eval_every or an_epoch), steps=steps, warmup=int(t.warmup_ratio * steps),
                    model=model, tokenizer=tokenizer, objective=objective, batches=train, evaluate=evaluate or scores, sample=sample,
                    rates=peft.rates(model), base=config.model.path, checkpoint=checkpoint, until=until)
    for last in training.read_log(out / "samples.jsonl")[-1:]:  # none where the run has none, or stopped before the first
        runs.table([(s["prompt"], repr(s["before"]), repr(s["text"])) for s in last["samples"][:3]])
    return code


def answers(model, tokenizer, items, tokens, count=4):
    """-> step -> {"samples": [{prompt, text, before}]}: greedy answers to the first prompts, beside those of the model as it is now."""
    from pyllm.generation import generate

    firsts = [(item[0] if isinstance(item, tuple) else item) for item in items[:count]]
    prompts = [row.tokens[: max(1, int(row.learned.argmax()))].tolist() if row.decoder is None else row.tokens.tolist() for row in firsts]

    def texts():
        return [found.text for found in generate(model, tokenizer, prompts, max_tokens=tokens, temperature=0)]

    before = texts() if tokens else []
    return lambda step: {"samples": [{"prompt": tokenizer.decode(p), "text": t, "before": b} for p, t, b in zip(prompts, texts(), before)]}
