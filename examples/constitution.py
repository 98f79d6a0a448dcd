"""Constitutional AI on a real model, with LoRA, on one CPU: SmolLM2-135M-Instruct learns to be brief and without lists, by its own words.

    python examples/constitution.py DATA --model SmolLM2-135M-Instruct.Q4_1.gguf --out runs/constitution
    python examples/constitution.py DATA --quick                       # a tiny random model: shows that all of it runs

DATA holds constitutional-ai/prompts (the published principles) and hh-rlhf/*.jsonl.gz (whose first turns are the prompts). Two principles
carry a checker, which says what is broken; the 16 published ones are judged by the model itself. Stage 1: answers, critiques, revisions;
fine-tuning on the revisions that keep to the rules. Stage 2: two answers each, compared by a checker or by the model, in both orders; DPO.
Kept in OUT: revisions.jsonl, comparisons.jsonl, adapter/, report.json.
"""
import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import pyllm
from pyllm import align, data, objectives, peft, training
from pyllm.align.constitution import Checker, Constitution, Principle, evasive, helpful, read_constitution
from pyllm.align.constitutional import agreement_rate, answers, asked, compare, preferences, revise
from pyllm.data.render import Row

RULES = (
    Principle("brief", "Is the last response longer than two short sentences?", "Write the response again in one or two short sentences.",
              "Which response is shorter and to the point?", Checker(max_words=40)),
    Principle("plain", "Does the last response contain a list?", "Write the response again as plain sentences, without any list.",
              "Which response has no list?", Checker(forbid=r"(?m)^\s*(\d+[.)]|[-*•])\s")),
)


def read_prompts(folder, count):
    """-> the first turns of `count` conversations, each once."""
    found = {}
    for example in data.read_examples(folder):
        turns = example["prompt"]
        text = turns if isinstance(turns, str) else turns[0]["content"]
        if 10 < len(text) < 200:
            found[text.strip()] = True
        if len(found) == count:
            break
    return list(found)


def row(tokenizer, prompt, answer):
    """-> Row of a prompt and its answer, which is learned up to and with the token that ends it."""
    context = asked(tokenizer, [("user", prompt)])
    end = sorted(set(tokenizer.encode("<|im_end|>")) & {t.id for t in tokenizer.added}) or [tokenizer.eos_id]
    ids = context + tokenizer.encode(answer, template=False) + end[:1]
    return Row(np.array(ids, np.int32), np.arange(len(ids)) >= len(context))


def learn(model, items, objective, args, *, epochs, lr, name):
    """Trains what learns of the model on Rows or pairs of them, 8 a step in micro-batches of 2, without dropout."""
    order = np.concatenate([np.random.default_rng([args.seed, epoch]).permutation(len(items)) for epoch in range(epochs)])
    steps = max(1, len(order) // 8)
    chosen = iter([data.collate([items[i] for i in order[at : at + 2]]) for at in range(0, steps * 8, 2)] if len(order) >= 8
                  else [data.collate([items[i] for i in order[:2]])] * 4)
    began = time.monotonic()
    for record in training.train(model, lambda m, batch, rng=None: objective(m, batch), chosen, training.AdamW(model, weight_decay=0.0),
                                 steps=steps, accumulate=4, lr=training.linear(lr, steps, warmup=max(1, steps // 10)), precision="bf16"):
        if record.step % 5 == 0 or record.step == steps:
            more = "".join(f"  {k} {v:.2f}" for k, v in record.metrics.items() if k in ("rewards/accuracies", "rewards/margins"))
            print(f"  {name} step {record.step}/{steps}  loss {record.loss:.3f}{more}  {time.monotonic() - began:.0f} s", flush=True)


def measure(model, tokenizer, constitution, held, args):
    """-> rates over answers to held-out prompts."""
    texts = answers(model, tokenizer, [[("user", p)] for p in held], args.seed + 99, args.rows, max_tokens=args.tokens, temperature=0.7,
                    top_p=0.95)
    broken = [constitution.violations(text) for text in texts]
    return {"violations": float(np.mean([bool(b) for b in broken])),
            **{p.name: float(np.mean([p.name in b for b in broken])) for p in RULES},
            "evasive": float(np.mean([evasive(t) for t in texts])), "takes up the prompt": float(np.mean(list(map(helpful, held, texts)))),
            "words": float(np.mean([len(t.split()) for t in texts])), "samples": list(zip(held, texts))[:6]}


def tiny():
    """-> a random model with a tokenizer that knows ChatML, for --quick."""
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["user assistant The answer is: (A) (B) one two three " * 50], vocab_size=400,
                                   special_tokens=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = "chatml"
    return pyllm.build({"model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 48,
                        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048}, seed=0), tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder with constitutional-ai/prompts and hh-rlhf")
    parser.add_argument("--model", help="a model folder or a .gguf file")
    parser.add_argument("--out", help="where records, adapter and report go")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and few prompts: shows that all of it runs")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--held", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer at most")
    parser.add_argument("--rows", type=int, default=16, help="texts drawn side by side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.held, args.rounds, args.tokens = 8, 4, 1, 8
    began, out = time.monotonic(), Path(args.out or "constitution-out")
    out.mkdir(parents=True, exist_ok=True)
    published = read_constitution(Path(args.data) / "constitutional-ai/prompts")
    # A rule is drawn as often as all the published principles together: half of the revisions are about what can be checked.
    constitution = Constitution(RULES + published.principles, published.revision_shots, published.comparison_shots)
    rules = Constitution(RULES)
    texts = read_prompts(Path(args.data) / "hh-rlhf", args.prompts + args.held)
    prompts, held = texts[: args.prompts], texts[args.prompts :]
    model, tokenizer = tiny() if args.quick else pyllm.load(args.model)
    peft.inject(model, peft.LoRA(rank=16, alpha=32), seed=args.seed)
    judge = align.WithoutAdapters(model)
    print(f"{len(prompts)} prompts, {len(held)} held out, {len(constitution.revising)} principles; {peft.report(model)}", flush=True)
    report = {"before": measure(model, tokenizer, rules, held, args)}
    print(f"before     {({k: v for k, v in report['before'].items() if k != 'samples'})}  {time.monotonic() - began:.0f} s", flush=True)

    drawn = dict(seed=args.seed, rows=args.rows, max_tokens=args.tokens, temperature=0.7, top_p=0.95)
    half, others = len(prompts) // 2, replace(constitution, principles=published.principles)
    records = [*revise(model, tokenizer, rules, prompts[:half], rounds=args.rounds, **drawn),
               *revise(model, tokenizer, others, prompts[half:], rounds=args.rounds, **drawn)]
    write(out / "revisions.jsonl", records)
    kept = [r for r in records if r["rounds"][-1]["revision"] and not rules.violations(r["rounds"][-1]["revision"])]
    broke = [np.mean([bool(rules.violations(text)) for text in texts]) for texts in
             ([r["response"] for r in records], [r["rounds"][-1]["revision"] for r in records])]
    print(f"stage 1    {len(kept)} of {len(records)} revisions keep to the rules; violations {broke[0]:.2f} -> {broke[1]:.2f}  "
          f"{time.monotonic() - began:.0f} s", flush=True)
    kept = kept if len(kept) > 1 else records  # a random model revises nothing
    learn(model, [row(tokenizer, r["prompt"], r["rounds"][-1]["revision"] or "...") for r in kept], objectives.clm, args, epochs=3, lr=5e-4,
          name="revised")
    report["revised"] = measure(model, tokenizer, rules, held, args)
    print(f"revised    {({k: v for k, v in report['revised'].items() if k != 'samples'})}  {time.monotonic() - began:.0f} s", flush=True)

    records = [*compare(model, tokenizer, rules, prompts[:half], judge=judge, **drawn),
               *compare(model, tokenizer, others, prompts[half:], judge=judge, **drawn)]
    write(out / "comparisons.jsonl", records)
    pairs = [(row(tokenizer, p["prompt"], p["chosen"]), row(tokenizer, p["prompt"], p["rejected"])) for p in preferences(records)]
    report["comparisons"] = {"pairs": len(pairs), "by checker": sum(r["probability"] in (0.0, 1.0) for r in records),
                             "agreement of both orders": agreement_rate(records)}
    print(f"stage 2    {report['comparisons']}  {time.monotonic() - began:.0f} s", flush=True)
    if pairs:
        for pair in pairs:  # the reference is the model that stage 1 left, remembered before it moves
            known = align.with_reference(data.collate([pair]), model).extra["ref_logp"]
            for one, logp in zip(pair, known.tolist()):
                one.extra["ref_logp"] = logp
        learn(model, pairs, objectives.dpo, args, epochs=1, lr=1e-4, name="aligned")
    report["aligned"] = measure(model, tokenizer, rules, held, args)
    report["minutes"] = (time.monotonic() - began) / 60
    peft.save(model, out / "adapter")
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")

    names = ["violations", *(p.name for p in RULES), "evasive", "takes up the prompt", "words"]
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for stage in ("before", "revised", "aligned"):
        print(f"| {stage} | " + " | ".join(f"{report[stage][name]:.3f}" for name in names) + " |")
    for (prompt, before), (_, after) in list(zip(report["before"]["samples"], report["aligned"]["samples"]))[:3]:
        print(f"prompt  {prompt}\n  before  {before!r}\n  after   {after!r}")
    print(f"{report['minutes']:.1f} minutes")


def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    main()
