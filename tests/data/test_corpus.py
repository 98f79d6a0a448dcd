"""Documents from .txt, .jsonl and folders; every bad input names its file and line."""
import os

import pytest
from hypothesis import given, strategies as st

from pyllm.data import corpus
from pyllm.data.corpus import find_files, read_documents, read_pieces
from pyllm.errors import FormatError


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_txt_is_one_document(tmp_path):
    assert list(read_documents(put(tmp_path / "a.txt", "\n one\n\ntwo \n"))) == ["\n one\n\ntwo \n"]


def test_bom_and_line_ends(tmp_path):
    assert list(read_documents(put(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n"))) == ["one\ntwo\n"]
    lines = b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n\r\n  \n{"text": "c", "id": 3}'
    assert list(read_documents(put(tmp_path / "a.jsonl", lines))) == ["a\r\nb", "c"]


def test_folder_is_sorted_and_skips_what_is_empty(tmp_path):
    put(tmp_path / "b.txt", "b")
    put(tmp_path / "a" / "z.JSONL", '{"text": "az"}\n{"text": ""}\n{"text": " \\n"}\n')
    put(tmp_path / "empty.txt", "")
    put(tmp_path / "blank.txt", " \n\t")
    put(tmp_path / ".hidden.txt", "no")
    put(tmp_path / ".git" / "x.txt", "no")
    put(tmp_path / "README.md", "no")
    assert list(read_documents(tmp_path)) == ["az", "b"]


@pytest.mark.parametrize("names, train, valid", [
    (["train.txt", "valid.txt"], ["train.txt"], ["valid.txt"]),
    (["train-1.txt", "train-2.txt", "val.txt", "test.txt"], ["train-1.txt", "train-2.txt"], ["val.txt"]),
    (["a.txt", "b.txt", "Validation.jsonl", "test.txt"], ["a.txt", "b.txt"], ["Validation.jsonl"]),
    (["train/a.txt", "train/b/c.txt", "val/a.txt"], ["train/a.txt", "train/b/c.txt"], ["val/a.txt"]),
    (["a.txt"], ["a.txt"], None),
    (["valid.txt"], None, ["valid.txt"]),
])
def test_split_by_name(tmp_path, names, train, valid):
    for name in names:
        put(tmp_path / name, "x")
    for split, expected in (("train", train), ("valid", valid)):
        if expected is None:
            with pytest.raises(FormatError, match=f"no .txt or .jsonl {split} file found among"):
                find_files(tmp_path, split)
        else:
            assert [str(p.relative_to(tmp_path)) for p in find_files(tmp_path, split)] == expected
    assert len(find_files(tmp_path)) == len(names)


def test_a_single_file_is_the_training_part(tmp_path):
    path = put(tmp_path / "input.txt", "x")
    assert find_files(path, "train") == [path]
    with pytest.raises(FormatError, match="no .txt or .jsonl valid file"):
        find_files(path, "valid")
    with pytest.raises(ValueError, match="'eval'"):
        find_files(path, "eval")


BAD_LINES = [
    ("{", "bad.jsonl:2: not JSON at column 2"),
    ('{"text": "a" "b"}', "bad.jsonl:2: not JSON at column 14"),
    ('["a"]', 'bad.jsonl:2: expected {"text": "..."}, got list'),
    ('{"prompt": "a"}', r"bad.jsonl:2: expected .* got an object with the keys \['prompt'\]"),
    ('{"text": 3}', 'bad.jsonl:2: expected .* got "text" of type int'),
    ('{"text": null}', 'bad.jsonl:2: .*"text" of type NoneType'),
    ('{"text": "a", "text": "b"}', "bad.jsonl:2: key 'text' stands twice"),
    ('{"text": "a", "n": NaN}', "bad.jsonl:2: NaN"),
    ('{"text": "a\\ud800"}', "bad.jsonl:2: a lone surrogate at character 1"),
    (b'{"text": "\xe4"}', "bad.jsonl:2: not UTF-8 at byte 10 of the line"),
    (b"[" * 100_000, "bad.jsonl:2: "),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line, message):
    line = line.encode() if isinstance(line, str) else line
    path = put(tmp_path / "bad.jsonl", b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
    documents = read_documents(path)
    assert next(documents) == "fine"
    with pytest.raises(FormatError, match=message.replace("{", r"\{").replace("}", r"\}") if "\\" not in message else message):
        next(documents)


def test_bad_utf8_in_txt_is_named(tmp_path):
    path = put(tmp_path / "a.txt", b"one\n" * 5000 + b"caf\xe9\n")
    with pytest.raises(FormatError, match=r"a.txt:5001: not UTF-8 at byte 3 of the line.*iconv -f LATIN1"):
        list(read_documents(path))
    for name in ("b.txt", "b.jsonl"):
        with pytest.raises(FormatError, match=f"{name}:1: .*UTF-16"):
            list(read_documents(put(tmp_path / name, "text".encode("utf-16"))))


@pytest.mark.parametrize("name, data", [("a.txt", ""), ("a.txt", " \n"), ("a.txt", b"\xef\xbb\xbf"), ("a.jsonl", ""),
                                        ("a.jsonl", "\n\n"), ("a.jsonl", '{"text": ""}')])
def test_no_text_at_all(tmp_path, name, data):
    path = put(tmp_path / name, data)
    for source in (path, tmp_path):
        with pytest.raises(FormatError, match=r"no text in 1 file \(all empty or blank\)"):
            list(read_documents(source))


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder of text"):
        list(read_documents(tmp_path / "no"))
    with pytest.raises(FormatError, match="no .txt or .jsonl file found .expected names"):
        list(read_documents(tmp_path))
    with pytest.raises(FormatError, match="a.csv: expected a .txt or .jsonl file"):
        list(read_documents(put(tmp_path / "a.csv", "x")))


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
def test_unreadable_file_is_named(tmp_path, monkeypatch):
    path = put(tmp_path / "a.txt", "x")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        path.unlink()
        os.symlink(path, path)
        with pytest.raises(OSError) as error:
            list(read_documents(path))
    else:
        with pytest.raises(PermissionError) as error:
            list(read_documents(path))
    assert str(path) in str(error.value)


# ---- pieces

WORDS = st.lists(st.sampled_from(["a", "word", "don't", "x_", "1234", ".", "...\n", "\n\n", "  ", "é", "漢字"]), max_size=60)


@given(WORDS, st.integers(1, 20))
def test_pieces_make_the_document(tmp_path_factory, words, size):
    text = " ".join(words)
    path = put(tmp_path_factory.getbasetemp() / "pieces.txt", text)
    old, corpus.PIECE = corpus.PIECE, size
    try:
        if not text.strip():
            with pytest.raises(FormatError, match="no text"):
                list(read_pieces(path))
            return
        pieces = list(read_pieces(path))
    finally:
        corpus.PIECE = old
    assert "".join(p for p, _ in pieces) == text and [e for _, e in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece for piece, _ in pieces)
    # A cut is between a word and a blank wherever the piece before it has such a place.
    for (a, _), (b, _) in zip(pieces, pieces[1:]):
        assert (a[-1].isalnum() and b[0] in " \n") or not corpus._CUT.search(a + b[0], 1)


def test_long_documents_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 1000)
    pieces = [p for p, _ in read_pieces(put(tmp_path / "a.txt", "some words here\n" * 1000))]
    assert len(pieces) > 5 and max(map(len, pieces)) <= 2000
