"""Products: every transposition, edge and epilogue, in float32 and bfloat16; one chain for each element, whatever the shape around it."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference

pytestmark = pytest.mark.skipif(K.available() == ["reference"], reason="no compiled kernels")
TRANSPOSED = pytest.mark.parametrize("ta, tb", [(False, False), (False, True), (True, False), (True, True)])
PRECISION = pytest.mark.parametrize("reduced", [False, True], ids=["f32", "bf16"])


def operands(seed, m, k, n, ta=False, tb=False, lead=()):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((*lead, *shape), np.float32)
    return draw(*((k, m) if ta else (m, k))), draw(*((n, k) if tb else (k, n)))


def exact(a, b, ta=False, tb=False, reduced=False, **options):
    """In float64, of the rounded operands where `reduced`."""
    a, b = (reference.bf16(x) if reduced else x for x in (a, b))
    wide = {name: x.astype(np.float64) if isinstance(x, np.ndarray) else x for name, x in options.items()}
    return reference.matmul(a.astype(np.float64), b.astype(np.float64), ta=ta, tb=tb, **wide)


def nmse(got, want):
    """Mean squared error over mean square."""
    return np.square(got - want).sum() / max(np.square(want).sum(), 1e-300)


@PRECISION
@TRANSPOSED
def test_edges(ta, tb, reduced, isa):
    """Sizes around registers, tiles and K blocks."""
    for m, k, n in [(1, 1, 1), (1, 3, 50), (2, 17, 16), (3, 0, 5), (5, 33, 31), (7, 768, 49), (8, 769, 33), (9, 31, 1), (13, 801, 97),
                    (48, 64, 200), (100, 1537, 17)]:
        a, b = operands(1, m, k, n, ta, tb)
        got = K.matmul(a, b, ta=ta, tb=tb, reduced=reduced)
        np.testing.assert_allclose(got, exact(a, b, ta, tb, reduced), atol=3e-6 * max(k, 1) ** 0.5 * 4, err_msg=f"{m} x {k} x {n}")


@PRECISION
@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 70), k=st.integers(1, 130), n=st.integers(1, 120), ta=st.booleans(), tb=st.booleans(),
       act=st.sampled_from([None, "gelu_tanh", "gelu", "silu", "relu"]), extras=st.integers(0, 3), lead=st.sampled_from([(), (3,), (2, 2)]))
def test_epilogue(reduced, m, k, n, ta, tb, act, extras, lead):
    """Bias, activation, z and residual, also of a batch."""
    a, b = operands(2, m, k, n, ta, tb, lead)
    rng = np.random.default_rng(3)
    options = {"act": act}
    if extras & 1:
        options["bias"] = rng.standard_normal(n, np.float32)
    if extras & 2:
        options["residual"] = rng.standard_normal((*lead, m, n), np.float32)
    got, want = K.matmul(a, b, ta=ta, tb=tb, reduced=reduced, **options), exact(a, b, ta, tb, reduced, **options)
    for g, w in zip(got, want) if act else [(got, want)]:
        np.testing.assert_allclose(g, w, atol=1e-4)


@PRECISION
@TRANSPOSED
def test_accumulate_adds_to_what_is_there(ta, tb, reduced, isa):
    for m, k, n in [(3, 40, 70), (40, 900, 70)]:
        a, b = operands(4, m, k, n, ta, tb)
        out = np.ones((m, n), np.float32)
        K.matmul(a, b, ta=ta, tb=tb, out=out, accumulate=True, reduced=reduced)
        np.testing.assert_allclose(out, 1 + exact(a, b, ta, tb, reduced), atol=3e-4)


@PRECISION
@TRANSPOSED
def test_same_bits_for_any_thread_count(ta, tb, reduced, isa):
    """The last has fewer tiles of rows than there are threads: parts without rows."""
    before = K.num_threads()
    try:
        for m, k, n in [(150, 801, 300), (300, 100, 70), (5, 300, 500), (64, 64, 64), (33, 2000, 16)]:
            a, b = operands(5, m, k, n, ta, tb)
            K.set_num_threads(1)
            want = K.matmul(a, b, ta=ta, tb=tb, reduced=reduced)
            for threads in (2, 3, 4, 8, 16):
                K.set_num_threads(threads)
                np.testing.assert_array_equal(K.matmul(a, b, ta=ta, tb=tb, reduced=reduced), want)
    finally:
        K.set_num_threads(before)


@PRECISION
@TRANSPOSED
def test_an_element_does_not_depend_on_the_shape_around_it(ta, tb, reduced, isa):
    """Any rows and any columns of the operands give the bits that they have in the whole product."""
    m, k, n = 201, 1001, 211
    a, b = operands(6, m, k, n, ta, tb)
    whole = K.matmul(a, b, ta=ta, tb=tb, reduced=reduced)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 127):
        for first, cols in ((0, n), (60, 50), (17, 1)):
            x, y = (a[:, 3 : 3 + rows] if ta else a[3 : 3 + rows]), (b[first : first + cols] if tb else b[:, first : first + cols])
            got = K.matmul(x, y, ta=ta, tb=tb, reduced=reduced)
            np.testing.assert_array_equal(got, whole[3 : 3 + rows, first : first + cols], err_msg=f"{rows} rows, columns {first} + {cols}")


@TRANSPOSED
def test_transposition_does_not_touch_the_bits(ta, tb, isa):
    a, b = operands(7, 50, 800, 60, ta, tb)
    dense = lambda x, turned: np.ascontiguousarray(x.T) if turned else x
    for reduced in (False, True):
        np.testing.assert_array_equal(K.matmul(a, b, ta=ta, tb=tb, reduced=reduced), K.matmul(dense(a, ta), dense(b, tb), reduced=reduced))


@TRANSPOSED
def test_error_bounds(ta, tb, isa):
    """Normalised mean squared error: float32 <= 1e-12; bfloat16 <= 1e-12 for the rounded operands and 1e-5 with their rounding."""
    for m, k, n in [(128, 768, 256), (64, 4096, 64), (4, 3072, 200)]:
        a, b = operands(8, m, k, n, ta, tb)
        assert nmse(K.matmul(a, b, ta=ta, tb=tb), exact(a, b, ta, tb)) <= 1e-12
        half = K.matmul(a, b, ta=ta, tb=tb, reduced=True)
        assert nmse(half, exact(a, b, ta, tb, reduced=True)) <= 1e-12
        assert 1e-7 <= nmse(half, exact(a, b, ta, tb)) <= 1e-5  # it does round


@PRECISION
def test_special_values(reduced, isa):
    """NaN and infinity reach their rows and columns and nothing else, in the tile and with few rows."""
    for m in (4, 40):
        a, b = operands(9, m, 33, 50, tb=True)
        a[2, 32], b[7, 5] = np.nan, np.inf
        got = K.matmul(a, b, tb=True, reduced=reduced)
        wrong = np.zeros((m, 50), bool)
        wrong[2], wrong[:, 7] = True, True
        np.testing.assert_array_equal(~np.isfinite(got), wrong)
