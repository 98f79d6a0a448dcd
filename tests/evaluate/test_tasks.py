"""Tasks: no result depends on the batch size; likelihoods, windows, choices and spans against their definitions."""
import importlib.util
import json
from functools import cache

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.data import read_examples
from pyllm.errors import ConfigError, FormatError
from pyllm.evaluate.likelihood import log_likelihoods, windows
from pyllm.evaluate.spans import find_spans
from pyllm.evaluate.tasks import TASKS, Options, evaluate
from pyllm.folders import build
from pyllm.text import ByteLevelBPE, WordPiece

WORDS = "the cat sat on a red mat and dogs ran to see why it was so very hot in there".split()
CORPUS = [" ".join(np.random.default_rng(i).choice(WORDS, 30)) for i in range(30)]
BPE = ByteLevelBPE.train(CORPUS, 300, special_tokens=("<|endoftext|>", "<pad>"))
PIECES = WordPiece.train(CORPUS, 90)
SIZES = {
    "llama": dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
                  initializer_range=0.3),
    "t5": dict(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, initializer_factor=1.0, pad_token_id=1, eos_token_id=0),
    "bert": dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=48,
                 initializer_range=0.3, id2label={"0": "bad", "1": "good", "2": "odd"}),
}


@cache
def model(family, head=None):
    named = {"architectures": [head]} if head else {}
    tokenizer = PIECES if family == "bert" else BPE
    return build({"model_type": family, "vocab_size": tokenizer.vocab_size, **SIZES[family], **named}, seed=2), tokenizer


def texts(n, seed, low=3, high=20):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(low, high))) for _ in range(n)]


PAIRS = [{"kind": "completion", "prompt": p, "completion": f" {c}", "where": f"x:{i}"}
         for i, (p, c) in enumerate(zip(texts(9, 0), texts(9, 1, 2, 6)))]
EXAMPLES = {
    "text": [{"text": t} for t in texts(9, 2, 3, 120)],
    "completion": PAIRS,
    "classification": [{"text": t, "label": ("bad", "good", "odd")[i % 3], "where": ""} for i, t in enumerate(texts(9, 3))],
    "choice": [{"prompt": p, "choices": texts(3, i), "answer": i % 3} for i, p in enumerate(texts(9, 4))],
    "question": [{"question": q, "context": c, "answers": [], "references": [c.split()[2]] if i % 3 else [], "where": ""}
                 for i, (q, c) in enumerate(zip(texts(9, 5, 3, 6), texts(9, 6, 8, 60)))],
}
RUNS = [("clm", "text", "llama", None), ("clm", "completion", "llama", None), ("clm", "completion", "t5", None),
        ("classify", "classification", "bert", "BertForSequenceClassification"), ("classify", "classification", "llama", None),
        ("multiple-choice", "choice", "llama", None), ("multiple-choice", "choice", "t5", None),
        ("qa", "question", "bert", "BertForQuestionAnswering"), ("qa", "completion", "llama", None),
        ("translate", "completion", "t5", None), ("summarise", "completion", "llama", None), ("generate", "completion", "t5", None)]


class Kind(list):
    def __init__(self, kind):
        super().__init__(EXAMPLES[kind])
        self.kind = kind


def test_every_task_has_a_run():
    assert {run[0] for run in RUNS} == {name for name, task in TASKS.items() if set(task.kinds) & EXAMPLES.keys()}


@pytest.mark.parametrize("task, kind, family, head", RUNS, ids=lambda x: str(x))
def test_results_do_not_depend_on_the_batch_size(task, kind, family, head):
    if task == "translate" and not importlib.util.find_spec("sacrebleu"):
        pytest.skip("needs sacrebleu")
    net, tokenizer = model(family, head)
    found = [evaluate(task, net, tokenizer, Kind(kind), Options(batch=batch, max_tokens=6, length=0)) for batch in (1, 4, 64)]
    assert found[0] == found[1] == found[2]
    scores, records = found[0]
    assert len(records) == 9 and scores and all(np.isfinite([s.value, s.low, s.high]).all() for s in scores.values())
    json.dumps(records)


def test_beams_do_not_depend_on_the_batch_size():
    found = [evaluate("summarise", *model("t5"), Kind("completion"), Options(batch=batch, max_tokens=5, num_beams=3)) for batch in (1, 4)]
    assert found[0] == found[1]


# ---- likelihood

@pytest.mark.parametrize("family", ["llama", "t5"])
def test_likelihoods_are_those_of_the_logits(family):
    net, _ = model(family)
    draw = np.random.default_rng(0)
    rows = [(draw.integers(0, 300, n).tolist(), draw.integers(0, 300, m).tolist()) for n, m in ((3, 4), (9, 1), (1, 7))]
    for (context, continuation), got in zip(rows, log_likelihoods(net, rows, batch=2)):
        if family == "t5":
            logits = net(np.array([context]), np.array([[1, *continuation[:-1]]])).data[0]
        else:
            logits = net(np.array([context + continuation[:-1]])).data[0, len(context) - 1 :]
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(got, logp[np.arange(len(continuation)), continuation], atol=1e-5)


@pytest.mark.parametrize("n, length, stride", [(2, 5, 0), (23, 5, 0), (23, 5, 2), (23, 50, 0), (11, 5, 5)])
def test_windows_tell_each_id_once_from_as_much_as_fits(n, length, stride):
    ids = list(range(n))
    found = windows(ids, length, stride)
    assert [x for _, part in found for x in part] == ids[1:]
    for context, part in found:
        assert context and context + part == list(range(context[0], part[-1] + 1)) and len(context) + len(part) - 1 <= length
        assert context[0] == max(0, part[-1] - length)
    assert windows([1], 5) == []


def test_perplexity_of_text_counts_the_bytes_of_what_is_told():
    net, tokenizer = model("llama")
    scores, records = evaluate("clm", net, tokenizer, Kind("text"), Options())
    ids = tokenizer.encode(EXAMPLES["text"][0]["text"])
    assert records[0]["tokens"] == len(ids) - 1 and records[0]["bytes"] == len(tokenizer.decode_bytes(ids[1:]))
    nll, tokens, size = (sum(r[key] for r in records) for key in ("nll", "tokens", "bytes"))
    assert scores["perplexity"].value == pytest.approx(np.exp(nll / tokens)) and scores["loss"].value == pytest.approx(nll / tokens)
    assert scores["bits_per_byte"].value == pytest.approx(nll / np.log(2) / size)
    shorter = evaluate("clm", net, tokenizer, Kind("text"), Options(length=16, stride=4))[1]
    assert [r["tokens"] for r in shorter] == [r["tokens"] for r in records] and shorter != records


def test_the_end_token_of_a_completion_is_told_and_has_no_bytes():
    net, tokenizer = model("llama")
    record = evaluate("clm", net, tokenizer, Kind("completion"), Options())[1][0]
    completion = PAIRS[0]["completion"]
    assert record["bytes"] == len(completion.encode()) and record["tokens"] == len(tokenizer.encode(completion)) + 1


def test_choices_are_ranked_by_sums_and_by_sums_a_byte():
    net, tokenizer = model("llama")
    for example, record in zip(EXAMPLES["choice"], evaluate("multiple-choice", net, tokenizer, Kind("choice"))[1]):
        context = tokenizer.encode(example["prompt"])
        sums = np.array([log_likelihoods(net, [(context, tokenizer.encode(f" {c}"))])[0].sum() for c in example["choices"]])
        np.testing.assert_allclose(record["log_likelihoods"], sums, rtol=1e-6)
        assert record["prediction"] == sums.argmax()
        assert record["prediction_normalized"] == (sums / [len(c) for c in example["choices"]]).argmax()


def test_labels_are_the_models_own_or_numbers():
    net, tokenizer = model("bert", "BertForSequenceClassification")
    named = evaluate("classify", net, tokenizer, Kind("classification"))[1]
    numbers = [{**e, "label": str(("bad", "good", "odd").index(e["label"]))} for e in EXAMPLES["classification"]]
    counted = evaluate("classify", net, tokenizer, numbers)[1]
    assert [("bad", "good", "odd")[int(r["prediction"])] for r in counted] == [r["prediction"] for r in named]
    with pytest.raises(FormatError, match="label 'fine' is not among"):
        evaluate("classify", net, tokenizer, [{"text": "a cat", "label": "fine", "where": "x:1"}])


# ---- spans

class Finder:
    """Points at the first `begin` and the last `end` token of a window, and a little at its first token."""

    def __init__(self, begin, end):
        self.wanted, self.calls = (PIECES.id(begin), PIECES.id(end)), 0

    def __call__(self, tokens, segments, types):
        self.calls += len(tokens)
        scores = np.stack([np.where(tokens == id, 5.0, -5.0) for id in self.wanted], -1)
        scores[:, 0] = 1.0
        return pyllm.Tensor(scores)


def test_an_answer_is_found_in_any_window_of_a_long_context():
    for place in (0, 30, 75, 149):
        words = ["cat"] * 150
        words[place] = "red mat"
        example = {"question": "why", "context": " ".join(words)}
        finder = Finder("red", "mat")
        (text, score, none), = find_spans(finder, PIECES, [example], length=40, stride=12)
        assert text == "red mat" and score == 10 and none == 2 and finder.calls > 5
    (text, score, none), = find_spans(Finder("hot", "hot"), PIECES, [example], length=40, stride=12)
    assert text == "" and score == -10
    (text, _, _), = find_spans(Finder("mat", "red"), PIECES, [{"question": "why", "context": "the red mat was hot"}])
    assert text == ""  # an end before its beginning is no span
    with pytest.raises(ValueError, match="leaves no room"):
        find_spans(finder, PIECES, [example], length=4)


# ---- what does not fit

@pytest.mark.parametrize("task, kind, family, message", [
    ("clm", "choice", "llama", "the kind choice for the task clm.* Hint: they fit multiple-choice"),
    ("clm", "text", "t5", "plain text for an encoder-decoder"), ("translate", "completion", "bert", "BertLM writes no text"),
    ("classfy", "text", "llama", "Did you mean 'classify'"),
])
def test_what_does_not_fit_is_named(task, kind, family, message):
    with pytest.raises((ConfigError, FormatError), match=message):
        evaluate(task, *model(family), Kind(kind))
    with pytest.raises(ConfigError, match="length=1000; expected at most 64"):
        evaluate("clm", *model("llama"), Kind("text"), Options(length=1000))
    with pytest.raises(ConfigError, match="max_tokens=64 leaves no room"):
        evaluate("summarise", *model("llama"), Kind("completion"))


@pytest.mark.parametrize("record, answer", [
    ({"question": "q", "choices": ["x", "y", "z"], "answer": 2}, 2), ({"question": "q", "choices": ["x", "y"], "answer": "B"}, 1),
    ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}, 0),
    ({"ctx": "q", "endings": ["x", "y"], "label": "1"}, 1), ({"prompt": "q", "choices": ["x", "y"], "answer": "y"}, 1),
])
def test_published_layouts_of_choices_are_read(record, answer, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    examples = read_examples(tmp_path / "a.jsonl")
    example, = examples
    assert examples.kind == "choice" and example["prompt"] == "q" and example["answer"] == answer and example["choices"][0] == "x"
    key = "answerKey" if "answerKey" in record else "label" if "label" in record else "answer"
    (tmp_path / "a.jsonl").write_text(json.dumps({**record, key: "7"}))
    with pytest.raises(FormatError, match="a.jsonl:1: .* is '7', expected 0 to"):
        read_examples(tmp_path / "a.jsonl")


# ---- the command

def test_the_command_prints_a_table_and_writes_a_line_for_each_example(tmp_path, capsys):
    net, tokenizer = model("llama")
    pyllm.save(net, tokenizer, tmp_path / "model")
    (tmp_path / "data").mkdir()
    for part, n in (("train", 5), ("test", 7)):
        (tmp_path / "data" / f"{part}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts(n, 0)))
    command = ["eval", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--task", "clm"]
    assert main([*command, "--out", str(tmp_path / "out"), "--batch", "3"]) == 0
    table = capsys.readouterr().out
    assert "clm, 7 examples of test" in table and "perplexity|ci:bootstrap1000-0" in table and " to " in table
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["scores"]["perplexity"]["count"] == 7 and len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 7
    assert main([*command, "--json", "--batch", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == scores  # whatever the batch size
    for more, message in ((["--batch", "0"], "--batch 0"), (["--task", "clem"], "Did you mean 'clm'"),
                          (["--split", "valid"], "'valid' is empty")):
        assert main([*command, *more]) == 3
        assert message in capsys.readouterr().err
