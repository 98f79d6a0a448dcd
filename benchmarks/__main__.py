"""python -m benchmarks NAME [--json | --markdown] [--only TEXT] [--quick] [--threads N]

NAME: matmul, attention, layers, quant, train_step, peft, decode, load, ppo, tokenize, import, memory, all; or `table FILE ...`, which
prints lines of --json as Markdown (with --readme: the rows that README shows).

Every row is checked first, then timed: median, GFLOP/s or GB/s, % of the limit of this machine measured beside it, and how many times
faster pyllm is than NumPy, PyTorch and other peers (where installed) in the same run (> 1: pyllm is faster).
"""
import argparse
import importlib
import re
import sys

from benchmarks import table
from benchmarks.harness import measure_case, show

NAMES = ("matmul", "attention", "layers", "quant", "train_step", "peft", "decode", "load", "ppo", "tokenize", "import", "memory")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*NAMES, "all", "table"))
    parser.add_argument("files", nargs="*", help="for table: files of --json lines, - for standard input")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")
    parser.add_argument("--readme", action="store_true", help="with table: the rows that README shows")
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose 'NAME SHAPE PRECISION' contains this")
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--threads", type=int, help="default: what pyllm takes")
    args = parser.parse_args()
    if args.name == "table":
        print((table.readme if args.readme else table.markdown)(table.read(args.files or ["-"])))
        return 0
    import pyllm

    if args.threads:
        pyllm.set_num_threads(args.threads)
    if not (args.json or args.markdown):
        print(f"pyllm {pyllm.__version__}, kernels {pyllm.kernels.active()}, {pyllm.kernels.num_threads()} threads; "
              "numpy, torch, ...: times as long as pyllm")
    done = []
    for record in records(NAMES if args.name == "all" else (args.name,), args.quick, re.compile(args.only).search):
        done.append(record)
        if not args.markdown:
            show(record, args.json)
    if args.markdown:
        print(table.markdown(done))
    return 0


def records(names, quick, wanted):
    for name in names:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        if name == "memory":
            yield from module.records(quick, wanted)
            continue
        for case in module.cases(quick):
            if wanted(f"{case.name} {case.shape} {case.precision}"):
                yield measure_case(case)


if __name__ == "__main__":
    sys.exit(main())
