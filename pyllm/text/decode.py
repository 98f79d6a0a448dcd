"""Decoders of tokenizer.json: what each token stands for in the text, as bytes, and what it stands for at the beginning."""
import re

from ..errors import FormatError
from .normalize import flag, items, string
from .pattern import compile_expression, short

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CLEAN = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
          (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


class Contents(dict):
    """spec: a decoder, but not ByteLevel; tokens: list of str by id -> {id: bytes}, each made when it is first asked for; first: what the
    tokens stand for at the beginning of a text."""

    def __init__(self, spec, tokens, first):
        "".join(tokens).encode()  # UnicodeEncodeError for a lone surrogate, now rather than in the middle of a text
        self.decode, self.tokens, self.first = decoder(spec), tokens, first

    def __missing__(self, id):
        part = self.decode(self.tokens[id], self.first)
        found = self[id] = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        return found


def decoder(spec):
    """-> a function (token, whether it is the first) -> str, or bytes of a byte token. FormatError for an unknown one."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if spec is None:
        return lambda token, first: token if first else " " + token  # tokens with spaces between them
    if kind == "Fuse":
        return lambda token, first: token
    if kind == "WordPiece":
        prefix, clean = string(spec, "prefix", "##"), flag(spec, "cleanup", True)

        def word_piece(token, first):
            if not first:
                token = token[len(prefix):] if token.startswith(prefix) else " " + token
            for old, new in _CLEAN if clean else ():
                token = token.replace(old, new)
            return token

        return word_piece
    if kind == "Metaspace":
        mark, keep = string(spec, "replacement", "\u2581"), spec.get("prepend_scheme", "always") == "never"
        return lambda token, first: token.replace(mark, "" if first and not keep else " ")
    if kind == "BPEDecoder":
        suffix = string(spec, "suffix", "</w>")
        return lambda token, first: token.replace(suffix, " ")
    if kind == "ByteFallback":
        return lambda token, first: bytes.fromhex(m[1]) if (m := _BYTE.fullmatch(token)) else token
    if kind == "Replace":
        find, new = compile_expression(spec.get("pattern"), "decoder.pattern"), string(spec, "content")
        return lambda token, first: find.sub(lambda _: new, token)
    if kind == "Strip":
        mark, start = string(spec, "content", " "), spec.get("start", 0)
        if type(start) is not int or not 0 <= start <= 1000 or spec.get("stop", 0) != 0:
            raise FormatError(f"decoder is {short(spec)}; of Strip a number at the start is supported, none at the end")

        def strip(token, first):
            size = len(mark)
            for _ in range(start if first and size else 0):
                token = token[size:] if token.startswith(mark) else token
            return token

        return strip
    if kind == "Sequence":
        steps = [decoder(part) for part in items(spec, "decoders")]

        def sequence(token, first):
            for step in steps:
                token = step(token, first) if isinstance(token, str) else token
            return token

        return sequence
    raise FormatError(f"decoder is {short(spec)}; supported: ByteLevel, WordPiece, Metaspace, BPEDecoder, ByteFallback, Replace, Strip, "
                      "Fuse, Sequence, null")
