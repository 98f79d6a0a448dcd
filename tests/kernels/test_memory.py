"""Kernels that promise to stream hold no more than they say: resident memory of a process of its own, once inputs and outputs stand."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm import kernels as K

pytestmark = pytest.mark.skipif(K.active() == "reference" or not Path("/proc/self/status").exists(), reason="compiled kernels, Linux")

HEAD = """
h, w, targets = draw(512, 64), draw(50257, 64), np.arange(512, dtype=np.int32)
run = lambda: K.linear_cross_entropy(h, w, None, targets, need=(True, True, False))
outputs = h.nbytes + w.nbytes"""  # the (N, V) logits would be 103 MB
ATTENTION = """
q, k, v, dout, out = (draw(1, 8192, 8, 64) for _ in range(5))
lse = np.full((1, 8, 8192), 9.0, np.float32)
run = lambda: K.attention_vjp(dout, q, k, v, out, lse, window=2048, dropout=0.1, key=1)
outputs = 3 * q.nbytes"""  # a dq for each part of the keys would be 67 MB, (T, T) of a head 268 MB


FORWARD = """
q, k, v = (draw(1, 8192, 8, 64) for _ in range(3))
run = lambda: K.attention(q, k, v, window=2048, dropout=0.1, key=1)
outputs = q.nbytes"""


@pytest.mark.parametrize("setup", [HEAD, ATTENTION, FORWARD], ids=["head", "attention_vjp", "attention"])
def test_at_most_32_mb_beside_inputs_and_outputs(setup):
    code = f"""
import json
import numpy as np
from pyllm import kernels as K
from pyllm.measure import peak_rss_mb
def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)
{setup}
K.matmul(draw(64, 64), draw(64, 64))  # the workers stand
before = peak_rss_mb()
run()
print(json.dumps([before, peak_rss_mb(), outputs / 1e6]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    before, after, outputs = json.loads(done.stdout)
    assert after - before - outputs < 40, (before, after, outputs)  # 32 and what the threads pack for themselves


def test_a_freed_block_serves_what_needs_two_thirds_of_it():
    """A gradient of 3.5 MB takes the block of an activation of 4.7 MB; what is much smaller does not hold so large a block."""
    K._C.trim()
    calls = lambda: K._C.pool()["system_calls"]
    K.empty((4_718_592 // 4,))
    before = calls()
    K.empty((3_538_944 // 4,))
    assert calls() == before
    K.empty((2_000_000 // 4,))
    assert calls() == before + 1
    K._C.trim()


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer keeps what is freed")
def test_rows_of_ever_other_lengths_take_little_more_than_the_longest():
    """Twice as much, when what malloc keeps between blocks in use is never returned."""
    code = """
import json
import numpy as np
from pyllm import kernels as K
from pyllm.measure import peak_rss_mb
before, most = peak_rss_mb(), 0
for n in np.random.default_rng(0).integers(100, 420, 12):
    kept = []
    for width in 20 * (576, 576, 192, 1536, 576, 1536):
        kept.append(K.empty((int(n), width)))
        kept[-1][...] = 1
        passing = K.empty((int(n), width))
        passing[...] = 1
    most = max(most, sum(a.nbytes for a in kept) / 1e6)
    del kept, passing
print(json.dumps([peak_rss_mb() - before, most]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    taken, most = json.loads(done.stdout)
    assert taken < 1.6 * most, (taken, most)
