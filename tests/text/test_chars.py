"""Characters as tokens. pytest tests/text/test_chars.py"""
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.errors import FormatError
from pyllm.text import CharTokenizer, read_tokenizer

SHAKESPEARE = Path(__file__).parents[2] / "../shared/data/tinyshakespeare/input.txt"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).filter(any))
def test_round_trip(texts):
    tokenizer = CharTokenizer.train(texts)
    text = "".join(texts)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == text == "".join(map(stream.push, ids)) + stream.finish()
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == sorted(set(text))


def test_special_tokens_and_file(tmp_path):
    tokenizer = CharTokenizer.train(["ba\n", "é🙂"], special_tokens=["<|endoftext|>"])
    assert tokenizer.encode("ab<|endoftext|>é") == [2, 3, 0, 4] and tokenizer.eos_id == 0 and tokenizer.pad_id is None
    tokenizer.save(tmp_path)
    again = read_tokenizer(tmp_path)
    assert isinstance(again, CharTokenizer) and again.vocab == tokenizer.vocab and again.eos_id == 0
    assert again.encode_array("🙂a\n").dtype == np.uint32 and again.encode("🙂a\n") == tokenizer.encode("🙂a\n")
    assert again.token_bytes(again.id("é")) == "é".encode()


def test_unknown_characters_are_named_with_their_position():
    tokenizer = CharTokenizer.train(["abc"], special_tokens=["<e>"])
    for text, where in [("abX", r"'X' \(U\+0058\) at position 2"), ("ab<e>c\U0001f642", r"U\+1F642\) at position 6"),
                        ("\ud800", r"U\+D800\) at position 0"), ("a<f>", r"'<' \(U\+003C\) at position 1")]:
        with pytest.raises(ValueError, match=where):
            tokenizer.encode(text)


@pytest.mark.parametrize("call, error, words", [
    (lambda: CharTokenizer.train([]), ValueError, "no text"),
    (lambda: CharTokenizer.train([""]), ValueError, "no text"),
    (lambda: CharTokenizer.train("abc"), TypeError, r"\[text\]"),
    (lambda: CharTokenizer.train([b"abc"]), TypeError, "bytes"),
    (lambda: CharTokenizer.train(["a"], special_tokens="<s>"), TypeError, "special_tokens"),
    (lambda: CharTokenizer.train(["\ud800"]), ValueError, "surrogates"),
    (lambda: CharTokenizer({"ab": 0}), FormatError, "not one character"),
    (lambda: CharTokenizer({"a": 1}), FormatError, "without gaps"),
])
def test_clear_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="needs ../shared/data/tinyshakespeare")
def test_tinyshakespeare_has_65():
    text = SHAKESPEARE.read_text()
    tokenizer = CharTokenizer.train([text])
    ids = tokenizer.encode_array(text)
    assert tokenizer.vocab_size == 65 and ids.shape == (1115394,) and tokenizer.decode(ids) == text
