"""Text that must match: a regular expression or a JSON schema as masks over tokens. Willard and Louf 2023."""
import weakref

import numpy as np

from pyllm.generation.json_schema import schema_node
from pyllm.generation.regex import compile, parse

START = -1  # a row's state before its first token, whose bytes may be others than those of the same token later
HELD = 64_000_000  # bytes of masks that are kept


class Constraint:
    """What a text must be: Constraint.regex(pattern) or Constraint.json(schema); see regex.py and json_schema.py for what they know.

    It is compiled once and may be used for many calls, models and tokenizers.
    """

    def __init__(self, automaton):
        self.automaton, self._matchers = automaton, weakref.WeakKeyDictionary()

    @classmethod
    def regex(cls, pattern):
        """pattern: a regular expression that the whole text matches. ConfigError names what is wrong or not regular."""
        return cls(compile(parse(pattern)))

    @classmethod
    def json(cls, schema):
        """schema: a JSON schema as a dict or text. ConfigError names a keyword that is not supported."""
        return cls(compile(schema_node(schema)))

    def matches(self, text):
        """-> whether a text is what it must be."""
        return self.automaton.matches(text.encode())

    def over(self, tokenizer, ends):
        """ends: ids that end a text -> the Matcher over this tokenizer's tokens."""
        known = self._matchers.setdefault(tokenizer, {})
        key = frozenset(ends)
        if key not in known:
            known[key] = Matcher(self.automaton, tokenizer, key)
        return known[key]


class Matcher:
    """States of a text by its tokens: start, and after(state, id); allowed(state, left) is the mask of what may come next.

    A state's mask is made when it is first asked for: all tokens walk through the automaton side by side, a byte at a time. No token is
    allowed behind which the text could not be completed byte by byte.
    """

    start = START

    def __init__(self, automaton, tokenizer, ends):
        self.automaton, self.ends = automaton, [i for i in ends if i < tokenizer.vocab_size]
        special = {t.id for t in tokenizer.added if t.special}
        first, later = tokenizer.contents
        self.later = _Tokens(later, special)
        self.first = self.later if first == later else _Tokens(first, special)
        self.targets = {}
        self.final = automaton.accepting & ~(automaton.table != 0).any(1)
        self.farthest = int(automaton.distance[1:].max())

    def _behind(self, state):
        """-> (V,) int32: the state behind each token, 0 where it may not come."""
        if state not in self.targets:
            if len(self.targets) * 4 * self.later.count > HELD:
                self.targets.clear()
            tokens = self.first if state == START else self.later
            self.targets[state] = tokens.walk(self.automaton.table, 1 if state == START else state)
        return self.targets[state]

    def allowed(self, state, left):
        """-> (V,) bool. left: tokens that may still be drawn; where they get scarce, those that lead to an end in time."""
        behind = self._behind(state)
        mask = behind > 0
        if left <= self.farthest:
            in_time = mask & (self.automaton.distance[behind] < left)
            mask = in_time if in_time.any() else mask
        if self.automaton.accepting[max(state, 1)]:
            mask[self.ends] = True
        return mask

    def after(self, state, id):
        """-> the state behind a token that is allowed."""
        return state if id in self.ends else int(self._behind(state)[id])

    def complete(self, state):
        """-> whether the text matches and cannot go on."""
        return bool(self.final[max(state, 1)])


class _Tokens:
    """The bytes of all tokens as a trie, a level for each depth, that is walked level by level. Special and empty ones have no place."""

    def __init__(self, contents, special):
        lengths = np.array([0 if i in special else len(c) for i, c in enumerate(contents)])
        begins, data = np.cumsum([0, *map(len, contents)])[:-1], np.frombuffer(b"".join(contents), np.uint8).astype(np.int64)
        self.count, self.levels, self.nodes = len(contents), [], 1  # node 0 is that of tokens without a place
        self.place = np.zeros(self.count, np.int64)
        ids, node = np.flatnonzero(lengths), np.zeros(np.count_nonzero(lengths), np.int64)
        while len(ids):
            ways, node = np.unique(node * 256 + data[begins[ids] + len(self.levels)], return_inverse=True)
            self.levels.append((ways >> 8, ways & 255))  # of each node its parent in the level above, and its byte
            done = lengths[ids] == len(self.levels)
            self.place[ids[done]] = self.nodes + node[done]
            self.nodes, ids, node = self.nodes + len(ways), ids[~done], node[~done]

    def walk(self, table, state):
        """-> (V,) int32: where each token leads from `state`, 0 for nowhere."""
        states, begin, at = np.zeros(self.nodes, np.int32), 1, np.array([state])
        for parents, data in self.levels:
            at = table[at[parents], data]
            if not at.any():
                break
            states[begin : begin + len(at)] = at
            begin += len(at)
        return states[self.place]
