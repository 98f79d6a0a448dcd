"""SST-2 by one recipe in pyllm and in transformers over PyTorch: the same weights, batches and schedule; accuracy, seconds, peak memory.

    python -m benchmarks.bench_sst2 sst2 --model MiniLM --seeds 3        # an epoch each; --steps 40 --test 0: the time alone
"""
import argparse
import time

import numpy as np
import torch
import transformers

import pyllm
from pyllm import data, objectives, training
from pyllm.evaluate import accuracy
from pyllm.kernels import num_threads


def rows_of(args, tokenizer, names):
    """-> rows to learn, rows of the test split."""
    return [data.prepare(data.read_examples(args.data, split), tokenizer, architecture="encoder", max_length=128, labels=names)[0]
            for split in ("train", "test")]


def told(forward, rows):
    """forward: Batch -> (B, labels) -> the label of each row."""
    order, found = np.argsort([-len(row) for row in rows], kind="stable"), np.zeros(len(rows), int)
    for part in np.array_split(order, -(-len(rows) // 64)) if rows else ():
        found[part] = forward(data.collate([rows[i] for i in part])).argmax(1)
    return found


def ours(args, model, batches, test, schedule, seed):
    """-> losses, seconds of each step, labels of the test rows."""
    optimizer = training.AdamW(model, betas=(0.9, 0.999), weight_decay=0.01)
    records = list(training.train(model, objectives.classify, iter(batches), optimizer, steps=len(batches), lr=schedule, seed=seed,
                                  precision=args.precision))
    with pyllm.no_grad(), pyllm.precision(args.precision):
        labels = told(lambda batch: model(batch.tokens, batch.segments).data, test)
    return [r.loss for r in records], [r.seconds for r in records], labels


def theirs(args, model, batches, test, schedule, seed):
    """The same from a pyllm model's weights, with fused AdamW and scaled_dot_product_attention."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**model.config.to_dict())
    peer = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    left = peer.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in model.state().items()}, strict=False)
    assert not left.missing_keys and not left.unexpected_keys, left
    groups = [{"params": [p for p in peer.parameters() if (p.ndim > 1) == decays], "weight_decay": 0.01 * decays}
              for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def logits(batch):
        mask = None if batch.segments is None else torch.from_numpy(batch.segments).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            return peer(input_ids=torch.from_numpy(batch.tokens).long(), attention_mask=mask).logits.float()

    losses, seconds = [], []
    peer.train()
    for step, batch in enumerate(batches):
        began = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(logits(batch), torch.from_numpy(batch.targets).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    peer.eval()
    with torch.no_grad():
        return losses, seconds, told(lambda batch: logits(batch).numpy(), test)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_sst2", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with train.tsv, dev.tsv, test.tsv")
    parser.add_argument("--model", required=True, help="folder with a pretrained encoder")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs with seeds 0 to N - 1 (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="S", help="the first seed (default %(default)s)")
    parser.add_argument("--steps", type=int, default=216, metavar="N", help="of 32 sentences; 216 are an epoch (default %(default)s)")
    parser.add_argument("--test", type=int, default=1821, metavar="N", help="sentences of the test split (default all)")
    parser.add_argument("--dropout", type=float, help="a probability instead of the model's")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    args = parser.parse_args()
    torch.set_num_threads(num_threads())
    names, found = data.label_names(data.read_examples(args.data, "train")), {"pyllm": [], "pytorch": []}
    for seed in range(args.first, args.first + args.seeds):
        base, tokenizer = pyllm.load(args.model)
        model, *_ = training.transfer(base, "classify", labels=names, dropout=args.dropout, seed=seed)
        train, test = rows_of(args, tokenizer, names)
        stream, test = data.row_batches(train, batch=32, seed=seed), test[: args.test]
        batches = [next(stream) for _ in range(args.steps)]
        schedule = training.cosine(1e-4, args.steps, args.steps // 10, 2e-6)
        for name, run in (("pytorch", theirs), ("pyllm", ours)):  # PyTorch first: the other changes the weights
            losses, seconds, labels = run(args, model, batches, test, schedule, seed)
            right = accuracy(labels, [row.label for row in test]) if test else None
            found[name].append((float(right) if test else np.nan, sum(seconds)))
            print(f"seed {seed}  {name:<8} accuracy {right}  loss of the last tenth {np.mean(losses[-max(1, len(losses) // 10):]):.4f}  "
                  f"{sum(seconds):.1f} s, {1e3 * np.median(seconds):.0f} ms a step", flush=True)
    (a, s), (b, t) = (np.mean(found[name], 0) for name in ("pyllm", "pytorch"))
    print(f"mean of {args.seeds}: accuracy {100 * a:.2f} % beside {100 * b:.2f} %, {100 * (a - b):+.2f} points; {s / t:.2f} of the time "
          f"({args.precision}, {num_threads()} threads)")


if __name__ == "__main__":
    main()
