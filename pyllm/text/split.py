"""Split patterns over Unicode classes: text -> words, before any merge. Tables only; the scanners are in _bpe.pyx and _bpe_py.py.

A pattern is the table form of one of the field's pre-tokenizer expressions: alternatives of the same few shapes, tried in order:
  1. an English contraction 's 't 're 've 'm 'll 'd
  2. rules: an optional character of the set `prefix`, then 1 to `most` of the set `body`, then any number of the set `tail`
  3. white space: with `newlines`, up to the last line break of the run; otherwise the run without its last character when something
     follows (that character then starts the next word), all of it at the end of the text or before the set `edge`
With `cased`, (before, upper, lower), a fourth kind comes first: an optional character of `before`, any number of `upper`, then some of
`lower`; or some of `upper` alone; then perhaps a contraction. The sets overlap in letters without case.
A new pattern is a new entry of PATTERNS, keyed by its expression as tokenizer.json spells it.
"""
from dataclasses import astuple, dataclass

from .unicode import LETTER, LOWER, MARK, NEWLINE, NUMBER, OTHER, SLASH, SPACE, UPPER, WHITE, class_table

UNLIMITED = 2**31 - 1


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
    cased: tuple = (0, 0, 0)

    def scanner(self, loops):
        """loops: _bpe or _bpe_py -> its Scanner of this pattern."""
        return loops.Scanner(class_table(), *astuple(self))


_SP, _N, _LINE, _TAIL = mask(SPACE), mask(NUMBER), mask(NEWLINE), mask(NEWLINE, SLASH)
_L = mask(LETTER, UPPER, LOWER)
_O = mask(OTHER, MARK, SLASH)  # [^\s\p{L}\p{N}]
_BEFORE_WORD = mask(OTHER, MARK, SLASH, SPACE, WHITE)  # [^\r\n\p{L}\p{N}]
_CASED = (_BEFORE_WORD, mask(UPPER, LETTER, MARK), mask(LOWER, LETTER, MARK))

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TAILS = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (rf"{_WORD}*{_TAILS}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|{_WORD}+{_TAILS}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# Mistral Nemo's: not among PATTERNS, so that the package `regex` runs it
TEKKEN = rf"{_WORD}*{_TAILS}+|{_WORD}+{_TAILS}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# the pre-tokenizers Digits, then ByteLevel (SmolLM): every digit alone, and GPT2 on what lies between, which ends at a digit
DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
_LLAMA3 = ((_BEFORE_WORD, _L, UNLIMITED, 0), (0, _N, 3, 0), (_SP, _O, UNLIMITED, _LINE))
PATTERNS = {
    GPT2: Pattern(((_SP, _L, UNLIMITED, 0), (_SP, _N, UNLIMITED, 0), (_SP, _O, UNLIMITED, 0)), contractions=1),
    LLAMA3: Pattern(_LLAMA3, contractions=2, newlines=True),
    QWEN2: Pattern(((_BEFORE_WORD, _L, UNLIMITED, 0), (0, _N, 1, 0), (_SP, _O, UNLIMITED, _LINE)), contractions=2, newlines=True),
    O200K: Pattern(((0, _N, 3, 0), (_SP, _O, UNLIMITED, _TAIL)), contractions=2, newlines=True, cased=_CASED),
    DIGITS: Pattern(((_SP, _L, UNLIMITED, 0), (0, _N, 1, 0), (_SP, _O, UNLIMITED, 0)), contractions=1, edge=_N),
}
