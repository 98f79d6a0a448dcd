"""SentencePiece .model files: a small reader of the protobuf wire format, and pieces -> what tokenizer.json holds."""
import base64
import struct
from dataclasses import dataclass, field

import numpy as np

from ..errors import FormatError
from . import bpe as merging
from .template import around
from .words import MARK

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


@dataclass
class Pieces:
    """pieces: list of (token, score, type); the rest as the file's specs name it. ids are -1 where there is no such token."""

    pieces: list
    kind: int = UNIGRAM
    byte_fallback: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    ids: dict = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})


def read_pieces(data):
    """data: bytes of a .model file -> Pieces. FormatError if it is none."""
    found = Pieces([])
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = {1: b"", 2: 0.0, 3: NORMAL, **dict(_fields(value))}
                found.pieces.append((piece[1].decode("utf-8"), float(piece[2]), piece[3]))
            elif number == 2:
                spec = dict(_fields(value))
                found.kind, found.byte_fallback = spec.get(3, UNIGRAM), bool(spec.get(35, 0))
                found.ids = {role: _signed(spec.get(n, default)) for role, n, default in
                             (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))}
                if spec.get(24):
                    raise FormatError("treat_whitespace_as_suffix is not supported")
            elif number == 3:
                spec = dict(_fields(value))
                found.charsmap = spec.get(2, b"")
                found.add_dummy_prefix, found.remove_extra_whitespaces, found.escape_whitespaces = (bool(spec.get(n, 1)) for n in (3, 4, 5))
    except FormatError:
        raise
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        raise FormatError(f"not a SentencePiece model: {str(error)[:100]}") from None
    if not found.pieces or found.kind not in (UNIGRAM, BPE):
        raise FormatError(f"not a SentencePiece model of kind unigram or bpe: {len(found.pieces)} pieces, kind {found.kind}")
    return found


def _signed(value):
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data):
    """Yields (field number, int, float or bytes) of one message."""
    i, n = 0, len(data)
    while i < n:
        key, i = _varint(data, i)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, i = _varint(data, i)
        elif wire == 5:
            value, i = struct.unpack_from("<f", data, i)[0], i + 4
        elif wire == 1:
            value, i = struct.unpack_from("<d", data, i)[0], i + 8
        elif wire == 2:
            size, i = _varint(data, i)
            if size > n - i:
                raise ValueError(f"a field of {size} bytes where {n - i} are left")
            value, i = data[i:i + size], i + size
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def _varint(data, i):
    value = 0
    for shift in range(0, 70, 7):
        if i >= len(data):
            raise ValueError("it ends inside a number")
        value |= (data[i] & 0x7F) << shift
        i += 1
        if data[i - 1] < 0x80:
            return value, i
    raise ValueError("a number of more than 64 bits")


def as_json(found, bos=False, eos=False):
    """found: Pieces; bos, eos: whether they go around a text -> what tokenizer.json holds, and roles."""
    tokens = [token for token, *_ in found.pieces]
    if len(set(tokens)) != len(tokens):
        raise FormatError(f"{len(tokens) - len(set(tokens))} pieces stand twice in the vocabulary")
    roles = {role: tokens[i] if 0 <= i < len(tokens) else None for role, i in found.ids.items()}
    added = [{"id": i, "content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
              "single_word": False} for i, (token, _, kind) in enumerate(found.pieces) if kind in (UNKNOWN, CONTROL)]
    steps = []
    if found.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(found.charsmap).decode(), "longest": True})
    if found.remove_extra_whitespaces:
        steps += [{"type": "Strip", "strip_left": True, "strip_right": True, "content": " "},
                  {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    if found.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": MARK if found.escape_whitespaces else " "})  # behind special tokens too, as everywhere
    if found.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": MARK})
    decoder = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if found.add_dummy_prefix:
        decoder.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = (unigram if found.kind == UNIGRAM else bpe)(found, roles["unk"])
    model["user_defined"] = [i for i, (*_, kind) in enumerate(found.pieces) if kind == USER_DEFINED]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None, "pre_tokenizer": None,
            "post_processor": around(roles["bos"] if bos else None, roles["eos"] if eos else None, tokens),
            "decoder": {"type": "Sequence", "decoders": decoder}, "model": model}, roles


def unigram(found, unk):
    unused = [i for i, (*_, kind) in enumerate(found.pieces) if kind == UNUSED]
    return {"type": "Unigram", "unk_id": found.ids["unk"] if unk is not None else None,
            "vocab": [[token, score] for token, score, _ in found.pieces], "byte_fallback": found.byte_fallback,
            **({"unused": unused} if unused else {})}


def bpe(found, unk):
    """Merges are every way of building a piece from two others, as rows of ids; the piece of the highest score comes first."""
    if any(kind == UNUSED for *_, kind in found.pieces):
        raise FormatError("unused pieces are not supported in a BPE model")
    tokens, scores, kinds = zip(*found.pieces)
    rows = merging.loops.piece_merges([token.encode() for token in tokens], (np.array(kinds) == NORMAL).astype(np.uint8))
    left, right, made = rows.T
    rows = rows[np.lexsort((right, left, made, -np.array(scores)[made]))]
    vocab = dict(zip(tokens, range(len(tokens))))
    return {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": found.byte_fallback, "ignore_merges": False, "vocab": vocab,
            "merges": rows, "by_token": True}
