"""Token shards: round trips across shard borders, refusals, a full disk, memory."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pyllm.data import shards as S
from pyllm.errors import FormatError

ROOT = Path(__file__).parents[2]
DOCUMENTS = st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=8).filter(any)


def arrays(documents):
    return [np.array(d, np.uint32) for d in documents]


def check_equal(shards, documents):
    """Every slice, document number and length."""
    documents = [d for d in documents if d]
    flat = [x for d in documents for x in d]
    owner = [i for i, d in enumerate(documents) for _ in d]
    assert len(shards) == len(flat) and shards.document_count == len(documents)
    for a in range(len(flat) + 1):
        for b in range(a, len(flat) + 1):
            assert shards[a:b].tolist() == flat[a:b]
            assert shards.documents(a, b).tolist() == owner[a:b]
    assert shards[:].tolist() == flat and shards[-2:].tolist() == flat[-2:] and shards[5:2].tolist() == []


@settings(max_examples=25)
@given(DOCUMENTS, st.integers(1, 12))
def test_round_trip(tmp_path_factory, documents, shard_tokens):
    folder = tmp_path_factory.getbasetemp() / "rt"
    shards = S.write_shards(arrays(documents), folder, 100, shard_tokens=shard_tokens)
    assert {p.name for p in folder.glob("tokens-*")} == {S._shard_name(i) for i in range(-(-len(shards) // shard_tokens))}
    check_equal(shards, documents)
    check_equal(S.open_shards(folder, verify=True), documents)
    check_equal(S.in_memory(arrays(documents), 100), documents)


@given(DOCUMENTS, st.data())
def test_parts_are_views_of_the_whole(documents, data):
    shards = S.in_memory(arrays(documents), 100)
    a = data.draw(st.integers(0, len(shards) - 1))
    b = data.draw(st.integers(a + 1, len(shards)))
    part = shards.part(a, b)
    assert part[:].tolist() == shards[a:b].tolist() and part.documents(0, b - a).tolist() == shards.documents(a, b).tolist()
    assert part.fingerprint == shards.fingerprint or (a, b) != (0, len(shards))
    assert part.part(0, 1)[:].tolist() == shards[a:a + 1].tolist()


@pytest.mark.parametrize("vocab, dtype", [(1, "uint16"), (65536, "uint16"), (65537, "uint32"), (1 << 31, "uint32")])
def test_width_follows_the_vocabulary(tmp_path, vocab, dtype):
    shards = S.write_shards([[vocab - 1]], tmp_path / "s", vocab)
    assert shards[:].dtype == dtype and shards[:].tolist() == [vocab - 1]


def test_mapped_and_read_only(tmp_path):
    shards = S.write_shards([[1, 2, 3]], tmp_path / "s", 10)
    with pytest.raises(ValueError, match="read-only"):
        shards[0:2][0] = 3
    assert not shards[0:2].flags.owndata and type(shards[0:2]) is np.ndarray


def test_index_holds_what_training_needs(tmp_path):
    shards = S.write_shards([([1, 2], 5), ([], 0), ([3], 1)], tmp_path / "s", 10, eos_id=3, tokenizer="abc")
    assert (shards.vocab_size, shards.eos_id, shards.tokenizer, shards.text_bytes) == (10, 3, "abc", 6)
    assert [shards.part(0, n).text_bytes for n in (1, 2, 3)] == [2, 5, 6]
    again = S.write_shards([([1, 2], 5), ([3], 1)], tmp_path / "t", 10, eos_id=3, tokenizer="abc")
    assert again.fingerprint == shards.fingerprint
    assert S.write_shards([([1, 2], 5), ([4], 1)], tmp_path / "u", 10).fingerprint != shards.fingerprint
    assert S.write_shards([([1], 5), ([2, 3], 1)], tmp_path / "v", 10).fingerprint != shards.fingerprint


def test_split():
    shards = S.in_memory([range(100)], 100)
    head, tail = S.split(shards, 0.9)
    assert head[:].tolist() == list(range(90)) and tail[:].tolist() == list(range(90, 100))
    assert len({head.fingerprint, tail.fingerprint, shards.fingerprint}) == 3
    for fraction in (0.001, 0.999, 0, 1, 1.5):
        with pytest.raises(ValueError, match="split: "):
            S.split(shards, fraction)


# ---- bad input

@pytest.mark.parametrize("documents, error, message", [
    ([[1], [2, 100]], ValueError, "document 1 has id 100 at position 1, expected 0 to 99"),
    ([[-1]], ValueError, "document 0 has id -1"),
    ([[1.5]], TypeError, r"document 0 is float64 \(1,\)"),
    ([[[1]]], TypeError, r"int64 \(1, 1\)"),
    ([], ValueError, "no token in any document"),
    ([[], []], ValueError, "no token in any document"),
])
def test_bad_documents(tmp_path, documents, error, message):
    S.write_shards([[7]], tmp_path / "s", 100)
    with pytest.raises(error, match=message):
        S.write_shards([np.array(d) for d in documents], tmp_path / "s", 100)
    assert S.open_shards(tmp_path / "s")[:].tolist() == [7] and [p.name for p in tmp_path.iterdir()] == ["s"]
    with pytest.raises(error, match=message):
        S.in_memory([np.array(d) for d in documents], 100)


@pytest.mark.parametrize("vocab", [0, -1, 2**31 + 1, 3.0, None])
def test_bad_vocabulary(tmp_path, vocab):
    with pytest.raises(ValueError, match="vocab_size is"):
        S.write_shards([[0]], tmp_path / "s", vocab)


def test_unended_document(tmp_path):
    with pytest.raises(ValueError, match="never ended"), S.shard_writer(tmp_path / "s", 5) as add:
        add([1], ends=False)


def test_slices_only():
    shards = S.in_memory([[1, 2]], 5)
    for index in (0, slice(None, None, 2), [0]):
        with pytest.raises(TypeError, match="expected a slice"):
            shards[index]
    for a, b in ((0, 3), (1, 1), (-1, 2)):
        with pytest.raises(ValueError, match="TokenShards.part"):
            shards.part(a, b)


def edit(folder, **changes):
    info = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({k: v for k, v in (info | changes).items() if v != "gone"}))


@pytest.mark.parametrize("key, value", [
    ("format", "other"), ("format", "gone"), ("dtype", "float32"), ("dtype", ["uint16"]), ("vocab_size", 0), ("vocab_size", True),
    ("eos_id", -1), ("eos_id", "gone"), ("tokens", "5"), ("documents", 0), ("bytes", -1), ("tokenizer", 3), ("shards", []),
    ("shards", [{"file": "../tokens-00000.bin", "tokens": 5, "sha256": ""}]),
    ("shards", [{"file": "tokens-00000.bin", "tokens": True, "sha256": ""}]),
    ("shards", [3]),
])
def test_bad_index(tmp_path, key, value):
    S.write_shards([[1, 2, 3, 4, 5]], tmp_path / "s", 10)
    edit(tmp_path / "s", **{key: value})
    with pytest.raises(FormatError, match=f"index.json: (key '{key}'|{key}.0. is)"):
        S.open_shards(tmp_path / "s")


@pytest.mark.parametrize("change, message", [
    (lambda f: (f / "tokens-00000.bin").unlink(), "tokens-00000.bin: missing"),
    (lambda f: (f / "tokens-00000.bin").write_bytes(b"123"), "3 bytes, index.json says 5 x 2"),
    (lambda f: (f / "documents.bin").write_bytes(b""), "documents.bin: 0 bytes"),
    (lambda f: (f / "documents.bin").write_bytes(bytes(16)), "disagree on the number"),
    (lambda f: edit(f, bytes=1), "disagree on the number"),
    (lambda f: edit(f, tokens=6), "disagree on the number"),
    (lambda f: (f / "index.json").write_text("{"), "index.json: not JSON"),
    (lambda f: (f / "index.json").write_text("[]"), "expected an object, got list"),
])
def test_damaged_folder(tmp_path, change, message):
    S.write_shards([[1, 2, 3, 4, 5]], tmp_path / "s", 10)
    change(tmp_path / "s")
    with pytest.raises(FormatError, match=message):
        S.open_shards(tmp_path / "s")


def test_verify_finds_changed_content(tmp_path):
    S.write_shards([[1, 2], [3]], tmp_path / "s", 10)
    (tmp_path / "s" / "tokens-00000.bin").write_bytes(np.array([1, 2, 11], "<u2").tobytes())
    S.open_shards(tmp_path / "s")
    with pytest.raises(FormatError, match="differs from its sha256"):
        S.open_shards(tmp_path / "s", verify=True)


def test_not_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index.json"):
        S.open_shards(tmp_path)


def test_full_disk_keeps_the_old_shards(tmp_path):
    S.write_shards([[7]], tmp_path / "s", 100)
    code = """
import errno, resource, sys, numpy as np
from pyllm.data import shards
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    shards.write_shards([np.zeros(20_000, int)] * 10, sys.argv[1], 100)
except OSError as error:
    assert error.errno == errno.EFBIG and "bytes needed" in str(error) and "tokens-00000.bin" in error.filename, error
    print("refused")
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "s"], cwd=ROOT, capture_output=True, check=True).stdout == b"refused\n"
    assert S.open_shards(tmp_path / "s")[:].tolist() == [7] and [p.name for p in tmp_path.iterdir()] == ["s"]


def test_corpus_larger_than_the_memory_it_takes(tmp_path):
    code = """
import resource, sys, numpy as np
from pyllm.data import loader, shards
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
one = np.arange(1 << 16)
before = peak()
s = shards.write_shards((one for _ in range(1000)), sys.argv[1], 65536, shard_tokens=1 << 22)
written = peak()
batches = loader.Loader(s, 4, 128, seed=0)
for _ in range(50): next(batches)
print(written - before, peak() - before)
"""
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    written, used = map(int, out.split())
    assert written < 16 and used < 64  # MiB; the corpus has 131 MB, mapped pages count


# ---- tokenising a corpus

class Letters:
    """Ids are the bytes; 256 ends a document."""

    vocab_size, eos_id = 257, 256

    def encode_array(self, text):
        return np.frombuffer(text.encode(), np.uint8)


class NoEnd:
    vocab_size, eos_id = 256, None

    def encode(self, text):
        return list(text.encode())


def test_tokenize(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "ab"}\n{"text": "é"}\n')
    (tmp_path / "valid.txt").write_text("v")
    train = S.tokenize(tmp_path, tmp_path / "shards", Letters(), "train", tokenizer_hash="h")
    assert train[:].tolist() == [97, 98, 256, 0xC3, 0xA9, 256]
    assert (train.document_count, train.text_bytes, train.eos_id, train.tokenizer) == (2, 4, 256, "h")
    assert S.tokenize(tmp_path, tmp_path / "v", NoEnd(), "valid")[:].tolist() == [118]


def test_tokenize_in_pieces(tmp_path, monkeypatch):
    from pyllm.data import corpus

    text = "some words and\nlines of words \n" * 40
    (tmp_path / "a.txt").write_text(text)
    whole = S.tokenize(tmp_path / "a.txt", tmp_path / "1", Letters())
    monkeypatch.setattr(corpus, "PIECE", 50)
    pieces = S.tokenize(tmp_path / "a.txt", tmp_path / "2", Letters())
    assert whole.fingerprint == pieces.fingerprint and pieces.document_count == 1 and pieces.text_bytes == len(text)
