"""What the examples share: their arguments, and training that keeps the best weights."""
import argparse
import time

import pyllm
from pyllm import data, training


def arguments(about, **more):
    """-> parsed arguments: the data folder, --quick, --seed, --out, and one more option a keyword: its help."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--quick", action="store_true", help="a few steps with a tiny model: shows that all of it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="bf16", help="of the products: f32 or bf16 (default %(default)s)")
    parser.add_argument("--out", help="save the model in this folder")
    for name, about in more.items():
        parser.add_argument(f"--{name}", help=about)
    return parser.parse_args()


def fit(model, objective, train, valid, args, *, steps, lr, every, warmup=0.1, learns=None, by=lambda found: found.loss, ema=0.999,
        **optimizer):
    """Trains a model in place, `every` steps a look at the validation rows; at the end it has the best weights, averages over steps.

    objective: also of the validation; learns: that of the training where it is another. by: what the best weights have least of.
    """
    began, best, least = time.monotonic(), None, float("inf")
    optimizer = training.AdamW(model, **{"weight_decay": 0.01, "betas": (0.9, 0.98), **optimizer})
    average = training.EMA(model, ema)
    schedule = training.cosine(lr, steps, int(warmup * steps), lr / 50)
    for record in pyllm.train(model, learns or objective, train, optimizer, steps=steps, lr=schedule, seed=args.seed,
                              precision=args.precision):
        average.update()
        if record.step % every == 0 or record.step == steps:
            with average.weights():
                found = training.evaluate(model, objective, valid.once())
                if by(found) < least:
                    best, least = {name: a.copy() for name, a in model.state().items()}, by(found)
            more = "".join(f", {name} {value:.4f}" for name, value in found.metrics.items())
            print(f"step {record.step}/{steps}  loss {record.loss:.3f}  validation {found.loss:.3f}{more}  "
                  f"{(time.monotonic() - began) / 60:.1f} min", flush=True)
    model.load(best)


def rows(path, split, tokenizer, **options):
    """-> the rows of a split of a folder, or of a file; what became of the examples is printed."""
    reading = {name: options.pop(name) for name in ("columns",) if name in options}
    found, counts = data.prepare(data.read_examples(path, split, **reading), tokenizer, **options)
    print(f"{split}: {counts}", flush=True)
    return found
