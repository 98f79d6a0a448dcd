"""Expressions in tokenizer.json: plain strings and the simple ones by `re`, others by the package `regex` where it is installed."""
import json
import re

from ..errors import FormatError

SIMPLE = re.compile(r"(?:[^\\\[\](){}.*+?^$|]|\\[nrt]| ?\{\d,?\d?\}$)+")  # characters that mean themselves; at most one repeat, at the end


def short(value):
    """A JSON value as an error shows it."""
    large = isinstance(value, (dict, list)) and len(value) >= 10
    return f"a {type(value).__name__} of {len(value)}" if large else json.dumps(value)[:120]


def any_of(texts, depth=12):
    """-> an expression for the longest of some texts, none empty, that stands at a place. Beginnings are shared, down to `depth`
    characters: side by side, thousands of texts would each be tried at every place."""
    if not depth:
        return "(?:" + "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) + ")"
    behind = {}
    for text in texts:
        behind.setdefault(text[0], []).append(text[1:])
    parts = []
    for first, rests in behind.items():
        longer = [rest for rest in rests if rest]
        parts.append(re.escape(first) + (any_of(longer, depth - 1) + "?" * (len(longer) < len(rests)) if longer else ""))
    return "(?:" + "|".join(parts) + ")"


class Limited:
    """An expression of the package `regex` that gives up, with a FormatError, after a second and one more for every 100,000 characters:
    some expressions take years on some texts."""

    def __init__(self, find):
        self.find = find

    def finditer(self, text):
        try:
            yield from self.find.finditer(text, timeout=1 + len(text) / 100_000)
        except TimeoutError:
            raise self._slow(text) from None

    def sub(self, new, text):
        try:
            return self.find.sub(new, text, timeout=1 + len(text) / 100_000)
        except TimeoutError:
            raise self._slow(text) from None

    def _slow(self, text):
        return FormatError(f"the expression {self.find.pattern!r:.200} takes too long on a text of {len(text)} characters")


def compile_expression(pattern, where):
    """pattern: {"String": s} or {"Regex": r} -> a compiled expression. FormatError where nothing here can run it."""
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str) and pattern["String"]:
        return re.compile(re.escape(pattern["String"]))
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(expression, str) or not expression:
        raise FormatError(f'{where} is {short(pattern)}, expected {{"String": ...}} or {{"Regex": ...}}, not empty')
    try:
        if SIMPLE.fullmatch(expression):
            return re.compile(expression)
        import regex

        return Limited(regex.compile(expression, regex.V1))
    except ImportError:
        raise FormatError(f"{where}: the expression {expression!r:.200} needs the package `regex`: pip install regex") from None
    except Exception as error:  # whatever the engine objects to
        raise FormatError(f"{where}: {expression!r:.200} is no expression: {str(error)[:100]}") from None
