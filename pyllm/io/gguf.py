"""The GGUF container: metadata of typed keys, a table of tensors, aligned little-endian data.

    "GGUF", u32 version, u64 tensors, u64 keys; keys: name, u32 type, value; tensors: name, u32 dimensions, u64 each (the innermost first),
    u32 type, u64 offset from the end of the table, which is padded to general.alignment; a name is u64 length and UTF-8.

Source: ggml's docs/gguf.md. The reader is strict: tensors lie in order, one after the other, and end with the file; no name stands twice.
"""
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError
from .files import map_file, write_atomic
from .ggml import KINDS, Blocks, bytes_of, kind_of
from .safetensors import DTYPES, refuse_archive

MAGIC = b"GGUF"
TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
         14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
UNREAD = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 29: "IQ1_M",
          34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
_IDS = {name: i for i, name in TYPES.items()}
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
BOOL, STRING, ARRAY = 7, 8, 9
MAX_STRINGS = 1 << 20  # of all arrays together: their Python objects take more memory than their bytes
MAX_NAME = (1 << 16) - 1  # bytes of a key or of a tensor's name
MAX_DIMENSIONS = 4


# ---- reading

def read(path, private=False):
    """-> (metadata {key: value}, tensors {name: array or Blocks}) of a file, in its order.

    Values are bool, int, float, str, NumPy arrays, and lists for arrays of strings or of arrays; a float32 comes as the shortest decimal
    that rounds to it (1e-05, not 9.999999747378752e-06). Tensors are read-only views of the mapped file; shapes are NumPy's, the innermost
    dimension last. private: views that can be written to without reaching the file. FormatError names file, key and tensor.
    """
    buffer = map_file(path, private)
    refuse_archive(bytes(buffer[:4096]), path)
    reader = _Reader(buffer, path)
    metadata, infos, start = reader.header()
    return metadata, {name: _tensor(buffer[start + at :], kind, shape) for name, (kind, shape, at) in infos.items()}


class _Reader:
    """A position in the bytes of a file; every read is checked against their end."""

    def __init__(self, buffer, path):
        self.buffer, self.view, self.path, self.at, self.where, self.strings = buffer, memoryview(buffer), path, 0, "header", 0

    def fail(self, text):
        raise FormatError(f"{self.path}: {self.where}: {text}")

    def bytes(self, count):
        if count > len(self.view) - self.at:
            self.fail(f"needs {count} bytes at {self.at}, the file has {len(self.view)}: it is cut short")
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, layout="<Q"):
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))[0]

    def text(self, limit=None):
        size = self.number()
        if limit is not None and size > limit:
            self.fail(f"a name of {size} bytes, at most {limit}")
        try:
            return str(self.bytes(size), "utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8: {error.reason}")

    def header(self):
        """-> (metadata, {name: (type, shape, offset)}, where the data begins)"""
        if bytes(self.view[:4]) != MAGIC:
            self.fail(f"begins with {bytes(self.view[:4])!r}, expected {MAGIC!r}: not a GGUF file")
        self.at = 4
        version = self.number("<I")
        if version not in (2, 3):
            other = "a big-endian file" if version in (2 << 24, 3 << 24) else f"version {version}"
            self.fail(f"{other}; expected version 2 or 3, little-endian")
        tensors, keys = self.number(), self.number()
        least = {"tensors": (tensors, 24), "keys": (keys, 13)}  # bytes that the shortest of each takes
        for what, (count, size) in least.items():
            if count > (len(self.view) - self.at) // size:
                self.fail(f"{count} {what}, more than the file has room for")
        metadata = {}
        for _ in range(keys):
            self.where = "metadata"
            key = self.text(MAX_NAME)
            self.where = f"key {key!r:.80}"
            if key in metadata:
                self.fail("stands twice")
            metadata[key] = self.value(self.number("<I"))
        self.where = "key 'general.alignment'"
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & alignment - 1:
            self.fail(f"{alignment!r:.40}; expected a power of 2 up to 2^20")
        infos = {}
        for _ in range(tensors):
            self.where = "tensors"
            name = self.text(MAX_NAME)
            self.where = f"tensor {name!r:.80}"
            if name in infos:
                self.fail("stands twice")
            infos[name] = self.info()
        start = -(-self.at // alignment) * alignment
        self.layout(infos, start, alignment)
        return metadata, infos, start

    def value(self, kind, depth=0):
        if kind in SCALARS:
            if kind == BOOL:
                byte = self.number("<B")
                return bool(byte) if byte < 2 else self.fail(f"a bool of value {byte}; expected 0 or 1")
            value = self.number(SCALARS[kind])
            return float(str(np.float32(value))) if SCALARS[kind] == "<f" else value
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            self.fail(f"type {kind} of a value; expected 0 to 12")
        if depth > 3:
            self.fail("arrays nested deeper than 4")
        kind, count = self.number("<I"), self.number()
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            found = np.frombuffer(self.bytes(count * dtype.itemsize), np.uint8 if kind == BOOL else dtype).copy()
            if kind == BOOL and found.size and found.max() > 1:
                self.fail(f"a bool of value {found.max()}; expected 0 or 1")
            return found.astype(bool) if kind == BOOL else found
        self.strings += count
        if self.strings > MAX_STRINGS:
            self.fail(f"arrays of {self.strings} strings in the file, at most {MAX_STRINGS}")
        return self.texts(count) if kind == STRING else [self.value(kind, depth + 1) for _ in range(count)]

    def texts(self, count):
        """-> list of `count` strings: the loop that a large vocabulary is read with."""
        view, at, end, unpack, found = self.view, self.at, len(self.view), struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            size = unpack(view, at)[0] if at + 8 <= end else end
            at += 8 + size
            if at > end:
                self.fail("a string goes beyond the end of the file: it is cut short")
            try:
                found.append(str(view[at - size : at], "utf-8"))
            except UnicodeDecodeError as error:
                self.fail(f"string {len(found)} is not UTF-8: {error.reason}")
        self.at = at
        return found

    def info(self):
        """-> (type, shape, offset) of the next tensor."""
        dimensions = self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            self.fail(f"{dimensions} dimensions, at most {MAX_DIMENSIONS}")
        shape = tuple(self.number() for _ in range(dimensions))[::-1]
        kind, offset = self.number("<I"), self.number()
        if kind not in TYPES:
            self.fail(f"type {UNREAD.get(kind, 'unknown')} ({kind}) is not read; expected one of {', '.join(TYPES.values())}")
        size = 8
        for n in shape:
            size *= max(n, 1)  # NumPy's limit, too, passes over a 0
            if size >= 1 << 63:
                self.fail(f"shape {shape} has more than 2^63 bytes")
        kind = TYPES[kind]
        if kind not in DTYPES and (not shape or shape[-1] % KINDS[kind][0]):
            self.fail(f"shape {shape}: rows of {kind} are a multiple of {KINDS[kind][0]} weights")
        return kind, shape, offset

    def layout(self, infos, start, alignment):
        """FormatError unless the tensors lie one after the other, each at the next multiple of the alignment, up to the end."""
        at = end = 0
        for name, (kind, shape, offset) in infos.items():
            self.where = f"tensor {name!r:.80}"
            if offset != at:
                wrong = "overlaps the tensor before it" if offset < end else "leaves a hole before it" if offset > at else "is not aligned"
                self.fail(f"begins at byte {offset}, expected {at}: it {wrong}")
            end = at + bytes_of(kind, math.prod(shape))
            if start + end > len(self.view):
                self.fail(f"{kind} {shape} ends at byte {start + end}, the file has {len(self.view)}: it is cut short")
            at = -(-end // alignment) * alignment
        self.where = "end"
        if len(self.view) > max(start + at, self.at):
            self.fail(f"{len(self.view)} bytes, the tensors end at {start + at}")


def _tensor(buffer, kind, shape):
    size = bytes_of(kind, math.prod(shape))
    data = buffer[:size]
    if kind not in DTYPES:
        return Blocks(kind, shape, data.reshape(*shape[:-1], bytes_of(kind, shape[-1])))
    if data.ctypes.data % DTYPES[kind].itemsize:
        data = data.copy()
    return data.view(DTYPES[kind]).reshape(shape)


# ---- writing

@dataclass(frozen=True)
class Later:
    """A tensor that is made when its turn to be written comes; make() -> an array or Blocks of this kind and shape."""

    kind: str
    shape: tuple
    make: Callable


def write(path, metadata, tensors, alignment=32):
    """Writes version 3 atomically; tensors: {name: array, Blocks or Later}, written one by one.

    metadata: {key: bool, int, float, str, array, or list of strings or numbers}; an int is written as UINT32 where it fits, a float as
    FLOAT32, and larger ones in 64 bits. TypeError names what the format has no type for.
    """
    metadata = {**metadata, **({"general.alignment": alignment} if alignment != 32 else {})}
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_text(key), _value(key, value)]
    at = 0
    for name, tensor in tensors.items():
        kind, shape = tensor.kind if isinstance(tensor, Later) else kind_of(tensor), tensor.shape
        if kind not in _IDS:
            raise TypeError(f"gguf.write: tensor {name!r} is {kind}, expected one of {', '.join(_IDS)}")
        if len(shape) > MAX_DIMENSIONS:
            raise TypeError(f"gguf.write: tensor {name!r} of shape {shape}; at most {MAX_DIMENSIONS} dimensions")
        head += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], _IDS[kind], at)]
        at += -(-bytes_of(kind, math.prod(shape)) // alignment) * alignment
    head = b"".join(head)
    head += bytes(-len(head) % alignment)

    def chunks():
        yield head
        for tensor in tensors.values():
            tensor = tensor.make() if isinstance(tensor, Later) else tensor
            data = tensor.data if isinstance(tensor, Blocks) else tensor
            if data.dtype.kind in "iuf":
                data = data.astype(data.dtype.newbyteorder("<"), copy=False)
            yield np.ascontiguousarray(data).reshape(-1).view(np.uint8)
            yield bytes(-data.nbytes % alignment)

    write_atomic(path, chunks(), size=len(head) + at)


def _text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


_CODES = {np.dtype(layout): code for code, layout in SCALARS.items()}


def _value(key, value):
    """-> the bytes of a type and a value."""
    if isinstance(value, (np.generic, np.ndarray)):
        code = _CODES.get(value.dtype.newbyteorder("<"))
        if code is None or value.ndim > 1:
            raise TypeError(f"gguf.write: key {key!r} is {value.dtype} {value.shape}, expected numbers or bools in one dimension")
        data = value.astype(value.dtype.newbyteorder("<")).tobytes()
        return struct.pack("<I", code) + data if value.ndim == 0 else struct.pack("<IIQ", ARRAY, code, value.size) + data
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, int):
        code = next((c for c, low, high in ((4, 0, 32), (5, -1, 31), (10, 0, 64), (11, -1, 63)) if low << high <= value < 1 << high), None)
        if code is not None:
            return struct.pack("<I", code) + struct.pack(SCALARS[code], value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value) if _fits(value) else struct.pack("<Id", 12, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, (list, tuple)) and value and all(type(v) in (int, bool) for v in value):
        dtype = next((d for d in (np.int32, np.int64) if np.iinfo(d).min <= min(value) and max(value) <= np.iinfo(d).max), None)
        if dtype:
            return _value(key, np.array(value, bool if all(type(v) is bool for v in value) else dtype))
    if isinstance(value, (list, tuple)) and value and all(type(v) is float for v in value):
        return _value(key, np.array(value, np.float32 if all(map(_fits, value)) else np.float64))
    raise TypeError(f"gguf.write: key {key!r} is {value!r:.60} ({type(value).__name__}), which the format has no type for")


def _fits(value):
    return not math.isfinite(value) or abs(value) <= float(np.finfo(np.float32).max)
