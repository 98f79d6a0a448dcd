"""Positions from segments and caches, rotary tables, the cache itself."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.nn import Cache, RotaryTable, alibi_slopes, positions, relative_buckets, sinusoids

TOKENS = np.zeros((2, 5), np.int32)


def test_positions():
    assert positions(TOKENS).tolist() == [[0, 1, 2, 3, 4]] * 2
    segments = np.array([[0, 0, 1, 1, 1], [1, 1, 2, 2, 0]], np.int32)
    assert positions(TOKENS, segments)[segments > 0].tolist() == [0, 1, 2, 0, 1, 0, 1]


@given(runs=st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=8))
def test_positions_count_from_each_documents_first_token(runs):
    segments, expected, document = [], [], 0
    for padding, length in runs:
        document += not padding
        segments += [0 if padding else document] * length
        expected += [None if padding else i for i in range(length)]
    got = positions(np.zeros((1, len(segments)), np.int32), np.array([segments], np.int32))[0].tolist()
    assert [g for g, e in zip(got, expected) if e is not None] == [e for e in expected if e is not None]


def test_positions_behind_a_cache_and_beyond_the_limit():
    cache = Cache(2)
    cache.advance(np.array([3, 7]))
    assert positions(TOKENS[:, :2], cache=cache).tolist() == [[3, 4], [7, 8]]
    assert positions(TOKENS[:, :2], cache=cache, limit=9).max() == 8
    with pytest.raises(ValueError, match="position 9 is beyond the context: the model has 9 positions"):
        positions(TOKENS[:, :3], cache=cache, limit=9)
    segments = np.array([[1, 1, 1, 2, 2]] * 2, np.int32)
    assert positions(TOKENS, segments, limit=3).max() == 2
    with pytest.raises(ValueError, match="position 4"):
        positions(TOKENS, limit=4)


def test_rotary_table_grows_without_changing():
    table = RotaryTable(6, theta=100.0)
    small = [t.copy() for t in table(10)]
    large = table(5000)
    assert len(large[0]) > 5000 and large[0].shape[1] == 3
    for a, b in zip(small, large):
        assert np.array_equal(a, b[: len(a)])
    at = np.arange(len(large[0]))[:, None] * table.frequencies()[0]
    np.testing.assert_allclose(table.frequencies()[0], 100.0 ** (-np.arange(0, 6, 2) / 6), rtol=4e-7)
    np.testing.assert_allclose(large[0], np.cos(at), atol=3e-4)  # an angle of 8191 is rounded to 2.4e-4, as where checkpoints come from
    np.testing.assert_allclose(large[1], np.sin(at), atol=3e-4)
    assert table(10)[0] is large[0]


@given(data=st.data(), rows=st.integers(1, 4), capacity=st.integers(1, 5))
def test_cache_holds_what_each_row_was_given(data, rows, capacity):
    """Ragged appends: what a row wrote beyond its real tokens is overwritten by its next ones."""
    cache, given_, draw = Cache(rows, capacity), [[] for _ in range(rows)], np.random.default_rng(0)
    for _ in range(data.draw(st.integers(1, 5))):
        t = data.draw(st.integers(1, 4))
        counts = np.array([data.draw(st.integers(0, t)) for _ in range(rows)])
        k = draw.standard_normal((rows, t, 2, 3)).astype(np.float32)
        for layer in (0, 1):
            keys, values = cache.append(layer, k + layer, -k)
        cache.advance(counts)
        for row in range(rows):
            given_[row] += list(k[row, : counts[row]])
        for row in range(rows):
            held = np.array(given_[row]).reshape(-1, 2, 3)
            assert cache.lengths[row] == len(held)
            np.testing.assert_array_equal(keys[row, : len(held)], held + np.float32(1))
            np.testing.assert_array_equal(values[row, : len(held)], -held)


def filled():
    """A Cache of three rows that hold 1, 2 and 2 tokens: the row's number."""
    cache = Cache(3)
    k = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 1, 1), np.float32)
    cache.append(0, k, -k)
    cache.advance(np.array([1, 2, 2]))
    return cache, k


def test_the_last_row_of_a_cache_takes_the_place_of_one_that_leaves():
    cache, k = filled()
    cache.select([2, 1])
    assert cache.lengths.tolist() == [2, 2]
    keys, values = cache.append(0, k[:2] + 7, k[:2])
    assert keys[0, :3, 0, 0].tolist() == [2, 2, 7] and keys[1, :3, 0, 0].tolist() == [1, 1, 8]
    assert values[0, :3, 0, 0].tolist() == [-2, -2, 0]
    cache.select([0])
    cache.select([])
    assert cache.lengths.tolist() == [] and cache.layers[0].shape[1] == 0


@given(data=st.data(), same=st.integers(0, 2))
def test_rows_of_a_cache_become_copies_of_others(data, same):
    rows = data.draw(st.integers(1, 4))
    cache, draw = Cache(rows, 3), np.random.default_rng(0)
    k = draw.standard_normal((rows, 5, 2, 3)).astype(np.float32)
    k[:, :same] = k[0, :same]
    cache.append(0, k, -k)
    cache.advance(np.array([data.draw(st.integers(same, 5)) for _ in range(rows)]))
    least, most = (rows, rows) if same else (1, 6)
    lengths, index = cache.lengths.copy(), np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=least, max_size=most)))
    cache.select(index, same)
    assert cache.lengths.tolist() == lengths[index].tolist()
    keys, values = cache.append(0, k[:1].repeat(len(index), 0), k[:1].repeat(len(index), 0))
    for row, source in enumerate(index):
        np.testing.assert_array_equal(keys[row, : lengths[source]], k[source, : lengths[source]])
        np.testing.assert_array_equal(values[row, : lengths[source]], -k[source, : lengths[source]])


def test_a_part_of_a_cache_writes_into_it():
    cache, k = filled()
    part = cache.part(1, 3)
    part.append(0, k[1:] + 7, k[1:])
    part.advance(np.array([2, 0]))
    assert cache.lengths.tolist() == [1, 4, 2]
    keys, _ = cache.append(0, k[:, :1] + 20, k[:, :1])
    assert keys[1, :5, 0, 0].tolist() == [1, 1, 8, 8, 21] and keys[2, :3, 0, 0].tolist() == [2, 2, 22]
    with pytest.raises(ValueError, match="part with room for 64"):
        part.append(0, np.zeros((2, 80, 1, 1), np.float32), np.zeros((2, 80, 1, 1), np.float32))


@given(half=st.sampled_from([2, 4, 16]), farthest=st.sampled_from([20, 128]), distance=st.integers(-400, 400))
def test_relative_buckets(half, farthest, distance):
    """One bucket a distance when near, wider ones further off, one for all beyond the farthest; sides apart, or the future at 0."""
    buckets = 2 * half
    past = relative_buckets(-abs(distance), False, buckets, farthest)
    assert relative_buckets(abs(distance), False, buckets, farthest) == 0
    assert past == abs(distance) if abs(distance) < half else half <= past < buckets
    assert past == buckets - 1 if abs(distance) >= farthest else True
    assert relative_buckets(-abs(distance) - 1, False, buckets, farthest) in (past, past + 1) or half * 4 > farthest
    both = relative_buckets(distance, True, buckets, farthest)
    assert both == relative_buckets(-abs(distance), False, half, farthest) + (half if distance > 0 else 0)


def test_relative_buckets_of_t5():
    """32 buckets up to 128: the borders in the table of the paper's models."""
    past = relative_buckets(-np.arange(200), False).tolist()
    assert past[:16] == [*range(16)] and past[16:19] == [16, 16, 16] and past[19:21] == [17, 17]
    assert [past.index(b) for b in (20, 24, 28, 31)] == [27, 46, 77, 113] and set(past[113:]) == {31}
    both = relative_buckets(np.array([-8, -7, -1, 0, 1, 7, 8, 127, 128]), True).tolist()
    assert both == [8, 7, 1, 0, 17, 23, 24, 31, 31]


def test_alibi_and_sinusoids():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    table = sinusoids(5, 7)
    np.testing.assert_allclose(table[3], [f(3 * 10000.0 ** (-i / 7)) for i in (0, 2, 4, 6) for f in (np.sin, np.cos)][:7], rtol=1e-6)
