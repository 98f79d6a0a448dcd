"""The safetensors container: 8 bytes little-endian header length, JSON header, raw little-endian tensors.

    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {"key": "text"}}

Offsets count from the end of the header. Source: the format section of the safetensors README. The reader is strict: the
buffer is covered exactly once, and a key that stands twice, which the reference reader accepts, is refused, as are a header
that does not begin with "{", a zero-size shape that NumPy cannot hold, bools other than 0 and 1, and sub-byte types.

NumPy has no bfloat16 and no float8. Their tensors come as one-field structured arrays (`BF16`, `F8_E4M3`, `F8_E5M2`): mapped
without a copy, shaped and sliced like any array, known by their dtype, and refused by arithmetic. `to_float32` gives the values.
"""
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllm.errors import FormatError
from pyllm.io.files import map_file, parse_json, read_json, write_atomic, write_json

BF16 = np.dtype([("bf16", "<u2")])
F8_E4M3 = np.dtype([("f8_e4m3", "u1")])
F8_E5M2 = np.dtype([("f8_e5m2", "u1")])
DTYPES = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "BF16": BF16, "F8_E4M3": F8_E4M3, "F8_E5M2": F8_E5M2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the reference's limit


@dataclass(frozen=True)
class Entry:
    """One tensor of a header; begin and end are bytes from the end of the header."""

    dtype: np.dtype
    shape: tuple
    begin: int
    end: int


# ---- reading

def read(path, mmap=True, private=False):
    """The tensors of a file as {name: array}, in the order of the file.

    mmap=True: read-only views of the mapped file, see files.map_file, or with `private` views that can be written to without reaching the
    file. mmap=False: writable, one read. A tensor that does not lie aligned in the file comes as an aligned copy. Raises FormatError
    naming file and tensor.
    """
    entries, _, start = _read_header(path)
    size = max((e.end for e in entries.values()), default=0)
    if mmap and size:
        buffer = map_file(path, private)[start:]
        if len(buffer) < size:
            raise FormatError(f"{path}: the file was shortened while it was opened")
    else:
        buffer = np.empty(size, np.uint8)
        with open(path, "rb") as file:
            file.seek(start)
            if file.readinto(buffer) != size:
                raise FormatError(f"{path}: the file was shortened while it was read")
    return {name: _tensor(buffer, entry, path, name) for name, entry in entries.items()}


def read_header(path):
    """({name: Entry}, metadata {str: str}) of a file; reads and checks the header alone."""
    entries, metadata, _ = _read_header(path)
    return entries, metadata


def read_shards(folder, private=False):
    """The weights of a model folder as {name: array}: model.safetensors, or the files that model.safetensors.index.json names.

    Every tensor must be where the index says, and the files hold no other. An index may only name files in its own folder.
    private: see read.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        return read(folder / "model.safetensors", private=private)
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for other in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*")) + sorted(folder.glob("*.ckpt")):
            with open(other, "rb") as file:
                refuse_archive(file.read(4096), other)
        raise FileNotFoundError(f"{folder}: neither model.safetensors nor model.safetensors.index.json is there")
    document = read_json(index)
    where = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(where, dict) or not where:
        raise FormatError(f"{index}: key 'weight_map' must be an object of tensor names and file names")
    for name, file in where.items():
        plain = isinstance(file, str) and file not in ("", ".", "..") and not re.search(r'[/\\:\0]', file)
        if not plain:
            raise FormatError(f"{index}: weight_map[{name!r}] is {file!r}; expected the plain name of a file in this folder")
    tensors = {}
    for file in dict.fromkeys(where.values()):
        if not (folder / file).is_file():
            raise FormatError(f"{index}: names {file!r}, which is not in the folder")
        found = read(folder / file, private=private)
        wanted = {name for name, place in where.items() if place == file}
        if wanted != found.keys():
            wrong = sorted(wanted ^ found.keys())
            raise FormatError(f"{folder / file}: differs from {index.name} in {len(wrong)} tensors: {', '.join(wrong[:5])}")
        tensors |= found
    return tensors


def _read_header(path):
    """-> (entries, metadata, offset of the buffer)"""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4096)
        if len(head) < 8 or head[8:9] != b"{":
            refuse_archive(head, path)
        if len(head) < 8:
            raise FormatError(f"{path}: {size} bytes; a safetensors file has at least 8")
        length = int.from_bytes(head[:8], "little")
        if length > MAX_HEADER:
            raise FormatError(f"{path}: header length {length} is over {MAX_HEADER}: not a safetensors file")
        if length > size - 8:
            raise FormatError(f"{path}: header length {length}, but only {size - 8} bytes follow: the file is cut short")
        if head[8:9] != b"{":
            raise FormatError(f"{path}: the header must begin with '{{'")
        file.seek(8)
        text = file.read(length)
    header = parse_json(text, f"{path} (header)", max_depth=16)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map strings to strings, got {_short(metadata)}")
    entries = {name: _entry(info, path, name) for name, info in header.items()}
    # Sorted by offset the tensors must lie end to end and fill the buffer: no overlap, no hole, nothing behind the last.
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {name!r} begins at byte {entry.begin}, expected {at}: it {kind}")
        at = entry.end
    if at != size - 8 - length:
        raise FormatError(f"{path}: the tensors take {at} bytes, the file has {size - 8 - length} for them")
    return entries, metadata, 8 + length


def _entry(info, path, name):
    def fail(text):
        raise FormatError(f"{path}: tensor {_short(name)}: {text}")

    try:
        name.encode()
    except UnicodeEncodeError:
        fail("the name is not valid Unicode")
    if not isinstance(info, dict) or not {"dtype", "shape", "data_offsets"} <= info.keys():
        fail(f"expected an object with dtype, shape and data_offsets, got {_short(info)}")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        fail(f"dtype {_short(dtype)} is not one of {' '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        fail(f"shape {_short(shape)} is not a list of whole numbers from 0 to 2^63 - 1")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        fail(f"data_offsets {_short(offsets)} are not two whole numbers of at least 0")
    dtype, (begin, end) = DTYPES[dtype], offsets
    need = dtype.itemsize
    for n in shape:
        need *= n
        if need >= 1 << 63:
            fail(f"shape {_short(shape)} has more than 2^63 bytes")
    if end - begin != need:
        fail(f"shape {_short(shape)} of {_NAMES[dtype]} needs {need} bytes, data_offsets {offsets} give {end - begin}")
    if len(shape) > 32:
        fail(f"{len(shape)} dimensions; at most 32 are supported")
    return Entry(dtype, tuple(shape), begin, end)


def _tensor(buffer, entry, path, name):
    data = buffer[entry.begin:entry.end]
    if data.ctypes.data % entry.dtype.itemsize:
        data = data.copy()
    if entry.dtype == np.bool_ and data.size and data.max() > 1:
        raise FormatError(f"{path}: tensor {_short(name)}: a BOOL of value {data.max()}; expected 0 or 1")
    try:
        return data.view(entry.dtype).reshape(entry.shape)
    except ValueError as error:
        raise FormatError(f"{path}: tensor {_short(name)}: shape {_short(entry.shape)}: {error}") from None


def refuse_archive(head, path):
    """FormatError for PyTorch's own files, known by content: opening them runs code that they hold."""
    zipped = head[:4] == b"PK\x03\x04"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" or zipped:
        inside = " (a zip archive with data.pkl)" if zipped and b"data.pkl" in head else ""
        raise FormatError(
            f"{path}: a PyTorch file{inside}. Opening one can run code hidden in it, so pyllm never does. "
            "If you trust it, convert it once where PyTorch is installed: from safetensors.torch import save_file; "
            "save_file(torch.load(path, weights_only=True), 'model.safetensors')")


def _short(value):
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---- writing

def write(path, tensors, metadata=None):
    """Write {name: array} atomically; tensors go to the disk one by one, no second copy of a contiguous array is made.

    Sorted by element size (largest first, so that all lie aligned) and then by name: equal tensors give equal files.
    metadata: {str: str}. Raises TypeError for a dtype the format has not, OSError when the disk is full (the old file stays).
    """
    if not all(isinstance(x, str) for pair in (metadata or {}).items() for x in pair):
        raise TypeError(f"safetensors.write: metadata must map strings to strings, got {_short(metadata)}")
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    kinds = {name: _kind(name, array) for name, array in tensors.items()}
    names = sorted(tensors, key=lambda name: (-DTYPES[kinds[name]].itemsize, name))
    at = 0
    for name in names:
        size = tensors[name].size * DTYPES[kinds[name]].itemsize
        header[name] = {"dtype": kinds[name], "shape": list(tensors[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"safetensors.write: the header for {len(names)} tensors has {len(text)} bytes, over {MAX_HEADER}")

    def chunks():
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            array = tensors[name]
            if array.dtype.kind in "iuf":
                array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    write_atomic(path, chunks(), size=8 + len(text) + at)


def write_shards(folder, tensors, limit, metadata=None):
    """Write {name: array} as model.safetensors, or beyond `limit` bytes as numbered files, in the order given, and their index.

    A tensor is never divided: a file holds at least one, however large.
    """
    files, sizes = [{}], [0]
    for name, array in tensors.items():
        if files[-1] and sizes[-1] + array.nbytes > limit:
            files.append({})
            sizes.append(0)
        files[-1][name] = array
        sizes[-1] += array.nbytes
    if len(files) == 1:
        return write(Path(folder) / "model.safetensors", tensors, metadata)
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for file, part in zip(names, files):
        write(Path(folder) / file, part, metadata)
    where = {name: file for file, part in zip(names, files) for name in part}
    write_json(Path(folder) / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes)}, "weight_map": where})


def dtype_name(dtype):
    """-> the format's name for a dtype of `read`."""
    return _NAMES[dtype]


def _kind(name, array):
    """The format's name for the dtype of `array`."""
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"safetensors.write: {name!r} cannot be the name of a tensor")
    if not isinstance(array, np.ndarray):
        raise TypeError(f"safetensors.write: tensor {name!r} is a {type(array).__name__}, expected a NumPy array")
    dtype = array.dtype if array.dtype.names else array.dtype.newbyteorder("<")
    kind = "BF16" if dtype.name == "bfloat16" else _NAMES.get(dtype)
    if kind is None:
        raise TypeError(f"safetensors.write: tensor {name!r} has dtype {array.dtype}, expected one of {' '.join(DTYPES)}")
    return kind


# ---- values

def to_float32(array):
    """(...) BF16, F8, F16, F32 or F64 array -> (...) float32 values; float32 comes back as it is, without a copy."""
    if array.dtype == BF16:
        return (array["bf16"].astype(np.uint32) << 16).view(np.float32)
    if array.dtype == F8_E4M3:
        return _f8_values(mantissa=3)[array["f8_e4m3"]]
    if array.dtype == F8_E5M2:
        return _f8_values(mantissa=2)[array["f8_e5m2"]]
    if array.dtype.kind != "f":
        raise TypeError(f"to_float32: dtype {array.dtype}, expected a floating-point one")
    return array.astype(np.float32, copy=False)


def to_bf16(array):
    """(...) float32 -> (...) BF16, rounded to nearest, ties to even; NaN stays NaN, over the range gives infinity."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + 0x7FFF)
    quiet = bits | 0x400000
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).__rshift__(16).astype("<u2").view(BF16).reshape(array.shape)


def to_f16(array):
    """(...) float32 -> (...) float16; ValueError where a value is beyond its range."""
    with np.errstate(over="ignore"):
        half = np.asarray(array).astype(np.float16)
    if not np.isfinite(half).all() and np.isfinite(array).all():
        raise ValueError(f"to_f16: values up to {np.abs(array).max():g}; float16 ends at 65504. Hint: bf16 has the range of float32")
    return half


def _f8_values(mantissa):
    """(256,) float32: the value of each byte. E4M3 has no infinity and one NaN; E5M2 is IEEE. Source: arXiv:2209.05433."""
    code = np.arange(256)
    bias = (1 << (6 - mantissa)) - 1
    exponent, fraction = (code & 127) >> mantissa, (code & ((1 << mantissa) - 1)) / (1 << mantissa)
    value = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    if mantissa == 3:
        value[(code & 127) == 127] = np.nan
    else:
        value[(code & 127) == 0x7C] = np.inf
        value[(code & 127) > 0x7C] = np.nan
    return np.where(code >= 128, -value, value).astype(np.float32)
