"""WordPiece, SentencePiece BPE and Unigram: frozen answers, offsets, training, files, hostile text; compiled and plain loops alike.

pytest tests/text/test_kinds.py
"""
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import ConfigError, FormatError
from pyllm.text import SentencePieceBPE, Unigram, WordPiece, _bpe_py, _pieces_py, bpe, from_gguf, read_tokenizer, unigram, wordpiece
from pyllm.text.pattern import any_of
from pyllm.text.spiece import BPE, Pieces, as_json, piece_merges
from pyllm.text.template import around
from pyllm.text.tokenizer_json import build

from .make_kinds import FILE, trained
from .make_vectors import TRAIN

KINDS = json.loads(FILE.read_text())
DATA = Path(__file__).parents[2] / "../shared/data"
try:
    from pyllm.text import _pieces
except ImportError:
    _pieces = None
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("the river 1é言\u2581\n\u0301 ")), max_size=60)
TOKENIZERS = {kind: build(KINDS[kind]["tokenizer"], {}, {}) for kind in KINDS}


@pytest.fixture
def plain(monkeypatch):
    """The loops in plain Python."""
    monkeypatch.setattr(bpe, "loops", _bpe_py)
    monkeypatch.setattr(unigram, "loops", _pieces_py)
    monkeypatch.setattr(wordpiece, "loops", _pieces_py)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loops", ["compiled", "plain"])
def test_frozen_ids_and_offsets(kind, loops, request):
    if loops == "plain":
        request.getfixturevalue("plain")
    tokenizer = build(KINDS[kind]["tokenizer"], {}, {})
    assert len(KINDS[kind]["cases"]) > 20
    for text, ids, offsets in KINDS[kind]["cases"]:
        found, spans = tokenizer.encode_offsets(text)
        assert found == ids == tokenizer.encode(text), text
        assert spans.tolist() == offsets, text


@pytest.mark.parametrize("loops", ["compiled", "plain"])
def test_training_gives_the_frozen_tokenizers(loops, request):
    if loops == "plain":
        request.getfixturevalue("plain")
    for kind, tokenizer in trained().items():
        frozen = KINDS[kind]["tokenizer"]["model"]
        found = json.loads(json.dumps(tokenizer.model()))
        if kind == "Unigram":
            assert [token for token, _ in found["vocab"]] == [token for token, _ in frozen["vocab"]]
            np.testing.assert_allclose([score for _, score in found["vocab"]], [score for _, score in frozen["vocab"]], rtol=1e-9)
        else:
            assert found == frozen


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back(kind, tmp_path):
    first = TOKENIZERS[kind]
    first.save(tmp_path)
    again = read_tokenizer(tmp_path)
    assert type(again) is type(first) and again.model() == first.model() and again.parts == first.parts and again.added == first.added
    assert all(again.encode(text) == ids for text, ids, _ in KINDS[kind]["cases"])
    assert (again.unk_id, again.pad_id, again.bos_id) == (first.unk_id, first.pad_id, first.bos_id)


@given(TEXT)
def test_text_comes_back_and_offsets_cover_it(text):
    for kind in ("SentencePieceBPE", "Unigram"):
        tokenizer = TOKENIZERS[kind]
        ids, spans = tokenizer.encode_offsets(text)
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)
        assert all(0 <= a < b <= len(text) for a, b in spans.tolist())
        covered = {i for a, b in spans.tolist() for i in range(a, b)}
        assert covered == set(range(len(text))) or not set(range(len(text))) - covered - {i for i, c in enumerate(text) if c in " \u2581"}
        if kind == "SentencePieceBPE" and "\u2581" not in text and not any(t.content in text for t in tokenizer.added):
            assert tokenizer.decode(ids) == text


@given(TEXT)
def test_word_piece_offsets_lie_in_order(text):
    ids, spans = TOKENIZERS["WordPiece"].encode_offsets(text, template=False)
    assert len(ids) == len(spans) and all(0 <= a < b <= len(text) for a, b in spans.tolist())
    assert spans[:, 0].tolist() == sorted(spans[:, 0].tolist())


@pytest.mark.skipif(_pieces is None, reason="not compiled")
@given(st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=12, unique=True), st.text("abéx", max_size=12),
       st.booleans(), st.randoms(use_true_random=False))
def test_compiled_loops_equal_the_plain_ones(pieces, word, whole, random):
    ids = np.arange(len(pieces), dtype=np.int32)
    scores = np.array([-random.randint(1, 9) / 2 for _ in pieces])
    data, encoded = word.encode(), [piece.encode() for piece in pieces]
    half = len(pieces) // 2
    found = []
    for module in (_pieces, _pieces_py):
        lattice = module.Lattice(encoded, ids, scores, len(pieces), -20.0)
        expected = np.zeros(len(pieces) + 1)
        total = lattice.expect(data, np.array([len(data)]), np.array([3]), expected) if data else 0
        split = module.WordPieces(encoded[half:], ids[half:], encoded[:half], ids[:half]).split(data)
        found.append((lattice.best(data, whole), split, total, expected))
    assert found[0][:2] == found[1][:2]
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-9)
    np.testing.assert_allclose(found[0][3], found[1][3], rtol=1e-9, atol=1e-12)


def test_pairs_templates_and_the_one_bos():
    tokenizer = TOKENIZERS["WordPiece"]
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    a, b = (tokenizer.encode(text, template=False) for text in ("the river", "ran low"))
    ids, types, spans = tokenizer.encode_pair("the river", "ran low")
    assert ids == [cls, *a, sep, *b, sep] and types == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert spans[0].tolist() == spans[-1].tolist() == [0, 0] and spans[len(a) + 2].tolist()[0] == 0
    assert tokenizer.encode("[CLS] x", special=False)[:1] != [cls] and tokenizer.encode("the river", special=False) == a
    data = dict(KINDS["SentencePieceBPE"]["tokenizer"])
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    with_bos = build({**data, "post_processor": around("<s>", None, tokens)}, {}, {})
    plain = TOKENIZERS["SentencePieceBPE"].encode
    assert with_bos.encode("low") == [with_bos.bos_id, *plain("low")]
    assert with_bos.encode("<s>low") == with_bos.encode_offsets("<s>low")[0] == plain("<s>low") and with_bos.encode("<s>low").count(1) == 1


def test_padded_batches():
    tokenizer = TOKENIZERS["WordPiece"]
    tokens, segments = tokenizer.encode_padded(["the river", "low"])
    rows = tokenizer.encode_batch(["the river", "low"])
    assert [row[mask > 0].tolist() for row, mask in zip(tokens, segments)] == rows
    assert set(tokens[segments == 0].tolist()) == {tokenizer.pad_id}
    tokenizer = build({**KINDS["WordPiece"]["tokenizer"], "padding": {"strategy": {"Fixed": 32}, "direction": "Left"}}, {}, {})
    tokens, segments = tokenizer.encode_padded(["low"])
    assert tokens.shape == (1, 32) and segments[0, -1] == 1 and segments[0, 0] == 0


HOSTILE = ["a" * 1_000_000, "言" * 300_000, "\u0301" * 500_000, "a " * 500_000, " " * 1_000_000, "\u2581" * 300_000, "\U0001f642" * 250_000]


@pytest.mark.skipif(_pieces is None, reason="the plain loops are not meant for speed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: ascii(t[:2]))
def test_hostile_text_is_encoded_in_linear_time(kind, text):
    start = time.process_time()
    ids = TOKENIZERS[kind].encode(text)
    assert time.process_time() - start < 5  # 1 MB; anything quadratic takes hours
    if kind == "WordPiece" and text[0] == "a" and " " not in text:
        assert ids == [TOKENIZERS[kind].cls_id, TOKENIZERS[kind].unk_id, TOKENIZERS[kind].sep_id]


def test_vocabulary_files(tmp_path):
    tokenizer = TOKENIZERS["WordPiece"]
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    again = read_tokenizer(tmp_path)
    assert all(again.encode(text) == ids for text, ids, _ in KINDS["WordPiece"]["cases"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "mask_token": "[MASK]"}))
    assert read_tokenizer(tmp_path).encode("THE", template=False) != again.encode("THE", template=False)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate([*bpe.ALPHABET, "ab"])}))
    with pytest.raises(FormatError, match="merges.txt is missing"):
        read_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 257}))
    assert read_tokenizer(tmp_path).encode("ab<x>") == [256, 257]


def test_gguf_vocabularies_from_a_dict():
    data = KINDS["Unigram"]["tokenizer"]["model"]["vocab"]
    types = [2, 3, 3] + [1] * (len(data) - 3)
    keys = {"model": "t5", "tokens": [token for token, _ in data], "scores": np.array([score for _, score in data], np.float32),
            "token_type": np.array(types, np.int32), "bos_token_id": 1, "eos_token_id": np.uint32(2), "add_eos_token": True}
    tokenizer = from_gguf({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    ids = tokenizer.encode("the river")
    assert ids[-1] == tokenizer.eos_id == 2 and tokenizer.decode(ids[:-1]) == "the river"
    for key, value, words in (("model", "rwkv", "rwkv.*supported"), ("tokens", 3, "tokens is 3"), ("scores", [1.0], "1 entries")):
        with pytest.raises(FormatError, match=words):
            from_gguf({f"tokenizer.ggml.{k}": v for k, v in {**keys, key: value}.items()})


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def message(*fields):
    """(number, int, float or bytes) -> protobuf."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + np.float32(value).tobytes()
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def spiece(kind=2):
    """A SentencePiece model file."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<user>", 0.0, 4)]
    pieces += [(token, -float(i), 1) for i, token in enumerate(["ab", "\u2581ab", "abab", "\u2581", "a", "b"])]
    return message(*((1, message((1, token.encode()), (2, score), (3, kind))) for token, score, kind in pieces),
                   (2, message((3, kind), (35, 0))), (3, message((3, 1), (4, 1))))


def test_sentencepiece_files(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(spiece())
    tokenizer = read_tokenizer(path)
    spelled = [tokenizer.token(i) for i in tokenizer.encode("  abab   ab<user> x")]
    assert spelled == ["\u2581ab", "ab", "\u2581ab", "<user>", "\u2581", "<unk>"]  # the merge of ab comes before that of abab
    path.write_bytes(spiece(1))
    assert [tokenizer.token(i) for i in read_tokenizer(tmp_path).encode("abab")] == ["\u2581ab", "ab"]
    for data in (b"", b"x", spiece(3), spiece()[:40], b"\xff" * 50, message((1, 3))):
        path.write_bytes(data)
        with pytest.raises(FormatError, match="tokenizer.model"):
            read_tokenizer(path)


@given(st.binary(max_size=30), st.integers(0, 200))
def test_any_damage_to_a_sentencepiece_file_is_read_or_refused(data, at):
    from pyllm.text.spiece import as_json, read_pieces

    whole = spiece()
    try:
        data, roles = as_json(read_pieces(whole[:at] + data + whole[at + len(data):]))
        build(data, roles, {}).encode("ab")
    except FormatError:
        pass
    except ValueError as error:
        assert "no unk_id" in str(error)


@pytest.mark.parametrize("call, error, words", [
    (lambda: WordPiece.train(["ab"], 3), ConfigError, "vocab_size is 3"),
    (lambda: Unigram.train(["abc"], 4), ConfigError, "at least 7"),
    (lambda: SentencePieceBPE.train([], 400), ValueError, "no text"),
    (lambda: Unigram.train("abc"), TypeError, r"train\(\[text\]"),
    (lambda: Unigram([("a", 0.0), ("a", -1.0)]), FormatError, "stand twice"),
    (lambda: Unigram([("a", 0.0)], unk_id=None).encode("b"), ValueError, "lacks"),
    (lambda: read_tokenizer("nowhere.model"), FileNotFoundError, "nowhere.model"),
])
def test_clear_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_rare_words_are_forgotten_when_memory_is_short():
    texts = ["the river ran " * 50] + [f"w{i}" for i in range(500)]
    with pytest.warns(UserWarning, match="max_memory") as caught:
        assert len(WordPiece.train(texts, 100, max_memory=100_000).encode("river", template=False)) == 1
    assert len(caught) == 1


def test_training_is_the_same_again():
    for kind in (WordPiece, SentencePieceBPE, Unigram):
        assert kind.train(iter(TRAIN), 400).model() == kind.train(TRAIN, 400).model()


@pytest.mark.parametrize("unit", ["a", "ab", " a", "\u2581a", "\u00e9\u4f60", ""], ids=["a", "ab", "blanks", "marks", "others", "random"])
@pytest.mark.parametrize("kind", ["ByteLevelBPE", "SentencePieceBPE", "Unigram", "WordPiece"])
def test_hostile_text_is_learned_from_in_linear_time(kind, unit):
    """100,000 characters, most of them one word: what compares each with each takes minutes."""
    import random

    from pyllm import text

    sample = unit * (100_000 // len(unit)) if unit else "".join(random.Random(0).choices("abcdefgh", k=100_000))
    began = time.process_time()
    tokenizer = getattr(text, kind).train([sample], 400)
    assert len(tokenizer.encode(sample[:1000])) <= 3000
    assert time.process_time() - began < 8


@given(st.lists(st.text("ab\n.", min_size=1, max_size=20), min_size=1, max_size=20, unique=True), st.text("ab\n.", max_size=60))
def test_the_longest_of_many_tokens_is_found_as_if_each_were_tried(tokens, text):
    each = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    assert [m.span() for m in re.finditer(any_of(tokens), text)] == [m.span() for m in each.finditer(text)]


@given(st.lists(st.text("ab\u2581\u00e9", max_size=6), unique=True, min_size=1), st.data())
def test_merges_of_pieces_are_every_way_to_make_one_of_two(pieces, data):
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces))), np.uint8)
    ids = {piece: i for i, piece in enumerate(pieces) if usable[i] and piece}
    expected = [[ids[piece[:n]], ids[piece[n:]], i] for piece, i in ids.items() for n in range(1, len(piece))
                if piece[:n] in ids and piece[n:] in ids]
    assert piece_merges(pieces, usable == 1).tolist() == expected


def test_a_prefix_stands_behind_special_tokens_too():
    """As transformers (legacy) and llama.cpp have it: </s>World is </s> and \u2581World."""
    pieces = [("<unk>", 0.0, 2), ("</s>", 0.0, 3), ("\u2581", -1.0, 1), *((c, -2.0, 1) for c in "ab")]
    tokenizer = build(*as_json(Pieces(pieces, BPE, remove_extra_whitespaces=False)), {})
    assert "|".join(tokenizer.token(i) for i in tokenizer.encode("a</s>b</s> a")) == "\u2581|a|</s>|\u2581|b|</s>|\u2581|\u2581|a"
