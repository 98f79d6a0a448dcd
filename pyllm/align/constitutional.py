"""Constitutional AI (Bai et al. 2022): a model criticises and revises its own answers, and compares them, by principles.

Stage 1, `revise`: answers, each criticised and rewritten several times; the last ones are for supervised fine-tuning.
Stage 2, `compare`: two answers and the model's own probability that one is the better; these are preferences for DPO or a reward model.
Both are iterators of records that hold everything that was said, for a file that a person can read.

What small models need beyond the paper, each a switch of its own: `tries` draws of a revision, since most of them break what they were
asked for; `sound`, since many speak of the response instead of being one; checkers that decide a comparison before the model does, since
its own choice is mostly one of the place.
"""
from os.path import commonprefix

import numpy as np

from pyllm.align.constitution import evasive, helpful
from pyllm.autograd import Rng, no_grad, ops
from pyllm.data.batch import IGNORED
from pyllm.errors import ConfigError
from pyllm.generation import Session, generate
from pyllm.nn import Cache

STOPS = ("\n\nHuman:", "\n\nCritiqueRequest:", "\n\nRevisionRequest:", "\n\nCritique:", "\n\nAssistant:")
CLAMP = (0.4, 0.6)  # probabilities after a chain of thought, which are too sure of themselves: Bai et al. 2022, section 4.1


def asked(tokenizer, turns):
    """turns: [(role, text)] -> ids of the conversation, the assistant's turn next: the tokenizer's template, or Human: and Assistant:."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat([{"role": role, "content": text} for role, text in turns], add_generation_prompt=True)
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return tokenizer.encode("".join(f"\n\n{names[role]}: {text}" for role, text in turns) + "\n\nAssistant:")


def answers(model, tokenizer, conversations, seed, rows=16, **options):
    """conversations: lists of turns -> the texts that the model answers, drawn with `options` of pyllm.generate, `rows` side by side."""
    ids, found = [asked(tokenizer, turns) for turns in conversations], []
    room = model.config.size("context") - options.get("max_tokens", 100)
    if (longest := max(map(len, ids))) > room:
        raise ValueError(f"constitution: a conversation of {longest} tokens and an answer of {options.get('max_tokens', 100)} are more "
                         f"than the context of {model.config.size('context')}. Hint: fewer examples (shots), shorter answers")
    session = None
    if len(ids) > 1 and (shared := commonprefix(ids)):  # examples that stand before every prompt are read once
        generate(model, tokenizer, shared, max_tokens=0, session=(session := Session(model)))
    for begin in range(0, len(ids), rows):
        keys = Rng(seed).fold("answers", begin).key % 2**31
        found += [g.text.strip() for g in generate(model, tokenizer, ids[begin : begin + rows], seed=keys, stop=STOPS, session=session,
                                                   **options)]
    return found


def sound(constitution, prompt, text):
    """-> whether a revision is one to learn from: it breaks no checked principle, does not evade, and takes up a word of the prompt."""
    return bool(text) and not constitution.violations(text) and not evasive(text) and helpful(prompt, text) > 0


def revise(model, tokenizer, constitution, prompts, *, rounds=2, shots=0, tries=1, rewrite=False, critique_tokens=None, seed=0, rows=16,
           start=0, **options):
    """Answers, and `rounds` times a critique and a revision each by a principle drawn at random -> iterator of records, one a prompt:

        {"prompt", "response", "rounds": [{"principle", "critique", "revision", "violations", "sound", "drafts"}], "violations"}

    violations: names of the checked principles that a text breaks. shots: how many of the constitution's examples stand before. tries: a
    revision that is not `sound` is drawn again, so many times in all; the last one stays, drafts are those before it. critique_tokens: of a
    critique at most, None = max_tokens, 0 = no critique (Bai et al. 2022, section 3.5). rewrite: no conversation and no critique: the
    request is the system's, the text the user's, which is how small chat models learned to rewrite. start: the prompt to go on from, a
    multiple of `rows`. An empty revision keeps the text as it was. ConfigError for a constitution that asks for no revisions.
    """
    principles = constitution.revising
    if not principles:
        raise ConfigError("revise: the constitution has no principle with a critique and a revision request")
    before = [turn for shot in constitution.revision_shots[:shots] for turn in shot]
    for begin in range(start, len(prompts), rows):
        some = prompts[begin : begin + rows]

        def ask(talks, *place, begin=begin, **more):
            return answers(model, tokenizer, talks, Rng(seed).fold("revise", begin, *place).key, rows, **{**options, **more})

        texts = ask([[("user", prompt)] for prompt in some], 0)
        records = [{"prompt": prompt, "response": text, "violations": constitution.violations(text), "rounds": []}
                   for prompt, text in zip(some, texts)]
        for turn in range(rounds):
            chosen = constitution.draw(principles, len(some), [seed, begin, 0, turn])
            talks = [[*before, ("user", prompt), ("assistant", text or "...")] for prompt, text in zip(some, texts)]
            critiques = [""] * len(some)
            if critique_tokens != 0 and not rewrite:
                talks = [[*talk, ("user", p.critique)] for talk, p in zip(talks, chosen)]
                critiques = ask(talks, 2 * turn + 1, **({"max_tokens": critique_tokens} if critique_tokens else {}))
                talks = [[*talk, ("assistant", critique or "...")] for talk, critique in zip(talks, critiques)]
            talks = [[("system", p.revision), ("user", text or "...")] if rewrite else [*talk, ("user", p.revision)]
                     for talk, p, text in zip(talks, chosen, texts)]
            left, drafts = range(len(some)), [[] for _ in some]
            for again in range(tries):
                for i, text in zip(left, ask([talks[i] for i in left], 2 * turn + 2, again)):
                    drafts[i].append(text or texts[i])
                if not (left := [i for i in left if not sound(constitution, some[i], drafts[i][-1])]):
                    break
            texts = [draft.pop() for draft in drafts]
            for i, (record, p, text) in enumerate(zip(records, chosen, texts)):
                record["rounds"].append({"principle": p.name, "critique": critiques[i], "revision": text, "drafts": drafts[i],
                                         "violations": constitution.violations(text), "sound": i not in left})
        yield from records


def revisions(records, unsound=False):
    """Records of `revise` -> examples {"prompt", "completion"} of their last revisions.

    Left out are those that are not `sound` (unsound=True keeps them: the paper's way, for models that revise well) and empty ones.
    """
    return [{"prompt": r["prompt"], "completion": last["revision"]} for r in records
            if (last := r["rounds"][-1])["revision"] and (unsound or last["sound"])]


def compare(model, tokenizer, constitution, prompts, *, judge=None, shots=0, think=False, checkers=True, seed=0, rows=16, start=0,
            **options):
    """Two answers a prompt, compared by a principle drawn at random -> iterator of records, one a prompt:

        {"prompt", "principle", "a", "b", "probability", "first", "second", "agree", "thoughts", "violations": [of a, of b]}

    probability: that a is better: 1 or 0 where it breaks fewer or more checked principles than b (checkers=False: nobody looks), else by
    the principle the mean of `first`, said with a in place (A), and `second`, with a in place (B): so that a preference for a place cancels
    out. agree: whether both say the same. judge: the model that compares, None for `model`. think: a chain of thought comes first, and
    probabilities are held within CLAMP.
    """
    principles, judge = constitution.comparing, judge or model
    if not principles:
        raise ConfigError("compare: the constitution has no principle with a comparison or a checker")
    for begin in range(start, len(prompts), rows):
        some = prompts[begin : begin + rows]
        pairs = [answers(model, tokenizer, [[("user", p)] for p in some], Rng(seed).fold("compare", begin, side).key, rows, **options)
                 for side in (0, 1)]
        chosen = constitution.draw(principles, len(some), [seed, begin, 1])
        records = []
        for prompt, a, b, p in zip(some, *pairs, chosen):
            violations = [constitution.violations(a), constitution.violations(b)]
            records.append({"prompt": prompt, "principle": p.name, "a": a, "b": b, "probability": 0.5, "violations": violations})
            of_a, of_b = map(len, violations)
            if checkers and of_a != of_b:
                records[-1]["probability"] = float(of_a < of_b)
            elif p.comparison and a != b:
                ordered = [(prompt, a, b), (prompt, b, a)]
                thoughts = ["", ""]
                if think:
                    thoughts = [thought(judge, tokenizer, p, case, Rng(seed).fold("think", begin, i), options)
                                for i, case in enumerate(ordered)]
                first, second = probabilities(judge, tokenizer, p, ordered, thoughts, constitution.comparison_shots[:shots])
                if think:
                    first, second = (float(np.clip(x, *CLAMP)) for x in (first, second))
                records[-1].update(first=first, second=1 - second, probability=(first + 1 - second) / 2,
                                   agree=(first > 0.5) == (second < 0.5), **({"thoughts": thoughts} if think else {}))
        yield from records


def question(principle, prompt, a, b):
    """-> the text of a comparison."""
    return (f"Consider the following conversation between a human and an assistant:\n\nHuman: {prompt}\n\n{principle.comparison}\n"
            f"Options:\n (A) {a}\n (B) {b}")


def thought(judge, tokenizer, principle, case, key, options):
    """-> what the judge thinks before it answers."""
    return answers(judge, tokenizer, [[("user", question(principle, *case) + "\nLet's think step by step.")]], key.key, **options)[0]


def probabilities(judge, tokenizer, principle, cases, thoughts, shots=()):
    """cases: [(prompt, a, b)] -> [probability that (A) is better], from the judge's own log p of the two answers."""
    turns = []
    for i, (prompt, better, worse) in enumerate(shots):
        options = (better, worse) if i % 2 == 0 else (worse, better)
        turns += [("user", question(principle, prompt, *options)), ("assistant", f"The answer is: ({'AB'[i % 2]})")]
    said = [tokenizer.encode(f"The answer is: ({letter})", template=False) for letter in "AB"]
    contexts = []
    for case, chain in zip(cases, thoughts):
        asks = [("user", question(principle, *case) + ("\nLet's think step by step." if chain else ""))]
        contexts.append(asked(tokenizer, [*turns, *asks, *([("assistant", chain), ("user", "So the answer is?")] if chain else [])]))
    if (longest := max(map(len, contexts)) + max(map(len, said))) > judge.config.size("context"):
        raise ValueError(f"constitution: a comparison of {longest} tokens is more than the judge's context of "
                         f"{judge.config.size('context')}. Hint: fewer examples (shots), shorter answers")
    logp = choices(judge, contexts, said)
    return (1 / (1 + np.exp(logp[:, 1] - logp[:, 0]))).tolist()


def choices(model, contexts, said):
    """contexts, said: lists of ids -> (contexts, said) float64: log p of each of `said` behind each context, nats.

    What all contexts begin with is read once, and each context once for all that may be said behind it.
    """
    same = min(len(commonprefix(contexts)), *(len(context) - 2 for context in contexts))
    width = max(map(len, said))
    room = max(map(len, contexts)) + width
    tokens, targets = np.zeros((len(said), width), np.int32), np.full((len(said), width), IGNORED, np.int32)
    for row, ids in enumerate(said):
        tokens[row, 1 : len(ids)], targets[row, : len(ids)] = ids[:-1], ids

    def read(cache, ids):
        if len(ids):
            model.hidden(np.array([ids], np.int32), cache=cache)
            cache.advance(len(ids))
        return cache

    found = []
    with no_grad():
        begun = read(Cache(1, room), contexts[0][:same])
        for context in contexts:
            cache = read(begun.copies([same], room), context[same:-1]).copies([len(context) - 1] * len(said), room)
            tokens[:, 0] = context[-1]
            hidden = model.hidden(tokens, cache=cache)
            found.append(ops.linear_log_probs(hidden, model.head_weight(), model.head_bias(), targets).data.sum(1, dtype=np.float64))
    return np.stack(found)


def preferences(records, least=0.0):
    """Records of `compare` -> examples {"prompt", "chosen", "rejected"}.

    Left out, since they say nothing: answers that are equal, or preferred by no more than `least` above one half, and those of which the
    judge prefers another when they change places: it prefers a place.
    """
    found = []
    for r in records:
        p = r["probability"]
        if abs(p - 0.5) > least and r.get("agree", True) and r["a"].strip() and r["b"].strip() and r["a"] != r["b"]:
            found.append({"prompt": r["prompt"], **dict(zip(("chosen", "rejected"), (r["a"], r["b"]) if p > 0.5 else (r["b"], r["a"])))})
    return found


def agreement_rate(records):
    """-> share of the comparisons by the judge in which both orders said the same, or None for none."""
    said = [r["agree"] for r in records if "agree" in r]
    return float(np.mean(said)) if said else None
