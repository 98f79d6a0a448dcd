"""Check, then time. A case runs pyllm and its peers in turn, so that all meet the same moments of the machine."""
import json
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pyllm import kernels as K
from pyllm import measure


PEAKS = {"f32": "f32", "bf16": "bf16"}  # precision of a row -> of its limit; products of packed weights are int8 dots
REST = 0.05  # seconds between two sides: a library's idle threads go on spinning for up to 30 ms, on the cores of the next one
LIMIT = 100  # seconds that a peer's first call may take: torch.compile builds then


@dataclass
class Case:
    """One row: how much work it is, and how to make what runs.

    build() -> run, check, peers. run() is timed; check() raises AssertionError where its result is wrong; peers: {"numpy", "torch" ...:
    a function, or {setting: function} of which the fastest counts, or None where it is not installed}.
    """

    name: str
    shape: str
    build: Callable
    flops: float = 0.0  # of one run; else
    bytes: float = 0.0  # that one run must move; neither: time alone counts
    precision: str = "f32"
    unit: float = 0.0  # tokens of one run


def torch_or_none():
    """-> the torch module with pyllm's number of threads, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(K.num_threads())
    return torch


def measure_case(case, rounds=7, budget=1.0):
    """-> the record of a case: checked, then timed in `rounds` turns of pyllm and its peers with the limit probed beside."""
    run, check, peers = case.build()
    check()
    sides, settings = {"pyllm": run}, {}
    once = {"pyllm": measure.seconds(run)}  # also the warm-up
    for peer, f in peers.items():
        if f is not None:
            sides[peer], once[peer], settings[peer] = fastest(f if isinstance(f, dict) else {"": f})
    repeat = {name: max(1, min(1000, int(budget / rounds / len(sides) / max(t, 1e-7)))) for name, t in once.items()}
    if sum(once.values()) * rounds > 8 * budget:
        rounds = 3
    times, limits = {name: [] for name in sides}, []
    for _ in range(rounds):
        limits.append(measure.peak_gflops(0.02, PEAKS.get(case.precision, "int8")) if case.flops else
                      measure.read_gbs(128, 1) if case.bytes else 0.0)
        for name, f in sides.items():
            time.sleep(REST)
            if once[name] < 0.5:
                f()
            times[name].append(measure.seconds(f, repeat[name]))
    median = statistics.median(times["pyllm"])
    rate, limit = (case.flops or case.bytes) / median / 1e9, max(limits)
    ratios = {peer: round(statistics.median(b / a for a, b in zip(times["pyllm"], times[peer])), 2) for peer in times if peer != "pyllm"}
    return {
        "name": case.name, "shape": case.shape, "precision": case.precision, "threads": K.num_threads(), "checked": True,
        "median_ms": round(1e3 * median, 4), **({"gflops" if case.flops else "gbs": round(rate, 1)} if rate else {}),
        "pct_limit": round(100 * rate / limit, 1) if limit else None, "peak_rss_mb": round(measure.peak_rss_mb() or 0, 1),
        "ratio_numpy": ratios.pop("numpy", None), "ratio_torch": ratios.pop("torch", None),
        **{f"ratio_{peer}": ratio for peer, ratio in ratios.items()},
        **{f"{peer}_setting": text for peer, text in settings.items() if text},
        **({"tokens_per_second": round(case.unit / median, 1)} if case.unit else {}),
    }


def fastest(alternatives):
    """{setting: function} -> the fastest function after a warm-up, its seconds, its setting. A setting that fails is named as failed."""
    found, failed = [], []
    for setting, f in alternatives.items():
        try:
            with at_most(LIMIT):
                f()
            found.append((measure.seconds(f), setting, f))
        except Exception as error:
            if len(alternatives) == 1:
                raise
            failed.append(f"; {setting} failed: {type(error).__name__}")
    took, setting, f = min(found, key=lambda t: t[0])
    return f, took, setting + "".join(failed)


@contextmanager
def at_most(limit):
    """TimeoutError within after `limit` seconds, where the system has alarms; again every 5 s, since a compiler may swallow the first."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TimeoutError(f"more than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def close(got, want, tolerance, what):
    """AssertionError unless |got - want| <= tolerance * max |want|."""
    error = np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def ratios(record):
    """-> {peer: how many times faster pyllm is} of a record, the peers that ran."""
    return {key.removeprefix("ratio_"): value for key, value in record.items() if key.startswith("ratio_") and value is not None}


def show(record, as_json):
    if as_json:
        print(json.dumps(record), flush=True)
        return
    rate = f"{record['gflops']:8.1f} GFLOP/s" if "gflops" in record else f"{record['gbs']:8.1f} GB/s   " if "gbs" in record else 17 * " "
    limit = f"{record['pct_limit']:5.1f} %" if record.get("pct_limit") is not None else "      -"
    rest = "".join(f"  {peer} {ratio:.2f}x" for peer, ratio in ratios(record).items())
    rest += "".join(f"  {key.removesuffix('_setting')}: {value}" for key, value in record.items() if key.endswith("_setting"))
    rest += f"  {record['tokens_per_second']:.0f} tok/s" if "tokens_per_second" in record else ""
    rest += "".join(f"  {key.replace('_', ' ')} {record[key]}" for key in MEMORY if key in record)
    print(f"{record['name']:<22} {record['shape']:<26} {record['precision']:<5} {record['median_ms']:10.3f} ms {rate} {limit}{rest}",
          flush=True)


MEMORY = ("memory_mb", "memory_torch_mb", "faults_a_step", "faults_a_step_torch")
