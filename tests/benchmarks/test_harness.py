"""The harness: a wrong kernel is never timed, a record has the documented keys, every row builds; records become tables."""
import json

import numpy as np
import pytest

from benchmarks import bench_attention, bench_layers, bench_matmul, bench_memory, bench_quant, table
from benchmarks.harness import Case, close, fastest, measure_case

KEYS = {"name", "shape", "precision", "threads", "checked", "median_ms", "gflops", "pct_limit", "peak_rss_mb", "ratio_numpy", "ratio_torch"}


def test_record_of_a_case():
    a = np.ones((64, 64), np.float32)
    run, right = lambda: a @ a, np.full((64, 64), 64.0)
    case = Case("matmul", "64 x 64 x 64", lambda: (run, lambda: close(run(), right, 1e-6, "matmul"), {"numpy": run, "torch": None}),
                flops=2.0 * 64**3)
    record = measure_case(case, rounds=3, budget=0.05)
    assert set(record) == KEYS
    assert record["checked"] and record["median_ms"] > 0 and record["ratio_torch"] is None
    assert 0.05 < record["ratio_numpy"] < 20


def test_wrong_result_is_not_timed():
    runs = []
    wrong = lambda: close(np.ones(3), np.zeros(3) + 2, 1e-6, "wrong")
    with pytest.raises(AssertionError, match="relative error"):
        measure_case(Case("wrong", "", lambda: (lambda: runs.append(1), wrong, {}), flops=1.0))
    assert not runs


def test_the_faster_setting_of_a_peer_counts():
    import time

    def fails():
        raise RuntimeError("no compiler")

    quick, slow = (lambda: None), (lambda: time.sleep(0.01))
    f, seconds, setting = fastest({"eager": slow, "compiled": quick})
    assert f is quick and seconds < 0.005 and setting == "compiled"
    f, _, setting = fastest({"eager": slow, "compiled": fails})
    assert f is slow and setting == "eager; compiled failed: RuntimeError"
    with pytest.raises(RuntimeError):
        fastest({"": fails})


def test_a_peer_that_takes_too_long_is_left_out(monkeypatch):
    import time

    monkeypatch.setattr("benchmarks.harness.LIMIT", 0.05)
    quick = lambda: None
    began = time.monotonic()
    f, _, setting = fastest({"eager": quick, "compiled": lambda: time.sleep(20)})
    assert f is quick and setting == "eager; compiled failed: TimeoutError" and time.monotonic() - began < 5


@pytest.mark.parametrize("module", [bench_matmul, bench_attention, bench_layers, bench_quant], ids=lambda m: m.__name__)
def test_rows_are_right(module, monkeypatch):
    """The checks of the small rows pass; pyllm's side alone, the peers are not built."""
    monkeypatch.setattr(module, "torch_or_none", lambda: None)
    cases = list(module.cases(quick=True))
    assert len({c.precision for c in cases}) >= 2 and len({(c.name, c.shape, c.precision) for c in cases}) == len(cases)
    for case in cases:
        assert case.flops > 0 or case.bytes > 0
        if max(case.flops, case.bytes) < 5e8:
            run, check, _ = case.build()
            check()
            run()


def test_memory_of_a_process_of_its_own():
    found = bench_memory.measured("pyllm", "train_gpt_0.8M", "B12 T64", "f32")
    assert len(found["losses"]) == bench_memory.STEPS and 10 < found["memory_mb"] < 500 and found["faults"] < 2000


def test_tables(tmp_path):
    base = {"threads": 2, "checked": True, "peak_rss_mb": 1.0, "ratio_numpy": None}
    rows = [{**base, "name": "train_gpt2_124M", "shape": "B4 T256", "precision": "bf16", "median_ms": 2345.6, "gflops": 330.1,
             "pct_limit": 70.2, "ratio_torch": 1.55, "torch_setting": "compiled", "tokens_per_second": 436.5},
            {**base, "name": "decode_gpt2_124M", "shape": "1 x 32 tokens", "precision": "f32", "median_ms": 300.0, "gbs": 27.2,
             "pct_limit": 91.0, "ratio_torch": None, "ratio_transformers": 3.1, "tokens_per_second": 53.3},
            {**base, "name": "memory_x", "shape": "B1", "precision": "f32", "median_ms": 3.0, "pct_limit": None, "ratio_torch": 2.0,
             "memory_mb": 100.4, "memory_torch_mb": 300.0, "faults_a_step": 0, "faults_a_step_torch": 7}]
    (tmp_path / "a.jsonl").write_text("a heading\n" + json.dumps({**rows[0], "median_ms": 1.0}) + "\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = table.read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert read == rows
    lines = table.markdown(read).splitlines()
    assert lines[2] == "| train_gpt2_124M | B4 T256 | bf16 | 2346 (436 tok/s) | 330.1 | 70.2 | - | 1.55x | torch: compiled |"
    assert lines[3] == "| decode_gpt2_124M | 1 x 32 tokens | f32 | 300 (53 tok/s) | 27.2 GB/s | 91 | - | - | 3.1x transformers |"
    assert lines[4].endswith("| 2x | 100 MB, 0 faults a step; PyTorch 300 MB, 7 |")
    short = table.readme(read).splitlines()
    assert short[2] == "| training step, GPT-2 124 M, 4 x 256 tokens, bf16 | 2.35 s | 70 % | 1.55 times |"
    assert short[3] == "| decoding, GPT-2 124 M, one text, f32 | 53 tokens/s | 91 % | - |"
