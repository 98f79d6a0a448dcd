"""pyllm reward, dpo, kto, ppo, grpo as a person runs them: from preferences to a policy, resume with the same bits, errors."""
import argparse
import importlib
import json
import shutil

import numpy as np
import pytest

import pyllm
from pyllm import peft
from pyllm.align import InvariantError, RewardModel, rollout
from pyllm.cli import dpo as dpo_verb
from pyllm.cli import main, preferences
from pyllm.cli import run as runs
from pyllm.cli.adapters import METHODS
from pyllm.cli.generate import opened
from pyllm.cli.config import read_toml
from pyllm.cli.policies import open_reward
from pyllm.data.render import rows_of
from pyllm.folders import build
from pyllm.io import safetensors
from pyllm.models import FAMILIES
from pyllm.text import ByteLevelBPE
from pyllm.training import newest, read_log

KIND, UNKIND = ["good", "nice", "fine"], ["bad", "poor", "sad"]
SHORT = ["--batch", "4", "--lr", "5e-3", "--epochs", "2", "--sample-tokens", "4"]
LORA = ["--peft", "lora", "--rank", "2"]
POLICY = ["--steps", "3", "--batch", "4", "--lr", "5e-3", "--eval-every", "2", "--save-every", "1"]
TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mb", "eps", "seconds/rollout", "seconds/rewards", "seconds/updates",
           "step_time"}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A model, preferences of kind words, single answers, prompts, a rule."""
    root, draw = tmp_path_factory.mktemp("align"), np.random.default_rng(0)
    pick = lambda words: " ".join(draw.choice(words, 3))  # noqa: E731
    tokenizer = ByteLevelBPE.train([pick(KIND + UNKIND + ["the", "film", "is"]) for _ in range(60)], 300)
    sizes = {"vocab_size": tokenizer.vocab_size, "layers": 2, "heads": 2, "width": 16}
    for name, context in (("model", 48), ("talker", 256)):
        pyllm.save(build(FAMILIES["gpt2"][0].from_sizes({**sizes, "context": context}).to_dict(), seed=0), tokenizer, root / name)
    classifier = FAMILIES["gpt2"][0].from_sizes({**sizes, "context": 48}).to_dict() | {"architectures": ["GPT2ForSequenceClassification"]}
    pyllm.save(build(classifier, seed=0), tokenizer, root / "scorer")
    pyllm.save(build({**classifier, "num_labels": 1}, seed=0), tokenizer, root / "short")
    prompts = [f"film {i} is" for i in range(24)]
    write = lambda name, records: (root / name).write_text("".join(json.dumps(r) + "\n" for r in records))  # noqa: E731
    pairs = [{"prompt": p, "chosen": " " + pick(KIND), "rejected": " " + pick(UNKIND)} for p in prompts]
    write("pairs.jsonl", pairs)
    write("equal.jsonl", [*pairs, {"prompt": "film x is", "chosen": " good", "rejected": " good"}])
    write("single.jsonl", [{"prompt": p, "completion": " " + pick(KIND if i % 2 else UNKIND), "label": bool(i % 2)}
                           for i, p in enumerate(prompts)])
    write("empty.jsonl", [{"prompt": f"{i}", "chosen": " good", "rejected": " bad" * (i % 2)} for i in range(4)])
    write("prompts.jsonl", [{"prompt": p} for p in prompts])
    (root / "rules.py").write_text("def kind(prompt, response):\n    return sum(response.count(c) for c in 'aeio')\n\n\nNUMBER = 3\n")
    return root


def pyllm_(here, verb, data, out, *more):
    return main([verb, "--model", str(here / "model"), "--data", str(here / data), "--out", str(out), *map(str, more)])


def weights(run):
    file, *_ = [*run.glob("model/model.safetensors"), *run.glob("adapter/adapter_model.safetensors")]
    return {name: a.tobytes() for name, a in safetensors.read(file).items()}


def log(run):
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_log(run / "metrics.jsonl")]


def test_a_reward_model_learns_and_keeps_its_scale(here, tmp_path, capsys):
    more = ("--epochs", "8", "--center", "0.01", "--allow", "same=0.04")
    assert pyllm_(here, "reward", "equal.jsonl", tmp_path / "r", *SHORT[:4], *more) == 0
    out = capsys.readouterr().out
    assert "1 pairs dropped: chosen equals rejected" in out and "new        score.weight" in out and "calibration_error" in out
    found = [line for line in log(tmp_path / "r") if "valid_accuracy" in line]
    assert found[-1]["valid_accuracy"] == 1 and found[-1]["valid_margin"] > 0
    model, tokenizer = pyllm.load(tmp_path / "r")
    reward = RewardModel(model)
    assert model.architecture == "GPT2ForSequenceClassification" and reward.gain != 1 and reward.bias != 0


@pytest.mark.parametrize("loss", dpo_verb.LOSSES)
def test_dpo_and_its_relatives_learn(here, tmp_path, capsys, loss):
    assert pyllm_(here, "dpo", "pairs.jsonl", tmp_path / "r", *SHORT[:4], "--epochs", "6", "--loss", loss, "--accumulate", "2") == 0
    assert "  before   " in (out := capsys.readouterr().out) and "logps/" not in out
    found = [line for line in log(tmp_path / "r") if "valid_loss" in line]
    assert found[-1]["valid_loss"] < found[0]["valid_loss"] and found[-1]["valid_rewards/accuracies"] == 1
    samples = read_log(tmp_path / "r/samples.jsonl")
    assert samples[0]["samples"][0].keys() == {"prompt", "text", "before"}


@pytest.mark.parametrize("verb, data, rates", [("dpo", "pairs.jsonl", (1e-6, 1e-5, 2e-4)), ("kto", "single.jsonl", (1e-6, 1e-5, 2e-4)),
                                               ("reward", "pairs.jsonl", (1e-4, 1e-3, 2e-2))])
def test_an_adapter_learns_at_its_own_rate_unless_told(here, tmp_path, capsys, verb, data, rates):
    """At the rate of all weights an adapter hardly moves, without a word."""
    for rate, more in zip((*rates, 0.02), ((), LORA, ("--peft", "prefix"), (*LORA, "--lr", "0.02"))):
        out = tmp_path / f"{len(more)}{more[1:2]}"
        assert pyllm_(here, verb, data, out, "--steps", 1, "--batch", 4, "--sample-tokens", 0, *more) == 0
        assert read_toml(out / "config.resolved.toml")[0]["train"]["lr"] == rate
        assert f"learning rate {rate:g}" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_reference_is_remembered_in_the_precision_of_the_training(here, tmp_path, precision):
    """Before the first step every margin is 0 to the bit: answers in other batches, of other widths, have the same log-probabilities."""
    assert pyllm_(here, "dpo", "pairs.jsonl", tmp_path / "r", *SHORT[:4], "--steps", "2", "--precision", precision) == 0
    first = log(tmp_path / "r")[0]
    assert first["rewards/margins"] == 0 and first["rewards/chosen"] == 0 and first["logps/chosen"] < 0


@pytest.mark.parametrize("verb, data", [("dpo", "pairs.jsonl"), ("kto", "single.jsonl")])
def test_a_reference_that_is_not_where_the_policy_starts_stops_the_run(here, tmp_path, monkeypatch, verb, data):
    """Another model's log-probabilities, or another precision's, would be learned from without a sign of it."""
    true = preferences.remember

    def wrong(rows, model, t):
        true(rows, model, t)
        for row in rows_of(rows["train"]):
            row.extra["ref_logp"] += 0.01

    monkeypatch.setattr(preferences, "remember", wrong)
    with pytest.raises(InvariantError, match="rewards are 0 before the first update: they are up to 0.001"):
        pyllm_(here, verb, data, tmp_path / "r", *SHORT)


@pytest.mark.parametrize("verb, data, more", [("reward", "pairs.jsonl", ()), ("dpo", "pairs.jsonl", ()), ("kto", "single.jsonl", ()),
                                              *((verb, f"{data}.jsonl", ("--peft", "lora", "--rank", 2)) for verb, data in (
                                                  ("reward", "pairs"), ("dpo", "pairs"), ("kto", "single")))])
def test_a_run_that_stops_goes_on_with_the_same_bits(here, tmp_path, verb, data, more):
    module = importlib.import_module(f"pyllm.cli.{verb}")
    arguments = [*SHORT[:6], "--accumulate", "2", "--save-every", "1", *map(str, more)]
    assert pyllm_(here, verb, data, tmp_path / "whole", *arguments) == 0
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    args = parser.parse_args(["--model", str(here / "model"), "--data", str(here / data), "--out", str(tmp_path / "r"), *arguments])
    assert getattr(module, verb)(runs.settings(verb, args, module.SECTIONS), tmp_path / "r", until=2) == 0
    assert len(log(tmp_path / "r")) < len(log(tmp_path / "whole"))
    assert main([verb, "--out", str(tmp_path / "r"), "--resume"]) == 0
    assert weights(tmp_path / "r") == weights(tmp_path / "whole") and log(tmp_path / "r") == log(tmp_path / "whole")


def test_kto_learns(here, tmp_path, drawn):
    assert pyllm_(here, "kto", "single.jsonl", tmp_path / "r", *SHORT[:4], "--epochs", "8", "--fraction", "0.75") == 0
    found = [line for line in log(tmp_path / "r") if "valid_loss" in line]
    assert found[-1]["valid_loss"] < found[0]["valid_loss"] and found[-1]["valid_rewards/margins"] > 0
    assert found[-1]["valid_rewards/chosen"] > found[-1]["valid_rewards/rejected"]


@pytest.mark.parametrize("verb, more", [("ppo", ("--response-length", 8, "--target-kl", 0.5)),
                                        ("ppo", ("--response-length", 8, "--precision", "bf16")),
                                        ("grpo", ("--max-completion-length", 8, "--num-generations", 3, "--beta", 0.1)),
                                        ("grpo", ("--max-completion-length", 8, "--algorithm", "rloo", "--num-generations", 2)),
                                        ("ppo", ("--response-length", 8, *LORA, "--base", "bf16")),
                                        ("ppo", ("--response-length", 8, "--value", "model", "--tensorflow-eps")),
                                        ("grpo", ("--max-completion-length", 8, "--num-generations", 3, "--beta", 0.1, *LORA))])
def test_a_policy_from_a_rule_stops_and_goes_on_with_the_same_bits(here, tmp_path, capsys, verb, more):
    arguments = ["--reward", f"{here / 'rules.py'}:kind", *POLICY, *more]
    assert pyllm_(here, verb, "prompts.jsonl", tmp_path / "whole", *arguments) == 0
    out = capsys.readouterr().out
    assert "before     score" in out and "  after    " in out
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "whole/curves.png").is_file()
    assert pyllm_(here, verb, "prompts.jsonl", tmp_path / "r", *arguments, "--keep", "9") == 0
    for name in ("step-000003", "step-000002"):  # as if it had been killed in the middle of its second iteration
        shutil.rmtree(tmp_path / "r/checkpoints" / name)
    assert main([verb, "--out", str(tmp_path / "r"), "--resume"]) == 0
    assert "resumed" in capsys.readouterr().out
    assert weights(tmp_path / "r") == weights(tmp_path / "whole") and log(tmp_path / "r") == log(tmp_path / "whole")


@pytest.mark.parametrize("verb, more", [("ppo", ("--response-length", 6)), ("kto", ()), ("dpo", ("--base", "bf16")),
                                        ("grpo", ("--max-completion-length", 6, "--num-generations", 3, "--beta", 0.1))])
def test_with_lora_there_is_one_copy_of_the_weights_which_is_the_reference_to_the_bit(here, tmp_path, monkeypatch, verb, more):
    """Packed too: the reference is then the packed model, not the one that was read. What is written holds the adapter alone."""
    monkeypatch.setattr("pyllm.align.policy.frozen_copy", None)  # a second copy is no way out
    data, arguments = {"kto": ("single.jsonl", SHORT), "dpo": ("pairs.jsonl", SHORT)}.get(
        verb, ("prompts.jsonl", [*POLICY, "--reward", f"{here / 'rules.py'}:kind"]))
    assert pyllm_(here, verb, data, tmp_path / "r", *arguments, "--save-every", "1", *LORA, *more) == 0
    first, later = (lambda lines: (lines[0], lines[-1] if "reward" in lines[-1] else lines[-2]))(log(tmp_path / "r"))
    name = {"kto": "kl", "dpo": "rewards/margins"}.get(verb, "objective/kl")
    assert first[name] == 0 and (verb in ("kto", "dpo") or later[name] != 0)
    assert not (tmp_path / "r/model").exists() and len(weights(tmp_path / "r")) == 4
    checkpoint = newest(tmp_path / "r/checkpoints")
    assert (checkpoint / "adapter.safetensors").exists() and not (checkpoint / "model.safetensors").exists()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "adalora"])
def test_every_adapter_is_a_policy(here, tmp_path, method):
    """Also those that change the model at once, whose divergence does not begin at 0."""
    more = ("--options", "tokens=3") if method in ("prefix", "prompt", "p_tuning") else ()
    assert pyllm_(here, "ppo", "prompts.jsonl", tmp_path / "r", "--reward", f"{here / 'rules.py'}:kind", "--steps", "1", "--batch", "3",
                  "--response-length", "4", "--peft", method, *more) == 0
    assert (tmp_path / "r/adapter/adapter_config.json").exists()


@pytest.mark.parametrize("verb, length", [("ppo", "--response-length"), ("grpo", "--max-completion-length")])
def test_a_classifier_of_another_tokenizer_is_a_reward_and_every_step_can_be_rewarded(here, tmp_path, capsys, drawn, verb, length):
    other = ByteLevelBPE.train(["a good film", "a bad film"], 270)
    classifier = FAMILIES["gpt2"][0].from_sizes({"vocab_size": other.vocab_size, "layers": 1, "heads": 2, "width": 16, "context": 64})
    pyllm.save(build(classifier.to_dict() | {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "bad", "1": "good"}}),
               other, tmp_path / "c")
    short = ["--steps", "1", "--batch", "3", length, "6"]
    assert pyllm_(here, verb, "prompts.jsonl", tmp_path / "r", "--reward", f"{tmp_path / 'c'}:good", *short) == 0
    assert "with a tokenizer of its own" in capsys.readouterr().out
    short += ["--step", "o", "--stop", "x"]
    assert pyllm_(here, verb, "prompts.jsonl", tmp_path / "s", "--reward", f"{here / 'rules.py'}:kind", *short) == 0
    assert pyllm_(here, verb, "prompts.jsonl", tmp_path / "t", "--reward", f"{tmp_path / 'c'}:good", *short) == 3
    assert "reads whole texts" in capsys.readouterr().err


def test_an_adapter_that_is_a_reward_keeps_its_head_and_its_scale(here, tmp_path):
    """Merged, or opened where it is: the scores are those of the run, gain and bias included."""
    run = tmp_path / "reward"
    assert pyllm_(here, "reward", "pairs.jsonl", run, *SHORT[:6], *LORA) == 0
    model, tokenizer = pyllm.load(here / "model")
    reward, readable = open_reward(str(run), tokenizer)
    drawn = rollout(model, [[5, 6], [7, 8, 9]], max_tokens=4)
    assert reward.gain != 1 and reward.bias != 0 and readable == 48
    assert main(["merge", "--model", str(here / "model"), "--adapter", str(run), "--out", str(tmp_path / "merged")]) == 0
    merged = RewardModel(pyllm.load(tmp_path / "merged")[0])
    assert (merged.gain, merged.bias) == (reward.gain, reward.bias) and np.allclose(merged(drawn), reward(drawn), rtol=1e-4, atol=1e-4)
    assert pyllm_(here, "ppo", "prompts.jsonl", tmp_path / "p", "--reward", run, *POLICY, "--response-length", 6) == 0


def test_a_reward_of_a_chat_learns_at_the_token_at_which_a_drawn_response_is_scored(here, tmp_path, monkeypatch):
    """A template writes a sign behind the token that ends a turn; a drawn response ends with that token itself."""
    model, tokenizer = pyllm.load(here / "talker")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>~{% endfor %}"
    pyllm.save(model, tokenizer, tmp_path / "chat")
    turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({
        "prompt": turn("user", f"film {i}"), "chosen": turn("assistant", KIND[i % 3]), "rejected": turn("assistant", UNKIND[i % 3])}) + "\n"
        for i in range(12)))
    seen = []
    learn = preferences.learn
    monkeypatch.setattr(preferences, "learn", lambda *args, **options: seen.append(args[5]) or learn(*args, **options))
    assert main(["reward", "--model", str(tmp_path / "chat"), "--data", str(tmp_path / "chats.jsonl"), "--out", str(tmp_path / "r"),
                 "--batch", "4"]) == 0
    rows = [row for part in seen[0].values() for pair in part for row in pair]
    assert len(rows) == 24 and {int(row.tokens[-1]) for row in rows} == {tokenizer.eos_id} and all(row.learned[-1] for row in rows)


def test_ppo_against_a_learned_reward(here, tmp_path, drawn):
    assert pyllm_(here, "reward", "pairs.jsonl", tmp_path / "reward", *SHORT[:6]) == 0
    assert pyllm_(here, "ppo", "prompts.jsonl", tmp_path / "r", "--reward", tmp_path / "reward", *POLICY, "--response-length", 6) == 0
    lines = log(tmp_path / "r")
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["objective/kl"] == 0
    assert pyllm_(here, "ppo", "prompts.jsonl", tmp_path / "lora", "--reward", tmp_path / "reward", *POLICY[:4], *LORA,
                  "--response-length", 6) == 0
    assert log(tmp_path / "lora")[0]["lr"] == 3e-5  # ten times that of all weights, as sft has it
    samples = read_log(tmp_path / "r/samples.jsonl")
    assert [s["step"] for s in samples] == [0, 2, 3] and all(row["text"] is not None for row in samples[0]["samples"])
    if importlib.util.find_spec("matplotlib"):
        assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "reward/loss.png", tmp_path / "r/curves.png"))


def test_errors_before_compute(here, tmp_path, capsys):
    for verb, data, more, words in (
            ("dpo", "single.jsonl", (), "examples of kind unpaired; expected preference: prompt, chosen, rejected"),
            ("reward", "equal.jsonl", (), "pairs whose chosen and rejected answers are the same: 4 %, such as equal.jsonl:25"),
            ("dpo", "empty.jsonl", (), "examples with an empty answer, or no text: 50 %, such as empty.jsonl:1"),
            ("kto", "pairs.jsonl", (), "expected unpaired: prompt, completion, label"),
            ("ppo", "prompts.jsonl", (), "no reward; expected --reward"),
            ("ppo", "prompts.jsonl", ("--model", here / "scorer", "--reward", "x.py:y"), "is a SequenceClassifier; expected a language"),
            ("ppo", "prompts.jsonl", ("--reward", f"{here / 'rules.py'}:NUMBER"), "has no function NUMBER"),
            ("ppo", "prompts.jsonl", ("--reward", f"{here / 'rules.py'}:kind", "--response-length", 46), "0 prompts are left"),
            ("ppo", "prompts.jsonl", ("--model", here / "talker", "--reward", here / "short", "--response-length", 46), "0 prompts are"),
            ("grpo", "prompts.jsonl", ("--reward", f"{here / 'model'}"), "a classifier of 2 labels"),
            ("ppo", "prompts.jsonl", ("--reward", f"{here / 'rules.py'}:kind", "--stop", "qqq"), "expected one"),
            ("ppo", "prompts.jsonl", ("--reward", f"{here / 'rules.py'}:kind", "--peft", "adalora"), "adalora hands out ranks"),
            ("dpo", "pairs.jsonl", ("--loss", "hinge", "--label-smoothing", 0.1), "label_smoothing=0.1"),
    ):
        assert pyllm_(here, verb, data, tmp_path / "r", *more) == 3, (verb, more)
        assert words in capsys.readouterr().err
    assert not (tmp_path / "r/checkpoints").exists()


def test_a_constitution_runs_is_resumed_and_inspected(here, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"principles": [
        {"name": "calm", "critique": "Is it calm?", "revision": "Say it calmly.", "checker": {"forbid": "[a-e]"}},
        {"name": "kind", "comparison": "Which one is kinder?"}]}))
    arguments = ["constitution", "run", "--model", str(here / "talker"), "--data", str(here / "prompts.jsonl"), "--constitution",
                 str(tmp_path / "c.json"), "--prompts", "12", "--held", "4", "--rounds", "1", "--max-tokens", "4", "--rows", "4",
                 "--sl-epochs", "1", "--temperature", "1.5", "--tries", "2", "--unsound"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    assert "break a rule (95 %)" in out and "aligned" in out and "1 with a checker" in out and "12 of 12 to learn from" in out
    records = read_log(tmp_path / "whole/revisions.jsonl")
    assert len(records) == 12 and all(r["rounds"][0]["principle"] == "calm" and len(r["rounds"][0]["drafts"]) < 2 for r in records)

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")  # as if it had been killed in the middle of the first stage
    for name in ("revised", "aligned"):
        shutil.rmtree(tmp_path / "cut" / name)
    (tmp_path / "cut/comparisons.jsonl").unlink()
    lines = (tmp_path / "whole/revisions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut/revisions.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    assert main(["constitution", "run", "--resume", "--out", str(tmp_path / "cut")]) == 0
    for name in ("revisions.jsonl", "comparisons.jsonl", "report.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert weights(tmp_path / "cut/aligned") == weights(tmp_path / "whole/aligned")
    capsys.readouterr()
    assert main(["constitution", "inspect", str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    assert "critique  " in out and "better with probability" in out and "before" in out
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 3 and "--resume goes on" in capsys.readouterr().err
    assert main(["constitution", "inspect", str(here)]) == 3

    taught = [*arguments[:-1], "--method", "ppo", "--rl-batch", "4", "--rl-lr", "1e-3", "--precision", "bf16", "--out"]
    more = ["--unsound", "--peft", "lora", "--rank", "2"]
    assert main([*taught, str(tmp_path / "ppo"), *more]) == 0 and "aligned" in capsys.readouterr().out
    lines = log(tmp_path / "ppo/aligned")
    assert len(lines) == 3 and lines[0]["objective/kl"] == 0 and all(line["objective/scores_std"] > 0 for line in lines)
    assert (tmp_path / "ppo/comparisons.jsonl").read_bytes() != (tmp_path / "whole/comparisons.jsonl").read_bytes()  # LoRA's answers
    assert (tmp_path / "ppo/reward/adapter/adapter_config.json").is_file() and weights(tmp_path / "ppo/revised")
    assert not peft.names(opened(str(tmp_path / "ppo/aligned"))[0])  # the merged model, which needs no base
    assert main([*taught, str(tmp_path / "no"), "--unsound", "--peft", "prefix"]) == 3 and "that can be merged" in capsys.readouterr().err
