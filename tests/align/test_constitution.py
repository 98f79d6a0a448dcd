"""Constitutions: the published layouts as they are, checkers; answers criticised, revised, compared; nothing depends on the order."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pyllm import peft
from pyllm.align import WithoutAdapters, assemble, log_probs
from pyllm.align.constitution import Checker, Constitution, Principle, conversation, evasive, helpful, read_constitution
from pyllm.align.constitutional import (agreement_rate, answers, asked, choices, compare, preferences, probabilities, question, revise,
                                        revisions, sound)
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build
from pyllm.models import FAMILIES
from pyllm.text import ByteLevelBPE

PUBLISHED = Path(__file__).parents[3] / "shared/data/constitutional-ai/prompts"
OWN = {"principles": [{"name": "short", "critique": "Is it too long?", "revision": "Make it shorter.", "checker": {"max_words": 5}},
                      {"name": "kind", "comparison": "Which one is kinder?"}]}


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))
    return folder / name


@pytest.fixture(scope="module")
def small():
    tokenizer = ByteLevelBPE.train(["Human: what is it? Assistant: The answer is: (A) (B) " * 20], 300)
    sizes = {"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 2, "width": 16, "context": 512, "initializer_range": 0.3}
    return build(FAMILIES["gpt2"][0].from_sizes(sizes), seed=0), tokenizer


def test_the_published_layouts_are_read_as_they_are(tmp_path):
    write(tmp_path, "CritiqueRevisionInstructions.json", {"harmful0": {
        "prompt": ["\n\nCritiqueRequest: Say what is harmful.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Rewrite it.\n\nRevision:"}})
    write(tmp_path, "RLMadisonInstructions.json", ["\nPlease choose the kinder response. Options:"])
    write(tmp_path, "CritiqueRevisionFewShotPrompts.json", [
        "\n\nHuman: Hi\n\nAssistant: Go away.\n\nCritiqueRequest: Look.\n\nCritique: Rude.\n\nRevisionRequest: Redo.\n\nRevision: Hello!"
        "\n\nHuman:"])
    write(tmp_path, "RLMadisonFewShotPrompts.json", [
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "corrects": ["Hello"], "incorrects": ["No"]}])
    found = read_constitution(tmp_path)
    assert [p.name for p in found.principles] == ["harmful0", "RLMadisonInstructions0"]
    assert found.revising == [Principle("harmful0", "Say what is harmful.", "Rewrite it.")]
    assert found.comparing[0].comparison == "Please choose the kinder response."
    assert found.comparison_shots == (("Hi", "Hello", "No"),)
    assert found.revision_shots[0] == [("user", "Hi"), ("assistant", "Go away."), ("user", "Look."), ("assistant", "Rude."),
                                       ("user", "Redo."), ("assistant", "Hello!")]
    other = read_constitution(write(tmp_path, "hf.json", {"constitutions": [{"critic": "C", "revision": "R"}], "system_chat": [
        [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]]}))
    assert other.revising == [Principle("hf0", "C", "R")] and other.revision_shots == ([("user", "u"), ("assistant", "a")],)
    own = read_constitution(write(tmp_path, "own.json", OWN))
    assert own.violations("one two three four five six") == ["short"] and own.violations("one") == []


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published files")
def test_the_published_files_themselves():
    found = read_constitution(PUBLISHED)
    assert len(found.revising) == 16 and len(found.comparing) == 16 and len(found.revision_shots) == len(found.comparison_shots) == 5
    for p in found.revising:
        assert not re.search("Request:|Critique:|Revision:", p.critique + p.revision) and p.critique and p.revision
    assert not any("Options:" in p.comparison for p in found.comparing)
    assert all([role for role, _ in shot][-2:] == ["user", "assistant"] and len(shot) >= 6 for shot in found.revision_shots)


def test_bad_constitutions_are_refused(tmp_path):
    for value, words in (({"principles": []}, "without principles"), ([], "not a constitution"),
                         ({"principles": [{"name": "x", "critic": "y"}]}, "'critic' is not a key of a principle. Did you mean 'critique'"),
                         ({"principles": [{"name": "x", "critique": "y"}]}, "critique and revision together"),
                         ({"principles": [{**OWN["principles"][0], "weight": 0}]}, "weight 0; expected a number above 0"),
                         ({"principles": [{"name": "x", "checker": {"forbid": "("}}]}, "no regular expression"),
                         ({"principles": [OWN["principles"][0]] * 2}, "stands twice"), ({"a": {"prompt": []}}, "not a constitution")):
        with pytest.raises(FormatError, match=re.escape(words)):
            read_constitution(write(tmp_path, "c.json", value))
    with pytest.raises(FileNotFoundError):
        read_constitution(tmp_path / "none")


def test_checkers():
    assert Checker(forbid=r"\bbad\b").broken("A BAD thing") and not Checker(forbid=r"\bbad\b").broken("badly")
    assert Checker(require="please").broken("no") and not Checker(require="please").broken("Please")
    assert Checker(min_words=3).broken("one two") and Checker(max_words=1).broken("one two")
    assert evasive("I'm sorry, but no.") and evasive("I can’t do that at all") and not evasive("Of course: take two eggs.")
    assert helpful("How do I bake bread?", "You bake bread so.") == 1 and helpful("How do I bake bread?", "Hello") == 0


def test_revisions_are_kept_word_by_word_and_drawn_alike(small, tmp_path):
    own = read_constitution(write(tmp_path, "c.json", OWN))
    prompts = [f"what is {i}" for i in range(5)]
    options = dict(rounds=2, seed=3, max_tokens=8)
    found = list(revise(*small, own, prompts, **options))
    assert [r["prompt"] for r in found] == prompts and all(len(r["rounds"]) == 2 for r in found)
    assert found == list(revise(*small, own, prompts, **options)) and found != list(revise(*small, own, prompts, **{**options, "seed": 4}))
    for r in found:
        for turn in r["rounds"]:
            assert turn["principle"] == "short" and turn["violations"] == own.violations(turn["revision"])
    json.dumps(found)
    with pytest.raises(ConfigError, match="no principle with a critique"):
        list(revise(*small, Constitution((own.principles[1],)), prompts))
    with pytest.raises(ValueError, match="more than the context"):
        list(revise(*small, own, ["long " * 600], max_tokens=8))


def test_a_revision_that_breaks_a_rule_is_drawn_again_and_not_learned_from(small, tmp_path):
    rule = Constitution((Principle("no q", "Is there a q?", "Write it without q.", checker=Checker(forbid="[qdo]")),))
    prompts = [str(i) for i in range(12)]
    options = dict(rounds=1, seed=3, max_tokens=40, rows=4)
    once, several = (list(revise(*small, rule, prompts, tries=n, **options)) for n in (1, 3))
    for one, more in zip(once, several):
        first, last = one["rounds"][0], more["rounds"][0]
        drawn = [*last["drafts"], last["revision"]]
        assert not first["drafts"] and drawn[0] == first["revision"] and first["sound"] == sound(rule, one["prompt"], first["revision"])
        assert not any(sound(rule, one["prompt"], text) for text in last["drafts"])
        assert last["sound"] == sound(rule, one["prompt"], last["revision"]) and last["sound"] != (len(drawn) == 3 and not last["sound"])
    assert sum(r["rounds"][0]["sound"] for r in once) < sum(r["rounds"][0]["sound"] for r in several)
    learned = revisions(several)
    assert learned == [{"prompt": r["prompt"], "completion": r["rounds"][0]["revision"]} for r in several if r["rounds"][0]["sound"]]
    assert 0 < len(learned) < len(revisions(several, unsound=True)) <= 12
    assert not sound(rule, "How do I bake bread?", "I cannot do that, sorry to say") and not sound(rule, "bake bread", "We bake it quickly")
    assert sound(rule, "bake bread", "We bake it") and not sound(rule, "bake bread", "This is too long")


def test_without_critiques_and_with_shorter_ones(small):
    rule = Constitution((Principle("any", "Look.", "Again."),))
    none, short = (list(revise(*small, rule, ["a", "b"], rounds=1, seed=1, max_tokens=9, critique_tokens=n)) for n in (0, 2))
    assert [r["response"] for r in none] == [r["response"] for r in short] and not any(r["rounds"][0]["critique"] for r in none)
    assert all(0 < len(small[1].encode(r["rounds"][0]["critique"])) <= 2 for r in short)


def test_a_rewriting_model_sees_the_request_and_the_text_alone(small, monkeypatch):
    from pyllm.align import constitutional

    seen = []
    monkeypatch.setattr(constitutional, "answers", lambda model, tokenizer, talks, *_, **__: seen.extend(talks) or [f"said {len(seen)}"])
    rule = Constitution((Principle("any", "Look.", "Again."),), revision_shots=([("user", "shot")],))
    record, = revise(*small, rule, ["p"], rounds=2, shots=1, rewrite=True)
    assert seen == [[("user", "p")], [("system", "Again."), ("user", "said 1")], [("system", "Again."), ("user", "said 2")]]
    assert [r["critique"] for r in record["rounds"]] == ["", ""] and record["rounds"][1]["revision"] == "said 3"


def test_examples_that_are_read_once_change_no_word(small, monkeypatch):
    """Prompts that begin alike share the keys and values of that: the answers are those of each prompt read alone."""
    from pyllm.align import constitutional

    talks = [[("user", "what is it? " * 9), ("assistant", "it"), ("user", word)] for word in ("one", "two", "it is so")]
    shared = answers(*small, talks, 5, max_tokens=9)
    monkeypatch.setattr(constitutional, "commonprefix", lambda ids: [])
    assert shared == answers(*small, talks, 5, max_tokens=9) and any(shared)


def test_principles_are_drawn_by_their_weights(tmp_path):
    heavy = read_constitution(write(tmp_path, "c.json", {"principles": [{**p, "weight": w} for p, w in zip(OWN["principles"], (3, 1))],
                                                         "system_chat": [[{"role": "user", "content": "u"}]]}))
    names = [p.name for p in heavy.draw(heavy.principles, 4000, 0)]
    assert abs(names.count("short") / 4000 - 0.75) < 0.03 and heavy.revision_shots == ([("user", "u")],)
    assert heavy.draw(heavy.principles, 9, [1, 2]) == heavy.draw(heavy.principles, 9, [1, 2])


def test_a_preference_for_a_place_cancels_out(small, tmp_path):
    """The mean over both orders: swapping the answers turns the probability round, whatever the model thinks of (A)."""
    p = OWN["principles"][1]
    principle = Principle(**p)
    model, tokenizer = small
    cases = [("Hi", "Hello there", "Go"), ("Hi", "Go", "Hello there")]
    first, second = probabilities(model, tokenizer, principle, cases, ["", ""])
    other, again = probabilities(model, tokenizer, principle, cases[::-1], ["", ""])
    assert (first, second) == (again, other) and 0 < first < 1
    assert (first + 1 - second) / 2 == pytest.approx(1 - (other + 1 - again) / 2)
    # The definition: p(A) over p(A) + p(B), from the logits of the whole text.
    context = asked(tokenizer, [("user", question(principle, *cases[0]))])
    logp = []
    for letter in "AB":
        answer = tokenizer.encode(f"The answer is: ({letter})", template=False)
        logits = model(np.array([context + answer], np.int32)).data[0].astype(np.float64)
        each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        logp.append(sum(each[len(context) - 1 + i, id] for i, id in enumerate(answer)))
    assert first == pytest.approx(1 / (1 + np.exp(logp[1] - logp[0])), rel=1e-4)


@pytest.mark.parametrize("family, method", [("gpt2", None), ("llama", peft.LoRA(rank=2)), ("llama", peft.PrefixTuning(tokens=3))])
def test_what_may_be_said_behind_a_context_read_once_has_the_bits_of_the_whole_text(family, method):
    """Contexts that begin alike, one that is another's beginning; answers of unequal length; LoRA off, a prefix on."""
    model = build(FAMILIES[family][0].from_sizes({"vocab_size": 50, "layers": 2, "heads": 2, "width": 16, "context": 64,
                                                  "initializer_range": 0.3}), seed=0)
    if method:
        peft.inject(model, method, seed=1)
    judge = WithoutAdapters(model) if isinstance(method, peft.LoRA) else model
    contexts, said = [[3, 4, 5, 6, 7, 8], [3, 4, 5, 9, 1], [3, 4, 5, 6]], [[7], [9, 2, 5], [9, 2, 6, 1]]
    rows = [(c, a) for c in contexts for a in said]
    whole = log_probs(judge, assemble([c for c, _ in rows], [a for _, a in rows], np.zeros(9, bool)).batch())
    assert np.array_equal(choices(judge, contexts, said).reshape(-1), whole.sum(1, dtype=np.float64))


def test_comparisons_and_what_becomes_of_them(small):
    own = Constitution((Principle("short", "Is it too long?", "Make it shorter.", checker=Checker(max_words=2)),
                        Principle("kind", comparison="Which one is kinder?")))
    prompts = [f"what is {i}" for i in range(12)]
    found = list(compare(*small, own, prompts, seed=1, max_tokens=9))
    assert found == list(compare(*small, own, prompts, seed=1, max_tokens=9))
    checked = [r for r in found if len(r["violations"][0]) != len(r["violations"][1])]
    judged = [r for r in found if "first" in r]
    assert checked and judged and all(r["probability"] == (len(r["violations"][0]) < len(r["violations"][1])) for r in checked)
    assert all(r["probability"] == pytest.approx((r["first"] + r["second"]) / 2) and r["principle"] == "kind" for r in judged)
    alone = list(compare(*small, own, prompts, seed=1, max_tokens=9, checkers=False))
    assert [(r["a"], r["b"]) for r in alone] == [(r["a"], r["b"]) for r in found]
    assert all(("first" in r) == (r["principle"] == "kind") and 0 < r["probability"] < 1 for r in alone)
    assert agreement_rate(found) == np.mean([r["agree"] for r in judged]) and agreement_rate([]) is None
    pairs = preferences(found)
    assert len(pairs) == sum(r["probability"] != 0.5 and r["a"] != r["b"] and bool(r["a"].strip() and r["b"].strip())
                             and r.get("agree", True) for r in found)
    told = {"prompt": "p", "a": "x", "b": "y", "probability": 0.9, "agree": True}
    assert preferences([told]) == [{"prompt": "p", "chosen": "x", "rejected": "y"}] and not preferences([{**told, "agree": False}])
    assert preferences([{**told, "probability": 0.2}])[0]["chosen"] == "y" and not preferences([told], least=0.45)
    thinking = list(compare(*small, own, prompts[:4], seed=1, max_tokens=9, think=True))
    assert all(0.4 <= r["first"] <= 0.6 and len(r["thoughts"]) == 2 for r in thinking if "first" in r)
    with pytest.raises(ConfigError, match="no principle with a comparison"):
        list(compare(*small, Constitution((Principle("x", "c", "r"),)), prompts))


def test_a_conversation_in_the_papers_form():
    assert conversation("\n\nHuman: a: b\n\nAssistant: c\n\nd") == [("user", "a: b"), ("assistant", "c\n\nd")]
