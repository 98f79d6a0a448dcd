"""A training run in its folder, the same for every verb that trains: log, evaluations, samples, checkpoints, the best model, a chart.

    config.resolved.toml   every setting, also the defaults     checkpoints/      whole states, see pyllm.training.checkpoint
    metrics.jsonl          one line a step, one an evaluation   model/ loss.png   the best model so far; the curves
    samples.jsonl          an answer at each evaluation         adapter/          instead of model/ where an adapter is what learned
"""
import contextlib
from dataclasses import asdict
from pathlib import Path

from pyllm import plot


def newest(verb, out, resume):
    """-> Path of the checkpoint a run goes on from, or None. ConfigError: one is there and resume is not asked for."""
    from pyllm.errors import ConfigError
    from pyllm.training import newest

    checkpoint = newest(Path(out) / "checkpoints")
    if checkpoint and not resume:
        raise ConfigError(f"{verb}: {out} holds a run already ({checkpoint.name}). "
                          "Hint: --resume goes on with it; or choose another --out")
    return checkpoint


def add_arguments(parser, sections):
    """The flags of a verb that runs in a folder, and those of the keys in `sections`."""
    from pyllm.cli.config import add_flags

    parser.add_argument("config", nargs="?", help="a TOML file with the sections below; flags override it")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of RUN, with its settings")
    add_flags(parser, sections)


def settings(verb, args, sections):
    """-> the Config of the flags, on resume over the run's own settings; ConfigError where the model or the data are missing."""
    from pyllm.cli.config import load_config, read_toml
    from pyllm.errors import ConfigError

    resolved = Path(args.out, "config.resolved.toml")
    below = [read_toml(resolved)] if args.resume and resolved.is_file() else []
    config = load_config(args, *below, sections=sections)
    if missing := [name for name in ("model", "data") if not getattr(config, name).path]:
        raise ConfigError(f"{verb}: no {' and no '.join(missing)}; expected --{' and --'.join(missing)} PATH")
    return config


def run(verb, out, t, *, steps, warmup, model, tokenizer, objective, batches, evaluate, sample=None, rates=None, checkpoint=None,
        until=None, watch=None, base=""):
    """Trains a model up to `steps` -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved.

    t: a pyllm.cli.config.Steps. batches: endless, with state and load_state. evaluate: () -> (score, the lower the better; {name: value}
    for the log; words for the screen). sample: step -> {name: text} for samples.jsonl, or None. rates: see AdamW. checkpoint: to go on
    from. until: a step after which the run stops as if it had been interrupted. watch: (step, score) -> whether the run ends there.
    base: where an adapter's model came from.
    """
    from pyllm import peft, training
    from pyllm.cli.interrupt import Interrupt
    from pyllm.progress import Progress

    optimizer = training.AdamW(model, betas=(t.beta1, t.beta2), eps=t.eps, weight_decay=t.weight_decay, rates=rates)
    optimizer, objective = peft.allocate(model, optimizer, steps), peft.orthogonal(objective)
    ema = training.EMA(model, t.ema) if t.ema else None
    stopping = training.EarlyStopping(t.patience)
    start = 0
    if checkpoint:
        start, state = training.load_checkpoint(checkpoint, model, optimizer, ema)
        batches.load_state(state["data"])
        stopping.load_state(state["stopping"])
        print(f"resumed    {checkpoint}, step {start}", flush=True)
    schedule = training.SCHEDULES[t.schedule](t.lr, steps, warmup, t.min_lr)
    every, save_every = t.eval_every, t.save_every or t.eval_every
    done, given_up = bool(t.patience) and stopping.waited >= t.patience, False
    records = training.train(model, objective, batches, optimizer, steps=start if done else steps, start=start, lr=schedule,
                             accumulate=t.accumulate, clip=t.clip or None, seed=t.seed, precision=t.precision)
    with (Interrupt() as stop, Progress(steps, verb, "step", start) as bar,
          contextlib.closing(training.Log(out / "metrics.jsonl", start)) as metrics,
          contextlib.closing(training.Log(out / "samples.jsonl", start)) as samples):
        for record in records:
            step, last, better = record.step, record.step == steps, False
            if ema:
                ema.update()
            metrics.write(**{k: v for k, v in asdict(record).items() if k != "metrics"}, **record.metrics)
            bar.update()
            bar.note(loss=f"{record.loss:.3f}", tok_s=f"{record.tokens_per_second:,.0f}")
            if step % every == 0 or last:
                with ema.weights() if ema else contextlib.nullcontext():
                    score, found, words = evaluate()
                    done = stopping.update(step, score)
                    given_up = watch is not None and watch(step, score)
                    better = stopping.best_step == step
                    if better:
                        save(model, tokenizer, out, base)
                    if sample and t.sample_tokens:
                        samples.write(step=step, **sample(step))
                metrics.write(step=step, **found)
                bar.line(f"step {step:<6} loss {record.loss:.4f}  validation {words}  {record.tokens_per_second:,.0f} tokens/s")
            if step % save_every == 0 or last or better or done or stop.signal or step == until:
                training.save_checkpoint(out / "checkpoints", step, model, tokenizer, optimizer, {"seed": t.seed, "data": batches.state(),
                                         "stopping": stopping.state()}, ema=ema, best=better, keep=t.keep)
            if (stop.signal or step == until) and not last:
                bar.line(f"stopped at step {step}; all is saved, --resume goes on")
                return stop.code
            if done or given_up:
                bar.line("given up: others are better" if given_up else
                         f"stopped early: {t.patience} evaluations in a row without a new best")
                break
    chart(out)
    best = next(line for line in reversed(training.read_log(out / "metrics.jsonl"))
                if line["step"] == stopping.best_step and "valid_loss" in line)
    print(f"best       {described(best)} at step {stopping.best_step}", flush=True)
    print(saved(model, out, base), flush=True)
    return 0


def save(model, tokenizer, out, base):
    """Writes out/model, or where adapters are what learns, in the model at `base`, out/adapter."""
    from pyllm import folders, peft

    if peft.names(model):
        peft.save(model, out / "adapter", base_model=base)
    else:
        folders.save(model, tokenizer, out / "model")


def saved(model, out, base):
    """-> words on where `save` has put it."""
    from pyllm import peft

    merges = f"; pyllm merge --model {base} --adapter {out} --out FOLDER" if all(a.MERGES for a in peft.adapters(model)) else ""
    hint = f"Hint: pyllm generate --model {out}{merges}"
    return f"adapter    {out / 'adapter'}. {hint}" if peft.names(model) else f"model      {out / 'model'}"


def table(rows):
    """rows: [(prompt, before, after)]; prints what a model wrote before a run and writes behind it."""
    for prompt, before, after in rows:
        print(f"prompt     {prompt!r}\n  before   {before}\n  after    {after}", flush=True)


def described(found):
    """{valid_loss: 2.1, valid_accuracy: 0.5, ...} -> 'validation loss 2.1000, accuracy 0.5000', without log p of whole answers."""
    scores = {name.removeprefix("valid_"): value for name, value in found.items() if name.startswith("valid_") and "logps/" not in name}
    return "validation " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def chart(out):
    """Writes loss.png from metrics.jsonl, where matplotlib is installed: losses on the left, other scores, if there are any, on the right.

    Log-probabilities of whole answers, which are tens or hundreds of nats, would press all else into a line.
    """
    from pyllm.training import read_log

    if (pyplot := plot.pyplot("loss.png")) is None:
        return
    lines = read_log(out / "metrics.jsonl")
    scores = sorted({name for line in lines for name in line if name.startswith("valid_") and "logps/" not in name} - {"valid_loss"})
    panels = [("loss, nats a target", {"loss": "training", "valid_loss": "validation"})]
    panels += [("validation", {name: name.removeprefix("valid_") for name in scores})] * bool(scores)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3 + 4 * len(panels), 4.5), layout="constrained", squeeze=False)
    for ax, (label, names) in zip(axes[0], panels):
        for name, words in names.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            ax.plot(*zip(*points), label=words, linewidth=1 if name == "loss" else 2)
        ax.set(xlabel="step", ylabel=label)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.suptitle(out.name)
    figure.savefig(out / "loss.png", dpi=120)
    pyplot.close(figure)
