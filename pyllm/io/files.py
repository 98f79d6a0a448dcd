"""Files that are either whole or not there: atomic files and folders, JSON and TOML.

A write goes to a hidden temporary name in the same folder, is flushed to the disk and then renamed. A reader sees the old
content or the new one; a crash, a kill or a full disk leaves the old one. What a killed process left behind is swept by the
next write into that folder: a temporary is locked by its writer, so one without a lock has no writer any more.
"""
import contextlib
import errno
import json
import os
import re
import shutil
from pathlib import Path

from pyllm.errors import FormatError

try:
    import fcntl
except ImportError:  # no such locks on this system: temporaries are then never taken for stale
    fcntl = None

_TEMPORARY = re.compile(r"\..+\.(tmp|old)-[0-9a-f]{16}")


# ---- mapped files

def map_file(path, private=False):
    """-> (bytes of the file,) uint8, mapped: nothing is loaded before it is touched. The file may be replaced, as write_atomic does, but
    must not be shortened in place (the process would be ended by SIGBUS).

    Read-only, or `private`: a write copies the page it falls on and never reaches the file.
    """
    import mmap

    import numpy as np

    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # such a file cannot be mapped
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if private else mmap.ACCESS_READ), np.uint8)


def release(array):
    """Gives back the memory of a mapped array that nobody has written to: its pages are read from the file again when they are touched."""
    import mmap

    owner = array
    while not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
        if owner is None:
            return
    if hasattr(mmap, "MADV_DONTNEED"):  # not everywhere
        import numpy as np

        start = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            owner.madvise(mmap.MADV_DONTNEED, first, end - first)


# ---- atomic files and folders

def write_atomic(path, data, size=None):
    """Write `data` (bytes-like, or an iterable of bytes-like chunks) to the file `path`, replacing it in one step.

    size: the bytes that an iterable will give, if known; it is only used in the message of an error.
    Raises OSError (with errno and filename) when the disk is full, a limit is reached or the folder cannot be written;
    the old file is then untouched. The mode of the new file follows the umask.
    """
    path = Path(path)
    if isinstance(data, (bytes, bytearray, memoryview)):
        data, size = [data], memoryview(data).nbytes
    sweep(path.parent)
    done, handle, temporary = 0, None, None
    try:
        handle, temporary = _create(path, folder=False)
        for chunk in data:
            view = memoryview(chunk)
            view = view.cast("B") if view.nbytes else view[:0]
            while view.nbytes:
                sent = os.write(handle, view[:1 << 26])
                view, done = view[sent:], done + sent
        os.fsync(handle)
        os.replace(temporary, path)
        temporary = None
        _sync(path.parent)
    except OSError as error:
        raise explain(error, path, f"{size if size is not None else f'more than {done}'} bytes needed") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def atomic_folder(path):
    """with atomic_folder("checkpoint-100") as folder: write files into `folder` (a Path); at the end it becomes `path`.

    Every file is flushed to the disk first. An older folder `path` is replaced in one step where the system can exchange two
    names (Linux), else by two renames that `sweep` completes after a crash. If the body raises, `path` is what it was.
    """
    path = Path(path)
    sweep(path.parent)
    handle = temporary = None
    try:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file with this name exists where a folder is to be written", str(path))
        try:
            handle, temporary = _create(path, folder=True)
        except OSError as error:
            raise explain(error, path, "a new folder is needed") from None
        yield temporary
        try:
            for root, _, files in os.walk(temporary):
                for name in files:
                    _sync(os.path.join(root, name))
                _sync(root)
            replaced = _rename_folder(temporary, path)
            temporary = None
            _sync(path.parent)
        except OSError as error:
            raise explain(error, path, f"{_bytes_in(temporary)} bytes needed" if temporary else "the folder is in place") from None
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep(folder):
    """Remove what killed writers left in `folder`; complete a folder replacement that was cut between its two renames."""
    if fcntl is None:
        return
    try:
        names = [entry.name for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return  # the write that follows reports it
    for name in names:
        path = Path(folder, name)
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stem, kind = name[1:-17].rsplit(".", 1)
                if kind == "old" and not (target := Path(folder, stem)).exists():
                    os.rename(path, target)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            finally:
                os.close(handle)


def _create(path, folder):
    """A new locked temporary beside `path` -> (handle that holds the lock, its Path)."""
    while True:
        temporary = _beside(path, "tmp")
        if folder:
            os.mkdir(temporary)
            handle = os.open(temporary, os.O_RDONLY) if fcntl else None
        else:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return handle, temporary
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(temporary)):
                return handle, temporary
        except (FileNotFoundError, BlockingIOError):
            pass
        except OSError:
            return handle, temporary  # a file system without locks
        os.close(handle)  # another process swept it between its creation and the lock: take a new name


def _beside(path, kind):
    return path.parent / f".{path.name}.{kind}-{os.urandom(8).hex()}"


def _rename_folder(temporary, path):
    """Give `temporary` the name `path` -> the Path that now holds the older folder, or None."""
    if not path.exists():
        os.rename(temporary, path)
        return None
    if _exchange(temporary, path):
        return temporary
    old = _beside(path, "old")
    os.rename(path, old)
    os.rename(temporary, path)
    return old


def _exchange(a, b):
    """Swap two names in one step; False where the system or the file system cannot."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def _sync(path):
    """Flush a file or a folder to the disk (a folder: the names in it)."""
    if os.name != "posix" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes_in(folder):
    return sum(os.path.getsize(os.path.join(root, name)) for root, _, files in os.walk(folder) for name in files)


def explain(error, path, needed):
    """The same OSError, naming the file, what it needed and what is free."""
    try:
        free = f", {shutil.disk_usage(path.parent).free} free"
    except OSError:
        free = ""
    return OSError(error.errno, f"{error.strerror or error} ({needed}{free}; nothing old was changed)", str(path))


# ---- JSON

def write_json(path, value):
    """Write `value` as indented UTF-8 JSON, atomically. NaN and infinities are refused: they are not JSON."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path, max_bytes=1 << 28, max_depth=64):
    """The value in a JSON file. FormatError names file, line and key: not UTF-8, bad syntax, a key twice, NaN, too long, too deep."""
    size = os.path.getsize(path)
    if size > max_bytes:
        raise FormatError(f"{path}: {size} bytes of JSON, at most {max_bytes} are read")
    return parse_json(Path(path).read_bytes(), path, max_depth)


def parse_json(data, where, max_depth=64):
    """bytes or str -> value; `where` names the source in a FormatError."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            seen = set()
            key = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise FormatError(f"{where}: key {key!r} stands twice in one object")
        return found

    def constant(name):
        raise FormatError(f"{where}: {name} is not a JSON value")

    try:
        text = data if isinstance(data, str) else str(data, "utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start}: {error.reason}") from None
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text else ""
        raise FormatError(f"{where}{line}: not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested deeper than {max_depth} levels") from None
    except FormatError:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise FormatError(f"{where}: not JSON: {error}") from None
    level = [value]
    for _ in range(max_depth + 1):
        level = [v for box in level if isinstance(box, (dict, list)) for v in (box.values() if isinstance(box, dict) else box)]
        if not level:
            return value
    raise FormatError(f"{where}: nested deeper than {max_depth} levels")


# ---- TOML (reading is tomllib)

def write_toml(path, table):
    """Write a dict of scalars, lists and dicts as TOML, atomically. A None value is left out: TOML has no null."""
    write_atomic(path, format_toml(table).encode())


def format_toml(table):
    """dict -> TOML text that tomllib reads back as the same dict (without its None values)."""
    return "\n".join(_table(table, ())).lstrip("\n") + "\n"


def _table(table, path):
    plain = [(k, v) for k, v in table.items() if not isinstance(v, dict) and v is not None]
    nested = [(k, v) for k, v in table.items() if isinstance(v, dict)]
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and (plain or not nested) else []
    lines += [f"{_key(k)} = {_value(v, (*path, k))}" for k, v in plain]
    return lines + [line for k, v in nested for line in _table(v, (*path, k))]


def _key(key):
    if not isinstance(key, str):
        raise TypeError(f"write_toml: key {key!r} is a {type(key).__name__}, expected a string")
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(text):
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")  # JSON's escapes are TOML's, but for DEL


def _value(value, path):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)) and type(value) in (int, float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v, (*path, i)) for i, v in enumerate(value)) + "]"
    if isinstance(value, dict) and path and isinstance(path[-1], int):
        return "{" + ", ".join(f"{_key(k)} = {_value(v, (*path, k))}" for k, v in value.items() if v is not None) + "}"
    raise TypeError(f"write_toml: {'.'.join(map(str, path))} is {value!r} ({type(value).__name__}); "
                    "expected str, int, float, bool, a list or a dict of them")
