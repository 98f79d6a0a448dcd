"""Every way to adapt an encoder to SST-2, beside training all of it: accuracy, trainable share, time, memory, size of the file.

    python examples/peft_compare.py sst2 --model MiniLM                        # a table, and peft.png where matplotlib is installed
    python examples/peft_compare.py sst2 --model MiniLM --methods full,lora    # some of them
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
from pyllm.objectives import classify

WAYS = {  # name: (method or None for all weights, learning rate)
    "full": (None, 1e-4),
    "lora": (peft.LoRA(rank=8, alpha=16), 2e-3),
    "adalora": (peft.AdaLoRA(init_r=12, target_r=8, alpha=24), 2e-3),
    "dora": (peft.LoRA(rank=8, alpha=16, dora=True), 2e-3),
    "pissa": (peft.LoRA(rank=8, alpha=8, init="pissa"), 5e-4),
    "houlsby": (peft.Houlsby(), 2e-3),
    "pfeiffer": (peft.Pfeiffer(), 2e-3),
    "parallel": (peft.Parallel(reduction=4), 1e-3),
    "prefix": (peft.PrefixTuning(20, std=0.1), 1e-2),
    "prompt": (peft.PromptTuning(20, init="sample_vocab"), 2e-2),
    "ia3": (peft.IA3(), 1e-2),
    "bitfit": (peft.BitFit(), 3e-3),
    "ln_tuning": (peft.LNTuning(), 3e-3),
}


def train_one(args, way):
    """Trains one of WAYS in this process -> its row of the table."""
    method, lr = WAYS[way]
    base, tokenizer = pyllm.load(args.model)
    names = data.label_names(data.read_examples(args.data, "train"))
    model, *_ = training.transfer(base, "classify", labels=names, seed=args.seed)
    if method is not None:
        peft.inject(model, method, seed=args.seed)
    options = dict(architecture="encoder", max_length=128, labels=names)
    train, test = (common.rows(args.data, split, tokenizer, **options) for split in ("train", "test"))
    if args.quick:
        train, test = train[:64], test[:32]
    steps = 4 if args.quick else int(args.steps or 433)
    optimizer = training.AdamW(model, weight_decay=0.01, betas=(0.9, 0.999), rates=peft.rates(model))
    optimizer = peft.allocate(model, optimizer, steps)
    records = list(pyllm.train(model, peft.orthogonal(classify), data.row_batches(train, batch=32, seed=args.seed), optimizer, steps=steps,
                               lr=training.cosine(lr, steps, steps // 10, lr / 50), seed=args.seed, precision=args.precision))
    chosen = []
    for i in range(0, len(test), 64):
        batch = data.collate(test[i : i + 64])
        with pyllm.no_grad():
            chosen += model(batch.tokens, batch.segments).data.argmax(1).tolist()
    report = peft.report(model)
    with tempfile.TemporaryDirectory() as folder:
        if method is not None:
            peft.save(model, f"{folder}/adapter")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors")) or 4 * report.total
    return {"method": way, "accuracy": 100 * accuracy(np.array(chosen), np.array([row.label for row in test])).value,
            "trainable": 100 * report.share, "ms": 1e3 * float(np.median([r.seconds for r in records])), "mb": peak_rss_mb(),
            "kb": size / 1e3, "loss": float(np.mean([r.loss for r in records[-20:]]))}


def table(rows):
    head = "| method | accuracy, % | trained, % | ms a step | peak memory, MB | file, kB |\n|---|---|---|---|---|---|"
    return "\n".join([head] + [f"| {r['method']} | {r['accuracy']:.1f} | {r['trainable']:.3g} | {r['ms']:.0f} | {r['mb']:.0f} | "
                               f"{r['kb']:,.0f} |" for r in rows])


def chart(rows, path):
    if (pyplot := plot.pyplot(path)) is None:
        return
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for row in rows:
        axes.scatter(row["trainable"], row["accuracy"])
        axes.annotate(row["method"], (row["trainable"], row["accuracy"]), xytext=(4, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="trained share of the parameters, %", ylabel="accuracy on SST-2's test, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


args = common.arguments(__doc__, model="a folder with a pretrained encoder", methods=f"some of {','.join(WAYS)} (default: all)",
                        steps="optimizer steps of each (default 433, two epochs)", only="(internal) one method, its row as JSON")
if args.only:
    began = time.monotonic()
    row = train_one(args, args.only)
    print(json.dumps({**row, "seconds": time.monotonic() - began}))
else:
    rows = []
    for way in (args.methods or ",".join(WAYS)).split(","):  # each in a process of its own, for its peak memory
        command = [sys.executable, __file__, args.data, "--model", args.model, "--only", way, "--seed", str(args.seed),
                   "--precision", args.precision, "--steps", args.steps or "433", *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{way:<10} {rows[-1]}", flush=True)
    print(table(rows))
    chart(rows, "peft.png")
