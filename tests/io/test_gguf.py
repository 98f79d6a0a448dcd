"""GGUF: round trips, every type of value and of tensor, odd files, mutants."""
import struct
import time

import numpy as np
import pytest

from pyllm.errors import FormatError
from pyllm.io import gguf
from pyllm.io.ggml import KINDS, Blocks, bytes_of, float32, kind_of
from pyllm.io.safetensors import to_bf16
from pyllm.kernels.packed import Packed

QUANTISED = [kind for kind in KINDS if KINDS[kind][0] > 1]
RNG = np.random.default_rng(0)
PLAIN = {"f32": RNG.standard_normal((3, 5)).astype(np.float32), "f16": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
         "i8": np.arange(-2, 2, dtype=np.int8), "i16": np.arange(3, dtype=np.int16), "i32": np.arange(3, dtype=np.int32),
         "i64": np.arange(3, dtype=np.int64), "f64": np.array(2.5), "none": np.empty((0, 4), np.float32),
         "bf16": to_bf16(RNG.standard_normal((2, 3)).astype(np.float32))}
VALUES = {"bool": True, "int": 7, "negative": -7, "large": 2**40, "largest": 2**64 - 1, "float": 1e-5, "text": "grüße", "empty": "",
          "texts": ["a", "", "b c"], "bools": np.array([True, False]), **{f"{d}": np.arange(3, dtype=d) for d in (
              "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8")}}


def blocks(kind, rows=3, count=2):
    """Random blocks with finite scales."""
    weights, size, _ = KINDS[kind]
    data = RNG.integers(0, 256, (rows, count * size), np.uint8)
    scaled = data.reshape(-1, size)
    for at in {"Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}.get(kind, (0,)):
        scaled[:, at : at + 2] = RNG.standard_normal((len(scaled), 1)).astype("<f2").view(np.uint8)
    return Blocks(kind, (rows, count * weights), data)


def text(value):
    return struct.pack("<Q", len(value)) + value


def file(keys=(), tensors=(), data=b"", version=3, counts=None, alignment=32):
    """A file's bytes; keys: bytes of each, tensors: (name, dims, type, offset)."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys)))) + b"".join(keys)
    for name, dims, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + bytes(-len(head) % alignment if tensors else 0) + data


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def test_round_trip(tmp_path):
    tensors = {**PLAIN, **{kind: blocks(kind) for kind in QUANTISED}}
    gguf.write(tmp_path / "x.gguf", VALUES, {n: gguf.Later("F16", t.shape, lambda t=t: t) if n == "f16" else t for n, t in tensors.items()})
    metadata, found = gguf.read(tmp_path / "x.gguf")
    assert list(metadata) == list(VALUES) and list(found) == list(tensors)
    for name, value in VALUES.items():
        np.testing.assert_array_equal(metadata[name], value)
        assert type(metadata[name]) is type(value) and getattr(metadata[name], "dtype", 0) == getattr(value, "dtype", 0)
    for name, tensor in tensors.items():
        assert kind_of(found[name]) == kind_of(tensor) and found[name].shape == tensor.shape and found[name].nbytes == tensor.nbytes
        if isinstance(tensor, Blocks):
            assert np.array_equal(found[name].data, tensor.data) and np.array_equal(float32(found[name]), float32(tensor))
        else:
            assert found[name].tobytes() == tensor.tobytes() and not found[name].flags.writeable
    gguf.write(tmp_path / "y.gguf", metadata, found)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_lists_and_numbers_take_the_type_that_holds_them(tmp_path):
    values = {"a": [-1, 2], "b": [-1, 2**40], "c": [0.5], "d": [1e300], "e": [True, False], "f": 1e300}
    gguf.write(tmp_path / "x.gguf", values, {})
    found = gguf.read(tmp_path / "x.gguf")[0]
    assert found.pop("f") == 1e300
    assert {key: value.dtype.str for key, value in found.items()} == {"a": "<i4", "b": "<i8", "c": "<f4", "d": "<f8", "e": "|b1"}
    assert all(value.tolist() == values[key] for key, value in found.items())


def test_version_2_and_other_alignments(tmp_path):
    gguf.write(tmp_path / "x.gguf", {"a": 1}, PLAIN, alignment=64)
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[:4] + b"\2" + data[5:])
    metadata, found = gguf.read(tmp_path / "x.gguf")
    assert metadata == {"a": 1, "general.alignment": 64} and found["i64"].tolist() == [0, 1, 2]


def test_nested_arrays_and_the_shortest_decimal(tmp_path):
    nested = struct.pack("<IQ", 9, 2) + 2 * (struct.pack("<IQ", 5, 2) + struct.pack("<2i", 1, -1))
    (tmp_path / "x").write_bytes(file([key(b"a", 9, nested), key(b"b", 6, struct.pack("<f", 1e-6)), key(b"c", 12, struct.pack("<d", 0.1))]))
    metadata, _ = gguf.read(tmp_path / "x")
    assert [a.tolist() for a in metadata["a"]] == [[1, -1], [1, -1]] and metadata["b"] == 1e-6 and metadata["c"] == 0.1


@pytest.mark.parametrize("format", ["q8_0", "q4_0", "q4_1"])
def test_blocks_of_the_kernels_have_the_same_values(format):
    packed = Packed.quantize(RNG.standard_normal((5, 96)).astype(np.float32), format)
    assert np.array_equal(Blocks(format.upper(), packed.shape, packed.to_blocks()).float32(), packed.dequantize())


def test_rows_in_another_order():
    """Blocks over a view of the file: rows turned as heads of rotary positions are, computed in parts."""
    tensor = blocks("Q5_K", 12, 3)
    turned = Blocks("Q5_K", tensor.shape, tensor.data.reshape(3, 2, 2, -1).swapaxes(1, 2))
    expected = tensor.float32().reshape(3, 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)
    assert np.array_equal(turned.float32(), expected)


def test_what_the_format_cannot_hold(tmp_path):
    for bad in ({"a": None}, {"a": []}, {"a": 2**64}, {"a": [1, 2**63]}, {"a": ["x", 1]}, {"a": np.zeros((2, 2))}, {"a": np.complex64(1)}):
        with pytest.raises(TypeError, match="gguf.write: key 'a'"):
            gguf.write(tmp_path / "x", bad, {})
    with pytest.raises(TypeError, match="tensor 'b' is U8, expected one of F32"):
        gguf.write(tmp_path / "x", {}, {"b": np.zeros(3, np.uint8)})
    with pytest.raises(TypeError, match="at most 4 dimensions"):
        gguf.write(tmp_path / "x", {}, {"b": np.zeros((1,) * 5, np.float32)})
    assert not list(tmp_path.iterdir())


ONE = (b"t", (4,), 0, 0)
ODD = {  # name: (bytes, what the message says)
    "empty": (b"", "not a GGUF file"),
    "another magic": (b"GGML" + bytes(40), "begins with b'GGML'"),
    "cut in the header": (b"GGUF\3\0\0\0", "cut short"),
    "version 1": (file(version=1), "version 1; expected version 2 or 3"),
    "big-endian": (file(version=3 << 24), "a big-endian file"),
    "many keys": (file(counts=(0, 2**60)), "keys, more than the file has room for"),
    "many tensors": (file(counts=(2**63, 0)), "tensors, more than the file has room for"),
    "long key": (file([text(b"k" * 70000) + struct.pack("<IB", 7, 1)]), "a name of 70000 bytes"),
    "key of 2^64 bytes": (file([struct.pack("<Q", 2**64 - 1) + bytes(40)]), "a name of"),
    "key twice": (file([key(b"a", 7, b"\1")] * 2), "key 'a': stands twice"),
    "key not UTF-8": (file([key(b"\xff", 7, b"\1")]), "not UTF-8"),
    "text not UTF-8": (file([key(b"a", 8, text(b"\xff"))]), "key 'a': not UTF-8"),
    "string not UTF-8": (file([key(b"a", 9, struct.pack("<IQ", 8, 2) + text(b"b") + text(b"\xff"))]), "key 'a': string 1 is not UTF-8"),
    "unknown type": (file([key(b"a", 13, bytes(8))]), "type 13 of a value"),
    "bool of 2": (file([key(b"a", 7, b"\2")]), "a bool of value 2"),
    "bools of 3": (file([key(b"a", 9, struct.pack("<IQ", 7, 2) + b"\1\3")]), "a bool of value 3"),
    "long array": (file([key(b"a", 9, struct.pack("<IQ", 4, 2**62))]), "cut short"),
    "many strings": (file([key(b"a", 9, struct.pack("<IQ", 8, 2**61))]), "strings in the file, at most"),
    "string beyond the end": (file([key(b"a", 9, struct.pack("<IQ", 8, 2) + text(b"b") + struct.pack("<Q", 2**40))]), "cut short"),
    "deep arrays": (file([key(b"a", 9, struct.pack("<IQ", 9, 1) * 40)]), "nested deeper"),
    "alignment 0": (file([key(b"general.alignment", 4, bytes(4))]), "power of 2"),
    "alignment 24": (file([key(b"general.alignment", 4, struct.pack("<I", 24))]), "power of 2"),
    "alignment a text": (file([key(b"general.alignment", 8, text(b"32"))]), "power of 2"),
    "tensor twice": (file(tensors=[ONE, ONE], data=bytes(64)), "tensor 't': stands twice"),
    "5 dimensions": (file(tensors=[(b"t", (1,) * 5, 0, 0)], data=bytes(32)), "5 dimensions"),
    "many dimensions": (file(counts=(1, 0))[:24] + text(b"t") + struct.pack("<I", 2**32 - 1) + bytes(40), "4294967295 dimensions"),
    "unread type": (file(tensors=[(b"t", (256,), 16, 0)], data=bytes(96)), r"type IQ2_XXS \(16\) is not read; expected one of F32"),
    "no type": (file(tensors=[(b"t", (4,), 77, 0)], data=bytes(32)), r"type unknown \(77\)"),
    "shape wraps": (file(tensors=[(b"t", (2**32, 2**32), 0, 0)], data=bytes(32)), "more than 2\\^63"),
    "zero-size over NumPy": (file(tensors=[(b"t", (0, 2**62), 0, 0)], data=bytes(32)), "more than 2\\^63"),
    "half a block": (file(tensors=[(b"t", (33,), 8, 0)], data=bytes(64)), "multiple of 32 weights"),
    "no row": (file(tensors=[(b"t", (), 8, 0)], data=bytes(64)), "multiple of 32 weights"),
    "beyond the end": (file(tensors=[ONE], data=bytes(15)), "cut short"),
    "overlap": (file(tensors=[ONE, (b"u", (4,), 0, 0)], data=bytes(64)), "tensor 'u': begins at byte 0, expected 32: it overlaps"),
    "hole": (file(tensors=[ONE, (b"u", (4,), 0, 64)], data=bytes(96)), "leaves a hole"),
    "not aligned": (file(tensors=[ONE, (b"u", (4,), 0, 16)], data=bytes(64)), "not aligned"),
    "offset wraps": (file(tensors=[(b"t", (4,), 0, 2**64 - 16)], data=bytes(64)), "leaves a hole"),
    "more than the tensors": (file(tensors=[ONE], data=bytes(65)), "the tensors end at"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(tmp_path, name):
    data, message = ODD[name]
    (tmp_path / "x").write_bytes(data)
    began = time.process_time()
    with pytest.raises(FormatError, match=message):
        gguf.read(tmp_path / "x")
    assert time.process_time() - began < 1


def test_the_last_tensor_may_end_the_file_unpadded(tmp_path):
    (tmp_path / "x").write_bytes(file(tensors=[ONE], data=np.arange(4, dtype="<f4").tobytes()))
    assert gguf.read(tmp_path / "x")[1]["t"].tolist() == [0, 1, 2, 3]


def test_sizes_of_types():
    assert bytes_of("BF16", 3) == 6 and bytes_of("Q6_K", 512) == 420
    with pytest.raises(ValueError, match="33 weights; Q8_0 takes a multiple of 32"):
        bytes_of("Q8_0", 33)


# ---- against the gguf package


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS)
def test_values_equal_the_packages(kind):
    peer = pytest.importorskip("gguf")
    data = RNG.integers(0, 256, (64, 3 * KINDS[kind][1]), np.uint8)
    with np.errstate(all="ignore"):
        theirs = peer.dequantize(data, peer.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(Blocks(kind, theirs.shape, data).float32(), theirs)


@pytest.mark.parity
def test_the_package_reads_what_we_write_and_we_what_it_writes(tmp_path):
    peer = pytest.importorskip("gguf")
    tensors = {**{n: t for n, t in PLAIN.items() if n not in ("none", "bf16", "f64")}, **{kind: blocks(kind) for kind in QUANTISED}}
    gguf.write(tmp_path / "x.gguf", {"general.architecture": "none", **VALUES}, tensors)
    reader = peer.GGUFReader(tmp_path / "x.gguf")
    for name, value in VALUES.items():
        got = reader.get_field(name).contents()
        np.testing.assert_array_equal(np.float32(got) if name == "float" else got, np.float32(value) if name == "float" else value)
    for found in reader.tensors:
        tensor = tensors[found.name]
        assert found.tensor_type.name == kind_of(tensor) and found.data.tobytes() == (
            tensor.data if isinstance(tensor, Blocks) else tensor).tobytes()
        assert tuple(found.shape.tolist())[::-1] == tensor.shape or tensor.ndim == 0
    writer = peer.GGUFWriter(tmp_path / "y.gguf", "none")
    writer.add_uint32("a", 3)
    writer.add_array("b", ["x", "y"])
    for name, tensor in tensors.items():
        if isinstance(tensor, Blocks):
            writer.add_tensor(name, tensor.data, raw_dtype=peer.GGMLQuantizationType[tensor.kind])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, found = gguf.read(tmp_path / "y.gguf")
    assert metadata == {"general.architecture": "none", "a": 3, "b": ["x", "y"]}
    for name, tensor in tensors.items():
        data = (found[name].data, tensor.data) if isinstance(tensor, Blocks) else (found[name], tensor)
        assert kind_of(found[name]) == kind_of(tensor) and data[0].tobytes() == data[1].tobytes()
