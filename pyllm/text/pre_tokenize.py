"""Pre-tokenizers of tokenizer.json: normalized text -> words, before the model.

A step is a function (words, srcs, first) -> (words, srcs). words: list of str; srcs: None, or a list of (n,) int64, the place of each
character in the original; first: whether the first word stands at the beginning of the original text.
"""
import re

import numpy as np

from ..errors import FormatError
from . import unicode
from .normalize import flag, in_turn, items, string
from .pattern import compile_expression, short

BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def by_words(find):
    """find: a compiled expression whose matches are the words -> step."""

    def step(words, srcs, first):
        if srcs is None:
            return [part for word in words for part in find.findall(word)], None
        spans = [(word, src, match.span()) for word, src in zip(words, srcs) for match in find.finditer(word)]
        return [word[a:b] for word, _, (a, b) in spans], [src[a:b] for _, src, (a, b) in spans]

    return step


def by_delimiters(find, behavior, invert=False):
    """find: a compiled expression whose matches are the delimiters (`invert`: what lies between them) -> step."""

    def spans(text):
        parts, done = [], 0
        for match in find.finditer(text):
            start, stop = match.span()
            if done < start:
                parts.append((done, start, invert))
            if start < stop:
                parts.append((start, stop, not invert))
            done = stop
        if done < len(text):
            parts.append((done, len(text), invert))
        return _joined(parts, behavior)

    def step(words, srcs, first):
        out, places = [], None if srcs is None else []
        for i, word in enumerate(words):
            for a, b in spans(word):
                out.append(word[a:b])
                if srcs is not None:
                    places.append(srcs[i][a:b])
        return out, places

    return step


def _joined(parts, behavior):
    """[(start, stop, whether it is a delimiter)] -> [(start, stop)] of the words."""
    if behavior == "Removed":
        return [(a, b) for a, b, is_match in parts if not is_match]
    if behavior == "Isolated":
        return [(a, b) for a, b, _ in parts]
    out, before = [], False
    if behavior == "MergedWithNext":
        for a, b, is_match in reversed(parts):
            if is_match and out and not before:
                out[-1] = (a, out[-1][1])
            else:
                out.append((a, b))
            before = is_match
        return out[::-1]
    for i, (a, b, is_match) in enumerate(parts):
        if out and (is_match == before if behavior == "Contiguous" else is_match and not before):
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
        before = is_match
    return out


def by_class(inside, behavior):
    """inside: the inside of a character class, each of whose characters is a delimiter -> step."""
    return by_words(re.compile({
        "Removed": f"[^{inside}]+", "Isolated": f"[{inside}]|[^{inside}]+", "Contiguous": f"[{inside}]+|[^{inside}]+",
        "MergedWithPrevious": f"[^{inside}]*[{inside}]|[^{inside}]+", "MergedWithNext": f"[{inside}]?[^{inside}]+|[{inside}]"}[behavior]))


def metaspace(spec):
    """replacement, prepend_scheme (always, first, never), split; older files: add_prefix_space."""
    mark, scheme = string(spec, "replacement", "\u2581"), spec.get("prepend_scheme")
    if scheme is None:
        scheme = "always" if spec.get("add_prefix_space", True) else "never"
    if len(mark) != 1 or scheme not in ("always", "first", "never"):
        raise FormatError(f"Metaspace is {short(spec)}; expected a replacement of one character and prepend_scheme always, first or never")
    cut = by_class(re.escape(mark), "MergedWithNext") if flag(spec, "split", True) else None

    def step(words, srcs, first):
        words = [word.replace(" ", mark) for word in words]
        srcs = None if srcs is None else list(srcs)
        for i, word in enumerate(words):
            if word and not word.startswith(mark) and (scheme == "always" or scheme == "first" and first and i == 0):
                words[i] = mark + word
                if srcs is not None:
                    srcs[i] = np.concatenate([srcs[i][:1], srcs[i]])
        return cut(words, srcs, first) if cut else (words, srcs)

    return step


def split(spec):
    behavior, invert = spec.get("behavior"), flag(spec, "invert", False)
    if behavior not in BEHAVIORS:
        raise FormatError(f"Split.behavior is {short(behavior)}; supported: {', '.join(BEHAVIORS)}")
    return by_delimiters(compile_expression(spec.get("pattern"), "pre_tokenizer: Split.pattern"), behavior, invert)


def punctuation(spec):
    behavior = spec.get("behavior", "Isolated")
    if behavior not in BEHAVIORS:
        raise FormatError(f"Punctuation.behavior is {short(behavior)}; supported: {', '.join(BEHAVIORS)}")
    return by_class(unicode.inside(unicode.punctuation), behavior)


def bert(spec):
    marks, blanks = unicode.inside(unicode.punctuation), unicode.inside(unicode.blank)
    return by_words(re.compile(f"[^{blanks}{marks}]+|[{marks}]"))


def whitespace(spec):
    word, blanks = unicode.inside(unicode.word), unicode.inside(unicode.blank)
    return by_words(re.compile(f"[{word}]+|[^{word}{blanks}]+"))


def delimiter(spec):
    mark = string(spec, "delimiter")
    if len(mark) != 1:
        raise FormatError(f"CharDelimiterSplit.delimiter is {short(mark)}, expected one character")
    return by_class(re.escape(mark), "Removed")


def fixed_length(spec):
    length = spec.get("length", 5)
    if type(length) is not int or not 0 < length < 1 << 16:
        raise FormatError(f"FixedLength.length is {short(length)}, expected a positive number")
    return by_words(re.compile(f"(?s:.{{1,{length}}})"))


def sequence(spec):
    return in_turn([pre_tokenizer(part) for part in items(spec, "pretokenizers")])


KINDS = {
    "BertPreTokenizer": bert, "Whitespace": whitespace, "Metaspace": metaspace, "Split": split, "Punctuation": punctuation,
    "WhitespaceSplit": lambda _: by_class(unicode.inside(unicode.blank), "Removed"),
    "Digits": lambda spec: by_class(unicode.inside(unicode.number),
                                    "Isolated" if flag(spec, "individual_digits", False) else "Contiguous"),
    "CharDelimiterSplit": delimiter, "FixedLength": fixed_length, "Sequence": sequence,
}


def pre_tokenizer(spec):
    """spec: a pre-tokenizer as tokenizer.json writes it, but not ByteLevel, which belongs to byte-level BPE -> its step."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise FormatError(f"pre_tokenizer is {short(spec)}; supported: {', '.join(KINDS)}, ByteLevel at the end, null")
    return KINDS[kind](spec)
