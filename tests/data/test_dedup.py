"""Duplicates: exact but for case, blanks and punctuation; near ones as an exact count of shingles finds them."""
import numpy as np
import pytest

from pyllm.data.dedup import asked_and_said, deduplicate, exact_duplicates, near_duplicates, normalise


def shingles(text):
    words = normalise(text).split()
    return {tuple(words[i:i + 3]) for i in range(max(len(words) - 2, 1))}


def test_the_same_but_for_case_blanks_and_punctuation():
    assert normalise("  Hello,\tWORLD! ") == normalise("hello world") == "hello world"
    assert normalise("??") == "??" and normalise("Stra\u00dfe \uff11") == "strasse 1"
    assert exact_duplicates(["a b", "c", "A, b.", "c!", "a  b"]) == [(2, 0), (3, 1), (4, 0)]


def test_near_duplicates_are_those_of_an_exact_count():
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    texts = [" ".join(draw.choice(words, 60)) for _ in range(150)]
    for i in range(0, 150, 3):  # a copy with one to six words changed
        copy = texts[i].split()
        for at in draw.integers(0, 60, 1 + i % 6):
            copy[at] = "other"
        texts.append(" ".join(copy))
    expected = {}
    for i in range(len(texts)):
        for j in range(i):
            share = len(shingles(texts[i]) & shingles(texts[j])) / len(shingles(texts[i]) | shingles(texts[j]))
            if share >= 0.8 and share > expected.get(i, (0, 0))[1]:
                expected[i] = j, share
    found = near_duplicates(texts, 0.8)
    assert {i: (j, round(s, 9)) for i, j, s in found} == {i: (j, round(s, 9)) for i, (j, s) in expected.items()} and len(found) > 15
    assert near_duplicates(["a", "A!", "b", ""]) == [(1, 0, 1.0)]
    with pytest.raises(ValueError, match="threshold is 0"):
        near_duplicates(["a"], 0)


def test_what_is_asked_is_told_from_what_is_said():
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert asked_and_said({"messages": talk}, "messages") == ("q", "q\na")
    assert asked_and_said({"prompt": talk[:1], "chosen": talk[1:], "rejected": talk[1:]}, "preference") == ("q", "q\na\na")
    assert asked_and_said({"prompt": "p", "completion": "c"}, "completion") == ("p", "p\nc")
    assert asked_and_said({"text": "t", "label": "1"}, "classification") == ("t", "t")


def test_deduplicate_keeps_the_first():
    data = [{"text": t} for t in ("one two three four five six", "x", "One two three four five six!", "one two three four five seven")]
    assert deduplicate(data, "text") == ([data[0], data[1], data[3]], 1)
    assert deduplicate(data, "text", near=0.6) == (data[:2], 2)
