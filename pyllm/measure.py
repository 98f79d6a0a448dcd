"""Timing and this machine's limits, measured: what benchmarks, `pyllm bench` and the estimates of `--dry-run` stand on."""
import statistics
import time

import numpy as np

from pyllm import kernels as K


def seconds(function, repeat=1):
    """-> wall seconds of `repeat` calls, for one call."""
    began = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - began) / repeat


def median_seconds(function, budget=0.5, rounds=7):
    """-> the median over at least 3 and at most `rounds` timings that together take about `budget` seconds; one warm-up."""
    once = seconds(function)
    repeat = max(1, int(budget / rounds / max(once, 1e-9)))
    rounds = max(3, min(rounds, int(budget / max(once, 1e-9))))
    return statistics.median(seconds(function, min(repeat, 1000)) for _ in range(rounds))


def peak_gflops(budget=0.1, reduced=False):
    """-> multiply-adds in registers, all threads, GFLOP/s (2 a multiply-add); 0.0 without compiled kernels. reduced: of bfloat16."""
    if K.active() == "reference":
        return 0.0
    from pyllm.kernels.native import fma_peak

    fma_peak(1000, reduced)
    rounds, best = 20000, 0.0
    deadline = time.perf_counter() + budget
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        flops = fma_peak(rounds, reduced)
        best = max(best, flops / (time.perf_counter() - began))
    return best / 1e9


def read_gbs(megabytes=256, rounds=3):
    """-> reading memory with all threads, GB/s: the best of `rounds` passes over an array far larger than the caches."""
    x = np.ones(megabytes * 250_000, np.float32)
    return x.nbytes / min(seconds(lambda: K.sum_squares(x)) for _ in range(rounds + 1)) / 1e9


def peak_rss_mb():
    """-> the largest resident memory of this process so far, MB; None where the system does not tell."""
    try:
        import resource
        import sys
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
