"""pyllm sft as a person runs it: every kind of model, what is new is said, resume, errors before the first step."""
import re
import tomllib

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.io import safetensors
from pyllm.training import newest, read_log
from tests.cli.small import WORDS, write

SHORT = ["--batch", "4", "--lr", "1e-2", "--sample-tokens", "6"]
TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mb"}


def sft(here, model, data, out, *more):
    return main(["sft", "--model", str(here / model), "--data", str(here / data), "--out", str(out), *SHORT, *map(str, more)])


def weights(run):
    return {name: a.copy() for name, a in safetensors.read(run / "model/model.safetensors").items()}


@pytest.mark.parametrize("model, data, architecture, more", [
    ("gpt2", "answers.jsonl", "GPT2LMHeadModel", ()), ("gpt2", "answers.jsonl", "GPT2LMHeadModel", ("--packing",)),
    ("bart", "answers.jsonl", "BartForConditionalGeneration", ("--label-smoothing", "0.1")),
    ("bert", "labels", "BertForSequenceClassification", ("--dropout", "0.1", "--layer-decay", "0.9")),
    ("gpt2", "labels", "GPT2ForSequenceClassification", ("--noise", "5")), ("bert", "spans.jsonl", "BertForQuestionAnswering", ()),
])
def test_every_kind_of_model_learns(here, tmp_path, capsys, model, data, architecture, more):
    assert sft(here, model, data, tmp_path / "r", "--epochs", "6", "--ema", "0.5", "--accumulate", "2", *more) == 0
    out = capsys.readouterr().out
    lines = [line for line in read_log(tmp_path / "r/metrics.jsonl") if "valid_loss" in line]
    assert len(lines) >= 6 and min(line["valid_loss"] for line in lines) < lines[0]["valid_loss"]
    loaded, tokenizer = pyllm.load(tmp_path / "r")
    assert loaded.architecture == architecture and tokenizer is not None and "best       validation loss" in out
    assert ("drawn from seed 0" in out) == (architecture.endswith("Classification") or architecture.endswith("Answering"))
    samples = read_log(tmp_path / "r/samples.jsonl")
    assert all(s["expected"] and s["prompt"] for s in samples) and bool(samples) == (data == "answers.jsonl")
    table = tomllib.loads((tmp_path / "r/config.resolved.toml").read_text())
    assert table["train"]["lr"] == 0.01 and table["model"]["path"].endswith(model)


def test_a_classifiers_best_model_is_the_one_of_best_accuracy_and_keeps_its_labels(here, tmp_path, capsys):
    assert sft(here, "bert", "labels", tmp_path / "r", "--epochs", "8", "--patience", "3") == 0
    found = [line for line in read_log(tmp_path / "r/metrics.jsonl") if "valid_loss" in line]
    best = max(line["valid_accuracy"] for line in found)
    first = next(line["step"] for line in found if line["valid_accuracy"] == best)
    assert f"accuracy {best:.4f} at step {first}" in capsys.readouterr().out
    model, tokenizer = pyllm.load(tmp_path / "r")
    assert model.config.extra["id2label"] == {"0": "animal", "1": "colour"}
    # its head goes on in a second run, in the order of its own labels
    assert sft(tmp_path, "r", here / "labels", tmp_path / "again", "--steps", "1") == 0
    assert "drawn from" not in capsys.readouterr().out


@pytest.mark.parametrize("model, data, metric", [("gpt2", "answers", "exact_match"), ("bart", "answers", "rouge1"),
                                                 ("bert", "labels", "matthews"), ("bert", "spans", "token_f1")])
def test_the_tasks_own_metric_is_that_of_evaluate(here, tmp_path, model, data, metric):
    from pyllm import data as examples
    from pyllm.evaluate.tasks import Options, evaluate

    folder = here / data
    if not folder.exists():
        folder.mkdir()
        lines = (here / f"{data}.jsonl").read_text().splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[4:]))
        (folder / "valid.jsonl").write_text("".join(lines[:4]))
    assert sft(here, model, data, tmp_path / "r", "--metric", metric, "--epochs", "4", "--answer-tokens", "5") == 0
    found = [line for line in read_log(tmp_path / "r/metrics.jsonl") if "valid_loss" in line]
    loaded, tokenizer = pyllm.load(tmp_path / "r")
    task = {"exact_match": "generate", "rouge1": "summarise", "matthews": "classify", "token_f1": "qa"}[metric]
    scores, _ = evaluate(task, loaded, tokenizer, examples.read_examples(folder, "valid"), Options(max_tokens=5))
    assert max(line[f"valid_{metric}"] for line in found) == pytest.approx(float(scores[metric]))


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(here, tmp_path):
    from pyllm.cli.config import resolve
    from pyllm.cli.sft import SECTIONS
    from pyllm.cli.sft import sft as run

    table = {"model": {"path": str(here / "bart"), "dropout": 0.1, "noise": 1.0}, "data": {"path": str(here / "answers.jsonl")},
             "train": {"batch": 4, "lr": 1e-2, "steps": 14, "eval_every": 4, "ema": 0.9, "accumulate": 2, "seed": 3}}
    config = resolve((table, "test"), sections=SECTIONS)
    assert run(config, tmp_path / "whole") == 0
    assert run(config, tmp_path / "cut", until=6) == 0 and newest(tmp_path / "cut/checkpoints").name == "step-000006"
    assert main(["sft", "--out", str(tmp_path / "cut"), "--resume"]) == 0  # with the settings of the run
    one, two = (newest(tmp_path / name / "checkpoints") for name in ("whole", "cut"))
    assert one.name == two.name == "step-000014"
    for file in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    log = lambda name: [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_log(tmp_path / name / "metrics.jsonl")]
    assert log("whole") == log("cut")


def test_windows_of_one_question_are_not_in_training_and_validation(here):
    """A share of the rows would be a share of the windows, most of whose text the others have too."""
    from pyllm.cli.config import resolve
    from pyllm.cli.sft import SECTIONS, open_model, read, render
    from pyllm.training import transfer

    config = resolve(({"data": {"path": str(here / "spans.jsonl"), "length": 6, "stride": 1, "fraction": 0.5}}, "test"), sections=SECTIONS)
    model, tokenizer = open_model(str(here / "bert"))
    rows = render(config, transfer(model, "span")[0], tokenizer, read(config.data), None)
    places = [{row.where for row in rows[part]} for part in ("train", "valid")]
    assert len(places[0]) == len(places[1]) == 12 and not places[0] & places[1] and len(rows["valid"]) > 12


def test_sets_are_mixed_by_their_shares_and_validated_by_the_first(here, tmp_path, capsys):
    facts = [{"prompt": f"{w} cow {v} !", "completion": f" {v}"} for w in WORDS for v in WORDS[:2]]
    write(here / "facts.jsonl", facts)
    more = ("--more", f"{here / 'facts.jsonl'}=0.25", "--eval-batches", "1")
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "r", "--epochs", "1", *more, "--packing", "--length", "40") == 0
    out = capsys.readouterr().out
    assert "more       12 examples" in out and "valid      4 rows held out" in out and re.search(r"packed     [5-9]\d", out)
    for bad, message in ((f"{here / 'facts.jsonl'}=1", "leave some for data.path"), ("facts.jsonl", "expected FILE=SHARE"),
                         (f"{here / 'labels'}=0.1", "examples for classify; expected the task of data.path, lm"),
                         (f"{here / 'answers.jsonl'}=-1", "shares above 0")):
        assert sft(here, "gpt2", "answers.jsonl", tmp_path / "s", "--more", bad) == 3
        assert re.search(message, capsys.readouterr().err), bad


def test_a_further_set_that_holds_the_validation_data_is_refused(here, tmp_path, capsys):
    lines = (here / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "d").mkdir()
    for name, part in (("d/train", lines[8:]), ("d/valid", lines[:8]), ("more", lines[4:12])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
    assert sft(tmp_path, str(here / "gpt2"), "d", tmp_path / "r", "--more", f"{tmp_path / 'more.jsonl'}=0.5") == 3
    assert "valid: examples that the training data ask too" in capsys.readouterr().err


def test_a_student_learns_its_teachers_probabilities(here, tmp_path, capsys):
    """The share of the teacher in the loss is what makes the student like it; resumed, it is taught on."""
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "teacher", "--epochs", "20", "--eval-every", "100") == 0
    for name, more in (("alone", ()), ("taught", ("--teacher", tmp_path / "teacher", "--teacher-share", "1"))):
        assert sft(here, "gpt2", "answers.jsonl", tmp_path / name, "--steps", "12", "--eval-every", "6", *more) == 0
    models = {name: pyllm.load(tmp_path / name) for name in ("teacher", "alone", "taught")}
    ids = np.array([models["teacher"][1].encode("red cat cow ? red")])
    log_p = {name: pyllm.ops.log_softmax(model(ids)).data for name, (model, _) in models.items()}
    far = {name: (np.exp(log_p["teacher"]) * (log_p["teacher"] - log_p[name]))[0, 3:].sum(-1).mean() for name in ("alone", "taught")}
    assert far["taught"] < far["alone"] and "kl" in read_log(tmp_path / "taught/metrics.jsonl")[0]
    assert tomllib.loads((tmp_path / "taught/config.resolved.toml").read_text())["train"]["teacher_share"] == 1.0


@pytest.mark.parametrize("model, data, teacher, more, message", [
    ("gpt2", "answers.jsonl", "bert", (), "has another tokenizer, of .* tokens; expected the student's"),
    ("gpt2", "answers.jsonl", "bart", (), "the architecture Bart; expected the student's kind, decoder"),
    ("bert", "labels", "bert", (), "for the task classify; expected lm"),
    ("gpt2", "answers.jsonl", "gpt2", ("--label-smoothing", "0.1"), "label_smoothing=0.1 with a teacher; expected 0"),
    ("gpt2", "answers.jsonl", "nowhere", (), "nowhere"),
])
def test_a_teacher_that_does_not_fit_is_refused_before_the_first_step(here, tmp_path, capsys, model, data, teacher, more, message):
    assert sft(here, model, data, tmp_path / "r", "--teacher", here / teacher, *more) == 3
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "r/metrics.jsonl").exists()


def test_frozen_parameters_are_those_of_the_model(here, tmp_path, capsys):
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "r", "--steps", "3", "--freeze", r"wte|\.h\.0\.") == 0
    before = safetensors.read(here / "gpt2/model.safetensors")
    same = {name for name, a in weights(tmp_path / "r").items() if np.array_equal(a, before[name])}
    assert same and all(("wte" in n or ".h.0." in n) == (n in same) for n in before) and "frozen" in capsys.readouterr().out


def test_the_model_learns_to_stop(here, tmp_path):
    """The end token is a target: a model that never saw it go by would write on."""
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "r", "--epochs", "40", "--eval-every", "100") == 0
    model, tokenizer = pyllm.load(tmp_path / "r")
    results = pyllm.generate(model, tokenizer, ["red cat cow ?", "dog blue red ?"], max_tokens=12, temperature=0)
    assert [r.finish_reason for r in results] == ["stop"] * 2 and all(r.text.strip() in WORDS for r in results)


@pytest.mark.parametrize("model, data, more, message", [
    ("gpt2", "nowhere.jsonl", (), "nowhere.jsonl"),
    ("bert", "answers.jsonl", (), "examples of kind completion for bert, an encoder"),
    ("gpt2", "answers.jsonl", ("--task", "classify"), "model.task='classify': examples of kind completion are for 'lm'"),
    ("gpt2", "answers.jsonl", ("--length", "64"), "data.length=64; expected at most the model's context, 48"),
    ("bert", "labels", ("--packing",), "data.packing is for decoders"),
    ("bert", "spans.jsonl", ("--label-smoothing", "0.1"), "spans have none"),
    ("gpt2", "answers.jsonl", ("--fraction", "1"), "0 of 40 rows are for validation"),
    ("gpt2", "answers.jsonl", ("--freeze", "nothing"), "freeze: ['nothing'] is in no path"),
    ("gpt2", "answers.jsonl", ("--columns", "prompt"), "expected KEY=NAME"),
    ("gpt2", "answers.jsonl", ("--columns", "prompt=q"), "no column 'q' for prompt"),
    ("gpt2", "answers.jsonl", ("--metric", "accuracy"), "the task lm has loss"),
    ("gpt2", "answers.jsonl", ("--metric", "bleu"), "expected a folder with valid* files"),
    ("gpt2", "bad.jsonl", (), "bad.jsonl:2"),
    ("gpt2", "one.jsonl", (), "label"),
    ("gpt2", "twice.jsonl", (), "examples that stand in their split already: 50 %, such as twice.jsonl:5 as twice.jsonl:1"),
    ("gpt2", "long.jsonl", ("--length", "8"), "rows that are longer than the length and cut: 75 %"),
    ("gpt2", "answers.jsonl", ("--allow", "leaks"), "expected NAME=SHARE"),
])
def test_errors_come_before_the_first_step(here, tmp_path, capsys, model, data, more, message):
    (here / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 1.5}\n')
    write(here / "one.jsonl", [{"text": "red", "label": "a"}] * 4)
    write(here / "twice.jsonl", [{"prompt": f"a {i % 4}", "completion": " b"} for i in range(8)])
    write(here / "long.jsonl", [{"prompt": f"a {i}", "completion": " b" * i} for i in range(1, 9)])
    assert sft(here, model, data, tmp_path / "r", *more) == 3
    assert message in capsys.readouterr().err and not (tmp_path / "r/metrics.jsonl").exists()


def test_messages_with_a_template_in_plain_words_and_augmented(here, tmp_path, capsys):
    talk = [{"messages": [{"role": "user", "content": f"{w} ?"}, {"role": "assistant", "content": w}]} for w in WORDS * 4]
    write(here / "talk.jsonl", talk)
    assert sft(here, "gpt2", "talk.jsonl", tmp_path / "r", "--steps", "2") == 3
    assert "no chat template" in capsys.readouterr().err
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}{{ m['role'][:1] + ': ' + m['content'] + ' ' }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}")
    flags = ("--chat-template", str(path), "--token-dropout", "0.2", "--no-check", "--steps", "4", "--eval-every", "2")
    assert sft(here, "gpt2", "talk.jsonl", tmp_path / "r", *flags) == 0
    _, tokenizer = pyllm.load(tmp_path / "r/model")
    assert tokenizer.chat_text([{"role": "user", "content": "x"}]) == "u: x a: "
    assert sft(here, "gpt2", "talk.jsonl", tmp_path / "s", *flags[:2], "--no-check", "--span-masking", "0.2", "--steps", "2") == 3
    assert "has no mask token" in capsys.readouterr().err
    assert sft(here, "bert", "spans.jsonl", tmp_path / "t", "--token-dropout", "0.2", "--steps", "2") == 3
    assert sft(here, "bert", "labels", tmp_path / "u", "--token-dropout", "0.2", "--span-masking", "0.1", "--steps", "2") == 0
    assert "would move" in capsys.readouterr().err


def test_what_the_check_refuses_may_be_allowed(here, tmp_path, capsys):
    write(here / "twice.jsonl", [{"prompt": f"a {i % 4}", "completion": " b"} for i in range(8)])
    assert sft(here, "gpt2", "twice.jsonl", tmp_path / "r") == 3 and "--allow duplicates=0.501 " in capsys.readouterr().err
    for i, option in enumerate((("--allow", "duplicates=0.501"), ("--no-check",))):
        assert sft(here, "gpt2", "twice.jsonl", tmp_path / str(i), "--steps", "1", *option) == 0
        assert ("[[learned]]" in capsys.readouterr().out) == (i == 0)  # the example with what is learned of it
