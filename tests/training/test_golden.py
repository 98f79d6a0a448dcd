"""Ten training steps against PyTorch in float64 (golden.json, written by make_golden.py)."""
import json
from pathlib import Path

import numpy as np
import pytest

from pyllm import training
from pyllm.data.batch import Batch
from pyllm.objectives import clm
from tests.training import tiny

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def batches():
    i = np.arange(26).reshape(2, 13)
    for n in range(20):
        ids = ((i * i * 7 + 3 * i + 5 * (n // 2) + n % 2) % tiny.V).astype(np.int32)
        yield Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))


@pytest.mark.parametrize("family", GOLDEN)
@pytest.mark.parametrize("dtype, rtol", [(np.float32, 2e-6), (np.float64, 1e-7)])  # float64: rotary tables are float32
def test_ten_steps_as_in_pytorch(family, dtype, rtol):
    model = tiny.filled(getattr(tiny, family)(), dtype)
    rate = training.cosine(0.01, 10, warmup=3, min_lr=1e-3)
    records = list(training.train(model, clm, batches(), training.AdamW(model), steps=10, lr=rate, accumulate=2, clip=0.5))
    np.testing.assert_allclose([r.loss for r in records], GOLDEN[family]["loss"], rtol=rtol)
    np.testing.assert_allclose([r.grad_norm for r in records], GOLDEN[family]["grad_norm"], rtol=20 * rtol)
