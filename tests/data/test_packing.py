"""Windows and packed rows: documents stay apart, nothing is lost."""
import numpy as np
import pytest
from hypothesis import given, strategies as st

from pyllm.data.batch import IGNORED
from pyllm.data.packing import best_fit, next_token, pack, packed_windows
from pyllm.data.shards import in_memory


def test_windows_keep_documents_apart():
    eos = 9
    shards = in_memory([[1, 2, eos], [3, eos], [4, 5, 6, eos]], 10)
    batch = packed_windows(shards, [0, 1], 6)
    assert batch.tokens.tolist() == [[1, 2, 9, 3, 9, 4], [2, 9, 3, 9, 4, 5]]
    assert batch.targets.tolist() == [[2, 9, IGNORED, 9, IGNORED, 5], [9, IGNORED, 9, IGNORED, 5, 6]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 2, 2, 3, 3]]


def test_windows_that_stick_out_are_padded():
    shards = in_memory([[1, 2, 3, 4]], 10)
    batch = packed_windows(shards, [-2, 2], 4)
    assert batch.tokens.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, IGNORED, IGNORED], [4, IGNORED, IGNORED, IGNORED]]
    assert batch.segments.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    for start in (3, -4, 100):
        with pytest.raises(ValueError, match=f"start is {start}: no token of 4"):
            packed_windows(shards, [start], 4)


def test_full_windows_of_one_document_have_no_segments():
    shards = in_memory([[1, 2, 3, 9], [4, 5, 6, 9]], 10)
    assert packed_windows(shards, [0, 4], 3).segments is None
    at_the_border = packed_windows(shards, [1], 3)  # the row ends with the document: its last token has no target
    assert at_the_border.segments is None and at_the_border.targets.tolist() == [[3, 9, IGNORED]]
    assert packed_windows(shards, [2], 3).segments.tolist() == [[1, 1, 2]]


LENGTHS = st.integers(1, 40).flatmap(lambda c: st.tuples(st.lists(st.integers(1, c), max_size=60), st.just(c)))


@given(LENGTHS)
def test_best_fit_places_all(case):
    lengths, capacity = case
    rows = best_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < s <= capacity for s in sums)
    # No two rows of which one was opened while the other could take its first document.
    for r, row in enumerate(rows):
        assert all(sums[q] + lengths[row[0]] > capacity or q > r for q in range(len(rows)) if q != r)


def test_best_fit_puts_the_longest_first_into_the_fullest_row():
    assert len(best_fit([3, 3, 3, 7, 7, 7], 10)) == 3
    assert best_fit([6, 5, 4, 4], 10) == [[0, 2], [1, 3]]
    assert best_fit([5, 7, 3], 10) == [[1, 2], [0]]


@given(st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=12), min_size=1, max_size=30))
def test_packing_loses_nothing(documents):
    pairs = [next_token(d) for d in documents]
    batch = pack(pairs, 11)
    found = []
    for tokens, targets, segments in zip(batch.tokens, batch.targets, batch.segments):
        for k in range(1, segments.max() + 1):
            found.append((tokens[segments == k].tolist(), targets[segments == k].tolist()))
    assert sorted(found) == sorted((a.tolist(), b.tolist()) for a, b in pairs)
    assert batch.count == sum(len(d) - 1 for d in documents) and (batch.segments > 0).sum() == batch.count


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_used_well(seed):
    lengths = np.clip(np.random.default_rng(seed).lognormal(4.6, 0.9, 2000).astype(int), 1, 512)
    batch = pack([(np.ones(n, int), np.ones(n, int)) for n in lengths], 512)
    assert (batch.segments > 0).mean() >= 0.95


def test_pack_refusals():
    with pytest.raises(ValueError, match="document 1 has 5 tokens and 5 targets; expected .* from 1 to 4. Truncate"):
        pack([([1], [1]), ([1] * 5, [1] * 5)], 4)
    with pytest.raises(ValueError, match="document 0 has 2 tokens and 1 targets"):
        pack([([1, 2], [1])], 4)
    with pytest.raises(ValueError, match="document 0 has 0 tokens"):
        pack([next_token([1])], 4)
    with pytest.raises(ValueError, match=r"lengths\[1\] is 9"):
        best_fit([1, 9], 4)
    with pytest.raises(ValueError, match="empty"):
        pack([], 4)
