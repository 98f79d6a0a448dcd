"""Embedding: ids of any integer type, out-of-range ids named, sums in order of position."""
import numpy as np
import pytest

from pyllm import kernels as K

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


def test_ids_out_of_range():
    w = np.zeros((65, 4), np.float32)
    ids = np.zeros((2, 5), np.int32)
    ids[0, 3] = 70
    with pytest.raises(IndexError, match=r"^embedding: token id 70 at position \(0, 3\), expected 0\.\.64$"):
        K.embedding(w, ids)
    for bad in (-1, 65, 2**31, 2**32, -(2**40)):
        with pytest.raises(IndexError, match=rf"embedding: token id {bad} at position 2, expected 0\.\.64"):
            K.embedding(w, np.int64([0, 1, bad, 3]))
    with pytest.raises(IndexError, match="embedding_vjp: token id 65"):
        K.embedding_vjp(np.zeros((1, 4), np.float32), np.int32([65]), 65)
    with pytest.raises(TypeError, match="token ids of float32"):
        K.embedding(w, np.zeros(3, np.float32))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integer_types(dtype):
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(K.embedding(w, np.array([[3, 0], [1, 1]], dtype)), w[[[3, 0], [1, 1]]])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n, c, rows", [(0, 5, 7), (1, 1, 1), (40, 200, 3), (3000, 193, 65), (500, 385, 1000)])
def test_sums_in_order_of_position(isa, n, c, rows):
    """float32 additions in order of position, bit for bit; rows nobody asked for are 0 in memory that was not."""
    rng = np.random.default_rng(0)
    dy, ids = rng.standard_normal((n, c)).astype(np.float32), rng.integers(0, rows, n)
    expected = np.zeros((rows, c), np.float32)
    np.add.at(expected, ids, dy)
    with K.use(isa):
        K.empty((rows, c)).fill(np.nan)
        np.testing.assert_array_equal(K.embedding_vjp(dy, ids, rows), expected)
