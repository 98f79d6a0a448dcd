"""The table of errors in DESIGN.md, kernel by kernel: what it states is kept, and is not far above what is measured."""
import re
from pathlib import Path

import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.kernels import reference
from tests.kernels.cases import CASES, SHAPED, wide

DESIGN = Path(__file__).resolve().parents[2] / "DESIGN.md"
SIZES = ((64, 1024), (331, 301))
BOUNDS = {kernel: float(bound) for kernel, bound in re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \|", DESIGN.read_text(), re.M)}


def test_every_kernel_states_its_error():
    assert BOUNDS.keys() == {case.kernel for case in CASES + SHAPED}


def errors(case, args):
    """-> the largest error of each output, in parts of its largest element."""
    for got, exact in zip(case.outputs(K, args), case.outputs(reference, wide(args)), strict=True):
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(got[~finite], exact[~finite])
        yield np.abs(got[finite] - exact[finite]).max(initial=0) / max(np.abs(exact[finite]).max(initial=0), 1e-30)


@pytest.mark.parametrize("kernel", BOUNDS)
def test_the_error_is_what_is_stated(kernel, isa):
    worst = 0
    for case in (c for c in CASES + SHAPED if c.kernel == kernel):
        for n, c in SIZES:
            args = case.make(np.random.default_rng(7), 2 if kernel.startswith("attention") else n, c)
            worst = max(worst, *errors(case, args))
    assert worst <= BOUNDS[kernel], f"{kernel}: {worst:.2g}"


def test_the_stated_errors_are_tight():
    """At most eight times what the active table shows, or float32's own rounding."""
    for kernel, bound in BOUNDS.items():
        worst = max(e for case in CASES + SHAPED if case.kernel == kernel for n, c in SIZES
                    for e in errors(case, case.make(np.random.default_rng(7), 2 if kernel.startswith("attention") else n, c)))
        assert bound <= max(8 * worst, 6e-8), f"{kernel}: {worst:.2g}, stated {bound:.2g}"


@pytest.mark.parametrize("k", [64, 768, 4096])
@pytest.mark.parametrize("ta, tb", [(False, False), (False, True), (True, False), (True, True)])
def test_matmul_nmse(k, ta, tb, isa):
    """float32 products: mean squared error over mean square of the exact product at most 1e-12."""
    rng = np.random.default_rng(k)
    a, b = rng.standard_normal((k, 150) if ta else (150, k), np.float32), rng.standard_normal((90, k) if tb else (k, 90), np.float32)
    exact = (a.T if ta else a).astype(np.float64) @ (b.T if tb else b).astype(np.float64)
    error = K.matmul(a, b, ta=ta, tb=tb) - exact
    assert (error**2).mean() / (exact**2).mean() <= 1e-12
