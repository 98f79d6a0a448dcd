"""Activations: stated error, special values; dropout: the mask of the reference bit for bit."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.kernels import reference

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


def test_exp_error(isa):
    """e^y is what log_softmax_vjp subtracts: 9e-8 relative, 0 below -87.34, inf above 88.73, NaN stays."""
    y = np.linspace(-90, 90, 1_000_003, dtype=np.float32)
    y = np.concatenate([y, np.float32([-np.inf, np.inf, np.nan, 88.7228, -87.336])])
    rows = np.stack([y, np.zeros_like(y)], 1)
    dy = np.broadcast_to(np.float32([0, 1]), rows.shape)
    e, exact = -K.log_softmax_vjp(dy, rows)[:, 0], np.exp(np.minimum(y, 88.8).astype(np.float64))
    normal = (y > -87.336) & (y < 88.7228)
    assert np.max(np.abs(e[normal] / exact[normal] - 1)) < 9e-8
    assert (e[y < -87.34] == 0).all() and np.isinf(e[y > 88.73]).all() and np.isnan(e[np.isnan(y)]).all()


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_activation_error(isa, act):
    """Relative error 4e-7 where values are not tiny; small negative ones keep their digits."""
    x = np.linspace(-13, 13, 200_001, dtype=np.float32)
    y, exact = K.activation(x, act), reference.activation(x.astype(np.float64), act)
    wide = np.abs(x) < 4
    assert np.max(np.abs(y - exact)[wide] / np.maximum(np.abs(exact[wide]), 1e-12)) < 1e-5
    np.testing.assert_allclose(y, exact, rtol=4e-7, atol=3e-7)
    d, exact = K.activation_vjp(np.ones_like(x), x, act), reference.activation_vjp(np.ones(x.shape), x.astype(np.float64), act)
    np.testing.assert_allclose(d, exact, rtol=0, atol=2.5e-6)


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_special_values(isa, act):
    """NaN, infinities and huge numbers as NumPy has them; a huge x has slope 0 or 1, also where its square overflows."""
    x = np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 88, -88, 200, -200])
    with np.errstate(all="ignore"):
        expected, slope = reference.activation(x, act), reference.activation_vjp(np.ones_like(x), x, act)
    np.testing.assert_allclose(K.activation(x, act), expected, rtol=1e-6, atol=1e-35)
    np.testing.assert_allclose(K.activation_vjp(np.ones_like(x), x, act), slope, rtol=1e-6, atol=1e-35)
    huge = np.float32([1e15, 1e30, 3e38, -1e15, -1e30, -3e38])
    np.testing.assert_array_equal(K.activation(huge, act), np.maximum(huge, 0))
    np.testing.assert_array_equal(K.activation_vjp(np.ones_like(huge), huge, act), huge > 0)


def test_unknown_activation():
    x = np.zeros(3, np.float32)
    for act in ("gelo", None, 3):
        with pytest.raises(ValueError, match="activation: act=.*gelu_tanh"):
            K.activation(x, act)


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_matmul_epilogue_is_the_kernel(isa, act):
    """The activation in the matmul's epilogue gives the bits of the kernel on its own."""
    rng = np.random.default_rng(0)
    for m, n in ((1, 19), (3, 64), (9, 131)):
        a, b, bias, residual = (rng.standard_normal(s, np.float32) for s in ((m, 40), (n, 40), n, (m, n)))
        c, z = K.matmul(a, b, tb=True, bias=bias, act=act, residual=residual)
        np.testing.assert_array_equal(z, K.matmul(a, b, tb=True, bias=bias))
        np.testing.assert_allclose(c, K.activation(z, act) + residual, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.5, 0.999])
def test_dropout_mask(isa, p):
    """Element i is kept where word i says so, whatever the split into tasks; nothing is dropped at p = 0."""
    x = np.full(100_003, 2, np.float32)
    for key in (0, 1, 2**32 - 1, 2**64 - 1):
        y = K.dropout(x, p, key)
        np.testing.assert_array_equal(y, reference.dropout(x, p, key))
        np.testing.assert_array_equal(K.dropout(x[:1001], p, key), y[:1001])
    assert abs((y == 0).mean() - p) < 0.006


def test_dropout_arguments():
    x = np.zeros(3, np.float32)
    for p, key in ((1.0, 0), (-0.1, 0), (float("nan"), 0), (0.5, -1), (0.5, 2**64)):
        with pytest.raises(ValueError, match="dropout: dropout (p|key)="):
            K.dropout(x, p, key)
