"""Constitutional AI on a real model, with LoRA, on one CPU: SmolLM2-135M-Instruct learns to answer briefly, once, plainly and directly.

    python examples/constitution.py DATA --model SmolLM2-135M-Instruct.Q4_1.gguf --out runs/constitution
    python examples/constitution.py DATA --quick                       # a tiny random model: shows that all of it runs

DATA holds constitutional-ai/prompts (the published principles) and hh-rlhf/*.jsonl.gz (whose first turns are the prompts). The four
principles of constitution.json carry a checker, which says what is broken; the 16 published ones are judged by the model itself, and are
drawn as often as those four together. Stage 1: answers, critiques, revisions; fine-tuning on the revisions. Stage 2: two answers each,
compared in both orders; DPO, or with --method ppo a preference model that the comparisons teach, and PPO against it. Kept in OUT:
revisions.jsonl, comparisons.jsonl, adapter/, report.json.

Where this departs from the paper, since 135 M parameters are not 52 B, and how to switch it off:
--dialogue     a revision is asked of the answer alone, not in a conversation that holds a critique: this model copies the critique
--tries 1      a revision that is not sound (breaks a rule, evades, takes up no word of the prompt) is drawn again, up to 4 times
--unsound      those that never were sound are not learned from: most of them speak of the response instead of being one
--no-checkers  a rule that one of two answers breaks decides between them; without it the model alone does, and it mostly prefers a place
--stages 1     or 2: one stage alone
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np

import pyllm
from pyllm import align, data, objectives, peft, training
from pyllm.align.constitution import Constitution, evasive, helpful, read_constitution
from pyllm.align.constitutional import agreement_rate, answers, asked, compare, preferences, revise, revisions
from pyllm.data.render import Row
from pyllm.evaluate.metrics import proportion


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


def end_of(tokenizer):
    """-> the token that ends an answer."""
    return min(set(tokenizer.encode("<|im_end|>")) & {t.id for t in tokenizer.added}, default=tokenizer.eos_id)


def row(tokenizer, prompt, answer):
    """-> Row of a prompt and its answer, which is learned up to and with the token that ends it."""
    context = asked(tokenizer, [("user", prompt)])
    ids = context + tokenizer.encode(answer, template=False) + [end_of(tokenizer)]
    return Row(np.array(ids, np.int32), np.arange(len(ids)) >= len(context))


def learn(model, items, objective, args, *, epochs, lr, name):
    """Trains what learns of the model on Rows or pairs of them, 8 a step in micro-batches of 4, without dropout."""
    order = np.concatenate([np.random.default_rng([args.seed, epoch]).permutation(len(items)) for epoch in range(epochs)])
    order = np.resize(order, max(8, len(order) // 8 * 8))
    batches = [data.collate([items[i] for i in order[at : at + 4]]) for at in range(0, len(order), 4)]
    steps, began = len(order) // 8, time.monotonic()
    for record in training.train(model, lambda m, batch, rng=None: objective(m, batch), batches, training.AdamW(model, weight_decay=0.0),
                                 steps=steps, accumulate=2, lr=training.linear(lr, steps, warmup=max(1, steps // 10)), precision="bf16"):
        if record.step % 5 == 0 or record.step == steps:
            more = "".join(f"  {k} {v:.2f}" for k, v in record.metrics.items() if k in ("rewards/accuracies", "rewards/margins"))
            print(f"  {name} step {record.step}/{steps}  loss {record.loss:.3f}{more}  {time.monotonic() - began:.0f} s", flush=True)


def preference_model(pairs, args):
    """pairs of Rows -> RewardModel: the model as it came, with a score, taught by seven pairs of eight; the report on the eighth."""
    base, _ = tiny() if args.quick else pyllm.load(args.model)
    scorer, *_ = training.transfer(base, "classify", labels=["reward"], dropout=0.0, seed=args.seed)
    if args.base != "f32":
        pyllm.quantize(scorer, args.base, skip=peft.score_layers(scorer))
    peft.inject(scorer, peft.LoRA(rank=16, alpha=32), seed=args.seed)
    held, pairs = pairs[: len(pairs) // 8 + 1], pairs[len(pairs) // 8 + 1 :]
    learn(scorer, pairs, objectives.reward_pairs, args, epochs=args.reward_epochs, lr=args.reward_lr, name="preference model")
    reward = align.RewardModel(scorer).normalize([data.collate(pairs)])
    return reward, align.agreement(reward, [data.collate(held)])


def reinforce(model, reward, prompts, end, args):
    """PPO against the preference model, from what the model is now, which is also what it is kept near to."""
    actor, began = align.ActorCritic(model), time.monotonic()
    config = align.PPOConfig(steps=args.iterations, batch=args.ppo_batch, micro_batch=8, response_length=args.tokens, temperature=0.7,
                             num_ppo_epochs=2, num_mini_batches=2, lr=args.ppo_lr, lr_end=args.ppo_lr / 10, kl_coef=args.kl_coef,
                             missing_eos_penalty=1.0, seed=args.seed)
    iterations = align.ppo(actor, align.frozen_copy(model), prompts, reward, training.AdamW(actor, weight_decay=0.0), config, stop=(end,))
    with pyllm.precision("bf16"):
        for it in iterations:
            m = it.metrics
            print(f"  ppo {it.step}/{config.steps}  score {m['objective/scores']:.2f}  KL {m['objective/kl_k3']:.2f}  entropy "
                  f"{m['policy/entropy_avg']:.2f}  tokens {m['completions/mean_length']:.0f}  {time.monotonic() - began:.0f} s", flush=True)


def measure(name, model, tokenizer, rules, held, args):
    """-> rates over answers to held-out prompts, with their 95 % intervals; the answers."""
    texts = answers(model, tokenizer, [[("user", p)] for p in held], args.seed + 99, args.rows, max_tokens=args.tokens, temperature=0.7,
                    top_p=0.95)
    broken = [rules.violations(text) for text in texts]
    rate = proportion("violations", [bool(b) for b in broken])
    found = {"violations": rate.value, "low": rate.low, "high": rate.high,
             **{p.name: float(np.mean([p.name in b for b in broken])) for p in rules.principles},
             "evasive": float(np.mean([evasive(t) for t in texts])), "takes up the prompt": float(np.mean(list(map(helpful, held, texts)))),
             "words": float(np.mean([len(t.split()) for t in texts]))}
    print(f"{name:10} " + "  ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
    return {**found, "samples": list(zip(held, texts))}


def tiny():
    """-> a random model with a tokenizer that knows ChatML, for --quick."""
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["user assistant The answer is: (A) (B) one two three " * 50], vocab_size=400,
                                   special_tokens=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = "chatml"
    return pyllm.build({"model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 32, "intermediate_size": 64,
                        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048}, seed=0), tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder with constitutional-ai/prompts and hh-rlhf")
    parser.add_argument("--model", help="a model folder or a .gguf file")
    parser.add_argument("--out", help="where records, adapter and report go")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and few prompts: shows that all of it runs")
    parser.add_argument("--constitution", default=Path(__file__).with_name("constitution.json"), help="principles with checkers")
    parser.add_argument("--prompts", type=int, default=128, help="to learn from")
    parser.add_argument("--held", type=int, default=96, help="to measure by: half an interval of 95 %% is then at most 0.1")
    parser.add_argument("--rounds", type=int, default=1, help="critiques and revisions of an answer: each costs a third of the minutes")
    parser.add_argument("--tries", type=int, default=4, help="draws of a revision until it is sound")
    parser.add_argument("--dialogue", action="store_true", help="the paper's form of a revision: in the conversation, after a critique")
    parser.add_argument("--unsound", action="store_true", help="learn from revisions that are not sound, too")
    parser.add_argument("--no-checkers", dest="checkers", action="store_false", help="the model alone compares")
    parser.add_argument("--stages", default="12", choices=("1", "2", "12"))
    parser.add_argument("--shots", type=int, default=1, help="examples of a critique and a revision before each of a dialogue")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer at most")
    parser.add_argument("--critique-tokens", type=int, default=32, help="of a critique at most")
    parser.add_argument("--base", default="q8_0", choices=("f32", "bf16", "q8_0", "q4_1"), help="of the frozen weights")
    parser.add_argument("--rows", type=int, default=32, help="texts drawn side by side")
    parser.add_argument("--sl-epochs", type=int, default=3)
    parser.add_argument("--sl-lr", type=float, default=5e-4, help="an adapter's learning rate, ten times that of the whole model")
    parser.add_argument("--pairs", type=int, default=128, help="comparisons: a prompt may come several times, with other answers")
    parser.add_argument("--rl-epochs", type=int, default=1)
    parser.add_argument("--rl-lr", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1, help="DPO's")
    parser.add_argument("--method", default="dpo", choices=("dpo", "ppo"), help="of stage 2")
    parser.add_argument("--reward-epochs", type=int, default=3, help="of PPO's preference model")
    parser.add_argument("--reward-lr", type=float, default=3e-4)
    parser.add_argument("--iterations", type=int, default=12, help="of PPO")
    parser.add_argument("--ppo-batch", type=int, default=32, help="responses of an iteration")
    parser.add_argument("--ppo-lr", type=float, default=2e-4)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.held, args.pairs, args.tokens, args.shots, args.sl_epochs, args.iterations = 8, 4, 8, 8, 1, 1, 2
    began, out = time.monotonic(), Path(args.out or "constitution-out")
    out.mkdir(parents=True, exist_ok=True)
    rules, published = read_constitution(args.constitution), read_constitution(Path(args.data) / "constitutional-ai/prompts")
    constitution = Constitution(rules.principles + published.principles, published.revision_shots, published.comparison_shots)
    texts = read_prompts(Path(args.data) / "hh-rlhf", args.prompts + args.held)
    prompts, held = texts[: args.prompts], texts[args.prompts :]
    model, tokenizer = tiny() if args.quick else pyllm.load(args.model)
    if args.base != "f32":
        pyllm.quantize(model, args.base)
    peft.inject(model, peft.LoRA(rank=16, alpha=32), seed=args.seed)
    print(f"{len(prompts)} prompts, {len(held)} held out, {len(constitution.revising)} principles; {peft.report(model)}", flush=True)
    report = {"settings": {k: str(v) for k, v in vars(args).items()}, "before": measure("before", model, tokenizer, rules, held, args)}
    drawn = dict(seed=args.seed, rows=args.rows, max_tokens=args.tokens, temperature=0.7, top_p=0.95)

    if "1" in args.stages:
        records = list(revise(model, tokenizer, constitution, prompts, rounds=args.rounds, tries=args.tries, shots=args.shots,
                              rewrite=not args.dialogue, critique_tokens=min(args.critique_tokens, args.tokens), **drawn))
        write(out / "revisions.jsonl", records)
        report["revisions"] = revision_rates(records, rules)
        kept = revisions(records, args.unsound)
        print(f"stage 1    {len(kept)} revisions to learn from; {report['revisions']}  {time.monotonic() - began:.0f} s", flush=True)
        kept = kept or revisions(records, True)  # a random model revises nothing
        rows = [row(tokenizer, e["prompt"], e["completion"]) for e in kept]
        learn(model, rows, objectives.clm, args, epochs=args.sl_epochs, lr=args.sl_lr, name="revised")
        report["revised"] = measure("revised", model, tokenizer, rules, held, args)

    if "2" in args.stages:
        asks = (prompts * -(-args.pairs // len(prompts)))[: args.pairs]
        records = list(compare(model, tokenizer, constitution, asks, judge=align.WithoutAdapters(model), checkers=args.checkers, **drawn))
        write(out / "comparisons.jsonl", records)
        pairs = [(row(tokenizer, p["prompt"], p["chosen"]), row(tokenizer, p["prompt"], p["rejected"])) for p in preferences(records)]
        report["comparisons"] = {"pairs": len(pairs), "by checker": sum(r["probability"] in (0.0, 1.0) for r in records),
                                 "agreement of both orders": agreement_rate(records)}
        print(f"stage 2    {report['comparisons']}  {time.monotonic() - began:.0f} s", flush=True)
        if len(pairs) > 1 and args.method == "ppo":
            reward, found = preference_model(pairs, args)
            report["preference model"] = vars(found)
            print(f"           {found}", flush=True)
            reinforce(model, reward, [asked(tokenizer, [("user", p)]) for p in prompts], end_of(tokenizer), args)
        elif pairs:
            for pair in pairs:  # the reference is the model that stage 1 left, remembered before it moves
                known = align.with_reference(data.collate([pair]), model).extra["ref_logp"]
                for one, logp in zip(pair, known.tolist()):
                    one.extra["ref_logp"] = logp
            learn(model, pairs, lambda m, batch: objectives.dpo(m, batch, beta=args.beta), args, epochs=args.rl_epochs, lr=args.rl_lr,
                  name="aligned")
        report["aligned"] = measure("aligned", model, tokenizer, rules, held, args)
    report["minutes"] = (time.monotonic() - began) / 60
    peft.save(model, out / "adapter")
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")

    names, stages = [k for k in report["before"] if k != "samples"], [s for s in ("before", "revised", "aligned") if s in report]
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for stage in stages:
        print(f"| {stage} | " + " | ".join(f"{report[stage][name]:.3f}" for name in names) + " |")
    for (prompt, before), (_, after) in list(zip(report["before"]["samples"], report[stages[-1]]["samples"]))[:3]:
        print(f"prompt  {prompt}\n  before  {before!r}\n  after   {after!r}")
    print(f"{report['minutes']:.1f} minutes")


def revision_rates(records, rules):
    """-> shares of answers, first drafts and last revisions that break a rule, and of the revisions that are sound."""
    last = [r["rounds"][-1] for r in records]
    first = [[*r["drafts"], r["revision"]][0] for r in last]
    rates = {"violations": [r["response"] for r in records], "first draft": first, "revision": [r["revision"] for r in last]}
    return {**{k: float(np.mean([bool(rules.violations(t)) for t in texts])) for k, texts in rates.items()},
            "sound": float(np.mean([r["sound"] for r in last]))}


def write(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    main()
