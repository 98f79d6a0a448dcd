"""The work that PYLLM_DEBUG=1 counts: FLOP and bytes from shapes, against a count of what the masks leave."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import profile, reference


@given(b=st.integers(1, 3), tq=st.integers(1, 9), more=st.integers(0, 5), window=st.integers(0, 6), causal=st.booleans(),
       ragged=st.booleans())
def test_pairs_are_those_of_the_mask(b, tq, more, window, causal, ragged):
    window = window if causal else 0
    q, k = np.zeros((b, tq, 2, 4), np.float32), np.zeros((b, tq + more, 1, 4), np.float32)
    starts = np.arange(b, dtype=np.int64) % (more + 1) if ragged else None
    seen = reference.attention_mask(q, k, causal, window, None, starts)
    assert profile.pairs(q, k, causal, window, None, starts) == np.broadcast_to(seen, (b, *seen.shape[-2:])).sum()


def test_pairs_within_documents():
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 3]], np.int32)
    q = np.zeros((2, 6, 1, 4), np.float32)
    assert profile.pairs(q, q, segments=(segments, segments)) == (6 + 3) + (1 + 10 + 1)


def test_work_of_the_kernels_with_most_of_it():
    a, w, bias = np.zeros((6, 4), np.float32), np.zeros((5, 4), np.float32), np.zeros(5, np.float32)
    y = np.zeros((6, 5), np.float32)
    assert profile.WORK["matmul"](y, a, w, tb=True, bias=bias) == (2.0 * 6 * 4 * 5, y.nbytes + a.nbytes + w.nbytes + bias.nbytes)
    assert profile.WORK["matmul"](y.T, w, a, tb=True)[0] == profile.WORK["matmul"](a.T, y.T, a, ta=False)[0] == 2.0 * 6 * 4 * 5
    head = profile.WORK["linear_cross_entropy"]
    assert head((np.zeros(6, np.float32),), a, w, None, np.zeros(6, np.int32), need=(True, True, False))[0] == 3 * 2.0 * 6 * 4 * 5
    q, k = np.zeros((2, 3, 4, 8), np.float32), np.zeros((2, 3, 2, 8), np.float32)
    assert profile.WORK["attention"](q, q, k, k, causal=False)[0] == 2 * 2.0 * 2 * 4 * 3 * 3 * 8
    assert profile.WORK["attention_vjp"](q, q, q, k, k, q, q, causal=True)[0] == 5 * 2.0 * 2 * 4 * 6 * 8
    assert profile.WORK["adamw"](None, a, a, a, a, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1) == (0.0, 28.0 * a.size)


def test_bytes_count_an_array_once():
    a, b = np.zeros(8, np.float32), np.zeros(8, np.float32)
    assert profile.moved(a, a, b, out=a) == (0.0, 64.0)


@pytest.mark.parametrize("name", profile.WORK)
def test_entries_are_kernels(name):
    assert name in K.KERNELS


def test_work_of_packed_weights():
    w, x = K.Packed.quantize(np.ones((64, 32), np.float32), "q8_0"), np.zeros((3, 32), np.float32)
    y = np.zeros((3, 64), np.float32)
    assert profile.WORK["linear"](y, x, w) == (2.0 * 3 * 32 * 64, y.nbytes + x.nbytes + 64 * 34.0)
    assert profile.WORK["linear_vjp"](x, y, w)[0] == 2.0 * 3 * 32 * 64
    assert profile.precision(x, w) == "int8" and profile.precision(x, x, reduced=True) == "bf16"
