"""The harness: a wrong kernel is never timed, a record has the documented keys."""
import numpy as np
import pytest

from benchmarks.harness import Case, close, measure_case

KEYS = {"name", "shape", "precision", "threads", "checked", "median_ms", "gflops", "pct_limit", "peak_rss_mb", "ratio_numpy", "ratio_torch"}


def test_record_of_a_case():
    a = np.ones((64, 64), np.float32)
    case = Case("matmul", "64 x 64 x 64", lambda: a @ a, lambda: close(a @ a, np.full((64, 64), 64.0), 1e-6, "matmul"), flops=2.0 * 64**3,
                numpy=lambda: a @ a)
    record = measure_case(case, rounds=3, budget=0.05)
    assert set(record) == KEYS
    assert record["checked"] and record["median_ms"] > 0 and record["ratio_torch"] is None
    assert 0.05 < record["ratio_numpy"] < 20


def test_wrong_result_is_not_timed():
    runs = []
    case = Case("wrong", "", lambda: runs.append(1), lambda: close(np.ones(3), np.zeros(3) + 2, 1e-6, "wrong"), flops=1.0)
    with pytest.raises(AssertionError, match="relative error"):
        measure_case(case)
    assert not runs
