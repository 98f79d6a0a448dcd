"""Expressions in tokenizer.json: plain strings and the simple ones by `re`, others by the package `regex` where it is installed."""
import json
import re

from ..errors import FormatError

SIMPLE = re.compile(r"(?:[^\\\[\](){}.*+?^$|]|\\[nrt]| ?\{\d,?\d?\}$)+")  # characters that mean themselves; at most one repeat, at the end


def short(value):
    """A JSON value as an error shows it."""
    large = isinstance(value, (dict, list)) and len(value) >= 10
    return f"a {type(value).__name__} of {len(value)}" if large else json.dumps(value)[:120]


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

        return regex.compile(expression, regex.V1)
    except ImportError:
        raise FormatError(f"{where}: the expression {expression!r:.200} needs the package `regex`: pip install regex") from None
    except Exception as error:  # whatever the engine objects to
        raise FormatError(f"{where}: {expression!r:.200} is no expression: {str(error)[:100]}") from None
