"""Promises about bits, for every kernel there is: those of one thread on any number of threads, those of a row alone in any batch."""
import numpy as np
import pytest

from pyllm import kernels as K
from tests.kernels.cases import CASES, ROUNDED, SHAPED

EVERY = CASES + SHAPED + ROUNDED

# Of these a row's bits follow from its position in the batch, or nothing of the output belongs to a row.
NO_ROWS = {"dropout": "element i of the whole array draws word i", "column_sum": "", "sum_squares": "", "embedding_vjp": ""}
NO_THREADS = {"empty": "gives memory", "random_bits": "the words that dropout draws, in the reference alone"}


def cases_of_rows():
    return [c for c in EVERY if c.kernel not in NO_ROWS and c.rows]


def test_every_kernel_is_in_a_table():
    """A kernel that was added without a case would be bound to nothing below."""
    known = {case.kernel for case in EVERY}
    missing = set(K.KERNELS) - known - NO_THREADS.keys()
    assert not missing, "give them a line in tests/kernels/cases.py"
    assert {case.kernel for case in cases_of_rows()} | NO_ROWS.keys() >= known


def sizes(case):
    return (5, 700) if case.kernel.startswith("attention") else (130, 900) if case in SHAPED else (517, 403)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_same_bits_for_any_thread_count(case, isa):
    args = case.make(np.random.default_rng(2), *sizes(case))
    before = K.num_threads()
    try:
        K.set_num_threads(1)
        expected = case.outputs(K, args)
        for threads in (2, 3, 4, 8):
            K.set_num_threads(threads)
            for got, e in zip(case.outputs(K, args), expected, strict=True):
                np.testing.assert_array_equal(got, e)
    finally:
        K.set_num_threads(before)


def alone(args, case, part):
    """The rows `part` of every argument that has rows; of options too: segments and starts have an entry of the batch each."""
    def cut(name, value):
        return value[part] if name == "starts" else tuple(v[part] for v in value) if name == "segments" else value

    return [{k: cut(k, v) for k, v in a.items()} if isinstance(a, dict) else a[part] if i in case.rows else a for i, a in enumerate(args)]


@pytest.mark.parametrize("case", cases_of_rows(), ids=str)
def test_a_row_does_not_depend_on_its_neighbours(case, isa):
    n, c = (6, 300) if case.kernel.startswith("attention") else (300, 151)
    args = case.make(np.random.default_rng(3), n, c)
    together = case.outputs(K, args)
    for part in (slice(0, 1), slice(n // 40, n // 40 + 1), slice(n // 3, n // 3 + n // 5), slice(n - 1, n)):
        for i in case.out_rows:
            np.testing.assert_array_equal(case.outputs(K, alone(args, case, part))[i], together[i][part])
