"""Every way to adapt a model, beside training all of it: accuracy or loss, trainable share, time, memory, size of the file.

    python examples/peft_compare.py sst2 --model MiniLM --seeds 0,1,2     # an encoder: labels; a table, and peft.png with matplotlib
    python examples/peft_compare.py instruction-data.json --model SmolLM2.gguf --steps 40 --batch 8    # a decoder: answers
    ... --methods full,lora                                               # some of them
    ... --time 12                                                         # a few steps of each, for the table's times

Each run is a line of peft.jsonl in --out: what is there is not run again, so the same command goes on where it stopped. Runs beside other
work have no times worth comparing: with --time, on an idle machine, lines go to times.jsonl, and the table has their times and memory.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import common

import pyllm
from pyllm import data, peft, plot, training
from pyllm.evaluate import accuracy
from pyllm.measure import peak_rss_mb
from pyllm.models.base import CausalLM
from pyllm.objectives import classify, clm

WAYS = {  # name: (method or None for all weights, learning rate, {further layer of an encoder's head: its rate})
    "full": (None, 1e-4),
    "lora": (peft.LoRA(rank=8, alpha=16), 1e-3),
    "adalora": (peft.AdaLoRA(init_r=12, target_r=8, alpha=24), 2e-3),
    "dora": (peft.LoRA(rank=8, alpha=16, dora=True), 2e-3),
    "pissa": (peft.LoRA(rank=8, alpha=8, init="pissa"), 5e-4),
    "houlsby": (peft.Houlsby(reduction=4), 1e-3),
    "pfeiffer": (peft.Pfeiffer(), 2e-3),
    "parallel": (peft.Parallel(reduction=4), 1e-3),
    # A prefix reaches no layer, so it cannot adapt the pooler, which has learned no labels: that belongs to its head, at a head's rate.
    "prefix": (peft.PrefixTuning(20, std=1.0), 3e-2, {"pooler.dense": 3e-3, "classifier": 3e-3}),
    "prompt": (peft.PromptTuning(20, init="sample_vocab"), 2e-2),
    "ia3": (peft.IA3(), 1e-2),
    "bitfit": (peft.BitFit(add=True), 3e-3),
    "ln_tuning": (peft.LNTuning(), 3e-3),
}
# Random keys and values of std 1 make a decoder begin far worse than it was, and 40 steps do not mend it; those of real tokens do not.
DECODERS = {"prefix": (peft.PrefixTuning(20, init="sample_vocab"), 1e-2)}


def ways(base):
    """-> WAYS, with the settings that a decoder has for itself."""
    return WAYS | DECODERS if isinstance(base, CausalLM) else WAYS


def labels(args, base, tokenizer):
    """An encoder learns labels -> model, objective, rows to train on, function that says {split: right answers in %}."""
    names = data.label_names(data.read_examples(args.data, "train"))
    model, *_ = training.transfer(base, "classify", labels=names, seed=args.seed)
    options = dict(architecture="encoder", max_length=128, labels=names)
    train, valid, test = (common.rows(args.data, split, tokenizer, **options) for split in ("train", "valid", "test"))
    few = 32 if args.quick else None
    return model, classify, train[:few], lambda: {"valid": right(model, valid[:few]), "score": right(model, test[:few])}


def right(model, rows):
    """-> percent of the rows whose label comes out."""
    chosen, wanted = [], []
    for batch in data.row_batches(rows, batch=64, shuffle=False).once():
        with pyllm.no_grad():
            chosen += model(batch.tokens, batch.segments).data.argmax(1).tolist()
        wanted += batch.targets.tolist()
    return 100 * accuracy(np.array(chosen), np.array(wanted)).value


def answers(args, base, tokenizer):
    """A decoder learns answers; every tenth is held out -> the same, with {split: loss in nats a token of the answers}."""
    rows = common.rows(args.data, "train", tokenizer, architecture="decoder", max_length=base.config.size("context"))
    rows = sorted(rows, key=len)[: 40 if args.quick else None]
    held = data.row_batches(rows[::10], batch=16, shuffle=False)
    return base, clm, [row for i, row in enumerate(rows) if i % 10], lambda: {"score": training.evaluate(base, clm, held.once()).loss}


def train_one(args, way):
    """Trains one of WAYS in this process -> its line of the results."""
    base, tokenizer = pyllm.load(args.model)
    method, _, *head = ways(base)[way]
    model, objective, train, look = (answers if isinstance(base, CausalLM) else labels)(args, base, tokenizer)
    if method is not None:
        targets = "all-linear" if isinstance(method, peft.LoRA) else None  # as Dettmers et al. 2023 advise; by default queries and values
        head = head[0] if head and objective is classify else {}
        peft.inject(model, method, targets=targets, seed=args.seed, modules_to_save=list(head) or None)
    rates = {rf"{layer}\.": rate / float(args.rate) for layer, rate in dict(head).items()} | peft.rates(model)
    optimizer = training.AdamW(model, weight_decay=0.01, betas=(0.9, 0.999), rates=rates)
    optimizer = peft.allocate(model, optimizer, args.steps)
    schedule = training.cosine(float(args.rate), args.steps, args.steps // 10, float(args.rate) / 50)
    records = list(pyllm.train(model, peft.orthogonal(objective), data.row_batches(train, batch=int(args.batch), seed=args.seed), optimizer,
                               steps=args.steps, lr=schedule, seed=args.seed, precision=args.precision))
    memory, report = peak_rss_mb(), peft.report(model)
    with tempfile.TemporaryDirectory() as folder:
        if method is not None:
            peft.save(model, f"{folder}/adapter")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors")) or 4 * report.total
    return {**({} if args.time else look()), "measure": "loss, nats" if objective is clm else "accuracy, %",
            "trainable": 100 * report.share, "ms": 1e3 * float(np.median([r.seconds for r in records])), "mb": memory, "kb": size / 1e3,
            "loss": float(np.mean([r.loss for r in records[-20:]]))}


def settings(method, _, *head):
    return " ".join(map(repr, [method, *head]))


def read(path):
    """-> the lines of a .jsonl file, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(lines):
    """The lines of all runs -> {method: {name: (mean, half the range over its seeds)}}, in the order of WAYS."""
    runs = {way: [line for line in lines if line["method"] == way] for way in WAYS}
    return {way: {"seeds": len(found)} | {key: (np.mean(of := [line[key] for line in found]), np.ptp(of) / 2)
                                          for key in ("score", "trainable", "ms", "mb", "kb")} for way, found in runs.items() if found}


def table(rows, measure):
    head = f"| method | {measure} | seeds | trained, % | ms a step | peak memory, MB | file, kB |\n|---|---|---|---|---|---|---|"
    return "\n".join([head] + ["| {} | {:.3f} +- {:.3f} | {} | {:.3g} | {:.0f} | {:.0f} | {:,.0f} |".format(
        way, *r["score"], r["seeds"], *(r[key][0] for key in ("trainable", "ms", "mb", "kb"))) for way, r in rows.items()])


def chart(rows, measure, path):
    if (pyplot := plot.pyplot(path)) is None:
        return
    panels = {"score": measure, "trainable": "trained, %", "ms": "ms a step", "mb": "peak memory, MB", "kb": "file of the adapter, kB"}
    figure, axes = pyplot.subplots(1, len(panels), sharey=True, figsize=(13, 1.2 + 0.3 * len(rows)), layout="constrained")
    for ax, (key, title) in zip(axes, panels.items()):
        for i, row in enumerate(rows.values()):
            ax.errorbar(row[key][0], i, xerr=row[key][1] or None, fmt="o", capsize=3, color=f"C{i % 10}")
        ax.set(xscale="log" if key in ("trainable", "kb") else "linear", title=title, yticks=range(len(rows)), yticklabels=rows)
        ax.grid(alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


args = common.arguments(__doc__, model="a pretrained encoder or decoder", methods=f"some of {','.join(WAYS)} (default: all)",
                        seeds="one run for each (default: --seed)", steps="optimizer steps (default 375)",
                        batch="rows of a step (default 32)", rate="another learning rate than the method's",
                        time="so many steps of each, for their times and memory alone",
                        only="(internal) one method, its line as JSON")
args.steps, args.batch = 4 if args.quick else int(args.time or args.steps or 375), args.batch or "32"
if args.only:
    began = time.monotonic()
    found = train_one(args, args.only)
    print(json.dumps({**found, "seconds": time.monotonic() - began}))
    sys.exit()
folder = Path(args.out or ".")
folder.mkdir(parents=True, exist_ok=True)
kept, times = folder / ("times.jsonl" if args.time else "peft.jsonl"), folder / "times.jsonl"
known = ways(pyllm.load(args.model)[0])
shared = {"data": Path(args.data).name, "model": Path(args.model).name, "batch": int(args.batch)}
jobs = [{**shared, "steps": args.steps, "method": way, "settings": settings(*known[way]), "seed": int(seed),
         "lr": float(args.rate or known[way][1])} for seed in (args.seeds or str(args.seed)).split(",")
        for way in (args.methods.split(",") if args.methods else known)]
for job in jobs:
    if any(job.items() <= line.items() for line in read(kept)):
        continue
    command = [sys.executable, __file__, args.data, "--model", args.model, "--precision", args.precision, "--steps", str(args.steps),
               "--batch", args.batch, "--only", job["method"], "--seed", str(job["seed"]), "--rate", str(job["lr"]),
               *(["--quick"] if args.quick else []), *(["--time", args.time] if args.time else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # a process of its own, for its peak memory
    line = job | json.loads(done.stdout.splitlines()[-1])
    with open(kept, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)
if not args.time:
    lines = [line for line in read(kept) if any(job.items() <= {**line, "seed": job["seed"]}.items() for job in jobs)]  # of all seeds
    alone = {line["method"]: {"ms": line["ms"], "mb": line["mb"]} for line in read(times) if shared.items() <= line.items()}
    lines = [line | alone.get(line["method"], {}) for line in lines]
    print(table(summary(lines), lines[0]["measure"]))
    chart(summary(lines), lines[0]["measure"], folder / "peft.png")
