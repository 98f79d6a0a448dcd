"""python -m benchmarks NAME [--json] [--quick] [--threads N]: NAME one of matmul, attention, layers, train_step, decode, tokenize, all.

Every row is checked first, then timed: median, GFLOP/s or GB/s, % of the limit of this machine measured beside it, and how many times
faster pyllm is than NumPy and PyTorch (where installed) in the same run (> 1: pyllm is faster).
"""
import argparse
import importlib
import sys

from benchmarks.harness import measure_case, show

NAMES = ("matmul", "attention", "layers", "train_step", "decode", "tokenize")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--quick", action="store_true", help="small cases only")
    parser.add_argument("--threads", type=int, help="default: what pyllm takes")
    args = parser.parse_args()
    import pyllm

    if args.threads:
        pyllm.set_num_threads(args.threads)
    threads = pyllm.kernels.num_threads()
    if not args.json:
        print(f"pyllm {pyllm.__version__}, kernels {pyllm.kernels.active()}, {threads} threads; numpy, torch: times as long as pyllm")
    for name in NAMES if args.name == "all" else (args.name,):
        for case in importlib.import_module(f"benchmarks.bench_{name}").cases(args.quick, threads):
            show(measure_case(case), args.json)
    return 0


sys.exit(main())
