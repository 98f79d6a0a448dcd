"""Check, then time. A case runs pyllm and its peers in turn, so that all meet the same moments of the machine."""
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pyllm import kernels as K
from pyllm import measure


REST = 0.05  # seconds between two sides: a library's idle threads go on spinning for up to 30 ms, on the cores of the next one


@dataclass
class Case:
    """One row: what runs, what it must give, how much work it is."""

    name: str
    shape: str
    run: Callable
    check: Callable  # () -> None, raises AssertionError where the result is wrong
    flops: float = 0.0  # of one run; else
    bytes: float = 0.0  # that one run must move
    numpy: Callable | None = None
    torch: Callable | None = None
    tokenizers: Callable | None = None
    precision: str = "f32"
    unit: float = 0.0  # for decoding: tokens of one run


def torch_or_none(threads):
    """-> the torch module with `threads` threads, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    return torch


def measure_case(case, rounds=7, budget=1.0):
    """-> the record of a case: checked, then timed in `rounds` turns of pyllm, NumPy and PyTorch with the limit probed beside."""
    case.check()
    sides = {"pyllm": case.run, "numpy": case.numpy, "torch": case.torch, "tokenizers": case.tokenizers}
    sides = {name: f for name, f in sides.items() if f}
    once = {name: measure.seconds(f) for name, f in sides.items()}  # also the warm-up
    repeat = {name: max(1, min(1000, int(budget / rounds / len(sides) / max(t, 1e-7)))) for name, t in once.items()}
    if sum(once.values()) * rounds > 8 * budget:
        rounds = 3
    times, limits = {name: [] for name in sides}, []
    for _ in range(rounds):
        limits.append(measure.peak_gflops(0.02) if case.flops else measure.read_gbs(128, 1))
        for name, f in sides.items():
            time.sleep(REST)
            f()
            times[name].append(measure.seconds(f, repeat[name]))
    median = statistics.median(times["pyllm"])
    rate, limit = (case.flops or case.bytes) / median / 1e9, max(limits)
    ratio = lambda peer: statistics.median(b / a for a, b in zip(times["pyllm"], times[peer])) if peer in times else None
    return {
        "name": case.name, "shape": case.shape, "precision": case.precision, "threads": K.num_threads(), "checked": True,
        "median_ms": round(1e3 * median, 4), "gflops" if case.flops else "gbs": round(rate, 1),
        "pct_limit": round(100 * rate / limit, 1) if limit else None, "peak_rss_mb": round(measure.peak_rss_mb() or 0, 1),
        "ratio_numpy": _round(ratio("numpy")), "ratio_torch": _round(ratio("torch")),
        **({"ratio_tokenizers": _round(ratio("tokenizers"))} if case.tokenizers else {}),
        **({"tokens_per_second": round(case.unit / median, 1)} if case.unit else {}),
    }


def _round(x):
    return None if x is None else round(x, 2)


def close(got, want, tolerance, what):
    """AssertionError unless |got - want| <= tolerance * max |want|."""
    error = np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def show(record, as_json):
    if as_json:
        print(json.dumps(record), flush=True)
        return
    rate = f"{record['gflops']:8.1f} GFLOP/s" if "gflops" in record else f"{record.get('gbs', 0):8.1f} GB/s   "
    ratios = {peer: record.get(f"ratio_{peer}") for peer in ("numpy", "torch", "tokenizers")}
    peers = "".join(f"  {peer} {ratio:6.2f}x" for peer, ratio in ratios.items() if ratio is not None)
    tokens = f"  {record['tokens_per_second']:.0f} tok/s" if "tokens_per_second" in record else ""
    limit = f"{record['pct_limit']:5.1f} %" if record.get("pct_limit") is not None else "      -"
    print(f"{record['name']:<22} {record['shape']:<34} {record['median_ms']:10.3f} ms {rate} {limit}{peers}{tokens}", flush=True)
