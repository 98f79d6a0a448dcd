"""The optimizer's kernels: precision of the coefficients, in place, NaN passes through."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.kernels import reference

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


def test_many_steps(isa):
    """200 steps in float32 stay beside float64: 1 - beta2 = 1e-3 keeps its digits."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(1003).astype(np.float32)
    state, exact = [p, np.zeros_like(p), np.zeros_like(p)], [a.astype(np.float64) for a in (p, 0 * p, 0 * p)]
    for step in range(1, 201):
        g = rng.standard_normal(1003).astype(np.float32)
        for (q, m, v), kernels, grad in ((state, K, g), (exact, reference, g.astype(np.float64))):
            kernels.adamw(q, grad, m, v, 1e-3, 0.9, 0.999, 1e-8, 0.1, step, 0.5)
    for got, e, rtol in zip(state, exact, (1e-6, 1e-5, 3e-6)):
        np.testing.assert_allclose(got, e, rtol=rtol, atol=rtol * np.abs(e).max())


def test_in_place_or_not_at_all():
    """p, m, v must be dense and writable: a copy would be updated in their place."""
    dense = [np.ones((4, 6), np.float32) for _ in range(4)]
    locked = np.ones((4, 6), np.float32)
    locked.flags.writeable = False
    for i, name in ((0, "p"), (2, "m"), (3, "v")):
        for wrong in (np.ones((6, 4), np.float32).T, np.ones((4, 12), np.float32)[:, ::2], locked):
            with pytest.raises(TypeError, match=f"adamw: {name}: expected"):
                K.adamw(*[wrong if j == i else a for j, a in enumerate(dense)], 1e-3, 0.9, 0.95, 1e-8, 0.1, 1)
    with pytest.raises(ValueError, match="adamw: step=0"):
        K.adamw(*dense, 1e-3, 0.9, 0.95, 1e-8, 0.1, 0)


def test_sum_squares(isa):
    """float64 throughout: large n, values whose squares pass float32, NaN, nothing."""
    x = np.random.default_rng(1).standard_normal(1_000_003).astype(np.float32)
    assert abs(K.sum_squares(x) / np.square(x, dtype=np.float64).sum() - 1) < 1e-13
    assert K.sum_squares(np.float32([1e30, -1e30])) == 2 * float(np.float32(1e30)) ** 2
    assert np.isnan(K.sum_squares(np.float32([1, np.nan, 2]))) and K.sum_squares(np.zeros(0, np.float32)) == 0
