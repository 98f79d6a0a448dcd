"""The last stages of pyllm demo: a reward model from preferences, PPO against it, a round of constitutional AI. All of it in seconds."""
import numpy as np

RESPONSE = 24  # tokens
CONSTITUTION = {"principles": [{"name": "plain", "critique": "Is it plain?", "revision": "Say it plainly.",
                                "checker": {"forbid": r"[^A-Za-z ,.\n]"}}]}


def preferences(demo):
    """A reward model learns which of two continuations is the plainer: fewer signs among the letters."""
    from pyllm import align, objectives, training
    from pyllm.data import collate

    model, tokenizer, prompts = opened(demo)
    drawn = align.rollout(model, prompts, copies=2, max_tokens=RESPONSE, seed=2, stop=(tokenizer.eos_id,))
    scores = align.rule(lambda prompt, response: plainness(response), tokenizer)(drawn).reshape(-1, 2)
    pairs = [pair(drawn, i, a < b) for i, (a, b) in enumerate(scores) if a != b]
    held, pairs = pairs[: len(pairs) // 8 + 1], pairs[len(pairs) // 8 + 1 :]
    # Without dropout, and on the weights of the language model: only the last layer is new.
    scorer, _, _ = training.transfer(align.frozen_copy(model), "classify", labels=["reward"], dropout=0.0, seed=0)
    steps, order = scaled(demo, 60), np.random.default_rng(0)
    batches = (collate([pairs[i] for i in order.integers(0, len(pairs), 16)]) for _ in range(steps))
    for record in training.train(scorer, objectives.reward_pairs, batches, training.AdamW(scorer), steps=steps, lr=5e-4):
        pass
    reward = align.RewardModel(scorer).normalize([drawn.batch()])
    found = align.agreement(reward, [collate(held)])
    demo.shared["reward"] = reward
    print(f"     {len(pairs)} pairs; of {found.pairs} held-out ones it ranks {100 * found.accuracy:.0f} % as the rule does, "
          f"margin {found.margin:.2f}")


def policy(demo):
    """PPO makes the model write what the reward model likes, and keeps it near to what it was."""
    import pyllm
    from pyllm import align, training

    model, tokenizer, prompts = opened(demo)
    reference, reward = align.frozen_copy(model), demo.shared["reward"]
    actor = align.ActorCritic(model)
    config = align.PPOConfig(steps=scaled(demo, 25), batch=48, micro_batch=48, response_length=RESPONSE, temperature=1.0, lr=4e-4,
                             lr_end=4e-5, kl_coef=0.1, seed=1, patience=0)
    before = written(model, tokenizer, prompts)
    for it in align.ppo(actor, reference, prompts, reward, training.AdamW(actor, weight_decay=0.0), config, stop=(tokenizer.eos_id,)):
        if it.step == 1 or it.step % 5 == 0 or it.step == config.steps:
            m = it.metrics
            print(f"     iteration {it.step:<4} reward {m['objective/scores']:+.2f}  KL {m['objective/kl']:.2f} nats a response  entropy "
                  f"{m['policy/entropy_avg']:.2f} nats a token", flush=True)
    shown(prompts, tokenizer, before, written(model, tokenizer, prompts))
    pyllm.save(model, tokenizer, demo.folder / "aligned")


def constitution(demo):
    """One round of constitutional AI: answers, critiques and revisions; then pairs that the principle compares, and DPO on them."""
    from functools import partial

    from pyllm import align, objectives, training
    from pyllm.align.constitution import read_constitution
    from pyllm.align.constitutional import asked, compare, revise
    from pyllm.align.update import updates
    from pyllm.autograd import Rng
    from pyllm.io.files import write_json

    write_json(demo.folder / "constitution.json", CONSTITUTION)
    principles = read_constitution(demo.folder / "constitution.json")
    model, tokenizer, prompts = opened(demo)
    texts = [tokenizer.decode(p) for p in prompts]
    count = max(6, scaled(demo, 128))
    options = dict(max_tokens=12, temperature=1.0, seed=3, rows=32)
    said = list(revise(model, tokenizer, principles, texts[:4], rounds=1, **options))[0]
    print(f"     prompt {said['prompt']!r}\n     answer {said['response']!r}\n     critique {said['rounds'][0]['critique']!r}\n"
          f"     revision {said['rounds'][0]['revision']!r} (a model of this size has no opinion: the checker decides below)")
    learning, held = texts[:count], texts[-64:]
    pairs = compare(model, tokenizer, principles, learning, **options)
    kept = [r for r in pairs if r["probability"] != 0.5 and r["a"] and r["b"]]
    before = broken(model, tokenizer, principles, held)
    if kept:
        rows = [answer for r in kept for answer in ((r["a"], r["b"]) if r["probability"] > 0.5 else (r["b"], r["a"]))]
        asks = [asked(tokenizer, [("user", r["prompt"])]) for r in kept for _ in range(2)]
        batch = align.assemble(asks, [tokenizer.encode(" " + text) for text in rows], np.zeros(len(rows), bool)).batch()
        batch = align.with_reference(batch, model)
        updates("dpo", model, partial(objectives.dpo, beta=0.1), batch, training.AdamW(model, weight_decay=0.0), Rng(0),
                epochs=scaled(demo, 8), minibatches=max(1, len(kept) // 16), micro_batch=32, lr=5e-4, clip=1.0, together=2)
    print(f"     {len(kept)} of {len(learning)} comparisons were decided; answers that break the principle: {100 * before:.0f} % -> "
          f"{100 * broken(model, tokenizer, principles, held):.0f} % of {len(held)} held-out prompts")


STAGES = [preferences, policy, constitution]


# ---- the pieces

def opened(demo):
    """-> the pretrained model, its tokenizer, prompts: the first words of lines of the corpus, as token ids."""
    import json

    import pyllm

    model, tokenizer = pyllm.load(demo.run / "model")
    lines = [line.strip() for text in demo.corpus.read_text(encoding="utf-8").splitlines() for line in json.loads(text)["text"].split("\n")]
    starts = list(dict.fromkeys(" ".join(line.split()[:3]) for line in lines if line[:1].isupper() and len(line.split()) > 5))
    order = np.random.default_rng(0).permutation(len(starts))
    return model, tokenizer, [ids for i in order if len(ids := tokenizer.encode(starts[i])) <= 16][: max(48, scaled(demo, 256))]


def scaled(demo, number):
    """-> a number of steps for a demo of other than 800."""
    return max(2, number * demo.steps // 800)


def plainness(text):
    """-> the share of letters and spaces in a text."""
    return sum(c.isalpha() or c == " " for c in text) / max(len(text), 1)


def pair(drawn, i, second):
    """-> (chosen Row, rejected Row) of the responses 2i and 2i + 1 of a Rollout."""
    from pyllm.data import Row

    rows = []
    for row in ((2 * i + 1, 2 * i) if second else (2 * i, 2 * i + 1)):
        ids = np.concatenate([drawn.prompt(row), drawn.response(row, end=True)])
        rows.append(Row(ids, np.arange(len(ids)) >= drawn.prompt_lengths[row]))
    return tuple(rows)


def written(model, tokenizer, prompts):
    """-> what the model writes behind three prompts."""
    import pyllm

    return [g.text for g in pyllm.generate(model, tokenizer, prompts[:3], max_tokens=RESPONSE, temperature=0.7, top_p=0.95, seed=1)]


def shown(prompts, tokenizer, before, after):
    for prompt, old, new in zip(prompts, before, after):
        print(f"     {tokenizer.decode(prompt)!r}\n       before {old!r}\n       after  {new!r}")


def broken(model, tokenizer, principles, prompts):
    """-> the share of answers to the prompts that break a principle."""
    from pyllm.align.constitutional import answers

    texts = answers(model, tokenizer, [[("user", p)] for p in prompts], 5, 32, max_tokens=12, temperature=1.0)
    return sum(bool(principles.violations(text)) for text in texts) / len(texts)
