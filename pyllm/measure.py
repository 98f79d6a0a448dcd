"""Timing and this machine's limits, measured: what benchmarks, `pyllm bench`, the profile and the estimates of `--dry-run` stand on."""
import statistics
import time

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


# ---- limits ----------------------------------------------------------------------------------------------------------


def peak_gflops(budget=0.1, precision="f32"):
    """-> multiply-adds in registers, all threads, GFLOP/s (2 a multiply-add); 0.0 without compiled kernels.

    precision: f32, bf16 (pairs of bfloat16) or int8 (bytes, GOP/s).
    """
    if K.active() == "reference":
        return 0.0
    from pyllm.kernels.native import fma_peak, int8_peak

    probe = {"f32": lambda rounds: fma_peak(rounds, False), "bf16": lambda rounds: fma_peak(rounds, True), "int8": int8_peak}[precision]
    rounds, best = 20000, 0.0
    probe(1000)
    deadline = time.perf_counter() + budget
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        flops = probe(rounds)
        best = max(best, flops / (time.perf_counter() - began))
    return best / 1e9


def read_gbs(megabytes=256, rounds=3):
    """-> reading memory with all threads, GB/s: the best of `rounds` passes over an array far larger than the caches, in large pages.

    With 16 megabytes: reading the last-level cache of a machine that has a larger one.
    """
    x = _ones(125 * megabytes, 2000)
    return x.nbytes / min(seconds(lambda: K.column_sum(x)) for _ in range(rounds + 1)) / 1e9


def triad_gbs(megabytes=128, rounds=3):
    """-> a + b into c, all of them far larger than the caches, GB/s, counting two arrays read and one written."""
    a, b, c = (_ones(125 * megabytes, 2000) for _ in "abc")
    return 3 * a.nbytes / min(seconds(lambda: K.add(a, b, out=c)) for _ in range(rounds + 1)) / 1e9


def _ones(*shape):
    x = K.empty(shape)
    x.fill(1)
    return x


def limits():
    """-> {name: (value, unit)} of this machine and its active kernels, those there are probes for; takes about two seconds."""
    found = {name: (peak_gflops(0.2, name), "GOP/s" if name == "int8" else "GFLOP/s") for name in ("f32", "bf16", "int8")}
    found |= {"L3 read": (read_gbs(16, 60), "GB/s"), "memory read": (read_gbs(), "GB/s"), "memory triad": (triad_gbs(), "GB/s")}
    return {name: (round(value, 1), unit) for name, (value, unit) in found.items() if value}


# ---- memory of this process ------------------------------------------------------------------------------------------


def peak_rss_mb():
    """-> the largest resident memory of this process so far, MB; None where the system does not tell."""
    import sys

    try:
        with open("/proc/self/status") as file:  # getrusage counts what the parent held when it started this process
            return int(file.read().split("VmHWM:")[1].split()[0]) / 1e3
    except (OSError, IndexError):
        usage = _usage()
    return None if usage is None else usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def page_faults():
    """-> how often this process has touched memory for the first time so far (minor faults); None where the system does not tell."""
    usage = _usage()
    return None if usage is None else usage.ru_minflt


def _usage():
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF)
