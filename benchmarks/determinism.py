"""python benchmarks/determinism.py [THREADS]: what the same bits for any number of threads cost.

The kernels that add partial results are built twice: as they are, with chunks that the shape alone fixes, and with one chunk a thread,
whose sums then depend on the number of threads. Both run in turns; above 1 the promise costs time. Needs g++.
"""
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp".split()
ONE_CHUNK_A_THREAD = {  # file: (pattern, replacement, how often)
    "norm.h": [(r"Rows rows\(n, c, 64\)", "Rows rows(n, c, thread_limit())", 3)],
    "optim.h": [(r"chunks = \(n \+ GRAIN - 1\) / GRAIN;", "chunks = thread_limit();", 1),
                (r"begin = chunk \* GRAIN, end = std::min\(n, begin \+ GRAIN\)",
                 "begin = n * chunk / chunks, end = n * (chunk + 1) / chunks", 1)],
    "attention_vjp.h": [(r"parts = std::clamp<index_t>\([^;]*?VJP_PARTS\)", "parts = thread_limit() > g.b * g.h ? thread_limit() : 1", 1)],
}


def build(folder, free):
    shutil.copytree(ROOT / "csrc", folder)
    for name, changes in ONE_CHUNK_A_THREAD.items() if free else ():
        path = folder / "generic" / name
        text = path.read_text()
        for pattern, replacement, times in changes:
            text, count = re.subn(pattern, replacement, text)
            assert count == times, f"{name}: {pattern} found {count} times, expected {times}"
        path.write_text(text)
    sources = [str(p) for p in folder.rglob("*.cpp") if not p.name.startswith("bind")] + [str(ROOT / "benchmarks/determinism.cpp")]
    subprocess.run(["g++", *FLAGS, f"-I{folder}", *sources, "-o", folder / "run"], check=True)
    return folder / "run"


def times(program, threads):
    run = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    return {name: float(ms) for name, ms in map(str.split, run.stdout.splitlines())}


def main(threads=2, rounds=9):
    with tempfile.TemporaryDirectory() as folder:
        programs = [build(Path(folder, name), name == "free") for name in ("fixed", "free")]
        runs = [[times(program, threads) for program in programs] for _ in range(rounds)]
    print(f"{threads} threads, medians of {rounds} turns: fixed chunks, one chunk a thread, fixed / free")
    for name in runs[0][0]:
        fixed, free = (statistics.median(run[side][name] for run in runs) for side in (0, 1))
        print(f"{name:<16} {fixed:9.4f} ms {free:9.4f} ms  {statistics.median(a[name] / b[name] for a, b in runs):6.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
