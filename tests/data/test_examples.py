"""Examples of every published layout; every bad file is one error that names file and line, before any training."""
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from pyllm.data import find_splits, label_names, read_examples
from pyllm.data.formats import FORMATS
from pyllm.errors import FormatError

DATA = Path(__file__).parents[2] / "../shared/data"
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def put(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(path, *lines, **options):
    examples = read_examples(put(path, *lines), **options)
    return examples.kind, [{k: v for k, v in e.items() if k != "where"} for e in examples]


@pytest.mark.parametrize("record, kind, expected", [
    ({"text": "a"}, "text", {"text": "a"}),
    ({"prompt": "a"}, "prompt", {"prompt": "a"}),
    ({"prompt": "a", "completion": "b"}, "completion", {"prompt": "a", "completion": "b"}),
    ({"prompt": MESSAGES[:1], "completion": MESSAGES[1]}, "completion", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}),
    ({"messages": MESSAGES}, "messages", {"messages": MESSAGES}),
    ({"messages": [MESSAGES[0], {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}]}, "messages",
     {"messages": MESSAGES}),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ({"chosen": "Say it: yes sir", "rejected": "Say it: yep"}, "preference",
     {"prompt": "Say it:", "chosen": " yes sir", "rejected": " yep"}),
    ({"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "No."}]}, "preference",
     {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [{"role": "assistant", "content": "No."}]}),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."}, "preference",
     {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [{"role": "assistant", "content": "No."}]}),
    ({"prompt": "a", "completion": "b", "label": True}, "unpaired", {"prompt": "a", "completion": "b", "label": True}),
    ({"instruction": "Hi", "input": "", "output": "Hello."}, "messages", {"messages": MESSAGES}),
    ({"instruction": "Add", "input": "1 2", "output": "3", "system": "Be."}, "messages", {"messages": [
        {"role": "system", "content": "Be."}, {"role": "user", "content": "Add\n\n1 2"}, {"role": "assistant", "content": "3"}]}),
    ({"instruction": "Hi", "input": "", "output": "x", "chosen": "Hello.", "rejected": "No."}, "preference",
     {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [{"role": "assistant", "content": "No."}]}),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, "messages", {"messages": MESSAGES}),
    ({"question": "Hi", "answer": "Hello."}, "messages", {"messages": MESSAGES}),
    ({"source": "a", "target": "b"}, "completion", {"prompt": "a", "completion": "b"}),
    ({"dialogue": "a", "summary1": "b", "summary2": "c"}, "completion", {"prompt": "a", "completion": "b", "references": ["b", "c"]}),
    ({"context": "Q: x\nA:", "ref_text": "b|c"}, "completion", {"prompt": "Q: x\nA:", "completion": " b", "references": ["b", "c"]}),
    ({"text": "a", "label": 1}, "classification", {"text": "a", "label": "1"}),
    ({"sentence": "a", "label": "good"}, "classification", {"text": "a", "label": "good"}),
    ({"id": 7, "question": "q", "context": "a bc", "answers": {"text": ["bc"], "answer_start": [2]}}, "question",
     {"id": 7, "question": "q", "context": "a bc", "answers": [("bc", 2)], "references": ["bc"]}),
    ({"question": "q", "context": "a bc", "answers": []}, "question",
     {"question": "q", "context": "a bc", "answers": [], "references": []}),
], ids=lambda v: v if isinstance(v, str) else None)
def test_a_format_is_known_by_its_keys(tmp_path, record, kind, expected):
    assert read(tmp_path / "a.jsonl", record) == (kind, [expected])


@pytest.mark.parametrize("record, words", [
    ('{"text": "a"', "a.jsonl:2: not JSON"),
    ('{"text": NaN}', "a.jsonl:2: NaN is not a JSON value"),
    ({"text": None}, "a.jsonl:2: text is None, expected a string"),
    ({"text": "nan"}, "a missing value"),
    ({"text": ["a"]}, "a.jsonl:2: text is ['a'], expected a string"),
    ("[1]", "a.jsonl:2: expected an object, got list"),
    ({"body": "a"}, "a.jsonl:2: the keys 'body' are no known format; expected one of messages;"),
    ({"prompt": "a", "completion": "b"}, "a.jsonl:2: prompt + completion in a file of text; expected one format a file"),
    ('{"text": "\\ud800"}', "lone surrogate"),
])
def test_a_bad_line_is_named_by_file_and_line_and_can_be_skipped(tmp_path, record, words):
    path = put(tmp_path / "a.jsonl", {"text": "one"}, record, "", {"text": "three"})
    with pytest.raises(FormatError) as error:
        list(read_examples(path))
    assert words in str(error.value)
    examples = read_examples(path, skip_bad_lines=True)
    assert [e["text"] for e in examples] == ["one", "three"]
    assert examples.skipped == 1 and words in examples.first_skipped


@pytest.mark.parametrize("record, words", [
    ({"messages": []}, "messages is []"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0] has role 'robot', expected a message with role system"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0] is None, expected a string"),
    ({"prompt": "a", "completion": MESSAGES}, "prompt is text, completion is messages; expected all text or all messages"),
    ({"prompt": "a", "completion": "b", "label": 0.5}, "label is 0.5, expected true or false"),
    ({"text": "a", "label": None}, "label is None"),
    ({"text": "a", "label": 0.5}, "label is 0.5, expected a name or a whole number"),
    ({"question": "q", "context": "a bc", "answers": {"text": ["bc"], "answer_start": [1]}}, "the context has ' b' at character 1"),
    ({"question": "q", "context": "a bc", "answers": "bc"}, "answers is 'bc'"),
])
def test_a_field_of_another_type_is_named(tmp_path, record, words):
    with pytest.raises(FormatError) as error:
        read(tmp_path / "a.jsonl", record)
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}:1: ") and words in str(error.value)


def test_empty_files_are_an_error(tmp_path):
    for name, text in (("a.jsonl", "\n \n"), ("a.json", "[\n]"), ("b.json", ""), ("a.csv", "text,label\n"), ("a.tsv", "")):
        with pytest.raises(FormatError, match="no example"):
            read_examples(put(tmp_path / name, text))


def test_duplicate_ids_are_an_error(tmp_path):
    with pytest.raises(FormatError, match=r"a.jsonl:3: the id 7 stands at .*a.jsonl:1 already"):
        read(tmp_path / "a.jsonl", {"id": 7, "text": "a"}, {"id": 8, "text": "b"}, {"id": 7, "text": "c"})


def test_a_label_outside_the_label_set_is_an_error(tmp_path):
    lines = {"text": "a", "label": "good"}, {"text": "b", "label": "bda"}
    with pytest.raises(FormatError, match=r"a.jsonl:2: label 'bda' is not among the 2 labels 'bad', 'good'"):
        read(tmp_path / "a.jsonl", *lines, labels=["bad", "good"])
    assert label_names(read_examples(tmp_path / "a.jsonl")) == ["bda", "good"]
    assert label_names([{"label": s} for s in ("10", "9", "x", "9")]) == ["9", "10", "x"]


def test_json_lists_are_read_one_by_one_and_name_the_line(tmp_path):
    good = '[\n {"text": "a]"},\n\n {"text":\n "b"}]\n'
    assert [e["where"].rpartition(":")[2] for e in read_examples(put(tmp_path / "a.json", good))] == ["2", "4"]
    for bad, words in (('[{"text": "a"},]', "not JSON"), ('[{"text": "a"} {"text": "b"}]', "not JSON"), ('[{"text": "a"}] x', "not JSON"),
                       ('[{"text": "a"}', "not JSON"), ('{"a": 1}', "list of objects"),
                       ('[{"text": "a"},\n{"text": NaN}]', ":2: NaN is not"), ('[{"text": "a"},\n3]', ":2: expected an object"),
                       ('"a"', "a list of objects")):
        with pytest.raises(FormatError, match=words):
            list(read_examples(put(tmp_path / "b.json", bad)))


def test_squad_files(tmp_path):
    qas = [{"id": "1", "question": "q", "answers": [{"text": "b", "answer_start": 2}]}, {"id": "2", "question": "r", "answers": []}]
    kind, found = read(tmp_path / "a.json", {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": qas}]}]})
    assert kind == "question" and [e["answers"] for e in found] == [[("b", 2)], []]


def test_tables(tmp_path):
    assert read(tmp_path / "a.csv", 'text,label', '"one, ""two""\nthree",1', "b,0")[1] == [
        {"text": 'one, "two"\nthree', "label": "1"}, {"text": "b", "label": "0"}]
    with pytest.raises(FormatError, match=r"a.csv:4: 1 cells, expected 2: text, label"):
        list(read_examples(put(tmp_path / "a.csv", "text,label", '"one\ntwo",1', "b")))
    with pytest.raises(FormatError, match=r"a.csv:2: not a table"):
        list(read_examples(put(tmp_path / "a.csv", "text,label", '"one,1', "b,2")))
    with pytest.raises(FormatError, match="stands twice"):
        read(tmp_path / "a.csv", "text,text", "a,b")


def test_a_quote_in_a_tsv_swallows_no_lines(tmp_path):
    """A reader with quoting takes all up to the next quote for one cell, and loses the rows between without a word."""
    kind, found = read(tmp_path / "a.tsv", '" good film\t1', "bad\t0", 'so "so\t0')
    assert kind == "classification" and found == [{"text": '" good film', "label": "1"}, {"text": "bad", "label": "0"},
                                                  {"text": 'so "so', "label": "0"}]


def test_columns_may_have_other_names(tmp_path):
    columns = {"prompt": "translation.en", "completion": "translation.de"}
    assert read(tmp_path / "a.jsonl", {"translation": {"en": "a", "de": "b"}}, columns=columns) == (
        "completion", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(FormatError, match="no column 'translation.fr' for prompt; there are 'translation'"):
        read_examples(tmp_path / "a.jsonl", columns={"prompt": "translation.fr"})


def test_parallel_files(tmp_path):
    put(tmp_path / "train.en", "a", "b")
    put(tmp_path / "train.de.gz", "x", "y")
    put(tmp_path / "val.en", "c")
    put(tmp_path / "val.de", "z", "more")
    columns = {"source": "en", "target": "de"}
    assert [(e["prompt"], e["completion"]) for e in read_examples(tmp_path, "train", columns=columns)] == [("a", "x"), ("b", "y")]
    assert read_examples((tmp_path / "train.en", tmp_path / "train.de.gz")).kind == "completion"
    with pytest.raises(FormatError, match=r"val.en: ends before line 2, which .*val.de still has"):
        list(read_examples(tmp_path, "valid", columns=columns))
    with pytest.raises(FormatError, match="parallel files with columns source=de,target=en"):
        read_examples(tmp_path)


def test_splits_of_a_folder(tmp_path):
    put(tmp_path / "LICENSE.txt", "words")
    put(tmp_path / "data.dev.jsonl", {"text": "v"})
    put(tmp_path / "validation-00000-of-00001.jsonl.gz", {"text": "w"})
    put(tmp_path / "train-a.jsonl", {"text": "t"})
    put(tmp_path / "test" / "en.jsonl", {"text": "e"})
    put(tmp_path / "other.jsonl", {"text": "o"})
    assert {part: [f.name for f in files] for part, files in find_splits(tmp_path).items()} == {
        "train": ["train-a.jsonl"], "valid": ["data.dev.jsonl", "validation-00000-of-00001.jsonl.gz"], "test": ["en.jsonl"]}
    assert [e["text"] for e in read_examples(tmp_path, "valid")] == ["v", "w"]
    (tmp_path / "test" / "en.jsonl").unlink()
    with pytest.raises(FormatError, match="the split 'test' is empty: no file for it among train-a.jsonl"):
        read_examples(tmp_path, "test")


def test_mixed_kinds_in_one_data_set_are_an_error(tmp_path):
    put(tmp_path / "a.jsonl", {"text": "t"})
    put(tmp_path / "b.jsonl", {"prompt": "t"})
    with pytest.raises(FormatError, match=r"b.jsonl:1: an example of kind prompt, the ones before are text"):
        list(read_examples(tmp_path))


def test_broken_gz_and_encodings(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 9999)[:-20])
    with pytest.raises(FormatError, match="not a whole .gz"):
        list(read_examples(tmp_path / "a.jsonl.gz"))
    (tmp_path / "b.csv").write_bytes("text\nä\n".encode("latin1"))
    with pytest.raises(FormatError, match=r"b.csv:2: not UTF-8 at byte 0"):
        read_examples(tmp_path / "b.csv")
    (tmp_path / "c.jsonl").write_bytes('\ufeff{"text": "a"}\r\n{"text": "b"}'.encode())
    assert [e["text"] for e in read_examples(tmp_path / "c.jsonl")] == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match="expected a file that ends in"):
        read_examples(put(tmp_path / "a.parquet", "x"))


@settings(max_examples=150)
@given(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz"]), st.booleans(), st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass")), st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([k for f in FORMATS for k in f]), inner, max_size=4),
        max_leaves=12).map(lambda v: json.dumps([v]).encode())))
def test_whatever_a_file_holds_it_is_examples_or_one_clear_error(tmp_path_factory, suffix, skip, data):
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(data)
    try:
        examples = read_examples(path, skip_bad_lines=skip)
        assert all(e["where"].startswith(str(path)) for e in examples) and examples.kind
    except FormatError as error:
        assert str(path) in str(error)


PUBLISHED = [  # path, columns, {split: (kind, count)}
    ("rasbt-instruct/instruction-data.json", None, {"train": ("messages", 1100)}),
    ("rasbt-instruct/instruction-data-with-preference.json", None, {"train": ("preference", 1100)}),
    ("llamafactory-demo/alpaca_en_demo.json", None, {"train": ("messages", 999)}),
    ("llamafactory-demo/c4_demo.jsonl", None, {"train": ("text", 300)}),
    ("hh-rlhf", None, {"test": ("preference", 2312)}),
    ("dialogsum", None, {"valid": ("completion", 500), "test": ("completion", 500)}),
    ("multi30k", {"source": "en", "target": "de"}, {"train": ("completion", 29000), "valid": ("completion", 1014),
                                                    "test": ("completion", 1000)}),
    ("sst2", None, {"train": ("classification", 6920), "valid": ("classification", 872), "test": ("classification", 1821)}),
    ("squadv2-samples", None, {"train": ("completion", 2400)}),
    ("e2e-nlg", None, {"test": ("completion", 4693)}),
    ("xstest", None, {"train": ("prompt", 450)}),
    ("constitutional-ai/evals", None, {"train": ("preference", 979)}),
    ("tinyshakespeare", None, {"train": ("text", 1)}),
]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize("name, columns, expected", PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_published_layouts(name, columns, expected):
    found = {}
    for part in find_splits(DATA / name, columns):
        examples = read_examples(DATA / name, part, columns=columns)
        found[part] = (examples.kind, sum(1 for _ in examples))
    assert found == expected
