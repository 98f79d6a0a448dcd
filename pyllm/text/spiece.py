"""SentencePiece .model files: a small reader of the protobuf wire format, and pieces -> what tokenizer.json holds."""
import base64
import struct
from dataclasses import dataclass, field
from operator import add, eq

import numpy as np

from ..errors import FormatError
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
    rows = piece_merges(tokens, np.array(kinds) == NORMAL)
    left, right, made = rows.T
    rows = rows[np.lexsort((right, left, made, -np.array(scores)[made]))]
    vocab = dict(zip(tokens, range(len(tokens))))
    return {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": found.byte_fallback, "ignore_merges": False, "vocab": vocab,
            "merges": rows, "by_token": True}


def piece_merges(pieces, usable):
    """pieces: (V,) str; usable:(V,) bool, those that may be parts -> (M, 3) int32: every way of building a usable piece from two others:
    left, right, piece, in order of pieces and of lengths of the left part.

    Half a million of a large vocabulary: parts are looked up by hash, all at once, and what is found is compared.
    """
    ids = np.array([i for i in np.flatnonzero(usable).tolist() if pieces[i]], np.int64)
    text = "".join([pieces[i] for i in ids.tolist()])
    lengths = np.array([len(pieces[i]) for i in ids.tolist()], np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64) + np.uint64(1)
    factor, inverse = np.uint64(0x9E3779B97F4A7C15), np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
    powers, back = (np.cumprod(np.full(len(codes) + 1, base, np.uint64)) for base in (factor, inverse))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers[:-1])])
    stops = np.cumsum(lengths)
    starts = stops - lengths

    def hashes(begin, end):
        return (sums[end] - sums[begin]) * back[begin]  # of text[begin:end], wherever it stands

    own = hashes(starts, stops)
    order = np.argsort(own)
    ranked = own[order]

    def find(keys):
        at = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
        return np.where(ranked[at] == keys, order[at], -1)

    inside = np.ones(len(codes), bool)
    inside[starts] = False
    cuts, of = np.flatnonzero(inside), np.repeat(np.arange(len(ids)), lengths)[inside]  # places where a piece can be cut, and its number
    left = find(hashes(starts[of], cuts)) if len(cuts) else cuts
    cuts, of, left = cuts[left >= 0], of[left >= 0], left[left >= 0]
    right = find(hashes(cuts, stops[of])) if len(cuts) else cuts
    rows = ids[np.stack([left, right, of], 1)[right >= 0]]
    parts = (map(pieces.__getitem__, column.tolist()) for column in rows.T)
    same = list(map(eq, map(add, next(parts), next(parts)), next(parts)))
    return rows[np.array(same, bool)].astype(np.int32)
