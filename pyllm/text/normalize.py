"""Normalizers of tokenizer.json: text -> text before it is split, and where each character came from.

A step is a function (text, src, first) -> (text, src). src: None, or (n,) int64, the place in the original text of each character; first:
whether the text stands at the beginning of the original. A character that was put in or changed has the place of the one it came from.
"""
import unicodedata

import numpy as np

from ..errors import FormatError
from .charsmap import Charsmap
from .pattern import compile_expression, short
from .unicode import BLANK, CJK, category, lower

NOT_DECOMPOSED = "\u32ff\ua7f2\ua7f3\ua7f4\uab69\U0001f16c" + "".join(map(chr, (*range(0x10781, 0x107BB), *range(0x1FBF0, 0x1FBFA))))
_NMT_GONE = {*range(1, 9), 11, *range(14, 32), 0x7F, 0x8F, 0x9F}
_NMT_SPACE = {9, 10, 12, 13, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD}


class Table(dict):
    """code point -> replacement, made by `change(character)` when first met; at most 65,536 are kept."""

    def __init__(self, change):
        self.change = change

    def __missing__(self, point):
        if len(self) >= 1 << 16:
            self.clear()
        new = self[point] = self.change(chr(point))
        return new


def per_char(change):
    """change: character -> str. -> the step that applies it to every character."""
    table = Table(change)

    def step(text, src, first):
        new = text.translate(table)
        if src is not None and new != text:
            src = np.repeat(src, [len(table[ord(c)]) for c in text])
        return new, src

    return step


def bert(spec):
    """clean_text, handle_chinese_chars, strip_accents (None: as lowercase), lowercase -> one pass over the characters."""
    clean, chinese, low = (flag(spec, key, True) for key in ("clean_text", "handle_chinese_chars", "lowercase"))
    strip = low if spec.get("strip_accents") is None else flag(spec, "strip_accents", low)

    def change(c):
        if clean:
            if c in "\t\n\r" or c == " ":
                c = " "
            elif c in "\0\ufffd" or category(c) in ("Cc", "Cf", "Co"):
                return ""
            elif c in BLANK:
                c = " "
        if chinese and any(first <= ord(c) <= last for first, last in CJK):
            c = f" {c} "
        if strip:
            c = "".join(d for d in unicodedata.normalize("NFD", c) if category(d) != "Mn")
        return "".join(map(lower, c)) if low else c

    return per_char(change)


def composed(form):
    """form: NFC, NFD, NFKC or NFKD -> the step; a composed character has the place of its first part."""
    kept = frozenset(NOT_DECOMPOSED) if "K" in form else frozenset()
    sizes = Table(lambda c: 1 if c in kept else len(unicodedata.normalize("NF" + form.removeprefix("NF").replace("C", "D"), c)))

    def whole(text):
        if kept.isdisjoint(text):
            return unicodedata.normalize(form, text)
        parts, done = [], 0
        for i, c in enumerate(text):
            if c in kept:
                parts += unicodedata.normalize(form, text[done:i]), c
                done = i + 1
        return "".join(parts) + unicodedata.normalize(form, text[done:])

    def step(text, src, first):
        if text.isascii() or not unicodedata.is_normalized(form, text):
            new = text if text.isascii() else whole(text)
            if src is not None and new != text:
                apart = np.repeat(src, [sizes[ord(c)] for c in text])
                starts = np.cumsum([0, *(sizes[ord(c)] for c in new)])[:-1]
                src = apart[np.minimum(starts, len(apart) - 1)]
            return new, src
        return text, src

    return step


def stripped(spec):
    """With "content" (an addition to the format, which others pass over) only these characters."""
    left, right, blank = flag(spec, "strip_left", True), flag(spec, "strip_right", True), string(spec, "content", BLANK)

    def step(text, src, first):
        start = len(text) - len(text.lstrip(blank)) if left else 0
        stop = len(text.rstrip(blank)) if right else len(text)
        stop = max(start, stop)
        return text[start:stop], None if src is None else src[start:stop]

    return step


def replaced(spec):
    """The new content has the place of the last character that it replaces."""
    pattern, content = spec.get("pattern"), string(spec, "content")
    find, literal = compile_expression(pattern, "normalizer.pattern"), pattern.get("String")

    def step(text, src, first):
        if src is None or literal and len(literal) == len(content) == 1:
            return text.replace(literal, content) if literal else find.sub(lambda _: content, text), src
        parts, places, done = [], [], 0
        for match in find.finditer(text):
            start, stop = match.span()
            parts += text[done:start], content
            places += src[done:start], np.full(len(content), src[max(stop - 1, 0)] if len(src) else 0)
            done = stop
        if not parts:
            return text, src
        return "".join(parts) + text[done:], np.concatenate([*places, src[done:]])

    return step


def prepended(spec):
    content = string(spec, "prepend")

    def step(text, src, first):
        if not text:
            return text, src
        return content + text, None if src is None else np.concatenate([np.full(len(content), src[0]), src])

    return step


def in_turn(steps):
    """-> a step that does all of them, one after the other."""
    def step(x, src, first):
        for each in steps:
            x, src = each(x, src, first)
        return x, src

    return step


def sequence(spec):
    return in_turn([normalizer(part) for part in items(spec, "normalizers")])


KINDS = {
    "BertNormalizer": bert, "Strip": stripped, "Replace": replaced, "Prepend": prepended, "Sequence": sequence,
    "NFC": lambda _: composed("NFC"), "NFD": lambda _: composed("NFD"),
    "NFKC": lambda _: composed("NFKC"), "NFKD": lambda _: composed("NFKD"),
    "Lowercase": lambda _: per_char(lower),
    "StripAccents": lambda _: per_char(lambda c: "" if category(c)[0] == "M" else c),
    "Nmt": lambda _: per_char(lambda c: "" if ord(c) in _NMT_GONE else " " if ord(c) in _NMT_SPACE else c),
    "Precompiled": lambda spec: Charsmap.from_base64(string(spec, "precompiled_charsmap")).step(longest=spec.get("longest") is True),
}


def normalizer(spec):
    """spec: a normalizer as tokenizer.json writes it -> its step. FormatError for one that is unknown or broken."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise FormatError(f"normalizer is {short(spec)}; supported: {', '.join(KINDS)}, null")
    return KINDS[kind](spec)


def flag(spec, key, default):
    value = spec.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{spec['type']}.{key} is {short(value)}, expected true or false")
    return value


def string(spec, key, default=None):
    value = spec.get(key, default)
    if not isinstance(value, str):
        raise FormatError(f"{spec['type']}.{key} is {short(value)}, expected a string")
    return value


def items(spec, key):
    value = spec.get(key)
    if not isinstance(value, list):
        raise FormatError(f"{spec['type']}.{key} is {short(value)}, expected a list")
    if len(value) > 64:
        raise FormatError(f"{spec['type']}.{key} holds {len(value)} steps, expected at most 64")
    return value
