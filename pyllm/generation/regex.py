"""Regular expressions as finite automata over UTF-8 bytes: parse, compile. The language of Python's `re` where it is regular.

Supported: literals, ., classes with ranges and negation, \\d \\w \\s and their negations (ASCII), escapes (\\n \\t \\r \\f \\v \\xHH
\\uHHHH and of punctuation), groups, |, * + ? {m} {m,} {m,n} (lazy ones mean the same here), ^ at the beginning and $ at the end, which
change nothing: a whole text is matched. Not: look-around, back references, flags.

A node is ("set", ranges of code points), ("cat", nodes), ("alt", nodes) or ("repeat", node, least, most or None).
"""
import re
from dataclasses import dataclass

import numpy as np

from pyllm.errors import ConfigError

LAST = 0x10FFFF
EMPTY = ("cat", ())
CLASSES = {"d": [(48, 57)], "w": [(48, 57), (65, 90), (95, 95), (97, 122)], "s": [(9, 13), (32, 32)]}
ESCAPES = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}
STATES = 50_000  # of an automaton at most: tens of megabytes


def literal(text):
    """-> the node of exactly this text."""
    return ("cat", tuple(("set", ((ord(c), ord(c)),)) for c in text))


def cat(*nodes):
    return ("cat", nodes)


def alt(*nodes):
    return ("alt", nodes)


def repeat(node, least, most=None):
    """-> the node at least `least` times and at most `most`, None for any number."""
    return ("repeat", node, least, most)


def chars(*ranges):
    """ranges: pairs of first and last code point -> the node of one of them."""
    return ("set", tuple(merged(ranges)))


def merged(ranges):
    """-> the same code points as sorted ranges that do not touch."""
    out = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = out[-1][0], max(out[-1][1], high)
        else:
            out.append((low, high))
    return out


def without(ranges, other):
    """-> the code points of `ranges` that are not in `other`."""
    gaps, begin = [], 0
    for low, high in merged(other):
        gaps, begin = [*gaps, (begin, low - 1)], high + 1
    gaps.append((begin, LAST))
    return [(max(a, c), min(b, d)) for a, b in merged(ranges) for c, d in gaps if max(a, c) <= min(b, d)]


ANY = chars(*without([(0, LAST)], [(10, 10)]))


def parse(pattern, search=False):
    """pattern: an expression -> its node. search: it may stand anywhere in the text, where ^ and $ do not say otherwise.

    ConfigError names the place of what is wrong or not regular.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"constraint: a regular expression is a {type(pattern).__name__}; expected a str")
    parser = _Parser(pattern)
    node = parser.alternatives()
    if parser.at < len(pattern):
        parser.wrong("a ) without its (")
    anything = repeat(chars((0, LAST)), 0)
    return cat(*([anything] if search and not parser.begun else []), node, *([anything] if search and not parser.ended else []))


class _Parser:
    def __init__(self, pattern):
        self.text, self.at, self.depth, self.begun, self.ended = pattern, 0, 0, False, False

    def wrong(self, what):
        raise ConfigError(f"constraint: {what} at {self.at} of the expression {self.text!r:.200}")

    def next(self, n=1):
        if self.at + n > len(self.text):
            self.wrong("the end, where something is missing,")
        self.at += n
        return self.text[self.at - n : self.at]

    def alternatives(self):
        branches = [self.sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            branches.append(self.sequence())
        return branches[0] if len(branches) == 1 else alt(*branches)

    def sequence(self):
        nodes = []
        while (c := self.text[self.at : self.at + 1]) and c not in "|)":
            if c == "^" and self.at == 0 and "|" not in self.text:
                self.at, self.begun = 1, True
            elif c == "$" and self.at == len(self.text) - 1 and "|" not in self.text:
                self.at, self.ended = self.at + 1, True
            else:
                nodes.append(self.repeated(self.one()))
        return cat(*nodes)

    def repeated(self, node):
        while True:
            c = self.text[self.at : self.at + 1]
            found = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self.text, self.at) if c == "{" else None
            if c and c in "*+?":
                self.at += 1
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
            elif found and found[0] != "{}":
                self.at = found.end()
                least = int(found[1] or 0)
                most = int(found[3]) if found[3] else None if found[2] else least
                if most is not None and most < least or max(least, most or 0) > 10_000:
                    self.wrong(f"{found[0]}, which is not least,most up to 10000,")
            else:
                return node
            if self.text[self.at : self.at + 1] == "?":
                self.at += 1
            elif self.text[self.at : self.at + 1] == "+":
                self.wrong("a possessive quantifier, which is not supported,")
            node = repeat(node, least, most)

    def one(self):
        c = self.next()
        if c == "(":
            return self.group()
        if c == "[":
            return self.bracket()
        if c == ".":
            return ANY
        if c == "\\":
            ranges = self.escape()
            return chars(*ranges)
        if c in "*+?":
            self.wrong(f"{c} behind nothing")
        if c in "^$":
            self.wrong(f"{c} inside; a whole text is matched; write \\{c} for the character,")
        return literal(c)

    def group(self):
        if self.text[self.at : self.at + 1] == "?":
            name = re.compile(r"\?(:|P<\w+>)").match(self.text, self.at)
            if not name:
                self.wrong("a (?...) that is not (?:...) or (?P<name>...)")
            self.at = name.end()
        self.depth += 1
        if self.depth > 100:
            self.wrong("a group inside of 100 others")
        node = self.alternatives()
        if self.text[self.at : self.at + 1] != ")":
            self.wrong("a ( without its )")
        self.at, self.depth = self.at + 1, self.depth - 1
        return node

    def escape(self):
        """Behind a backslash -> ranges."""
        c = self.next()
        if c.lower() in CLASSES:
            ranges = CLASSES[c.lower()]
            return ranges if c.islower() else without([(0, LAST)], ranges)
        if c in "xuU":
            digits = self.next({"x": 2, "u": 4, "U": 8}[c])
            if not re.fullmatch("[0-9a-fA-F]+", digits) or int(digits, 16) > LAST:
                self.wrong(f"\\{c}{digits}, which is no character,")
            return [(int(digits, 16),) * 2]
        if c in ESCAPES:
            return [(ESCAPES[c],) * 2]
        if c.isalnum():
            self.wrong(f"\\{c}, which is not supported,")
        return [(ord(c),) * 2]

    def bracket(self):
        """Behind [ -> a set."""
        negated = self.text[self.at : self.at + 1] == "^"
        self.at += negated
        ranges, first = [], True
        while (c := self.next()) != "]" or first:
            first = False
            low = self.escape() if c == "\\" else [(ord(c),) * 2]
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                c = self.next()
                high = self.escape() if c == "\\" else [(ord(c),) * 2]
                if len(low) + len(high) > 2 or low[0][0] != low[0][1] or high[0][0] != high[0][1] or low[0][0] > high[0][0]:
                    self.wrong("a range that is none")
                low = [(low[0][0], high[0][0])]
            ranges += low
        return chars(*(without([(0, LAST)], ranges) if negated else ranges))


# ---- code points -> bytes ---------------------------------------------------------------------------------------------------


def byte_sequences(ranges):
    """ranges of code points -> sequences of ranges of bytes, which together are their UTF-8."""
    for low, high in without(ranges, [(0xD800, 0xDFFF)]):  # half characters have no UTF-8
        for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, LAST)):
            if max(low, first) <= min(high, last):
                yield from _split(chr(max(low, first)).encode(), chr(min(high, last)).encode())


def _split(low, high):
    """Two encodings of one length -> sequences of byte ranges from the one to the other."""
    (a, *_), (b, *_), low_rest, high_rest = low, high, low[1:], high[1:]
    if not low_rest:
        yield [(a, b)]
        return
    least, most = b"\x80" * len(low_rest), b"\xbf" * len(low_rest)
    if a == b:
        yield from ([(a, a), *rest] for rest in _split(low_rest, high_rest))
        return
    if low_rest != least:
        yield from ([(a, a), *rest] for rest in _split(low_rest, most))
        a += 1
    whole = b if high_rest == most else b - 1
    if a <= whole:
        yield [(a, whole), *[(0x80, 0xBF)] * len(low_rest)]
    if whole < b:
        yield from ([(b, b), *rest] for rest in _split(least, high_rest))


# ---- nodes -> automaton -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Automaton:
    """table:(S, 256) int32, the state behind each state and byte; 0 is where no match is reached from any more, 1 the beginning.

    accepting:(S,) bool; distance:(S,) int32 bytes to the nearest accepting state, 2^30 from state 0.
    """

    table: np.ndarray
    accepting: np.ndarray
    distance: np.ndarray

    def matches(self, data):
        """-> whether bytes as a whole are in the language."""
        state = 1
        for byte in data:
            state = self.table[state, byte]
        return bool(self.accepting[state])


def compile(node):
    """node -> Automaton. ConfigError: it matches nothing, or would have more than STATES states."""
    nfa = _Nfa()
    end = nfa.add(node, nfa.state())
    bounds = sorted({0, 256, *(b for edges in nfa.edges for low, high, _ in edges for b in (low, high + 1))})
    place = {b: i for i, b in enumerate(bounds)}  # bytes between two bounds behave alike
    moves = [[(place[low], place[high + 1], to) for low, high, to in edges] for edges in nfa.edges]
    reach = nfa.closures()
    numbers, sets, rows = {reach[0]: 0}, [reach[0]], []
    for states in sets:  # grows meanwhile
        targets = [set() for _ in range(len(bounds) - 1)]
        for state in states:
            for low, high, to in moves[state]:
                for i in range(low, high):
                    targets[i] |= reach[to]
        row = []
        for target in map(frozenset, targets):
            if target and target not in numbers:
                numbers[target] = len(sets)
                sets.append(target)
            row.append(numbers[target] if target else -1)
        rows.append(row)
        if len(sets) > STATES:
            raise ConfigError(f"constraint: the expression makes an automaton of more than {STATES} states. "
                              "Hint: smaller counts in {m,n}, maxLength or maxItems, or none at all")
    short = np.array(rows, np.int64).reshape(len(sets), -1)
    accepting = np.array([end in states for states in sets])
    distance = _distances(short, accepting)
    if distance[0] == FAR:
        raise ConfigError("constraint: the expression matches no text at all")
    kept = np.flatnonzero(distance < FAR)  # 0 among them
    number = np.zeros(len(sets) + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)  # the last entry, of -1, stays 0
    table = np.zeros((len(kept) + 1, len(bounds) - 1), np.int32)
    table[1:] = number[short[kept]]
    wide = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return Automaton(table[:, wide], np.append(False, accepting[kept]), np.append(FAR, distance[kept]).astype(np.int32))


FAR = 1 << 30


def _distances(table, accepting):
    """table:(S, n) states or -1 -> (S,) steps to the nearest accepting one, FAR where there is none."""
    before = [[] for _ in table]
    for state, row in enumerate(table.tolist()):
        for to in {*row} - {-1}:
            before[to].append(state)
    distance, wave = np.full(len(table), FAR), np.flatnonzero(accepting).tolist()
    distance[wave] = 0
    while wave:
        following = {s for to in wave for s in before[to] if distance[s] == FAR}
        distance[list(following)] = distance[wave[0]] + 1
        wave = list(following)
    return distance


class _Nfa:
    """Thompson's construction. edges[s]: (first byte, last byte, state); free[s]: states reached without a byte."""

    def __init__(self):
        self.edges, self.free = [], []

    def state(self):
        self.edges.append([])
        self.free.append([])
        if len(self.edges) > 4 * STATES:
            raise ConfigError("constraint: the expression is too large. Hint: smaller counts in {m,n}, maxLength or maxItems, "
                              "or none at all")
        return len(self.edges) - 1

    def add(self, node, begin):
        """-> the state in which `node` ends that begins in `begin`."""
        kind, what, *counts = node
        if kind == "set":
            return self._set(what, begin)
        if kind == "cat":
            for part in what:
                begin = self.add(part, begin)
            return begin
        if kind == "alt":
            end = self.state()
            for part in what:
                self.free[self.add(part, begin)].append(end)
            return end
        least, most = counts
        for _ in range(least):
            begin = self.add(what, begin)
        if most is None:
            loop, end = self.state(), self.state()
            self.free[begin].append(loop)
            self.free[self.add(what, loop)].append(loop)
            self.free[loop].append(end)
            return end
        end = self.state()
        for _ in range(most - least):
            self.free[begin].append(end)
            inside = self.state()
            self.free[begin].append(inside)
            begin = self.add(what, inside)
        self.free[begin].append(end)
        return end

    def _set(self, ranges, begin):
        end, ways = self.state(), {}
        for sequence in byte_sequences(ranges):
            state = begin
            for i, (low, high) in enumerate(sequence[:-1]):
                way = state, low, high
                if way not in ways:
                    ways[way] = self.state()
                    self.edges[state].append((low, high, ways[way]))
                state = ways[way]
            self.edges[state].append((*sequence[-1], end))
        return end

    def closures(self):
        """-> for each state the frozenset of those reached without a byte, itself included."""
        out = []
        for state in range(len(self.edges)):
            found, todo = {state}, [state]
            while todo:
                for to in self.free[todo.pop()]:
                    if to not in found:
                        found.add(to)
                        todo.append(to)
            out.append(frozenset(s for s in found if self.edges[s] or not self.free[s]))
        return out
