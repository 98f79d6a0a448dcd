"""Packed: a frozen (O, I) weight as bfloat16 or in ggml's blocks of 32, the way the kernels read it."""
import numpy as np

from pyllm.extension import load

_C = load("pyllm._C")
BLOCK = 32  # weights along a row that share a scale
WOVEN = 32  # rows that lie interleaved: the kernels' lanes
FORMATS = {"bf16": 64, "q8_0": 34, "q4_0": 18, "q4_1": 20}  # bytes of a block
_WORDS = {"bf16": 16, "q8_0": 8, "q4_0": 4, "q4_1": 4}  # 32-bit words of a block without its scales
_ROWS = 1024  # rows quantised at a time


class Room:
    """Memory for the packed weights of a model: one block, in the system's large pages, since a page's end stops the CPU's foresight."""

    def __init__(self, weights):
        """weights: [(format, shape)] of those that will lie here."""
        size = sum(-(-o // WOVEN) * WOVEN * -(-i // BLOCK) * FORMATS[format] + 3 * 64 for format, (o, i) in weights)
        self.free = (_C.empty((size // 4 + 16,)) if _C else np.empty(size // 4 + 16, np.float32)).view(np.uint8)
        self.free = self.free[-self.free.ctypes.data % 64 :]

    def take(self, shape, dtype):
        """-> an array that begins a line of the cache."""
        size = int(np.prod(shape)) * dtype.itemsize
        taken, self.free = self.free[:size].view(dtype).reshape(shape), self.free[-(-size // 64) * 64 :]
        return taken


class Packed:
    """A frozen weight of shape (O, I), in place of an array in linear, embedding and linear_cross_entropy: no gradient goes to it.

    format: bf16; q8_0 (int8 times a float16 scale), q4_0 ((4 bits - 8) times a scale), q4_1 (4 bits times a scale, plus a float16 minimum).
    Products take x in the weight's precision: rounded to bfloat16, or quantised to int8 by blocks of 32 along I.
    words: uint32 (O / 32, I / 32, words of a block, 32), 32 rows interleaved; scales, mins: float16 bits (O / 32, I / 32, 32) or None.
    """

    __slots__ = ("format", "shape", "words", "scales", "mins", "native")
    dtype = np.dtype(np.float32)  # of what products with it give
    ndim = 2
    size = property(lambda self: self.shape[0] * self.shape[1])
    nbytes = property(lambda self: sum(a.nbytes for a in (self.words, self.scales, self.mins) if a is not None))

    def __init__(self, format, shape, words, scales=None, mins=None):
        check("Packed", format, shape)
        self.format, self.shape = format, tuple(shape)
        panels, blocks = -(-shape[0] // WOVEN), -(-shape[1] // BLOCK)
        expected = {"words": (np.uint32, (panels, blocks, _WORDS[format], WOVEN)),
                    "scales": (np.uint16, (panels, blocks, WOVEN)) if format != "bf16" else None,
                    "mins": (np.uint16, (panels, blocks, WOVEN)) if format == "q4_1" else None}
        for name, array in (("words", words), ("scales", scales), ("mins", mins)):
            got = None if array is None else (array.dtype.type, array.shape)
            if got != expected[name] or array is not None and not (array.flags.c_contiguous and array.flags.aligned):
                raise ValueError(f"Packed: {name} {got}; expected {expected[name]}, dense, for {format} {self.shape}")
            setattr(self, name, array)
        self.native = (list(FORMATS).index(format), words, scales, mins, *self.shape)

    def __repr__(self):
        return f"Packed({self.format}, {self.shape})"

    def __len__(self):
        return self.shape[0]

    @classmethod
    def quantize(cls, array, format, room=None):
        """array:(O, I) floats -> the Packed nearest to it, with the bits of ggml's reference quantiser.

        ValueError: an unknown format, I no multiple of 32 (bf16 takes any), NaN, infinity or a block beyond float16's range.
        """
        array = np.asarray(array)
        check("Packed.quantize", format, array.shape)
        rows = [_blocks(np.ascontiguousarray(array[i : i + _ROWS], np.float32), format) for i in range(0, len(array), _ROWS)]
        return cls.from_blocks(format, array.shape, np.concatenate(rows) if rows else np.empty(0, np.uint8), room)

    @classmethod
    def from_blocks(cls, format, shape, data, room=None):
        """data: the bytes of a GGUF tensor (any uint8 array or buffer), row after row; for bf16 the 16-bit words. room: a Room for them."""
        check("Packed.from_blocks", format, shape)
        (o, i), data = shape, np.frombuffer(data, np.uint8)
        row = 2 * i if format == "bf16" else i // BLOCK * FORMATS[format]
        if data.size != o * row:
            raise ValueError(f"Packed.from_blocks: {data.size} bytes; expected {o * row} for {format} {tuple(shape)}")
        if format == "bf16" and i % BLOCK:
            filled = np.zeros((o, 64 * -(-i // BLOCK)), np.uint8)
            filled[:, :row] = data.reshape(o, row)
            data = filled
        panels, blocks, each = -(-o // WOVEN), -(-i // BLOCK), _WORDS[format]
        take = np.empty if room is None else room.take
        words = take((panels, blocks, each, WOVEN), np.dtype(np.uint32))
        halves = [take((panels, blocks, WOVEN), np.dtype(np.uint16)) for _ in range((FORMATS[format] - 4 * each) // 2)]
        flip = 0x80808080 if format == "q8_0" else 0  # the kernels take bytes + 128
        if _C:
            _C.weave(np.ascontiguousarray(data), o, flip, words, *halves, *[None] * (2 - len(halves)))
        else:
            _weave(data.reshape(o, blocks, FORMATS[format]), flip, words, *halves)
        return cls(format, shape, words, *halves)

    def to_blocks(self):
        """-> uint8 (O, bytes of a row): what from_blocks takes, byte for byte."""
        words, (o, i) = _unweave(self.words, self.shape[0]), self.shape
        if self.format == "bf16":
            return np.ascontiguousarray(words.view(np.uint8).reshape(o, 64 * words.shape[1])[:, : 2 * i])
        words = words ^ np.uint32(0x80808080) if self.format == "q8_0" else words
        halves = [_unweave(a[:, :, None], o) for a in (self.scales, self.mins) if a is not None]
        return np.concatenate([a.view(np.uint8) for a in (*halves, words)], 2).reshape(o, i // BLOCK * FORMATS[self.format])

    def dequantize(self):
        """-> float32 (O, I)."""
        blocks, (o, i) = self.to_blocks(), self.shape
        if self.format == "bf16":
            return (blocks.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
        blocks = blocks.reshape(o, i // BLOCK, FORMATS[self.format])
        head = FORMATS[self.format] - 4 * _WORDS[self.format]
        halves = np.ascontiguousarray(blocks[:, :, :head]).view(np.float16).astype(np.float32)
        quants = blocks[:, :, head:]
        if self.format == "q8_0":
            values = quants.view(np.int8).astype(np.float32)
        else:
            values = np.concatenate([quants & 15, quants >> 4], 2).astype(np.float32) - np.float32(8 if self.format == "q4_0" else 0)
        values = values * halves[:, :, :1]
        return (values + halves[:, :, 1:] if self.format == "q4_1" else values).reshape(o, i)


def check(where, format, shape):
    """ValueError unless the format is known and fits the shape."""
    if format not in FORMATS:
        raise ValueError(f"{where}: format={format!r}; expected one of {', '.join(FORMATS)}")
    if len(shape) != 2:
        raise ValueError(f"{where}: shape {tuple(shape)}; expected (O, I)")
    if format != "bf16" and shape[1] % BLOCK:
        raise ValueError(f"{where}: {format} takes rows of a multiple of {BLOCK} weights, got {shape[1]} in {tuple(shape)}. "
                         "Hint: bf16 takes any length")


def _weave(data, flip, words, *halves):
    """data: uint8 (O, blocks, bytes) -> its float16s into halves, its words ^ flip into words, 0 where rows fill up the last panel."""
    for part, woven in ((data[:, :, 2 * len(halves) :].copy().view(np.uint32) ^ np.uint32(flip), words),
                        *((data[:, :, 2 * n : 2 * n + 2].copy().view(np.uint16), half[:, :, None]) for n, half in enumerate(halves))):
        o, blocks, g = part.shape
        part = np.concatenate([part, np.zeros((-o % WOVEN, blocks, g), part.dtype)])
        woven[...] = part.reshape(-1, WOVEN, blocks, g).transpose(0, 2, 3, 1)


def _unweave(x, rows):
    """(O / 32, blocks, G, 32) -> (O, blocks, G)."""
    panels, blocks, g, _ = x.shape
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(panels * WOVEN, blocks, g)[:rows])


def _blocks(x, format):
    """x:(O, I) float32 -> the bytes of its blocks: ggml's quantize_row_*_ref in NumPy."""
    if not np.isfinite(x).all():
        raise ValueError(f"Packed.quantize: NaN or infinity at {tuple(np.argwhere(~np.isfinite(x))[0].tolist())}; expected finite weights")
    if format == "bf16":
        bits = x.view(np.uint32)
        return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)).astype(np.uint16).view(np.uint8).ravel()
    x = x.reshape(-1, BLOCK)
    element = lambda index: np.take_along_axis(x, index[:, None], 1)
    if format == "q8_0":
        scale = np.abs(x).max(1, keepdims=True, initial=0) / np.float32(127)
    elif format == "q4_0":  # of the element farthest from 0, the first of them, which becomes -8
        scale = element(np.abs(x).argmax(1)) / np.float32(-8)
    else:
        low = element(x.argmin(1))  # the first of equal ones: 0 or -0
        scale = (element(x.argmax(1)) - low) / np.float32(15)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        halves = scale.astype(np.float16)
        if format == "q8_0":
            size = np.abs(x * inverse)
            whole = np.floor(size)
            quants = np.copysign(whole + (size - whole >= 0.5), x).astype(np.int8).view(np.uint8)  # halves away from 0
        else:
            scaled = x * inverse + np.float32(8.5) if format == "q4_0" else (x - low) * inverse + np.float32(0.5)
            quants = np.minimum(scaled.astype(np.uint8), 15)
            quants = quants[:, :16] | quants[:, 16:] << 4
        if format == "q4_1":
            halves = np.concatenate([halves, low.astype(np.float16)], 1)
    if not np.isfinite(halves).all():
        raise ValueError(f"Packed.quantize: weights up to {np.abs(x).max():g}; a block's scale must fit in float16 (65504)")
    return np.concatenate([halves.view(np.uint8), quants], 1).ravel()
