"""Byte-level BPE: frozen answers, round trips, training, bad input; compiled and plain loops alike. pytest tests/text/test_bpe.py"""
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import ConfigError, FormatError
from pyllm.text import AddedToken, ByteLevelBPE, _bpe_py, bpe, read_tokenizer, split

try:
    from pyllm.text import _bpe
except ImportError:
    _bpe = None
LOOPS = [_bpe_py] + [_bpe] * (_bpe is not None)
VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
DATA = Path(__file__).parents[2] / "../shared/data"
EOS = "<|endoftext|>"


@pytest.fixture(params=LOOPS, ids=lambda m: m.__name__)
def loops(request, monkeypatch):
    monkeypatch.setattr(bpe, "loops", request.param)
    return request.param


def small(**options):
    model = VECTORS["tokenizer"]["model"]
    return ByteLevelBPE(model["vocab"], [tuple(m) for m in model["merges"]], [AddedToken(0, EOS)], **options)


TOKENIZER = small()


def test_frozen_ids(loops):
    tokenizer = small()
    assert len(VECTORS["cases"]) > 20
    for text, ids in VECTORS["cases"]:
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text


def test_training_gives_the_frozen_tokenizer(loops):
    trained = ByteLevelBPE.train(iter(VECTORS["train"]), VECTORS["vocab_size"])
    assert trained.vocab == VECTORS["tokenizer"]["model"]["vocab"]
    assert [list(m) for m in trained.merges] == VECTORS["tokenizer"]["model"]["merges"]
    assert (trained.vocab_size, trained.eos_id, trained.bos_id, trained.pad_id) == (340, 0, None, None)


@pytest.mark.skipif(not (DATA / "tok-gpt2").is_dir(), reason="needs ../shared/data/tok-gpt2")
def test_published_answers_of_gpt2():
    tokenizer = read_tokenizer(DATA / "tok-gpt2/tokenizer.json")
    assert tokenizer.encode("hello world") == [31373, 995]
    assert tokenizer.encode("hello " + EOS) == [31373, 220, 50256]
    assert tokenizer.encode(EOS, special=False) == [27, 91, 437, 1659, 5239, 91, 29]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert (tokenizer.token(995), tokenizer.token_bytes(995)) == ("\u0120world", b" world")
    texts = (DATA / "tok-llamacpp/ggml-vocab-gpt-2.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    answers = (DATA / "tok-llamacpp/ggml-vocab-gpt-2.gguf.out").read_text().splitlines()
    for text, answer in zip(texts, answers):
        assert tokenizer.encode(text) == list(map(int, answer.split())), text


@given(st.binary(max_size=200))
def test_any_bytes_come_back(data):
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=100))
def test_any_text_comes_back_whole_and_streamed(text):
    ids = TOKENIZER.encode(text)
    stream = TOKENIZER.stream()
    assert TOKENIZER.decode(ids) == text == "".join(map(stream.push, ids)) + stream.finish()
    assert TOKENIZER.encode_array(text).tolist() == ids and TOKENIZER.encode_batch([text, ""]) == [ids, []]
    assert b"".join(map(TOKENIZER.token_bytes, ids)) == text.encode()


@given(st.lists(st.integers(0, 339), max_size=40))
def test_any_ids_stream_as_they_decode(ids):
    stream = TOKENIZER.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == TOKENIZER.decode(ids)


@pytest.mark.skipif(_bpe is None, reason="not compiled")
@given(st.text(st.sampled_from("aabblower river \n"), max_size=200), st.sampled_from([split.GPT2, None]))
def test_compiled_merges_equal_the_plain_ones(text, pattern):
    encoded = []
    for module in LOOPS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bpe, "loops", module)
            encoded.append(small(pattern=pattern).encode(text))
    assert encoded[0] == encoded[1]


@pytest.mark.skipif(_bpe is None, reason="not compiled")
@given(st.lists(st.text(st.sampled_from("abc é\n"), max_size=30), min_size=1, max_size=8).filter(any), st.integers(1, 3))
def test_compiled_training_equals_the_plain_one(texts, frequency):
    found = []
    for module in LOOPS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bpe, "loops", module)
            trained = ByteLevelBPE.train(texts, 300, min_frequency=frequency)
        found.append((trained.vocab, trained.merges))
    assert found[0] == found[1]


def test_lone_surrogates_are_three_bytes(loops):
    tokenizer = small()
    ids = tokenizer.encode("a\ud800b")
    assert tokenizer.decode_bytes(ids) == b"a\xed\xa0\x80b"
    assert tokenizer.decode(ids) == "a\ufffd\ufffd\ufffdb"


def test_cache_forgets_and_stays_right(loops, monkeypatch):
    monkeypatch.setattr(_bpe_py.Encoder, "CACHE", 10)
    tokenizer = small()
    text = " ".join(map(str, range(70_000 if loops is _bpe else 50)))  # the compiled cache holds 65,536 words
    assert tokenizer.encode(text) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.skipif(_bpe is None, reason="the plain loops are not meant for speed")
@pytest.mark.parametrize("text", ["^" * 2_000_000, "a" * 2_000_000, " " * 2_000_000, "\n" * 2_000_000, "ab" * 1_000_000,
                                  "\u0301" * 1_000_000, "言" * 600_000, "' " * 1_000_000, EOS * 100_000], ids=lambda t: ascii(t[:4]))
def test_hostile_text_is_encoded_in_linear_time(text):
    start = time.process_time()
    ids = TOKENIZER.encode_array(text)
    seconds = time.process_time() - start
    assert TOKENIZER.decode_bytes(ids) == text.encode()
    assert seconds < 5  # 2 MB; anything quadratic takes hours


def test_prefix_space_added_tokens_and_flags(loops):
    assert small(add_prefix_space=True).encode("low") == small().encode(" low") == small(add_prefix_space=True).encode(" low")
    assert small(add_prefix_space=True).encode("") == []
    model = VECTORS["tokenizer"]["model"]
    added = [AddedToken(0, EOS), AddedToken(340, "<m>", lstrip=True), AddedToken(341, "<r>", rstrip=True, normalized=True),
             AddedToken(342, "word", single_word=True, special=False), AddedToken(343, "<m><m>", special=False)]
    tokenizer = ByteLevelBPE(model["vocab"], model["merges"], added)
    plain = small().encode
    assert tokenizer.encode("a \t<m> b") == [*plain("a"), 340, *plain(" b")]
    assert tokenizer.encode("a<r>\u3000\n b<m>") == [*plain("a"), 341, *plain("b"), 340]
    assert tokenizer.encode("word words sword word.") == [342, *plain(" words sword "), 342, *plain(".")]
    assert tokenizer.encode("<m><m><m>") == [343, 340]
    assert tokenizer.encode("<m> word", special=False) == [*plain("<m> "), 342]
    assert tokenizer.decode([343, 340]) == "<m><m><m>"
    assert tokenizer.vocab_size == 344


def test_ignore_merges_takes_a_known_word_whole(loops):
    vocab = {c: i for i, c in enumerate(bpe.ALPHABET)} | {"abc": 256}
    assert ByteLevelBPE(vocab, [], ignore_merges=True).encode("abc abc") == [256, vocab["\u0120"], *map(vocab.get, "abc")]
    assert ByteLevelBPE(vocab, []).encode("abc") == [vocab[c] for c in "abc"]


def test_missing_bytes_are_left_out_with_a_warning(loops):
    tokenizer = ByteLevelBPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
    with pytest.warns(UserWarning, match="byte 0x78 .254 of 256"):
        assert tokenizer.encode("axb") == [2]
    assert tokenizer.encode("ab") == [2]


def test_rare_words_are_forgotten_when_memory_is_short(loops):
    texts = ["the river " * 50] + [f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)} " for i in range(3000)]
    with pytest.warns(UserWarning, match="max_memory") as caught:
        trained = ByteLevelBPE.train(texts, 300, max_memory=400_000)
    assert len(caught) == 1
    assert len(trained.encode(" river")) == 1


def test_words_are_counted_and_learned_beyond_32_bits(loops):
    scanner = split.PATTERNS[split.GPT2].scanner(loops)
    counter = loops.WordCounter(scanner, 1 << 20)
    counter.add(b"ab abc ab")
    text, lengths, counts = counter.words()
    assert (text, lengths.tolist(), counts.tolist()) == (b"ab abc ab", [2, 4, 3], [1, 1, 1])
    tokens = sorted(bpe.ALPHABET)
    symbols = np.array(list(map(tokens.index, "abcd")), np.int32)
    trainer = loops.Trainer(symbols, np.array([2, 2]), np.array([2**33, 2**33 + 1]), tokens, 2**32, "")
    assert [tokens[new] for *_, new in trainer.step(300, 10)] == ["cd", "ab"]


@pytest.mark.parametrize("call, error, words", [
    (lambda: ByteLevelBPE.train("one text", 300), TypeError, r"train\(\[text\]"),
    (lambda: ByteLevelBPE.train([b"x"], 300), TypeError, "bytes"),
    (lambda: ByteLevelBPE.train([], 300), ValueError, "no text"),
    (lambda: ByteLevelBPE.train(["", ""], 300), ValueError, "no text"),
    (lambda: ByteLevelBPE.train(["x"], 256), ConfigError, "at least 257"),
    (lambda: ByteLevelBPE.train(["x"], 300, special_tokens=[""]), ConfigError, "empty"),
    (lambda: ByteLevelBPE.train(["x"], 300, special_tokens="<s>"), TypeError, "special_tokens"),
    (lambda: TOKENIZER.encode(b"x"), TypeError, "encode_bytes"),
    (lambda: TOKENIZER.encode(None), TypeError, "NoneType"),
    (lambda: TOKENIZER.encode_batch("x"), TypeError, r"\[text\]"),
    (lambda: TOKENIZER.encode_bytes("x"), TypeError, "str"),
    (lambda: TOKENIZER.decode([340]), ValueError, "340 is outside 0 .. 339"),
    (lambda: TOKENIZER.decode([0, -1]), ValueError, "-1 is outside"),
    (lambda: TOKENIZER.decode([0.5]), TypeError, "float64"),
    (lambda: TOKENIZER.decode([[1]]), TypeError, r"\(1, 1\)"),
    (lambda: TOKENIZER.id("<|endoftex|>"), ValueError, r"Did you mean '<\|endoftext\|>'"),
    (lambda: small(pattern="x+"), ConfigError, "no split pattern"),
    (lambda: ByteLevelBPE({"a": 0, "b": 1}, [("a", "b")]), FormatError, "'ab'"),
    (lambda: ByteLevelBPE({"a": 0, "b": 2}, []), FormatError, "without gaps"),
])
def test_clear_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_ids_tokens_and_decoding_of_arrays():
    assert TOKENIZER.id(EOS) == TOKENIZER.eos_id == 0 and TOKENIZER.token(0) == EOS and TOKENIZER.token_bytes(0) == EOS.encode()
    ids = TOKENIZER.encode_array("lower" + EOS)
    assert ids.dtype == np.uint32 and TOKENIZER.decode(ids) == "lower" + EOS and TOKENIZER.decode([]) == ""
    assert small(roles={"eos": None, "pad": EOS}).eos_id is None and small(roles={"pad": EOS}).pad_id == 0
