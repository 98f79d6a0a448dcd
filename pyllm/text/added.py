"""Added tokens: found in the text before any splitting."""
import re
from bisect import bisect_right
from dataclasses import dataclass

from .pattern import any_of
from .unicode import BLANK, word


@dataclass(frozen=True)
class AddedToken:
    """A token found in the text before any splitting. Fields as in tokenizer.json: lstrip and rstrip take the blanks beside it,
    single_word: not inside a word, special: a control token, normalized: looked for after all tokens that are not."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


class Finder:
    """Finds added tokens: leftmost, and of those that start there the longest. spell: their content -> how the searched text spells it."""

    def __init__(self, tokens, spell=None):
        self.tokens = {spelled: token for token in tokens if (spelled := spell(token.content) if spell else token.content)}
        self.plain = not any(t.single_word or t.lstrip or t.rstrip for t in tokens)
        self.find = re.compile(any_of(self.tokens) if self.tokens else "(?!)").finditer

    def split(self, text, src, start, special, closed=()):
        """-> list of (piece of text without tokens, its src, its start) and (token's id, (first, last + 1) place in the original, None).

        closed: sorted (start, stop) places in the original that no special token may touch; (p, p): none may reach across p.
        """
        pieces, done, offset, stops = [], 0, start, [stop for _, stop in closed]

        def keep(a, b):
            pieces.append((text[a:b], None, offset + a) if src is None else (text[a:b], src[a:b], int(src[a])))

        for match in self.find(text):
            token, (start, stop) = self.tokens[match.group()], match.span()
            if token.special:
                a, b = (offset + start, offset + stop) if src is None else (int(src[start]), int(src[stop - 1]) + 1)
                behind = bisect_right(stops, a)
                if not special or behind < len(closed) and closed[behind][0] < b:
                    continue
            if not self.plain:
                if token.single_word and (start and word()[ord(text[start - 1])] or stop < len(text) and word()[ord(text[stop])]):
                    continue
                if token.lstrip:
                    start = max(done, len(text[done:start].rstrip(BLANK)) + done)
                if token.rstrip:
                    stop = len(text) - len(text[stop:].lstrip(BLANK))
            if done < start:
                keep(done, start)
            if start < stop:  # not if a neighbour's rstrip took all of it
                pieces.append((token.id, (0, 0) if src is None else (int(src[start]), int(src[stop - 1]) + 1), None))
            done = stop
        if done < len(text):
            keep(done, len(text)) if done else pieces.append((text, src, offset))
        return pieces
