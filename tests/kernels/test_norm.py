"""Norms: constant rows, large offsets, NaN, sums of weight gradients over many rows."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.kernels import reference

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


def test_constant_and_shifted_rows(isa):
    """The variance is taken about the mean: a constant row gives b, an offset of 1000 costs no more than its own rounding."""
    rng = np.random.default_rng(0)
    w, b = (rng.standard_normal(77, np.float32) for _ in range(2))
    y, mean, rstd = K.layer_norm(np.full((2, 77), 3, np.float32), w, b, 1e-5)
    np.testing.assert_allclose(y, [b, b], rtol=1e-6)
    np.testing.assert_allclose(rstd, 1e-5**-0.5, rtol=1e-5)
    x = rng.standard_normal((5, 77)).astype(np.float32) + 1000
    np.testing.assert_allclose(K.layer_norm(x, w, b, 1e-5)[0], reference.layer_norm(x.astype(np.float64), w, b, 1e-5)[0], atol=1e-3)


def test_nan_stays_in_its_row(isa):
    x = np.ones((3, 20), np.float32)
    x[1, 7] = np.nan
    w = np.ones(20, np.float32)
    for y in (K.layer_norm(x, w, w, 1e-5)[0], K.rms_norm(x, w, 1e-5)[0]):
        np.testing.assert_array_equal(np.isnan(y).all(1), [False, True, False])
        assert not np.isnan(y[::2]).any()


def test_weight_gradients_of_many_rows(isa):
    """More rows than chunks: dw, db and column_sum against float64; gradients of no rows are 0."""
    rng = np.random.default_rng(1)
    dy, x = (rng.standard_normal((5000, 37)).astype(np.float32) for _ in range(2))
    w = rng.standard_normal(37).astype(np.float32)
    _, mean, rstd = K.layer_norm(x, w, w, 1e-5)
    expected = reference.layer_norm_vjp(*(a.astype(np.float64) for a in (dy, x, w, mean, rstd)))
    for got, e in zip(K.layer_norm_vjp(dy, x, w, mean, rstd), expected):
        np.testing.assert_allclose(got, e, atol=2e-4)
    np.testing.assert_allclose(K.column_sum(x), x.astype(np.float64).sum(0), atol=1e-4)
    none = np.zeros((0, 37), np.float32)
    stat = none[:, 0]
    for grad in (*K.layer_norm_vjp(none, none, w, stat, stat)[1:], K.rms_norm_vjp(none, none, w, stat)[1], K.column_sum(none)):
        np.testing.assert_array_equal(grad, np.zeros(37))


def test_axes(isa):
    """Any number of leading axes; statistics have their shape."""
    x, w = np.ones((2, 3, 4, 8), np.float32), np.ones(8, np.float32)
    y, mean, rstd = K.layer_norm(x, w, None, 1e-5)
    assert y.shape == x.shape and mean.shape == rstd.shape == (2, 3, 4)
    y, rstd = K.rms_norm(x[0, 0, 0], w, 1e-5)
    assert y.shape == (8,) and rstd.shape == ()
