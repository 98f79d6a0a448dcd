"""Split patterns over Unicode classes: text -> words, before any merge. Tables only; the scanners are in _bpe.pyx and _bpe_py.py.

A pattern is the table form of one of the field's pre-tokenizer expressions: alternatives of the same few shapes, tried in order:
  1. an English contraction 's 't 're 've 'm 'll 'd
  2. rules: an optional character of the set `prefix`, then 1 to `most` of the set `body`, then any number of the set `tail`
  3. white space: with `newlines`, up to the last line break of the run; otherwise the run without its last character when something
     follows (that character then starts the next word), all of it at the end of the text or before the set `edge`
A new pattern is a new entry of PATTERNS, keyed by its expression as tokenizer.json spells it.

Classes follow Unicode 16.0, as the engines behind `tokenizers` do: what `unicodedata` says, plus LATER, the letters and numbers that
Unicode 15.0 to 16.0 added, for a Python whose `unicodedata` is older. No code point that was already assigned changed its class
between 14.0 and 16.0. Letters and numbers of Unicode 17.0 and later get the class of the running Python.
"""
from dataclasses import dataclass
from functools import cache

import numpy as np

OTHER, SPACE, NEWLINE, WHITE, LETTER, NUMBER = range(6)  # WHITE: white space that is neither U+0020 nor CR or LF
UNLIMITED = 2**31 - 1

# (first, last) code points; White_Space of Unicode, which is what \s means in these engines: U+001C..U+001F are not in it
BLANKS = ((0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
          (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000))
LATER = {
    LETTER: ((0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D4A, 0x10D65), (0x10D6F, 0x10D85),
             (0x10EC2, 0x10EC4), (0x1123F, 0x11240), (0x11380, 0x11389), (0x1138B, 0x1138B), (0x1138E, 0x1138E), (0x11390, 0x113B5),
             (0x113B7, 0x113B7), (0x113D1, 0x113D1), (0x113D3, 0x113D3), (0x11BC0, 0x11BE0), (0x11F02, 0x11F02), (0x11F04, 0x11F10),
             (0x11F12, 0x11F33), (0x1342F, 0x1342F), (0x13441, 0x13446), (0x13460, 0x143FA), (0x16100, 0x1611D), (0x16D40, 0x16D6C),
             (0x18CFF, 0x18CFF), (0x1B132, 0x1B132), (0x1B155, 0x1B155), (0x1DF25, 0x1DF2A), (0x1E030, 0x1E06D), (0x1E4D0, 0x1E4EB),
             (0x1E5D0, 0x1E5ED), (0x1E5F0, 0x1E5F0), (0x2B739, 0x2B739), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF)),
    NUMBER: ((0x10D40, 0x10D49), (0x116D0, 0x116E3), (0x11BF0, 0x11BF9), (0x11F50, 0x11F59), (0x16130, 0x16139), (0x16D70, 0x16D79),
             (0x1CCF0, 0x1CCF9), (0x1D2C0, 0x1D2D3), (0x1E4F0, 0x1E4F9), (0x1E5F1, 0x1E5FA)),
}


def mask(*classes):
    """(C,) class numbers -> bit set."""
    return sum(1 << c for c in classes)


@dataclass(frozen=True)
class Pattern:
    """rules: tuple of (prefix, body, most, tail), sets as bit masks of classes; contractions: 0 none, 1 lower case, 2 any case."""

    rules: tuple
    contractions: int = 0
    newlines: bool = False
    edge: int = 0


_SP, _L, _N, _LINE = mask(SPACE), mask(LETTER), mask(NUMBER), mask(NEWLINE)
_O = mask(OTHER)  # [^\s\p{L}\p{N}]
_BEFORE_WORD = mask(OTHER, SPACE, WHITE)  # [^\r\n\p{L}\p{N}]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
# the pre-tokenizers Digits, then ByteLevel (SmolLM): every digit alone, and GPT2 on what lies between, which ends at a digit
DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
PATTERNS = {
    GPT2: Pattern(((_SP, _L, UNLIMITED, 0), (_SP, _N, UNLIMITED, 0), (_SP, _O, UNLIMITED, 0)), contractions=1),
    LLAMA3: Pattern(((_BEFORE_WORD, _L, UNLIMITED, 0), (0, _N, 3, 0), (_SP, _O, UNLIMITED, _LINE)), contractions=2, newlines=True),
    QWEN2: Pattern(((_BEFORE_WORD, _L, UNLIMITED, 0), (0, _N, 1, 0), (_SP, _O, UNLIMITED, _LINE)), contractions=2, newlines=True),
    DIGITS: Pattern(((_SP, _L, UNLIMITED, 0), (0, _N, 1, 0), (_SP, _O, UNLIMITED, 0)), contractions=1, edge=_N),
}


@cache
def class_table():
    """-> (0x110000,) uint8: the class of each code point. Built once, in about 30 ms."""
    import unicodedata

    table = np.zeros(0x110000, np.uint8)
    top = 0x40000  # above it are only marks, tags and private use: OTHER
    major = np.frombuffer("".join(map(unicodedata.category, map(chr, range(top)))).encode(), np.uint8)[::2]
    table[:top][major == ord("L")] = LETTER
    table[:top][major == ord("N")] = NUMBER
    for kind, ranges in LATER.items():
        for first, last in ranges:
            table[first:last + 1] = kind
    for first, last in BLANKS:
        table[first:last + 1] = WHITE
    table[0x20] = SPACE
    table[[0x0A, 0x0D]] = NEWLINE
    table.flags.writeable = False
    return table
