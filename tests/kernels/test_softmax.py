"""Softmax and cross-entropy: extreme logits, ignored targets, memory of the chunked head."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference
from tests.strategies import sizes

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")
INF = np.inf


EXTREME = [
    [1e4, -1e4, 0, 1e4],
    [1e38, -1e38, 0, 3e38],
    [-INF, 2, -INF, -INF],
    [7, 7, 7, 7],
    [-1e-30, 1e-30, 0, -0.0],
    [-3e38, -3e38, -3e38, -INF],
]


@pytest.mark.parametrize("row", EXTREME, ids=str)
def test_extreme_logits(isa, row):
    """Finite where mathematics is; rows sum to 1; loss and gradient are those of float64."""
    x = np.float32([row])
    p, exact = K.softmax(x), reference.softmax(x.astype(np.float64))
    np.testing.assert_allclose(p, exact, rtol=1e-6, atol=1e-37)
    with np.errstate(over="ignore"):
        exact = reference.log_softmax(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(K.log_softmax(x), exact, rtol=1e-6, atol=1e-6)
    target = np.int32([np.argmax(row)])
    loss, d = K.cross_entropy(x, target)
    e_loss, e_d = reference.cross_entropy(x.astype(np.float64), target)
    assert np.isfinite(loss).all() and np.isfinite(d).all()
    np.testing.assert_allclose(loss, e_loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(d, e_d, rtol=1e-6, atol=1e-6)


def test_nan_infinity_and_empty_rows(isa):
    """A row of -inf alone gives 0; NaN or +inf make a row NaN and no other, wherever they stand."""
    for v in (1, 5, 16, 70, 200):
        x = np.zeros((4, v), np.float32)
        x[0] = -INF
        x[1, v // 2], x[2, v - 1] = np.nan, INF
        for kernel in (K.softmax, K.log_softmax):
            y = kernel(x)
            assert np.isnan(y[1:3]).all() and np.isfinite(y[3]).all()
        np.testing.assert_array_equal(K.softmax(x)[0], np.zeros(v))
        loss, d = K.cross_entropy(x, np.int32([-1, 0, -100, 0]))
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False, False])
        np.testing.assert_array_equal(d[[0, 2]], np.zeros((2, v)))
    assert K.softmax(np.zeros((3, 0), np.float32)).shape == (3, 0)


@settings(max_examples=40)
@given(n=sizes(), v=sizes(1), smoothing=st.sampled_from([0.0, 0.1, 1.0]), z=st.sampled_from([0.0, 1e-3]), seed=st.integers(0, 2**32))
def test_cross_entropy(n, v, smoothing, z, seed):
    rng = np.random.default_rng(seed)
    x, targets = 4 * rng.standard_normal((n, v)).astype(np.float32), rng.integers(-2, v, n)
    loss, d = K.cross_entropy(x, targets, smoothing, z)
    e_loss, e_d = reference.cross_entropy(x.astype(np.float64), targets, smoothing, z)
    np.testing.assert_allclose(loss, e_loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d, e_d, rtol=1e-5, atol=2e-6)
    assert (loss[targets < 0] == 0).all() and (d[targets < 0] == 0).all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16, np.uint8])
def test_target_types(dtype):
    x = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    np.testing.assert_array_equal(K.cross_entropy(x, np.array([0, 8, 4], dtype))[0], K.cross_entropy(x, np.int32([0, 8, 4]))[0])


def test_targets_out_of_range():
    x = np.zeros((3, 9), np.float32)
    for bad in (np.int32([0, 9, 1]), np.int64([0, 2**32, 1]), np.uint64([0, 2**63, 1])):
        with pytest.raises(IndexError, match=rf"cross_entropy: target {bad[1]} at position 1, expected 0..8, or a negative one to ignore"):
            K.cross_entropy(x, bad)
    with pytest.raises(TypeError, match="targets of float64, expected int32"):
        K.cross_entropy(x, np.zeros(3))
    assert K.cross_entropy(x, np.int64([-(2**40), 1, 2]))[0][0] == 0


def test_chunks_of_the_head(isa, monkeypatch):
    """Several chunks of rows give what one product gives; a row's loss and dh have the same bits alone."""
    monkeypatch.setattr(K.native, "LOGITS", 64 * 1003)
    rng = np.random.default_rng(2)
    n, c, v = 200, 16, 1003
    h, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((n, c), (v, c), v))
    targets = rng.integers(-1, v, n).astype(np.int32)
    loss, dh, dw, db = K.linear_cross_entropy(h, w, b, targets, need=(True, True, True))
    e_loss, e_dh, e_dw, e_db = reference.linear_cross_entropy(*(a.astype(np.float64) for a in (h, w, b)), targets, need=(True, True, True))
    for got, e in zip((loss, dh, dw, db), (e_loss, e_dh, e_dw, e_db)):
        np.testing.assert_allclose(got, e, rtol=1e-4, atol=1e-5 * np.abs(e).max())
    part = K.linear_cross_entropy(h[70:90], w, b, targets[70:90], need=(True, False, False))
    np.testing.assert_array_equal(part[0], loss[70:90])
    np.testing.assert_array_equal(part[1], dh[70:90])
    np.testing.assert_array_equal(K.linear_cross_entropy(h, w, b, targets)[0], loss)


@pytest.mark.parametrize("n, c, v", [(1, 1, 1), (50, 17, 67), (147, 800, 2100), (5, 31, 4097)])
def test_reduced_head(isa, n, c, v):
    """bfloat16 products: as near to the reference's, which rounds the same operands, as a flip of a rounding allows."""
    rng = np.random.default_rng(3)
    h, w = rng.standard_normal((n, c)).astype(np.float32), (rng.standard_normal((v, c)) * 0.2).astype(np.float32)
    targets = rng.integers(-1, v, n).astype(np.int32)
    got = K.linear_cross_entropy(h, w, None, targets, 0.1, 1e-4, need=(True, True, False), reduced=True)
    expected = reference.linear_cross_entropy(*(a.astype(np.float64) for a in (h, w)), None, targets, 0.1, 1e-4, need=(True, True, False),
                                              reduced=True)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-4)
    for g, e in zip(got[1:3], expected[1:3]):
        np.testing.assert_allclose(g, e, rtol=2e-2, atol=2e-3 * np.abs(e).max())
    half = K.linear_cross_entropy(h[n // 2 :], w, None, targets[n // 2 :], 0.1, 1e-4, reduced=True)[0]
    np.testing.assert_array_equal(half, got[0][n // 2 :])
    frozen = K.linear_cross_entropy(h, w, None, targets, 0.1, 1e-4, need=(True, False, False), reduced=True)
    np.testing.assert_array_equal(frozen[1], got[1], "dh of a frozen head")


def test_head_without_rows():
    h, w, t = np.zeros((0, 4), np.float32), np.ones((7, 4), np.float32), np.zeros(0, np.int32)
    loss, dh, dw, db = K.linear_cross_entropy(h, w, None, t, need=(True, True, True))
    assert loss.shape == (0,) and dh.shape == (0, 4)
    np.testing.assert_array_equal(dw, np.zeros((7, 4)))
    np.testing.assert_array_equal(db, np.zeros(7))
