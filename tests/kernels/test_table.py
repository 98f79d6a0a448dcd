"""What holds for every kernel of cases.py: the float64 reference on every ISA, layouts, clear errors."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference
from tests.kernels.cases import CASES, wide
from tests.strategies import EDGES, lay_out, layouts, sizes

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def check(case, args):
    """The active kernels against the reference in float64, within rtol of each output's largest element (of 0.1 at least)."""
    got, expected = case.outputs(K, args), case.outputs(reference, wide(args))
    assert len(got) == len(expected)
    for g, e in zip(got, expected):
        assert g.shape == e.shape and (g.dtype == np.float32 or case.kernel in ("sample", "sum_squares"))
        np.testing.assert_allclose(g, e, rtol=case.rtol, atol=case.rtol * np.abs(e).max(initial=0.1))


@each_case
def test_against_reference(case, isa):
    """Every edge size with few rows, then sizes that are split into tasks."""
    rng = np.random.default_rng(1)
    for c in (c for c in EDGES if c >= case.least):
        for n in (0, 1, 5):
            check(case, case.make(rng, n, c))
    check(case, case.make(rng, 331, 301))


@each_case
@settings(max_examples=15)
@given(n=sizes(), c=sizes(), layout=layouts(), seed=st.integers(0, 2**32))
def test_layouts(case, n, c, layout, seed):
    """Any layout of the inputs gives what a dense copy of them gives."""
    args = case.make(np.random.default_rng(seed), min(n, 70), max(c, case.least))
    args = [lay_out(a, layout) if isinstance(a, np.ndarray) and i not in case.fixed else a for i, a in enumerate(args)]
    plain = [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for a in args]
    for got, expected in zip(case.outputs(K, args), case.outputs(K, plain), strict=True):
        np.testing.assert_array_equal(got, expected)
    if layout != "broadcast":  # equal rows of w cancel to nothing but rounding
        check(case, args)


@each_case
def test_none_and_wrong_dtypes_are_named(case):
    """None, integers, complex numbers and float16 in any array argument: TypeError or ValueError, never a value."""
    args = case.make(np.random.default_rng(4), 3, 8)
    for i, a in enumerate(args):
        if not isinstance(a, np.ndarray):
            continue
        optional = case.kernel in ("layer_norm", "linear_cross_entropy") and i == 2
        for wrong in ([] if optional else [None, a.tolist()]) + [a.astype(np.complex64), a.astype(np.float16)]:
            with pytest.raises(TypeError, match=case.kernel.removeprefix("linear_")):
                case.outputs(K, [wrong if j == i else b for j, b in enumerate(args)])


@pytest.mark.parametrize("case", [c for c in CASES if len(c.rows) > 1 or c.kernel in ("layer_norm", "rms_norm")], ids=str)
def test_wrong_shapes_are_named(case):
    """An array that does not fit the others, one element longer along its first or its last axis: ValueError with the kernel's name."""
    args = case.make(np.random.default_rng(5), 3, 8)
    for i in (i for i, a in enumerate(args) if isinstance(a, np.ndarray)):
        axis = 0 if i in case.rows and case.kernel not in ("layer_norm", "rms_norm") else -1
        wrong = np.concatenate([args[i], args[i].take([0], axis)], axis)
        with pytest.raises(ValueError, match=case.kernel):
            case.outputs(K, [wrong if j == i else b for j, b in enumerate(args)])
