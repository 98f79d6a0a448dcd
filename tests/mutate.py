"""Mutants of files, and what every reader owes them: one of the documented errors, within a second of CPU, in bounded memory."""
import contextlib
import gc
import json
import resource
import time
from pathlib import Path

EXTREMES = (0, 1, 2, 3, 5, 31, 32, 33, 127, 255, 256, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1,
            2**63, 2**64 - 1)
VALUES = (None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e300, "", "x", "F32", "Q4_0", "\ud800",
          [], [1], [[]], {}, {"a": 1}, [0, 8], [8, 0], "1e5", "../x")
MEGABYTES = 64  # that reading a mutant may take beside its own bytes


def of_bytes(data, rng):
    """data: bytes of a file, rng: random.Random -> a mutant: one to four changes, most of them near the beginning, where the header is."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = int(len(data) * rng.random() ** rng.choice((1, 1, 3))) if data else 0
        kind = rng.randrange(9)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << rng.randrange(8)])
        elif kind in (2, 3, 4):  # a number, where the formats have them
            size = 8 if kind < 4 else 4
            data[at : at + size] = (rng.choice(EXTREMES) % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 5:
            del data[at : at + rng.choice((1, 4, 8, 64))]
        elif kind == 6:
            data[at:at] = data[at : at + rng.choice((1, 8, 40))] or b"\0"
        elif kind == 7:
            data[at:at] = rng.choice((b"0", b"9999999999", b'"', b"[", b"{", b",", b"\0" * 8, b"\xff" * 8))
        else:
            del data[at:]
    return bytes(data)


def of_json(value, rng):
    """value: a JSON value -> a mutant with one or two places replaced, dropped, or named otherwise."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        box, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del box[key]
        elif kind == 1 and isinstance(box, dict):
            box[str(rng.choice(VALUES))] = box.pop(key)
        elif kind == 2 and type(box[key]) in (int, float):
            box[key] = box[key] * rng.choice((-1, 0, 0.5, 2, 3, 1000, 10**9)) + rng.choice((0, 1))
        else:
            box[key] = rng.choice(VALUES)
    return value


def _places(value):
    for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
        yield value, key
        yield from _places(value[key])


@contextlib.contextmanager
def bounded():
    """Address space that grows by MEGABYTES at most: what asks for more gets a MemoryError."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (MEGABYTES << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def survive(read, mutants, errors):
    """Calls read(mutant) for each -> how many were read; AssertionError for another error, or one that took more than a second of CPU."""
    read_ones = 0
    with bounded():
        for number, mutant in enumerate(mutants):
            began = time.process_time()
            try:
                read(mutant)
                read_ones += 1
            except errors as error:
                assert str(error) and len(str(error)) < 20_000
            except BaseException as error:
                raise AssertionError(f"mutant {number}: {type(error).__name__}: {error}: {str(mutant)[:4000]}") from error
            assert time.process_time() - began < 1, f"mutant {number} took {time.process_time() - began:.1f} s of CPU: {str(mutant)[:2000]}"
    return read_ones
