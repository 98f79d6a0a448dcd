"""Atomic files and folders, JSON, TOML: round trips, refusals, a full disk, kill -9."""
import os
import random
import signal
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from pyllm.errors import FormatError
from pyllm.io import files

ROOT = Path(__file__).parents[2]


def run(code, *args):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def hidden(folder):
    return [p.name for p in Path(folder).iterdir() if p.name.startswith(".")]


# ---- atomic files

def test_write_atomic(tmp_path):
    path = tmp_path / "a.bin"
    files.write_atomic(path, b"one")
    files.write_atomic(path, iter([b"t", bytearray(b"w"), memoryview(b"o"), b""]))
    assert path.read_bytes() == b"two" and not hidden(tmp_path)


def test_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    calls, fsync, replace, rename = [], os.fsync, os.replace, os.rename

    def log(name, call):
        def logged(*args):
            calls.append(name if name != "fsync" else "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file")
            return call(*args)
        return logged

    for name, call in (("fsync", fsync), ("replace", replace), ("rename", rename)):
        monkeypatch.setattr(os, name, log(name, call))
    files.write_atomic(tmp_path / "a", b"one")
    assert calls == ["file", "replace", "folder"]
    calls.clear()
    with files.atomic_folder(tmp_path / "b") as folder:
        (folder / "one").write_bytes(b"1")
        (folder / "two").write_bytes(b"2")
    assert calls == ["file", "file", "folder", "rename", "folder"]


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_failing_source_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, b"old")

    def chunks():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, chunks())
    assert path.read_bytes() == b"old" and not hidden(tmp_path)


def test_missing_folder_and_folder_in_the_way(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        files.write_atomic(tmp_path / "no" / "a", b"xyz")
    assert error.value.filename == str(tmp_path / "no" / "a") and "3 bytes needed" in str(error.value)
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="bytes needed"):
        files.write_atomic(tmp_path / "d", b"xyz")
    assert not hidden(tmp_path)


LIMITED = """
import resource, sys
from pyllm.io import files
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path, kind = sys.argv[1:]
try:
    if kind == "file":
        files.write_atomic(path, [b"n" * 60_000] * 2, size=120_000)
    else:
        with files.atomic_folder(path) as folder:
            files.write_atomic(folder / "w", b"n" * 120_000)
except OSError as error:
    import errno
    assert error.errno == errno.EFBIG and "120000 bytes needed" in str(error) and error.filename.startswith(path[:5]), error
    print("refused")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_disk_full_keeps_the_old_one(tmp_path, kind):
    path = tmp_path / "old"
    if kind == "file":
        path.write_bytes(b"old")
    else:
        path.mkdir()
        (path / "w").write_bytes(b"old")
    out = run(LIMITED, path, kind).communicate()[0]
    assert out == b"refused\n"
    assert (path if kind == "file" else path / "w").read_bytes() == b"old"
    assert not hidden(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_space_is_named(tmp_path, monkeypatch):
    create = files._create
    monkeypatch.setattr(files, "_create", lambda path, folder: (os.open("/dev/full", os.O_WRONLY), create(path, folder)[1]))
    with pytest.raises(OSError, match="No space left.*5 bytes needed, [0-9]+ free") as error:
        files.write_atomic(tmp_path / "a", b"12345")
    assert error.value.filename == str(tmp_path / "a") and not (tmp_path / "a").exists()


WRITER = """
import sys
from pyllm.io import files
path, kind = sys.argv[1:]
print("go", flush=True)
n = 0
while True:
    n += 1
    data = bytes([n % 256]) * 300_000
    if kind == "file":
        files.write_atomic(path, [data, data])
    else:
        with files.atomic_folder(path) as folder:
            (folder / "a").write_bytes(data)
            (folder / "b").write_bytes(data)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_during_write(tmp_path, kind):
    path, delay = tmp_path / "x", random.Random(1)
    for _ in range(8):
        child = run(WRITER, path, kind)
        assert child.stdout.readline() == b"go\n"
        time.sleep(delay.uniform(0.0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if path.exists():
            data = path.read_bytes() if kind == "file" else (path / "a").read_bytes() + (path / "b").read_bytes()
            assert len(data) == 600_000 and len(set(data)) == 1
    assert path.exists()
    files.sweep(tmp_path)
    assert not hidden(tmp_path) and path.exists()


# ---- sweeping

def test_sweep_takes_only_what_no_writer_holds(tmp_path):
    stale = tmp_path / (".a.tmp-" + "0" * 16)
    stale.write_bytes(b"left behind")
    folder = tmp_path / (".b.tmp-" + "1" * 16)
    folder.mkdir()
    (folder / "f").write_bytes(b"left behind")
    (tmp_path / ".keep.tmp-file").write_bytes(b"the user's own")
    handle, held = files._create(tmp_path / "c", folder=False)
    files.write_atomic(tmp_path / "d", b"")
    assert sorted(hidden(tmp_path)) == sorted([".keep.tmp-file", held.name])
    os.close(handle)


def test_sweep_completes_a_cut_replacement(tmp_path):
    old = tmp_path / (".run.old-" + "2" * 16)
    old.mkdir()
    (old / "w").write_bytes(b"old")
    files.sweep(tmp_path)
    assert (tmp_path / "run" / "w").read_bytes() == b"old" and not hidden(tmp_path)


# ---- atomic folders

@pytest.mark.parametrize("exchange", [True, False])
def test_folder_replaces(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    path = tmp_path / "run"
    for text in ("one", "two"):
        with files.atomic_folder(path) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / text).write_text(text)
    assert [p.name for p in (path / "sub").iterdir()] == ["two"] and not hidden(tmp_path)


def test_folder_body_raises(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "w").write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_folder(path) as folder:
        (folder / "w").write_text("new")
        raise ZeroDivisionError
    assert (path / "w").read_text() == "old" and not hidden(tmp_path)


def test_folder_over_a_file(tmp_path):
    (tmp_path / "x").write_text("file")
    with pytest.raises(NotADirectoryError, match="a file with this name"), files.atomic_folder(tmp_path / "x"):
        raise AssertionError("the body must not run")
    assert (tmp_path / "x").read_text() == "file"


# ---- JSON

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXT, x, max_size=4))


@settings(max_examples=50)
@given(JSON)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "x.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


@pytest.mark.parametrize("data, message", [
    (b'{"a": 1, "a": 2}', "'a' stands twice"),
    (b'{"b": {"a": 1, "c": 3, "a": 2}}', "'a' stands twice"),
    (b'{"a": 1,\n "b" 2}', "x.json:2: not JSON at column 6"),
    (b'{"a": NaN}', "NaN is not a JSON value"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    (b"[" * 100_000, "deeper than|not JSON"),
    (b"[" * 70 + b"]" * 70, "deeper than 64"),
    (b"1" * 5000, "not JSON"),
    (b"", "not JSON"),
])
def test_json_refusals(tmp_path, data, message):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        files.read_json(tmp_path / "x.json")
    assert "x.json" in str(error.value)


def test_json_limits(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + b"[" * 64 + b"]" * 64)
    assert files.read_json(path)
    with pytest.raises(FormatError, match="131 bytes of JSON, at most 100"):
        files.read_json(path, max_bytes=100)
    with pytest.raises(ValueError):
        files.write_json(path, float("nan"))


# ---- TOML

LEAF = st.booleans() | st.integers(-2**63, 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUE = LEAF | st.lists(LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(TEXT, LEAF, max_size=2), max_size=4)
TABLE = st.recursive(st.dictionaries(TEXT, VALUE, max_size=4), lambda t: st.dictionaries(TEXT, VALUE | t, max_size=4), max_leaves=6)


@given(TABLE)
def test_toml_round_trip(table):
    text = files.format_toml(table)
    assert tomllib.loads(text) == table


def test_toml_text(tmp_path):
    files.write_toml(tmp_path / "x.toml", {"train": {"lr": 1e-4, "name": 'a "b"', "none": None, "opt": {"betas": (0.9, 0.95)}}, "seed": 1})
    assert (tmp_path / "x.toml").read_text() == 'seed = 1\n\n[train]\nlr = 0.0001\nname = "a \\"b\\""\n\n[train.opt]\nbetas = [0.9, 0.95]\n'


def test_toml_refusals():
    with pytest.raises(TypeError, match="a.b.1 is <object"):
        files.format_toml({"a": {"b": [1, object()]}})
    with pytest.raises(TypeError, match="key 3 is a int"):
        files.format_toml({3: 1})
