"""pyllm data as a person runs it: every silent error of fine-tuning is refused before the first step, with its place and what to do."""
import json
import re
import sys

import pytest

from pyllm.cli import main
from pyllm.data import read_examples
from pyllm.data.lint import CHECKS
from pyllm.text import ByteLevelBPE, WordPiece

TEXT = ["what is it? it is a small model, and it ends. the user said hello to the assistant\n"] * 3
GOOD = [{"prompt": f"what is {i}?", "completion": f" it is {i} and a small model"} for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = ByteLevelBPE.train(TEXT, 320, special_tokens=["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"])
    made.chat_template = "chatml"
    path = tmp_path_factory.mktemp("tokenizer")
    made.save(path)
    return str(path)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return str(path)


@pytest.fixture
def check(tmp_path, tokenizer, capsys):
    """check(records or {split: records}, flags ...) -> (exit code, what it said, what it said of errors)."""
    def run(data, *flags):
        if isinstance(data, dict):
            for part, records in data.items():
                write(tmp_path / f"data/{part}.jsonl", records)
            path = tmp_path / "data"
        else:
            path = write(tmp_path / "a.jsonl", data)
        code = main(["data", "check", str(path), "--tokenizer", tokenizer, *map(str, flags)])
        said = capsys.readouterr()
        return code, said.out, said.err
    return run


def test_good_data_pass_and_one_example_is_shown_with_its_mask(check):
    code, out, err = check(GOOD)
    assert code == 0 and out.endswith("passed\n") and "REFUSED" not in out
    assert re.search(r"train +20 examples of kind completion, [\d,]+ tokens, [\d,]+ learned", out)
    shown = out[out.index("example "):].replace("\u00b7", "")
    assert "what is 0?[[ it is 0 and a small model<|endoftext|>]]" in shown
    assert "what is 6?[[" in check(GOOD, "--show", "7")[1].replace("\u00b7", "") and "[[" not in check(GOOD, "--show", "0")[1]


def test_colour_on_a_terminal(check, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    out = check(GOOD)[1]
    assert "\x1b[32m model\x1b[0m" in out and "\x1b[2mwhat\x1b[0m" in out and "[[" not in out and "green is learned" in out


def test_what_a_token_holds_does_not_move_the_cursor(check):
    out = check([{"prompt": "a\x1b[2Jb\r", "completion": "\n\x07 ends"}])[1]
    assert "\x1b" not in out and "\x07" not in out and "\\x1b" in out and "\u23ce" in out


def test_what_a_token_holds_does_not_look_like_the_mask(check, tmp_path):
    record = {"prompt": "see [[it]] \u00b7 a", "completion": " b ]] \u23ce c [[ d"}
    tokenizer = ByteLevelBPE.train([*TEXT, *[" [[ ]] \u00b7 \u23ce"] * 50], 320, special_tokens=["<|endoftext|>"])
    tokenizer.save(tmp_path / "tokenizer")
    out = check([record], "--tokenizer", str(tmp_path / "tokenizer"))[1]
    shown = "".join(line.strip() for line in out[out.index("example "):].splitlines()[1:-1])
    assert shown.count("[[") == shown.count("]]") == 1 and shown.index("[[") < shown.index("]]") == len(shown) - 2
    said = shown.replace("\u00b7", "").replace("[[", "").replace("]]", "").removesuffix("<|endoftext|>")
    assert said.encode().decode("unicode_escape") == record["prompt"] + record["completion"]


DRIFT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
REFUSED = {  # name of the check: (records, flags)
    "bad": ([*GOOD, '{"prompt": "a"\n'], ()),
    "empty": ([*GOOD, {"prompt": "a", "completion": " "}], ()),
    "target": ([*GOOD, {"prompt": "a", "completion": ""}], ()),
    "cut": (GOOD, ("--length", 8)),
    "bos": ([*GOOD, {"prompt": "<s><s>a", "completion": " b"}], ()),
    "duplicates": ([*GOOD, GOOD[3]], ()),
    "same": ([{"prompt": "a", "chosen": " b", "rejected": " b"}, {"prompt": "a", "chosen": " b", "rejected": " c"}], ()),
    "drift": ([{"messages": DRIFT}, {"messages": DRIFT[::-1]}], ()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_spoil_a_run_is_refused_with_its_place(check, name):
    records, flags = REFUSED[name]
    code, out, err = check(records, *flags)
    line = next(line for line in out.splitlines() if line.startswith("REFUSED") and CHECKS[name][0] in line)
    assert code == 3 and f"{name}=" in line and re.search(r"a\.jsonl:\d+", line) and CHECKS[name][0] in err and f"--allow {name}=" in err
    allowed = [flag for name in re.findall(r"--allow (\S+)", err) for flag in ("--allow", name)]
    assert check(records, *flags, *allowed)[0] == 0


def test_rows_without_an_end_token_are_refused(tmp_path, capsys):
    """A tokenizer without an EOS: what is learned never ends."""
    made = ByteLevelBPE.train(TEXT, 300, special_tokens=[])
    made.save(tmp_path / "t")
    assert main(["data", "check", write(tmp_path / "a.jsonl", GOOD), "--tokenizer", str(tmp_path / "t")]) == 3
    assert CHECKS["eos"][0] in capsys.readouterr().err


def test_leaks_of_the_test_set_are_refused(check):
    code, out, err = check({"train": GOOD, "test": [{"prompt": "What is 3 ??", "completion": " it is 3"}], "valid": [
        {"prompt": "never asked", "completion": " so"}]})
    assert code == 3 and "1 of 1 (1, more than leaks=0): test.jsonl:1 as train.jsonl:4" in out
    assert "refused: test: examples that the training" in err


def test_labels_that_training_does_not_have_and_contradictions(check, tmp_path, capsys):
    train = [{"text": f"it is {i}", "label": "good" if i % 2 else "bad"} for i in range(20)]
    code, out, err = check({"train": [*train, {"text": "It is 4.", "label": "good"}], "valid": [{"text": "so", "label": "bda"}]})
    assert code == 3 and "labels     bad 10, good 11" in out and "valid.jsonl:1: 'bda'" in out
    assert f"REFUSED    {CHECKS['contradictions'][0]}: 1 of 21" in out and "train.jsonl:21 and train.jsonl:5" in out


def test_without_a_tokenizer_and_wrong_flags(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", GOOD)
    assert main(["data", "check", path]) == 0 and "tokens     not looked at. Hint: --tokenizer MODEL" in capsys.readouterr().out
    for flags, words in ((["--allow", "leak=1"], "'leak'; expected one of .* Did you mean 'leaks'"),
                         (["--allow", "leaks"], "expected NAME=SHARE"), (["--columns", "x"], "expected KEY=NAME"),
                         (["--columns", "prompt=x"], "no column 'x' for prompt")):
        assert main(["data", "check", path, *flags]) == 3 and re.search(words, capsys.readouterr().err)
    assert main(["data", "check", str(tmp_path / "none")]) == 3
    write(tmp_path / "two/a.jsonl", GOOD), write(tmp_path / "two/b.jsonl", [{"text": "a"}])
    assert main(["data", "check", str(tmp_path / "two")]) == 3 and "expected one kind a data set" in capsys.readouterr().err


def test_encoders_and_encoder_decoders_are_shown_too(tmp_path, capsys):
    WordPiece.train([t.lower() for t in TEXT], 200).save(tmp_path / "t")
    context = "hello, it is a small model"
    data = write(tmp_path / "a.jsonl", [{"question": "what is it?", "context": context, "answers": [
        {"text": "small", "answer_start": context.index("small")}]}])
    assert main(["data", "check", data, "--tokenizer", str(tmp_path / "t"), "--architecture", "encoder"]) == 0
    assert "[[small]]" in capsys.readouterr().out.replace("\u00b7", "").replace(" ", "")
    for record, said in (({"question": "what?", "context": "hello", "answers": []}, "learned is that there is no answer"),
                         ({"text": "hello", "label": "bad"}, "label number 0 is learned")):  # of the text itself nothing is
        assert main(["data", "check", write(tmp_path / "c.jsonl", [record]), "--tokenizer", str(tmp_path / "t"), "--architecture",
                     "encoder"]) == 0
        out = capsys.readouterr().out
        assert said in out and "[[" not in out
    assert main(["data", "check", write(tmp_path / "b.jsonl", GOOD), "--tokenizer", str(tmp_path / "t"), "--architecture",
                 "encoder-decoder", "--allow", "unknown=1"]) == 0
    assert re.search(r"\d+ tokens, answer \d+, \d+ learned", capsys.readouterr().out)


def test_dedup_writes_what_is_read_as_the_same(tmp_path, capsys):
    records = [*GOOD[:3], GOOD[1], {"prompt": "WHAT is 2", "completion": "it is 2 and a small model!"}]
    assert main(["data", "dedup", write(tmp_path / "a.jsonl", records), str(tmp_path / "b.jsonl")]) == 0
    assert "3 examples of kind completion; 2 stood there already" in capsys.readouterr().out
    strip = lambda e: {k: v for k, v in e.items() if k != "where"}
    assert [strip(e) for e in read_examples(tmp_path / "b.jsonl")] == GOOD[:3]
    squad = {"question": "q", "context": "a bc", "answers": {"text": ["bc"], "answer_start": [2]}}
    summaries = {"dialogue": "d", "summary1": "s", "summary2": "t"}
    for record in (squad, summaries, {"text": "a", "label": 1}, {"prompt": "a", "completion": "b", "label": True}, {"messages": DRIFT}):
        before = list(read_examples(write(tmp_path / "c.jsonl", [record])))
        assert main(["data", "dedup", str(tmp_path / "c.jsonl"), str(tmp_path / "d.jsonl"), "--near", "0.8"]) == 0
        assert [strip(e) for e in read_examples(tmp_path / "d.jsonl")] == [strip(e) for e in before]
