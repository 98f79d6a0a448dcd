"""Reinforcement learning from feedback, all of it from nothing: a small language model learns film reviews, a reward model learns which of
two reviews is the kinder, and PPO, GRPO, RLOO and DPO make the model kinder, each at what divergence from where it began?

    python examples/rlhf_sentiment.py SST2 --out runs/sentiment                              # SST2: a folder with train.tsv and dev.tsv
    python examples/rlhf_sentiment.py SST2 --out runs/sentiment --methods ppo --seeds 1      # one of its runs; results add up
    python examples/rlhf_sentiment.py SST2 --quick                                           # small numbers: shows that all of it runs

Held-out numbers: prompts are the first words of dev.tsv; the positive rate is said by a judge that no training saw, word and bigram counts
(naive Bayes) over the half of train.tsv that the reward model was not shown. Writes results.jsonl, table.md and reward-kl.png.
"""
import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np

import pyllm
from pyllm import align, objectives, plot, training
from pyllm.align.update import updates
from pyllm.autograd import Rng
from pyllm.data import in_memory
from pyllm.data.batch import Batch
from pyllm.data.loader import Loader
from pyllm.text import ByteLevelBPE

RESPONSE, PROMPT = 24, 4  # tokens, words
METHODS = ("ppo", "grpo", "rloo", "dpo")
MOST = 10  # nats a response: how far a policy may go for a number in the table


def read(path):
    """-> texts, labels (0 or 1)."""
    pairs = [line.rsplit("\t", 1) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [text for text, _ in pairs], np.array([int(label) for _, label in pairs])


class Judge:
    """Naive Bayes over words and bigrams with add-one smoothing: text -> whether it is positive."""

    def __init__(self, texts, labels):
        self.counts = [Counter(f for text, y in zip(texts, labels) if y == label for f in set(self.features(text))) for label in (0, 1)]
        self.texts = [int((labels == label).sum()) for label in (0, 1)]

    def features(self, text):
        words = text.lower().split()
        return words + [f"{a} {b}" for a, b in zip(words, words[1:])]

    def odds(self, text):
        """-> log odds that the text is positive; features that were never seen say nothing."""
        known = [f for f in set(self.features(text)) if f in self.counts[0] or f in self.counts[1]]
        return sum(math.log((self.counts[1][f] + 1) / (self.texts[1] + 2)) - math.log((self.counts[0][f] + 1) / (self.texts[0] + 2))
                   for f in known)

    def rate(self, texts):
        return float(np.mean([self.odds(text) > 0 for text in texts]))


def pretrain(texts, tokenizer, steps, seed):
    """-> a GPT-2 that continues reviews."""
    ids = [tokenizer.encode_array(" " + text) for text in texts]
    shards = in_memory(ids, tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    model = pyllm.build({"model_type": "gpt2", "vocab_size": tokenizer.vocab_size, "n_positions": 64, "n_embd": 96, "n_layer": 3,
                         "n_head": 4, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.0}, seed=seed)
    optimizer = training.AdamW(model, weight_decay=0.1)
    for record in training.train(model, objectives.clm, Loader(shards, 16, 64, seed), optimizer, steps=steps,
                                 lr=training.cosine(3e-3, steps, warmup=min(50, steps // 2), min_lr=1e-4), precision="bf16"):
        if record.step % 100 == 0 or record.step == steps:
            print(f"  step {record.step}  loss {record.loss:.3f}", flush=True)
    return model


def rows(tokenizer, texts):
    """-> ids of each review as the policy writes it: at most a prompt and a response long."""
    return [tokenizer.encode(" " + text)[: RESPONSE + 8] + [tokenizer.eos_id] * (len(tokenizer.encode(" " + text)) <= RESPONSE + 8)
            for text in texts]


def padded(ids):
    width = max(map(len, ids))
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, some in enumerate(ids):
        tokens[row, : len(some)], segments[row, : len(some)] = some, 1
    return Batch(tokens, np.zeros(len(ids), np.int32), segments)


def learn_reward(model, tokenizer, texts, labels, steps, seed):
    """-> RewardModel from comparisons of a positive with a negative review, on top of the language model's trunk."""
    scorer, _, _ = training.transfer(align.frozen_copy(model), "classify", labels=["reward"], dropout=0.1, seed=seed)
    reward = align.RewardModel(scorer)
    ids = rows(tokenizer, texts)
    good, bad = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    draw = np.random.default_rng(seed)

    def batches():
        while True:
            yield padded([ids[i] for pair in zip(draw.choice(good, 16), draw.choice(bad, 16)) for i in pair])

    optimizer = training.AdamW(scorer, weight_decay=0.1)
    for record in training.train(scorer, objectives.reward_pairs, batches(), optimizer, steps=steps, seed=seed,
                                 lr=training.cosine(1e-3, steps, warmup=min(50, steps // 2), min_lr=1e-5), precision="bf16"):
        if record.step % 100 == 0 or record.step == steps:
            print(f"  step {record.step}  loss {record.loss:.3f}  accuracy {record.metrics['accuracy']:.2f}", flush=True)
    return reward


class Evaluation:
    """What a policy writes behind held-out prompts: positive rates, reward, divergence from the reference."""

    def __init__(self, prompts, tokenizer, reference, reward, judge):
        self.prompts, self.tokenizer, self.reference, self.reward, self.judge = prompts, tokenizer, reference, reward, judge

    def __call__(self, policy):
        drawn = align.rollout(policy, self.prompts, max_tokens=RESPONSE, stop=(self.tokenizer.eos_id,), seed=1234)
        d = drawn.logp - align.log_probs(self.reference, drawn.batch())
        texts = [self.tokenizer.decode(np.concatenate([drawn.prompt(i), drawn.response(i)]).tolist()) for i in range(len(self.prompts))]
        scores = self.reward(drawn)
        kl = np.where(drawn.mask, np.expm1(-d) + d, 0)  # k3: never below 0
        return {"kl": float(kl.sum(1).mean()), "kl_k1": float(d.sum(1).mean()), "reward": float(scores.mean()),
                "positive_reward_model": float((scores > 0).mean()), "positive": self.judge.rate(texts),
                "distinct": len({tuple(drawn.response(i)) for i in range(len(texts))}) / len(texts), "length": float(drawn.lengths.mean()),
                "samples": texts[:5]}


def improve(method, base, prompts, reward, evaluate, steps, seed, eos, every, pairs):
    """-> a curve: evaluations on the way, the policy moving from `base`."""
    policy = align.frozen_copy(base)
    for p in policy.parameters():
        p.requires_grad = True
    curve = [{"step": 0, **evaluate(policy)}]
    if method == "ppo":
        actor = align.ActorCritic(policy)
        config = align.PPOConfig(steps=steps, batch=64, micro_batch=64, response_length=RESPONSE, temperature=1.0, lr=3e-4, lr_end=3e-5,
                                 kl_coef=0.05, num_mini_batches=2, seed=seed, vf_coef=0.1)
        run = align.ppo(actor, base, prompts, reward, training.AdamW(actor, betas=(0.9, 0.999), weight_decay=0.0), config, stop=(eos,))
    elif method in ("grpo", "rloo"):
        config = align.GRPOConfig(algorithm=method, steps=steps, batch=16, num_generations=4, micro_batch=64, lr=5e-4, lr_end=5e-5,
                                  max_completion_length=RESPONSE, beta=0.035 if method == "rloo" else 0.1, num_iterations=2, seed=seed)
        run = align.grpo(policy, base, prompts, reward, training.AdamW(policy, betas=(0.9, 0.999), weight_decay=0.0), config, stop=(eos,))
    else:
        run = direct(policy, base, prompts, reward, steps, seed, eos, pairs)
    for iteration in run:
        step = iteration if isinstance(iteration, int) else iteration.step
        if step % every == 0 or step == steps:
            curve.append({"step": step, **evaluate(policy)})
            print(f"  {method} seed {seed} step {step}  KL {curve[-1]['kl']:.2f}  positive {curve[-1]['positive']:.2f}  "
                  f"(reward model {curve[-1]['positive_reward_model']:.2f})  reward {curve[-1]['reward']:.2f}", flush=True)
    return curve


def direct(policy, base, prompts, reward, steps, seed, eos, pairs=1024):
    """DPO on pairs that the base model drew and the reward model compared, `steps` batches of 32 pairs -> iterator of steps."""
    keys = Rng(seed)
    drawn = align.rollout(base, align.update.draw_prompts(prompts, pairs, keys, 0), copies=4, max_tokens=RESPONSE, stop=(eos,),
                          seed=keys.fold("pairs"))
    scores = reward(drawn).reshape(-1, 4)
    differ = np.ptp(scores, axis=1) > 0
    rows = np.stack([np.arange(len(scores)) * 4 + f(1) for f in (scores.argmax, scores.argmin)], 1)[differ]
    optimizer = training.AdamW(policy, betas=(0.9, 0.999), weight_decay=0.0)
    for step in range(steps):
        some = np.random.default_rng([seed, step]).choice(len(rows), min(32, len(rows)), replace=False)
        batch = align.with_reference(drawn.rows(rows[some].reshape(-1)).batch(), base)
        updates("dpo", policy, objectives.dpo, batch, optimizer, keys.fold(step), epochs=1, minibatches=1, micro_batch=64,
                lr=2e-4, clip=1.0, together=2)
        yield step + 1


def at_kl(curve, kl, name):
    """-> the value of `name` where the curve last passes a divergence, between its points; None where it does not.

    Not the first: a policy that went further and was drawn back has bought more with the same nats.
    """
    if kl == 0:
        return curve[0][name]
    for before, after in reversed(list(zip(curve, curve[1:]))):
        if min(before["kl"], after["kl"]) <= kl <= max(before["kl"], after["kl"]) and before["kl"] != after["kl"]:
            return before[name] + (kl - before["kl"]) / (after["kl"] - before["kl"]) * (after[name] - before[name])
    return None


def over_seeds(values):
    """-> 'mean (each)', a dash for a seed without the number."""
    there = [v for v in values if v is not None]
    each = ", ".join("-" if v is None else f"{v:.2f}" for v in values)
    return f"{np.mean(there):.2f} ({each})" if there else "-"


def report(out, start):
    """Writes table.md and reward-kl.png from results.jsonl."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {(line["method"], line["seed"]): line for line in lines}  # a run that was repeated counts once
    seeds = sorted({seed for _, seed in found})
    text = [f"Last evaluation with at most {MOST} nats a response, and on the way; mean (seeds {', '.join(map(str, seeds))})", "",
            "| | by the reward model | by the judge | KL | reward at KL 4 | reward at KL 6 | seconds |", "|---|---|---|---|---|---|---|",
            f"| before | {start['positive_reward_model']:.2f} | {start['positive']:.2f} | 0 | | | |"]
    curves = {method: [found[method, seed]["curve"] for seed in seeds if (method, seed) in found] for method in METHODS}
    for method, runs in curves.items():
        if runs:
            last = [[p for p in curve if p["kl"] <= MOST][-1] for curve in runs]
            cells = [over_seeds([p[name] for p in last]) for name in ("positive_reward_model", "positive", "kl")]
            cells += [over_seeds([at_kl(curve, kl, "reward") for curve in runs]) for kl in (4, 6)]
            cells += [f"{np.mean([line['seconds'] for (m, _), line in found.items() if m == method]):.0f}"]
            text.append(f"| {method.upper()} | {' | '.join(cells)} |")
    (out / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))
    if (pyplot := plot.pyplot("the chart of reward against KL")) is None:
        return
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.8), layout="constrained", sharex=True)
    names = {"reward": "reward, standard deviations", "positive_reward_model": "share of positive reviews, by the reward model",
             "positive": "share of positive reviews, by an independent judge"}
    for (name, label), ax in zip(names.items(), axes):
        for number, (method, runs) in enumerate(curves.items()):
            for curve in runs:
                ax.plot([p["kl"] for p in curve], [p[name] for p in curve], color=f"C{number}", alpha=0.25, linewidth=1)
            points = [(kl, [at_kl(curve, kl, name) for curve in runs]) for kl in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10)]
            points = [(kl, values) for kl, values in points if values and None not in values]
            if points:
                at, mean = [kl for kl, _ in points], np.array([np.mean(v) for _, v in points])
                reach = [mean - [min(v) for _, v in points], [max(v) for _, v in points] - mean]
                ax.errorbar(np.array(at) + 0.06 * (number - 1.5), mean, reach, color=f"C{number}", marker="o", markersize=5, capsize=3,
                            linewidth=2, label=f"{method.upper()} ({len(runs)})")
        ax.set(xlabel="KL to the language model, nats a response", ylabel=label, xlim=(-0.3, MOST + 2))
        ax.axvline(MOST, color="grey", linestyle=":")
        ax.grid(alpha=0.3)
    axes[0].legend(title="mean and range (seeds)", loc="lower right")
    figure.suptitle("What a nat buys: film reviews made kinder, held-out prompts")
    figure.savefig(out / "reward-kl.png", dpi=120)


def prepare(args, out):
    """-> language model, tokenizer, reward model, judge; from `out` where a run left them."""
    texts, labels = read(Path(args.data) / "train.tsv")
    order = np.random.default_rng(0).permutation(len(texts))
    mine, theirs = order[: len(order) // 2], order[len(order) // 2 :]
    judge = Judge([texts[i] for i in theirs], labels[theirs])
    if (out / "reward" / "config.json").is_file():
        model, tokenizer = pyllm.load(out / "model")
        scorer, _ = pyllm.load(out / "reward")
        return texts, model, tokenizer, align.RewardModel(scorer), judge
    print("1. a tokenizer and a language model of film reviews", flush=True)
    tokenizer = ByteLevelBPE.train([" " + text for text in texts], vocab_size=512 if args.quick else 1024)
    model = pretrain(texts, tokenizer, 10 if args.quick else 1000, seed=0)
    print("2. a reward model from comparisons", flush=True)
    reward = learn_reward(model, tokenizer, [texts[i] for i in mine], labels[mine], 10 if args.quick else 400, seed=1)
    dev, dev_labels = read(Path(args.data) / "dev.tsv")
    ids = rows(tokenizer, dev)
    pairs = [ids[i] for pair in zip(np.flatnonzero(dev_labels == 1), np.flatnonzero(dev_labels == 0)) for i in pair]
    found = align.agreement(reward, [padded(pairs)])
    sample = align.rollout(model, [tokenizer.encode(" " + " ".join(t.split()[:PROMPT])) for t in texts[:256]], max_tokens=RESPONSE,
                           stop=(tokenizer.eos_id,), seed=5)
    reward.normalize([sample.batch()])
    print(f"  held-out pairs: accuracy {found.accuracy:.3f}, margin {found.margin:.2f}, calibration error {found.calibration:.3f}; "
          f"the judge is right about {np.mean([(judge.odds(t) > 0) == y for t, y in zip(dev, dev_labels)]):.3f} of held-out reviews")
    pyllm.save(model, tokenizer, out / "model")
    pyllm.save(reward.model, tokenizer, out / "reward")
    return texts, model, tokenizer, reward, judge


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", help="a folder with SST-2's train.tsv and dev.tsv: sentence TAB label")
    parser.add_argument("--out", default="sentiment-out", help="where models, results and the chart go")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--quick", action="store_true", help="a minute: small numbers everywhere, to see that all of it runs")
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    texts, model, tokenizer, reward, judge = prepare(args, out)
    base = align.frozen_copy(model)
    held, _ = read(Path(args.data) / "dev.tsv")
    start = lambda text: tokenizer.encode(" " + " ".join(text.split()[:PROMPT]))  # noqa: E731
    prompts, held = [start(t) for t in texts], [start(t) for t in held[: 16 if args.quick else 256]]
    evaluate = Evaluation(held, tokenizer, base, reward, judge)
    before = evaluate(model)
    print(f"3. before: positive {before['positive']:.3f} (reward model {before['positive_reward_model']:.3f}), "
          f"reward {before['reward']:.3f}")
    for method in args.methods.split(","):
        for seed in map(int, args.seeds.split(",")[: 1 if args.quick else None]):
            began = time.monotonic()
            # Steps of PPO twice as large run to 11 nats before they turn back: more of them, and smaller ones, buy more with a nat.
            steps = 2 if args.quick else 60 if method == "dpo" else 90
            curve = improve(method, base, prompts, reward, evaluate, steps, seed, tokenizer.eos_id, 1 if args.quick else 5,
                            32 if args.quick else 1024)
            with open(out / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"method": method, "seed": seed, "seconds": time.monotonic() - began, "curve": curve}) + "\n")
    report(out, before)
    last = json.loads((out / "results.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    for old, new in zip(before["samples"], last["curve"][-1]["samples"]):
        print(f"  before: {old}\n  after:  {new}")


if __name__ == "__main__":
    main()
