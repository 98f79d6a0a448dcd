"""Rotary positions: every ISA against the float64 reference, the inverse, layouts, errors."""
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference

ISAS = [name for name in K.available() if name != "reference"]
every_isa = pytest.mark.parametrize("isa", ISAS)


@pytest.fixture(autouse=True)
def _restore():
    name, threads = K.active(), K.num_threads()
    yield
    K.use(name)
    K.set_num_threads(threads)


def draw(rng, b, t, h, d, r, p=50):
    """-> x, cos, sin, positions."""
    angles = rng.uniform(-3, 3, (p, r // 2))
    x = rng.standard_normal((b, t, h, d), np.float32)
    return x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), rng.integers(0, p, (b, t), dtype=np.int32)


@every_isa
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_the_reference(isa, data):
    K.use(isa)
    pick = data.draw
    d = pick(st.sampled_from([1, 2, 3, 8, 17, 32, 64, 66, 80, 256]))
    r = 2 * pick(st.integers(0, d // 2))
    rng = np.random.default_rng(pick(st.integers(0, 99)))
    x, cos, sin, positions = draw(rng, pick(st.integers(0, 3)), pick(st.sampled_from([0, 1, 2, 40])),
                                  pick(st.integers(1, 3)), d, r)
    options = dict(interleaved=pick(st.booleans()), inverse=pick(st.booleans()))
    want = reference.rope(x.astype(np.float64), cos.astype(np.float64), sin.astype(np.float64), positions, **options)
    got = K.rope(x, cos, sin, positions, **options)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_array_equal(got[..., r:], x[..., r:])


@every_isa
@pytest.mark.parametrize("interleaved", [False, True])
def test_inverse_is_the_transpose(isa, interleaved):
    K.use(isa)
    rng = np.random.default_rng(0)
    x, cos, sin, positions = draw(rng, 2, 9, 3, 20, 12)
    dy = rng.standard_normal(x.shape, np.float32)
    y, dx = K.rope(x, cos, sin, positions, interleaved), K.rope(dy, cos, sin, positions, interleaved, inverse=True)
    np.testing.assert_allclose((y * dy).sum(dtype=np.float64), (x * dx).sum(dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(K.rope(y, cos, sin, positions, interleaved, inverse=True), x, atol=2e-6)


@every_isa
def test_layouts_and_threads(isa):
    K.use(isa)
    x, cos, sin, positions = draw(np.random.default_rng(1), 3, 400, 6, 32, 32)
    want = K.rope(x[:, :, 1:3].copy(), cos, sin, positions)
    for threads in (1, 2, 3, 8):
        K.set_num_threads(threads)
        np.testing.assert_array_equal(K.rope(x[:, :, 1:3], cos, sin, positions), want)
    np.testing.assert_array_equal(K.rope(x[:, ::2, 1:3], cos, sin, positions[:, ::2]), want[:, ::2])
    np.testing.assert_array_equal(K.rope(x[:, 7:8, 1:3], cos, sin, positions[:, 7:8]), want[:, 7:8])


@pytest.mark.parametrize("isa", ISAS[:1])
def test_errors_name_the_argument(isa):
    K.use(isa)
    x, cos, sin, positions = draw(np.random.default_rng(2), 2, 5, 2, 8, 8)
    with pytest.raises(ValueError, match="rope: positions from 0 to 50; expected 0 to 49"):
        K.rope(x, cos, sin, np.resize(np.array([0, 50], np.int32), (2, 5)))
    with pytest.raises(ValueError, match="rope: positions from -1"):
        K.rope(x, cos, sin, np.full((2, 5), -1, np.int32))
    with pytest.raises(ValueError, match=r"positions \(2, 4\)"):
        K.rope(x, cos, sin, positions[:, :4])
    with pytest.raises(ValueError, match=r"cos \(50, 4\).*head size 6"):
        K.rope(x[..., :6], cos, sin, positions)
    with pytest.raises(TypeError, match="rope: positions: .*int32.*int64"):
        K.rope(x, cos, sin, positions.astype(np.int64))
