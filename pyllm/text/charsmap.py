"""The character map of SentencePiece (precompiled_charsmap): a double-array trie over UTF-8 and the strings it leads to."""
import base64
import binascii
import re
import unicodedata

import numpy as np

from ..errors import FormatError
from .pattern import short


class Charsmap:
    """data: bytes, a uint32 with the trie's size in bytes, the trie's units (uint32), then strings that end in NUL.

    Of a unit: bits 0-7 its label, bit 8 whether a value follows, bits 10-30 the offset (shifted by 8 more where bit 9 is set); of a value
    unit bits 0-30.
    """

    def __init__(self, data):
        size = int.from_bytes(data[:4], "little")
        if size % 4 or not 4 <= size <= len(data) - 4:
            raise FormatError(f"precompiled_charsmap: {len(data)} bytes name a trie of {size}")
        self.units = np.frombuffer(data, "<u4", size // 4, 4).tolist()
        self.strings = data[4 + size:]
        self.known = {}
        plain = "".join(chr(c) for c in range(128) if not self.prefixes(bytes([c])) and c != 13)  # only marks behind them change these
        self.skip = re.compile(f"(?:[{re.escape(plain)}](?![^\0-\x7f]))*" if plain else "").match

    @classmethod
    def from_base64(cls, text):
        try:
            return cls(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"precompiled_charsmap is {short(text)}, not base64") from None

    @staticmethod
    def _offset(unit):
        return (unit >> 10) << ((unit & 0x200) >> 6)

    def _child(self, at, byte):
        place = at ^ byte
        return place if place < len(self.units) and self.units[place] & 0x800000FF == byte else None

    def prefixes(self, key):
        """key: bytes -> [(length, replacement)] of the keys that it starts with, shortest first."""
        found, at = [], self._offset(self.units[0])
        for i, byte in enumerate(key):
            place = self._child(at, byte) if byte else None
            if place is None:
                break
            unit = self.units[place]
            at = place ^ self._offset(unit)
            if unit & 0x100 and at < len(self.units):
                start = self.units[at] & 0x7FFFFFFF
                stop = self.strings.find(b"\0", start)
                if not start <= stop:
                    raise FormatError("precompiled_charsmap: a value points outside its strings")
                found.append((i + 1, self.strings[start:stop].decode("utf-8", "replace")))
        return found

    def step(self, longest):
        """-> the normalizer. longest: as SentencePiece does it; otherwise as `tokenizers`: clusters of less than six bytes, then single
        characters, and of several keys the shortest."""
        replaced = self._longest if longest else self._by_cluster

        def apply(text, src, first):
            parts, places, changed = [], [], False
            for start, stop, new in replaced(text):
                changed |= new is not None
                parts.append(text[start:stop] if new is None else new)
                if src is not None:
                    places.append(src[start:stop] if new is None else self._places(src[start:stop], len(new)))
            if not changed:
                return text, src
            return "".join(parts), None if src is None else np.concatenate([*places, src[:0]])

        return apply

    @staticmethod
    def _places(src, size):
        return src[np.minimum(np.arange(size), len(src) - 1)]

    def _find(self, text):
        """Replacement of a text that a key starts, or None; remembered."""
        if text not in self.known:
            if len(self.known) >= 1 << 16:
                self.known.clear()
            found = self.prefixes(text.encode("utf-8", "surrogatepass"))
            self.known[text] = found[0][1] if found else None
        return self.known[text]

    def _by_cluster(self, text):
        """Yields (start, stop, replacement or None): runs that nothing changes come in one piece."""
        done, i, n = 0, 0, len(text)
        while i < n:
            i = self.skip(text, i).end()
            if i == n:
                break
            stop = _cluster_end(text, i)
            units = [(i, stop)]
            new = self._find(text[i:stop]) if len(text[i:stop].encode("utf-8", "surrogatepass")) < 6 else None
            if new is None:
                units = [(j, j + 1) for j in range(i, stop)]
            for a, b in units:
                new = self._find(text[a:b])
                if new is not None:
                    if done < a:
                        yield done, a, None
                    yield a, b, new
                    done = b
            i = stop
        if done < n:
            yield done, n, None

    def _longest(self, text):
        done, i, n = 0, 0, len(text)
        while i < n:
            i = self.skip(text, i).end()
            if i == n:
                break
            found = self._longest_at(text[i:i + 1] if text[i:i + 2].isascii() else text[i:i + 8])
            if found is not None:
                if done < i:
                    yield done, i, None
                size, new = found
                yield i, i + size, new
                i = done = i + size
            else:
                i += 1
        if done < n:
            yield done, n, None

    def _longest_at(self, text):
        """-> (characters, replacement) of the longest key that the text starts with, or None."""
        if text not in self.known:
            if len(self.known) >= 1 << 16:
                self.known.clear()
            data = text.encode("utf-8", "surrogatepass")
            found = self.prefixes(data)
            self.known[text] = (len(data[:found[-1][0]].decode("utf-8", "replace")), found[-1][1]) if found else None
        return self.known[text]


def _cluster_end(text, i):
    """Where the character that is seen at i ends: with the marks behind it, as far as the rule of six bytes needs it."""
    if text[i] == "\r":
        return i + 1 + (text[i + 1:i + 2] == "\n")
    if unicodedata.category(text[i]) in ("Cc", "Cf", "Zl", "Zp") and text[i] not in "\u200c\u200d":
        return i + 1
    j = i + 1
    while j < len(text) and (unicodedata.category(text[j])[0] == "M" or text[j] in "\u200c\u200d\u0e33\u0eb3\uff9e\uff9f"):
        j += 1
    return j
