"""safetensors: round trips, the reference package as oracle in both directions, odd files, mutants."""
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from pyllm.errors import FormatError
from pyllm.io import safetensors as sft

ROOT = Path(__file__).parents[2]
PLAIN = [d for d in sft.DTYPES.values() if d.names is None]


def build(header, data=b"", length=None):
    """A file's bytes from a header (dict or bytes) and its buffer."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8), **extra):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}


def same(a, b):
    assert list(a) == list(b) or a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


@st.composite
def any_array(draw):
    dtype, shape = draw(st.sampled_from(list(sft.DTYPES.values()))), draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    raw = draw(hnp.arrays(np.uint8, int(np.prod(shape)) * dtype.itemsize))
    return (raw % 2 if dtype == bool else raw).view(dtype).reshape(shape)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda s: s != "__metadata__")
TENSORS = st.dictionaries(NAMES, any_array(), max_size=5)
META = st.dictionaries(NAMES, NAMES, max_size=3)


@given(TENSORS, META, st.booleans())
def test_round_trip(tmp_path_factory, tensors, metadata, mmap):
    path = tmp_path_factory.getbasetemp() / "rt.safetensors"
    sft.write(path, tensors, metadata)
    same(sft.read(path, mmap), tensors)
    assert sft.read_header(path)[1] == metadata
    once = path.read_bytes()
    sft.write(path, dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert path.read_bytes() == once and int.from_bytes(once[:8], "little") % 8 == 0


@given(TENSORS, META)
def test_the_reference_reads_what_we_write(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "ours.safetensors"
    sft.write(path, tensors, metadata)
    with safetensors.safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(tensors) and (file.metadata() or {}) == metadata
        for name, array in tensors.items():
            assert file.get_slice(name).get_shape() == list(array.shape)
            if array.dtype.names is None:
                got = file.get_tensor(name)
                assert got.dtype == array.dtype and got.tobytes() == array.tobytes()


PLAIN_ARRAYS = st.sampled_from(PLAIN).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_side=0, max_side=3)))


@given(st.dictionaries(NAMES, PLAIN_ARRAYS, max_size=4))
def test_we_read_what_the_reference_writes(tmp_path_factory, tensors):
    path = tmp_path_factory.getbasetemp() / "theirs.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors, {"format": "np"}))
    same(sft.read(path), tensors)


def test_layouts_on_writing(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {"t": x.T, "step": x[:, ::2], "negative": x[::-1], "big": x.astype(">f4"), "zero": x[:0],
             "stride0": np.broadcast_to(x[0], (3, 6))}
    sft.write(tmp_path / "x", views)
    got = sft.read(tmp_path / "x")
    for name, view in views.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], view)


def test_mapped_is_read_only_and_lies_in_the_file(tmp_path):
    sft.write(tmp_path / "x", {"odd": np.zeros(3, np.uint8), "a": np.ones((2, 2), np.float32)})
    mapped, loaded = sft.read(tmp_path / "x"), sft.read(tmp_path / "x", mmap=False)
    assert not mapped["a"].flags.writeable and not mapped["a"].flags.owndata
    loaded["a"][:] = 2
    assert mapped["a"].flags.aligned and (sft.read(tmp_path / "x")["a"] == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        mapped["a"][0, 0] = 3


def test_misaligned_tensor_comes_aligned(tmp_path):
    data = b"\x01" + np.arange(3, dtype="<f4").tobytes()
    (tmp_path / "x").write_bytes(build({"a": tensor("U8", [1], [0, 1]), "b": tensor("F32", [3], [1, 13])}, data))
    for mmap in (True, False):
        got = sft.read(tmp_path / "x", mmap)["b"]
        assert got.flags.aligned and got.ctypes.data % 4 == 0 and got.tolist() == [0, 1, 2]


def test_header_of_128_bytes_is_no_archive(tmp_path):
    header = json.dumps({"a": tensor()}).encode().ljust(128)  # its first byte on the disk is 0x80
    (tmp_path / "x").write_bytes(build(header, bytes(8)))
    assert sft.read(tmp_path / "x")["a"].shape == (2,)


ODD = {  # name: (bytes, what the message says)
    "empty": (b"", "at least 8"),
    "seven bytes": (b"1234567", "at least 8"),
    "header over the limit": (build(b"{}", length=100_000_001), "over 100000000"),
    "header behind the end": (build(b"{}", length=3), "cut short"),
    "length wraps": (b"\xff" * 8 + b"{}", "over 100000000"),
    "no brace": (build(b" {}"), "begin with '{'"),
    "list": (build(b"[1]"), "begin with '{'"),
    "not JSON": (build(b"{nope}"), "not JSON"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (build(b'{"a":' + b"[" * 100_000), "deeper than|not JSON"),
    "key twice": (build(b'{"a":%b,"a":%b}' % ((json.dumps(tensor("F32", [0], [0, 0])).encode(),) * 2)), "key 'a' stands twice"),
    "not an object": (build({"a": 3}), "'a': expected an object"),
    "missing dtype": (build({"a": {"shape": [], "data_offsets": [0, 4]}}, bytes(4)), "'a': expected an object"),
    "unknown dtype": (build({"a": tensor("F33")}, bytes(8)), "'a': dtype 'F33'"),
    "dtype a list": (build({"a": tensor(["F32"])}, bytes(8)), "'a': dtype"),
    "negative size": (build({"a": tensor(shape=[-2])}, bytes(8)), "'a': shape"),
    "float size": (build({"a": tensor(shape=[2.0])}, bytes(8)), "'a': shape"),
    "bool size": (build({"a": tensor(shape=[True, 2])}, bytes(8)), "'a': shape"),
    "product wraps": (build({"a": tensor("F32", [4194305, 4194305, 211106198978564], [0, 16])}, bytes(16)), "more than 2\\^63"),
    "huge size": (build({"a": tensor("F32", [2**70], [0, 16])}, bytes(16)), "'a': shape"),
    "zero-size over NumPy": (build({"a": tensor("F32", [0, 2**62, 4], [0, 0])}), "'a': shape"),
    "33 dimensions": (build({"a": tensor("U8", [1] * 33, [0, 1])}, bytes(1)), "33 dimensions"),
    "offsets against shape": (build({"a": tensor(shape=[3])}, bytes(8)), "'a'.*needs 12 bytes, data_offsets .0, 8. give 8"),
    "offsets backwards": (build({"a": tensor(offsets=[8, 0])}, bytes(8)), "'a'.*give -8"),
    "one offset": (build({"a": tensor(offsets=[0])}, bytes(8)), "'a': data_offsets"),
    "overlap": (build({"a": tensor(), "b": tensor(offsets=[4, 12])}, bytes(12)), "'b'.*overlaps"),
    "same place": (build({"a": tensor(), "b": tensor()}, bytes(8)), "overlaps"),
    "hole": (build({"a": tensor(), "b": tensor(offsets=[12, 20])}, bytes(20)), "'b'.*hole"),
    "hole at the start": (build({"a": tensor(offsets=[4, 12])}, bytes(12)), "'a'.*hole"),
    "bytes behind": (build({"a": tensor()}, bytes(9)), "take 8 bytes, the file has 9"),
    "bytes missing": (build({"a": tensor()}, bytes(7)), "take 8 bytes, the file has 7"),
    "metadata not strings": (build({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (build({"__metadata__": []}), "__metadata__"),
    "bool of 2": (build({"a": tensor("BOOL", [2], [0, 2])}, b"\x01\x02"), "'a': a BOOL of value 2"),
    "lone surrogate": (build(b'{"\\ud800": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "not valid Unicode"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_refused(tmp_path, case):
    data, message = ODD[case]
    path = tmp_path / "odd.safetensors"
    path.write_bytes(data)
    for mmap in (True, False):
        with pytest.raises(FormatError, match=message) as error:
            sft.read(path, mmap)
        assert "odd.safetensors" in str(error.value)


@pytest.mark.parametrize("data, shapes", [
    (build(b"{}"), {}),
    (build({"a": tensor("F32", [], [0, 4])}, bytes(4)), {"a": ()}),
    (build({"a": tensor("F32", [0, 2**40], [0, 0])}), {"a": (0, 2**40)}),
    (build({"a": tensor(), "z": tensor("F32", [0], [8, 8])}, bytes(8)), {"a": (2,), "z": (0,)}),
    (build({"../up\0": tensor(note="unknown keys are allowed")}, bytes(8)), {"../up\0": (2,)}),
])
def test_odd_but_legal(tmp_path, data, shapes):
    (tmp_path / "x").write_bytes(data)
    assert {name: a.shape for name, a in sft.read(tmp_path / "x").items()} == shapes


def test_pytorch_files_are_refused_by_content(tmp_path):
    old, new = tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors"
    old.write_bytes(b"\x80\x02}q\x00.")
    with zipfile.ZipFile(new, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    for path, message in ((old, "PyTorch file"), (new, "data.pkl")):
        with pytest.raises(FormatError, match=message + ".*save_file"):
            sft.read(path)
    new.unlink()
    with pytest.raises(FormatError, match="pytorch_model.bin: a PyTorch file"):
        sft.read_shards(tmp_path)


def test_cut_at_every_byte(tmp_path):
    path = tmp_path / "x"
    sft.write(path, {"a": np.arange(3, dtype=np.float32), "b": np.zeros(5, np.uint8)}, {"k": "v"})
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(FormatError):
            sft.read(path)


def test_mutants_agree_with_the_reference(tmp_path):
    rng = random.Random(7)
    path = tmp_path / "seed"
    tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, bool), "c": np.zeros((0, 4), np.int16)}
    sft.write(path, tensors, {"k": "v"})
    seed = path.read_bytes()
    length = int.from_bytes(seed[:8], "little")
    stricter = ("twice", "dtype 'F", "begin with", "a BOOL", "is not one of")
    accepted = 0
    for i in range(4000):
        data = bytearray(seed)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(8 + length if rng.random() < 0.9 else len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at] = rng.choice(b'0123456789[]{},:"-F\\ ')
            elif kind == 2:
                del data[at]
                data[:8] = max(int.from_bytes(data[:8], "little") - 1, 0).to_bytes(8, "little")
            else:
                data.insert(at, rng.choice(b'0123456789[]{},:" '))
                data[:8] = min(int.from_bytes(data[:8], "little") + 1, 2**64 - 1).to_bytes(8, "little")
        path.unlink()  # a new file each time: some file systems flush one that is cut and written again
        path.write_bytes(data)
        try:
            theirs = dict(safetensors.deserialize(bytes(data)))
        except Exception:
            theirs = None
        try:
            ours = sft.read(path, mmap=bool(i % 3))
        except FormatError as error:
            assert theirs is None or any(text in str(error) for text in stricter), (bytes(data), error)
            continue
        assert theirs is not None, bytes(data)
        assert {k: bytes(v["data"]) for k, v in theirs.items()} == {k: v.tobytes() for k, v in ours.items()}
        accepted += 1
    assert 50 < accepted < 2000


def test_refusals_on_writing(tmp_path):
    path = tmp_path / "x"
    for tensors, message in (({"a": np.array([object()])}, "'a' has dtype object"), ({"a": np.zeros(1, complex)}, "complex128"),
                             ({"a": [1, 2]}, "'a' is a list")):
        with pytest.raises(TypeError, match=message):
            sft.write(path, tensors)
    with pytest.raises(ValueError, match="cannot be the name"):
        sft.write(path, {"__metadata__": np.zeros(1)})
    with pytest.raises(TypeError, match="metadata"):
        sft.write(path, {}, {"step": 3})
    assert not os.listdir(tmp_path)


def test_writing_makes_no_second_copy(tmp_path):
    code = """
import resource, sys, numpy as np
from pyllm.io import safetensors
x = {str(i): np.ones(1 << 22, np.float32) for i in range(8)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
safetensors.write(sys.argv[1], x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert int(grown) < 8 << 10  # KiB, of the 128 MiB written


# ---- shards

def test_shards(tmp_path):
    a, b = np.ones(2, np.float32), np.zeros((2, 2), np.int64)
    sft.write(tmp_path / "m-1.safetensors", {"a": a})
    sft.write(tmp_path / "m-2.safetensors", {"b": b})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    same(sft.read_shards(tmp_path), {"a": a, "b": b})
    for weight_map, message in (({"a": "m-1.safetensors"}, None), ({"a": "m-1.safetensors", "c": "m-2.safetensors"}, "differs .* b, c"),
                                ({"a": "m-3.safetensors"}, "not in the folder"), ({}, "weight_map"), (3, "weight_map")):
        index.write_text(json.dumps({"weight_map": weight_map}))
        if message is None:
            same(sft.read_shards(tmp_path), {"a": a})
        else:
            with pytest.raises(FormatError, match=message):
                sft.read_shards(tmp_path)
    sft.write(tmp_path / "model.safetensors", {"b": b})
    same(sft.read_shards(tmp_path), {"b": b})


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x", "C:x", "..", ".", "", "a\0b", 3,
                                  None, ["x"]])
def test_shards_never_leave_the_folder(tmp_path, file):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder / "sub"):
        sft.write(place / "x.safetensors", {"a": np.ones(1)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(FormatError, match="plain name of a file"):
        sft.read_shards(folder)


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        sft.read_shards(tmp_path)


# ---- values

def test_bf16_rounds_to_nearest_even():
    bits = np.array([0x3F800000, 0x3F808000, 0x3F808001, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFC00000, 0x80000001], np.uint32)
    got = sft.to_bf16(bits.view(np.float32))
    assert got.dtype == sft.BF16
    assert [hex(v) for v in got["bf16"]] == [hex(v) for v in (0x3F80, 0x3F80, 0x3F81, 0x3F82, 0x7F80, 0x7F80, 0x7FC0, 0xFFC0, 0x8000)]


def test_every_bf16_survives():
    every = np.arange(1 << 16, dtype=np.uint16).view(sft.BF16).reshape(256, 256)
    values = sft.to_float32(every)
    back = sft.to_bf16(values)
    finite = ~np.isnan(values)
    assert values.shape == (256, 256) and (back["bf16"] == every["bf16"])[finite].all() and np.isnan(sft.to_float32(back))[~finite].all()


def test_f8_values():
    e4m3 = sft.to_float32(np.array([0, 1, 8, 0x38, 0x7E, 0x7F, 0xB8], np.uint8).view(sft.F8_E4M3))
    e5m2 = sft.to_float32(np.array([0, 1, 4, 0x3C, 0x7B, 0x7C, 0x7D, 0xFC], np.uint8).view(sft.F8_E5M2))
    np.testing.assert_array_equal(e4m3, np.array([0, 2**-9, 2**-6, 1, 448, np.nan, -1], np.float32))
    np.testing.assert_array_equal(e5m2, np.array([0, 2**-16, 2**-14, 1, 57344, np.inf, np.nan, -np.inf], np.float32))


def test_to_float32():
    x = np.ones(3, np.float32)
    assert sft.to_float32(x) is x and sft.to_float32(x.astype(np.float16)).dtype == np.float32
    with pytest.raises(TypeError, match="int64"):
        sft.to_float32(np.arange(3))
    with pytest.raises(TypeError):
        sft.to_bf16(x) + 1
