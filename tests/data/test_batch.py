"""Batch: checks and counts."""
import numpy as np
import pytest

from pyllm.data.batch import IGNORED, Batch


def i32(*rows):
    return np.array(rows, np.int32)


def test_without_segments_a_row_is_a_document():
    batch = Batch(i32([1, 2, 3], [4, 5, 6]), i32([2, 3, IGNORED], [5, IGNORED, 0]))
    assert batch.count == 4
    assert batch.rows(slice(1, 2)).tokens.tolist() == [[4, 5, 6]] and batch.rows(slice(0, 1)).count == 2
    assert np.shares_memory(batch.rows(slice(1, 2)).tokens, batch.tokens)


@pytest.mark.parametrize("arrays, error, message", [
    (([[1]], i32([1])), TypeError, "tokens is list"),
    ((i32([1]).astype(np.int64), i32([1])), TypeError, r"tokens is int64 \(1, 1\); expected int32"),
    ((i32([1]), i32([[1]])), TypeError, r"targets is int32 \(1, 1, 1\)"),
    ((i32([1]), i32([1, 2])[0]), ValueError, r"tokens \(1, 1\), targets \(2,\)"),
    ((i32([1]), i32([1]), None, None, i32([1])), ValueError, r"decoder_tokens None, decoder_segments \(1, 1\)"),
    ((i32([1, 1]), i32([1]), None, i32([1]), i32([1, 1])), ValueError, r"decoder_tokens \(1, 1\), decoder_segments \(1, 2\)"),
    ((i32([1, 1, 1]), i32([1, 1, 1]), None, i32([1])), ValueError, r"decoder_tokens \(1, 1\), targets \(1, 3\)"),
    ((i32([1]), i32([1]), None, i32([1], [1])), ValueError, r"tokens \(1, 1\), decoder_tokens \(2, 1\)"),
    ((i32([1]), i32([1]), None, i32([1]), i32([0])), ValueError, "expected -100 where decoder_segments are 0"),
    ((i32([1]), i32([1]), None, None, None, {"margin": np.ones(2)}), ValueError, r"tokens \(1, 1\), margin \(2,\)"),
    ((i32([1]), i32([1]), i32([1]).astype(float)), TypeError, "segments is float64"),
    ((i32([1, 2]), i32([1])), ValueError, r"tokens \(1, 2\), targets \(1, 1\)"),
    ((i32([]), i32([])), ValueError, r"empty, shape \(1, 0\)"),
    ((i32([1, -1]), i32([1, 1])), ValueError, r"tokens\[0, 1\] is -1"),
    ((i32([1, 1]), i32([1, -99])), ValueError, r"targets\[0, 1\] is -99, expected ids from 0, or -100"),
    ((i32([1, 1]), i32([1, 1]), i32([1, -1])), ValueError, r"segments\[0, 1\] is -1"),
    ((i32([1, 1]), i32([1, 1]), i32([0, 1])), ValueError, r"targets\[0, 0\] is 1, expected -100 where segments are 0"),
    ((i32([1, 1]), i32([1, 1]), i32([2, 1])), ValueError, r"segments\[0, 1\] is 1, expected each document one unbroken run"),
    ((i32([1, 1, 1]), i32([1, IGNORED, 1]), i32([1, 0, 1])), ValueError, r"segments\[0, 2\] is 1, expected each document one"),
])
def test_refusals(arrays, error, message):
    with pytest.raises(error, match=message):
        Batch(*arrays)


def test_rows_of_every_kind_of_batch():
    """Labels, spans, encoder-decoders and extra arrays follow their rows."""
    tokens = i32([1, 2, 3], [4, 5, 6])
    assert Batch(tokens, i32([1, IGNORED])[0]).rows(slice(1, 2)).count == 0
    assert Batch(tokens, i32([0, 2], [1, 1])).rows(slice(0, 1)).targets.tolist() == [[0, 2]]
    batch = Batch(tokens, i32([7], [8]), i32([1, 1, 0], [1, 1, 1]), i32([0], [1]), i32([1], [1]), {"reward": np.array([0.5, 1.5])})
    row = batch.rows(slice(1, 2))
    assert (row.tokens.tolist(), row.targets.tolist(), row.segments.tolist()) == ([[4, 5, 6]], [[8]], [[1, 1, 1]])
    assert (row.decoder_tokens.tolist(), row.decoder_segments.tolist(), row.extra["reward"].tolist()) == ([[1]], [[1]], [1.5])


def test_all_mismatches_at_once():
    with pytest.raises(ValueError, match="tokens.*targets.*segments"):
        Batch(i32([-1, 1]), i32([-3, 1]), i32([3, 2]))


def test_empty_rows():
    with pytest.raises(ValueError, match="empty"):
        Batch(i32([1]), i32([1])).rows(slice(0, 0))
