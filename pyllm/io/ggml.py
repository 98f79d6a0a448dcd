"""ggml's blocks of quantised weights, as GGUF files hold them, and their float32 values.

A row of weights is cut into blocks of 32 or 256; a block is a few bytes of scales and the weights in 2 to 8 bits. Source: the structs of
ggml-common.h. Values are computed in float32 in ggml's order, so that they equal its own to the bit.
"""
import math
from dataclasses import dataclass

import numpy as np

from .safetensors import DTYPES, dtype_name, to_float32

CHUNK = 1 << 20  # weights whose float32 values are computed at a time


@dataclass(frozen=True, eq=False)
class Blocks:
    """A tensor as bytes, quantised or not: kind of KINDS, shape of its weights; data: uint8, in C order the tensor's bytes, rows of them
    along the last axis, mapped or in memory, in any layout."""

    kind: str
    shape: tuple
    data: np.ndarray

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.data.nbytes)

    def float32(self, out=None):
        """-> float32 of `shape`, in `out` where one is given."""
        weights, size, values = KINDS[self.kind]
        out = np.empty(self.shape, np.float32) if out is None else out
        at, flat = 0, out.reshape(-1, weights)
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite scale stays what it is
            for part in _parts(self.data, CHUNK // weights * size):
                part = part.reshape(-1, size)
                flat[at : at + len(part)] = values(part)
                at += len(part)
        return out


def kind_of(tensor):
    """tensor: an array of safetensors.read or gguf.read, or Blocks -> the name of its type."""
    return tensor.kind if isinstance(tensor, Blocks) else dtype_name(tensor.dtype)


def float32(tensor):
    """tensor: a floating-point array of safetensors.read or gguf.read, or Blocks -> float32; without a copy where it is float32."""
    return tensor.float32() if isinstance(tensor, Blocks) else to_float32(tensor)


def bytes_of(kind, count):
    """-> how many bytes `count` weights of a type take; ValueError where they do not fill whole blocks."""
    weights, size, _ = KINDS[kind] if kind in KINDS else (1, DTYPES[kind].itemsize, None)
    if count % weights:
        raise ValueError(f"{count} weights; {kind} takes a multiple of {weights}")
    return count // weights * size


def _parts(data, size):
    """Yields dense parts of at least one row and about `size` bytes along the first axis."""
    rows = max(1, size * len(data) // max(1, data.nbytes))
    for i in range(0, len(data), rows):
        yield np.ascontiguousarray(data[i : i + rows])


# ---- b:(N, bytes of a block) uint8 -> (N, weights of a block) float32

def _half(b, at):
    """-> (N, 1) float32: the float16 at byte `at`."""
    return np.ascontiguousarray(b[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(b):
    """(N, n) -> (N, 2 n): the low halves of all bytes, then the high ones."""
    return np.concatenate([b & 15, b >> 4], 1)


def _bits(b, count):
    """b:(N, 4), a little-endian word -> (N, count) uint8: its bits from the lowest."""
    return (np.ascontiguousarray(b).view("<u4") >> np.arange(count, dtype=np.uint32) & np.uint32(1)).astype(np.uint8)


def q8_0(b):
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def q4_0(b):
    return _half(b, 0) * (_nibbles(b[:, 2:]).astype(np.float32) - np.float32(8))


def q4_1(b):
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def q5_0(b):
    fifth = _bits(b[:, 2:6], 32) << 4
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | fifth).astype(np.float32) - np.float32(16))


def q5_1(b):
    fifth = _bits(b[:, 4:8], 32) << 4
    return _half(b, 0) * (_nibbles(b[:, 8:]) | fifth).astype(np.float32) + _half(b, 2)


def _scales(b):
    """b:(N, 12), 8 scales and 8 minima of 6 bits -> two of (N, 8) float32."""
    low, high, last = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = np.concatenate([low & 63, last & 15 | low >> 6 << 4], 1)
    mins = np.concatenate([high & 63, last >> 4 | high >> 6 << 4], 1)
    return scales.astype(np.float32), mins.astype(np.float32)


def _super(b, q):
    """q:(N, 8, 32): eight sub-blocks, each with a scale and a minimum in units of the block's two float16."""
    scales, mins = _scales(b[:, 4:16])
    scales, mins = _half(b, 0) * scales, _half(b, 2) * mins
    return (scales[:, :, None] * q.astype(np.float32) - mins[:, :, None]).reshape(len(b), 256)


def _halves(b):
    """b:(N, 128), each 32 bytes two sub-blocks: low halves, then high ones -> (N, 8, 32)."""
    b = b.reshape(len(b), 4, 1, 32)
    return np.concatenate([b & 15, b >> 4], 2).reshape(len(b), 8, 32)


def q4_k(b):
    return _super(b, _halves(b[:, 16:]))


def q5_k(b):
    fifth = b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # bit i of 32 bytes: sub-block i
    return _super(b, _halves(b[:, 48:]) | fifth << 4)


def _quarters(b):
    """b:(N, n), each 32 bytes four sub-blocks of 2 bits, the lowest first -> (N, n / 4, 16) uint8."""
    return (b.reshape(len(b), -1, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3).reshape(len(b), -1, 16)


def q2_k(b):
    scales, mins = _half(b, 80) * (b[:, :16] & 15).astype(np.float32), _half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    return (scales[:, :, None] * _quarters(b[:, 16:80]).astype(np.float32) - mins[:, :, None]).reshape(len(b), 256)


def q3_k(b):
    n, high = len(b), b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # bit i of 32 bytes: sub-blocks 2 i and 2 i + 1
    low, upper = b[:, 96:104], b[:, None, 104:108] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scales = (np.concatenate([low & 15, low >> 4], 1) | upper.reshape(n, 16) << 4).astype(np.int8) - np.int8(32)
    q = _quarters(b[:, 32:96]).astype(np.int8) - (4 - 4 * high.reshape(n, 16, 16)).astype(np.int8)
    return ((_half(b, 108) * scales.astype(np.float32))[:, :, None] * q.astype(np.float32)).reshape(n, 256)


STEPS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)  # what 4 bits mean in IQ4


def iq4_nl(b):
    return _half(b, 0) * STEPS[_nibbles(b[:, 2:])]


def iq4_xs(b):
    n, words = len(b), np.ascontiguousarray(b[:, 2:4]).view("<u2")
    low, high = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], 2).reshape(n, 8), words >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _half(b, 0) * ((low | high << 4).astype(np.int8) - np.int8(32)).astype(np.float32)
    q = b[:, 8:].reshape(n, 8, 16)
    return (scales[:, :, None] * STEPS[np.concatenate([q & 15, q >> 4], 2)]).reshape(n, 256)


def q6_k(b):
    n = len(b)
    low = b[:, :128].reshape(n, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], 2).reshape(n, 2, 4, 32)
    high = b[:, 128:192].reshape(n, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = (low | high << 4).astype(np.int8) - np.int8(32)
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * q.reshape(n, 16, 16).astype(np.float32)).reshape(n, 256)


def f32(b):
    return b.view("<f4")


def f16(b):
    return _half(b, 0)


def bf16(b):
    return (b.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


KINDS = {  # type -> (weights of a block, its bytes, its values)
    "F32": (1, 4, f32), "F16": (1, 2, f16), "BF16": (1, 2, bf16),
    "Q4_0": (32, 18, q4_0), "Q4_1": (32, 20, q4_1), "Q5_0": (32, 22, q5_0), "Q5_1": (32, 24, q5_1), "Q8_0": (32, 34, q8_0),
    "Q2_K": (256, 84, q2_k), "Q3_K": (256, 110, q3_k), "IQ4_NL": (32, 18, iq4_nl), "IQ4_XS": (256, 136, iq4_xs),
    "Q4_K": (256, 144, q4_k), "Q5_K": (256, 176, q5_k), "Q6_K": (256, 210, q6_k),
}
