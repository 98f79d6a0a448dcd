"""The split scanners: known splits of each pattern, compiled against plain, Unicode classes. pytest tests/text/test_split.py"""
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.text import _bpe_py, split, unicode

try:
    from pyllm.text import _bpe
except ImportError:
    _bpe = None
LOOPS = [_bpe_py] + [_bpe] * (_bpe is not None)
TEXT = st.text(st.one_of(st.characters(), st.sampled_from("aZ's'tllLLrevd09½ \t\n\r\u0085\u00a0\u3000é言🙂\u0301\u017f'\u1c89")), max_size=60)


def scanner(loops, pattern):
    p = split.PATTERNS[pattern]
    return p.scanner(loops)


@pytest.mark.parametrize("loops", LOOPS)
@pytest.mark.parametrize("pattern, text, words", [
    (split.GPT2, "", []),
    (split.GPT2, "Hello world", ["Hello", " world"]),
    (split.GPT2, "we've  done it.\n\n x", ["we", "'ve", " ", " done", " it", ".", "\n\n", " x"]),
    (split.GPT2, "We'VE 'sup", ["We", "'", "VE", " '", "sup"]),
    (split.GPT2, "'sup", ["'s", "up"]),
    (split.GPT2, "a1b22 333", ["a", "1", "b", "22", " 333"]),
    (split.GPT2, "  x  ", [" ", " x", "  "]),
    (split.GPT2, "a\t\tb\u3000c", ["a", "\t", "\t", "b", "\u3000", "c"]),
    (split.GPT2, "e\u0301!?", ["e", "\u0301!?"]),
    (split.GPT2, "\x1c\x1d", ["\x1c\x1d"]),
    (split.LLAMA3, "We'Re 12345\n\n  x,\n\ny (z", ["We", "'Re", " ", "123", "45", "\n\n", " ", " x", ",\n\n", "y", " (", "z"]),
    (split.LLAMA3, "(abc'\u017f \n\t\n a", ["(abc", "'\u017f", " \n\t\n", " a"]),
    (split.QWEN2, "x12 3", ["x", "1", "2", " ", "3"]),
    (split.O200K, "HelloWorld's iOS12345/x//\n\nA b", ["Hello", "World's", " i", "OS", "123", "45", "/x", "//\n\n", "A", " b"]),
    (split.O200K, "\u0301AB \u8a00A\u8a00b", ["\u0301", "AB", " \u8a00A\u8a00b"]),
    (split.DIGITS, "ab12  3  c", ["ab", "1", "2", "  ", "3", " ", " c"]),
])
def test_known_splits(loops, pattern, text, words):
    assert [w.decode() for w in scanner(loops, pattern).words(text.encode())] == words


@pytest.mark.skipif(_bpe is None, reason="not compiled")
@given(st.one_of(TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")), st.binary(max_size=60)), st.sampled_from(list(split.PATTERNS)))
def test_compiled_scanner_equals_the_plain_one_and_loses_nothing(data, pattern):
    words = scanner(_bpe, pattern).words(data)
    assert words == scanner(_bpe_py, pattern).words(data)
    assert b"".join(words) == data and all(words)


def test_classes_are_those_of_unicode_16():
    table = unicode.class_table()
    assert np.bincount(table, minlength=6)[1:4].tolist() == [1, 2, 22]
    shown = [table[ord(c)] for c in "Aa5 \n\t\u00e9\u00bd\u1c89\U00016130!\x1f\u8a00\u0301/"]
    assert shown == [6, 7, 5, 1, 2, 3, 7, 5, 6, 5, 0, 0, 4, 8, 9]
    if tuple(map(int, unicodedata.unidata_version.split("."))) <= (16, 0, 0):
        counts = np.bincount(table)
        assert [counts[4] + counts[6] + counts[7], counts[5]] == [141028, 1911]


def test_later_letters_are_in_order_and_apart():
    for ranges in (unicode.BLANKS, unicode.AFTER_8, *unicode.LATER.values()):
        found = sorted(ranges)
        assert all(first <= last for first, last in found)
        assert all(before[1] < after[0] for before, after in zip(found, found[1:]))


def test_inside_of_a_class_matches_its_characters_alone():
    find = re.compile(f"[{unicode.inside(unicode.punctuation)}]")
    for c in "!_$^\u2019\u3001\u166d":
        assert find.fullmatch(c) and unicode.punctuation()[ord(c)]
    for c in "a \u20ac\u0301\u061d":
        assert not find.fullmatch(c)
    assert "".join(map(unicode.lower, "A\u03a3\u0130\u1c89")) == "a\u03c3i\u0307\u1c8a"
