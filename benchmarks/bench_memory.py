"""Peak memory over the import and page faults a step, each side in a process of its own: training steps, the head with its loss.

memory_mb: the largest resident memory less that after the imports; for the head less its inputs and gradients too.
faults_a_step: memory touched for the first time (minor faults) in each step but the first.
"""
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import close
from pyllm import kernels as K
from pyllm import measure

STEPS = 4
HEAD = (1024, 768, 50257)


def records(quick, wanted):
    """-> the record of each wanted row; pyllm runs first, PyTorch's setting: eager, which takes less than compiled."""
    from benchmarks.bench_train_step import ROWS

    works = [("head_cross_entropy", "{} x {} x {}".format(*HEAD))] * (not quick)
    works += [(f"{kind}_{name}", f"B{b} T{t}") for kind, name, b, t in ROWS[: 1 if quick else None]]
    for name, shape in works:
        for precision in ("f32", "bf16"):
            if wanted(f"memory_{name} {shape} {precision}"):
                yield record(name, shape, precision)


def record(name, shape, precision):
    sides = {side: measured(side, name, shape, precision) for side in ("pyllm", "torch")}
    mine, peer = sides["pyllm"], sides["torch"]
    if peer:
        close(mine["losses"], peer["losses"], 1e-2 if precision == "bf16" else 1e-4, f"{name}: the losses against PyTorch")
    return {"name": f"memory_{name}", "shape": shape, "precision": precision, "threads": K.num_threads(), "checked": bool(peer),
            "median_ms": mine["median_ms"], "pct_limit": None, "peak_rss_mb": mine["peak_rss_mb"], "ratio_numpy": None,
            "ratio_torch": peer and round(peer["median_ms"] / mine["median_ms"], 2), "memory_mb": mine["memory_mb"],
            "memory_torch_mb": peer and peer["memory_mb"], "faults_a_step": mine["faults"], "faults_a_step_torch": peer and peer["faults"]}


def measured(side, name, shape, precision):
    """-> what a fresh process tells about one side, None where PyTorch is not installed."""
    command = [sys.executable, "-m", "benchmarks.bench_memory", side, name, shape, precision, str(K.num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- in the process of one side --------------------------------------------------------------------------------------


def resident_mb():
    """-> resident memory now, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3


def work(side, name, shape, precision, threads):
    """Prints one JSON object: the work of `name` done by one side."""
    from benchmarks import bench_layers, bench_train_step
    from benchmarks.harness import torch_or_none

    K.set_num_threads(int(threads))
    if side == "torch":
        if not torch_or_none():
            return print("null")
        from benchmarks import torch_gpt
    before, half = resident_mb(), precision == "bf16"
    if name == "head_cross_entropy":
        inputs = bench_layers.head_inputs(*HEAD)
        h, w, targets = inputs
        if side == "torch":
            run = bench_layers.head_peer(*inputs, half)
            steps = lambda: float(run()[0].float().abs().sum())  # of the gradient of h: what the sides are compared by
        else:
            steps = lambda: float(abs(K.linear_cross_entropy(h, w, None, targets, need=(True, True, False), reduced=half)[1]).sum())
        before = resident_mb() + (h.nbytes + w.nbytes) / 1e6 / (2 if half and side == "torch" else 1)
    else:
        (kind, _, model_name), (b, t) = name.partition("_"), (int(part[1:]) for part in shape.split())
        model = bench_train_step.MODELS[model_name]().initialize(0)
        batch = bench_train_step.batch_of(model, b, t, kind)
        if side == "torch":
            steps = torch_gpt.training_step(torch_gpt.TorchModel(model, share=True), batch.tokens, batch.targets, precision)
        else:
            steps = bench_train_step.stepper(model, batch, precision)
    losses, faults, times = [], [], []
    for _ in range(STEPS):
        touched, began = measure.page_faults(), time.perf_counter()
        losses.append(steps())
        times.append(time.perf_counter() - began)
        faults.append(measure.page_faults() - touched)
    print(json.dumps({"losses": losses, "median_ms": round(1e3 * statistics.median(times[1:]), 3), "faults": max(faults[1:]),
                      "memory_mb": round(measure.peak_rss_mb() - before, 1), "peak_rss_mb": round(measure.peak_rss_mb(), 1)}))


if __name__ == "__main__":
    work(*sys.argv[1:])
