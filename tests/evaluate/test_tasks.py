"""Tasks: no result depends on the batch size; likelihoods, windows, choices and spans against their definitions."""
import importlib.util
import json
from collections import namedtuple
from functools import cache

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.data import read_examples
from pyllm.errors import ConfigError, FormatError
from pyllm.evaluate.likelihood import log_likelihoods, windows
from pyllm.evaluate.spans import best_threshold, find_spans
from pyllm.evaluate.tasks import TASKS, Options, evaluate
from pyllm.evaluate.text_metrics import best_f1
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


Said = namedtuple("Said", "text finish_reason")


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
        (spans, none), = find_spans(finder, PIECES, [example], length=40, stride=12)
        assert spans[0] == ("red mat", 10) and none == 2 and finder.calls > 5
        assert len(spans) == 5 and [score for _, score in spans] == sorted([score for _, score in spans], reverse=True)
        assert spans[1][1] < 10  # a span in several windows counts once
    (spans, none), = find_spans(Finder("hot", "hot"), PIECES, [example], length=40, stride=12)
    assert spans[0][1] == -10 < none
    (spans, _), = find_spans(Finder("mat", "red"), PIECES, [{"question": "why", "context": "the red mat was hot"}])
    assert spans[0][1] == 0 and "mat" not in spans[0][0].split()[:1]  # an end before its beginning is no span
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


# ---- what stands before a prompt

def shown(kind, options, family="llama", pool=None, examples=None):
    """-> what tasks hand to the model in place of the examples."""
    from pyllm.evaluate.tasks import prompted

    examples = [{"kind": kind, "where": f"x:{i}", **e} for i, e in enumerate(EXAMPLES[kind] if examples is None else examples)]
    return prompted(model(family)[0], examples, examples if pool is None else pool, options)


def test_shots_are_other_examples_the_same_for_any_batch_limit_and_order():
    found = shown("completion", Options(shots=3))
    for example, new in zip(PAIRS, found):
        *before, own = new["prompt"].split("\n\n")
        assert own == example["prompt"] and len(before) == 3 == len(set(before)) and new["completion"] == example["completion"]
        assert all(shot in [p["prompt"] + p["completion"] for p in PAIRS if p is not example] for shot in before)
    assert shown("completion", Options(shots=3), examples=PAIRS[4:6], pool=PAIRS) == found[4:6]
    assert shown("completion", Options(shots=3)) == found != shown("completion", Options(shots=3, seed=1))
    net = model("llama")
    scores = [evaluate("clm", *net, Kind("completion"), Options(batch=b, shots=1), limit=n)[1] for b, n in ((1, None), (4, 3))]
    assert scores[0][:3] == scores[1] != evaluate("clm", *net, Kind("completion"))[1][:3]


def test_the_example_itself_is_never_shown_in_any_spelling():
    same = [{**PAIRS[0], "prompt": PAIRS[0]["prompt"].upper() + " !", "where": "y:1"}, *PAIRS[1:3]]
    new, = shown("completion", Options(shots=2), examples=PAIRS[:1], pool=same)
    assert PAIRS[0]["prompt"].upper() not in new["prompt"]
    with pytest.raises(ConfigError, match="shots=3 for x:0, but only 2 of 3 examples ask something else"):
        shown("completion", Options(shots=3), examples=PAIRS[:1], pool=same)


@pytest.mark.parametrize("kind", ["choice", "classification", "question"])
def test_every_kind_that_asks_can_be_shown(kind):
    for example, new in zip(EXAMPLES[kind], shown(kind, Options(shots=2, prompt_format="<{prompt}>"))):
        assert new["prompt"].count("\n\n") == 2 and new["prompt"].count("<") == 3 and new["prompt"].endswith(">")
    if kind == "question":
        assert new["kind"] == "completion" and new["references"]
    task = {"choice": "multiple-choice", "classification": "classify", "question": "qa"}[kind]
    net, tokenizer = model("llama")
    few = [{k: " ".join(v.split()[:3]) if isinstance(v, str) else v for k, v in e.items()} for e in EXAMPLES[kind][:4]]
    scores, records = evaluate(task, net, tokenizer, [{**e, "kind": kind} for e in few], Options(shots=1, max_tokens=4))
    assert len(records) == 4 and records != evaluate(task, net, tokenizer, [{**e, "kind": kind} for e in few], Options(max_tokens=4))[1]


def chatty():
    net, tokenizer = model("llama")
    made = ByteLevelBPE.train(CORPUS, 290, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.chat_template = "chatml"
    return net, made


def test_chats_are_what_the_template_writes_and_shots_are_turns():
    net, tokenizer = chatty()
    new = shown("choice", Options(chat=True, shots=1))[0]
    assert [m["role"] for m in new["prompt"]] == ["user", "assistant", "user"]
    assert new["prompt"][-1]["content"] == EXAMPLES["choice"][0]["prompt"]
    short = [{**e, "prompt": "the cat"} for e in EXAMPLES["choice"]]
    _, records = evaluate("multiple-choice", net, tokenizer, [{"kind": "choice", **e} for e in short], Options(chat=True))
    context = tokenizer.chat([{"role": "user", "content": "the cat"}])
    for example, record in zip(short, records):
        sums = [log_likelihoods(net, [(context, tokenizer.encode(c))])[0].sum() for c in example["choices"]]  # without the turn's end
        np.testing.assert_allclose(record["log_likelihoods"], sums, rtol=1e-6)
    talk = [{"kind": "messages", "messages": [{"role": "system", "content": f"be {i}"}, {"role": "user", "content": f"the {w}"},
                                              {"role": "assistant", "content": w}]} for i, w in enumerate(WORDS[:4])]
    new = shown("messages", Options(shots=2), examples=talk)[1]
    assert [m["role"] for m in new["prompt"]] == ["system", *["user", "assistant"] * 2, "user"] and new["prompt"][0]["content"] == "be 1"
    assert new["completion"] == [{"role": "assistant", "content": WORDS[1]}] and new["references"] == [WORDS[1]]


def test_an_answer_in_a_chat_ends_where_the_turn_ends(monkeypatch):
    """Also where the template's end of a turn is not the model's end token."""
    from pyllm.evaluate import tasks

    net, tokenizer = chatty()
    assert tokenizer.eos_id == tokenizer.id("<|endoftext|>")
    asked, real = {}, tasks.generate
    monkeypatch.setattr(tasks, "generate", lambda *a, **o: asked.update(o) or real(*a, **o))
    evaluate("generate", net, tokenizer, [{"kind": "completion", "prompt": "the cat", "completion": " sat", "where": ""}],
             Options(max_tokens=3, chat=True))
    assert asked["stop"] == ("<|im_end|>",)


@pytest.mark.parametrize("task, kind, family, head, options", [
    ("clm", "text", "llama", None, {"shots": 1}), ("classify", "classification", "bert", "BertForSequenceClassification", {"shots": 1}),
    ("qa", "question", "bert", "BertForQuestionAnswering", {"chat": True}), ("generate", "completion", "t5", None, {"chat": True})])
def test_what_takes_no_prompt_refuses_shots_and_chats(task, kind, family, head, options):
    with pytest.raises(ConfigError, match="shots|chat"):
        evaluate(task, *model(family, head), Kind(kind), Options(**options))


# ---- whether there is an answer

def test_the_threshold_is_the_one_with_the_largest_f1():
    draw = np.random.default_rng(0)
    records = [{"score": float(s), "no_answer_score": float(n), "n_best": [{"text": "a cat"}], "references": [("cat", "", "dog")[k]]}
               for s, n, k in zip(draw.normal(size=60), draw.normal(size=60), draw.integers(0, 3, 60))]

    margins = np.array([r["no_answer_score"] - r["score"] for r in records])
    values = [[best_f1(text, r["references"]) for r in records] for text in ("a cat", "")]
    f1 = lambda threshold: np.where(margins <= threshold, *values).mean()
    best = max(f1(t) for t in np.linspace(-6, 6, 4001))
    assert f1(best_threshold(records)) == pytest.approx(best) and best > f1(0)
    for right, inside in (("cat", True), ("", False)):  # always, never
        part = [{**r, "references": [right]} for r in records]
        assert all((r["no_answer_score"] - r["score"] <= best_threshold(part)) == inside for r in part)


def test_a_model_that_writes_says_that_there_is_no_answer_in_any_spelling(monkeypatch):
    """Behind shots as without them: the question's own "no answer" is not a text to be matched."""
    from pyllm.evaluate import tasks

    net, tokenizer = model("llama")
    monkeypatch.setattr(tasks, "generate", lambda m, t, prompts, **_: [Said(" Unanswerable.", "stop")] * len(prompts))
    examples = [{"kind": "question", "question": q, "context": "a red mat", "answers": [], "references": known, "where": q}
                for q, known in (("why", []), ("what", ["mat"]), ("who", []))]
    for shots in (0, 1):
        scores, records = evaluate("qa", net, tokenizer, examples, Options(max_tokens=2, shots=shots, length=64))
        assert [r["prediction"] for r in records] == ["", "", ""] and scores["exact_match"].value == pytest.approx(2 / 3)
        assert scores["exact_match_answerable"].value == 0 == scores["token_f1_answerable"].value
        assert scores["token_f1_unanswerable"].value == 1


def test_the_threshold_of_the_options_decides_and_the_n_best_have_probabilities():
    net, tokenizer = model("bert", "BertForQuestionAnswering")
    for threshold, empty in ((-1e9, True), (1e9, False)):
        records = evaluate("qa", net, tokenizer, Kind("question"), Options(no_answer_threshold=threshold, length=24, stride=8))[1]
        assert all((r["prediction"] == "") == empty for r in records)
    for record in records:
        chances = [best["probability"] for best in record["n_best"]]
        assert record["prediction"] == record["n_best"][0]["text"] and chances == sorted(chances, reverse=True) and 0 < sum(chances) < 1


def test_the_command_takes_shots_from_train_and_counts_bad_lines(tmp_path, capsys):
    net, tokenizer = chatty()
    pyllm.save(net, tokenizer, tmp_path / "model")
    (tmp_path / "data").mkdir()
    for part, seed, n in (("train", 1, 6), ("test", 0, 4)):
        lines = [json.dumps({"q": p, "completion": f" {p.split()[0]}"}) for p in texts(n, seed, 3, 6)]
        (tmp_path / "data" / f"{part}.jsonl").write_text("\n".join([*lines, '{"q": 3.5, "completion": "x"}']))
    command = ["eval", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--task", "generate", "--max-tokens", "4",
               "--columns", "prompt=q", "--out", str(tmp_path / "out")]
    assert main(command) == 3 and "test.jsonl:5: prompt is 3.5" in capsys.readouterr().err
    found = []
    for more in ((), ("--shots", "2"), ("--shots", "2", "--chat"), ("--shots", "2", "--limit", "2")):
        assert main([*command, "--skip-bad-lines", *more]) == 0
        assert ("1 bad lines skipped, the first: " in capsys.readouterr().out) == ("--limit" not in more)
        found.append((tmp_path / "out/predictions.jsonl").read_text().splitlines())
    assert found[3] == found[1][:2] and len({tuple(part) for part in found[:3]}) == 3
    for more, message in ((["--shots", "7", "--skip-bad-lines"], "only 6 of 6 examples ask something else"),
                          (["--shots", "-1"], "--shots -1"), (["--columns", "prompt"], "expected KEY=NAME"),
                          (["--stride", "-1"], "--stride -1")):
        assert main([*command, *more]) == 3 and message in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model"), "--data", "x", "--task", "bbq", "--skip-bad-lines"]) == 3
