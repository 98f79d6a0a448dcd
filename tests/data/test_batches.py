"""Rows of unequal length in batches: each once an epoch, in an order that is the seed's, from any cursor on."""
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.data.batches import Batches, row_batches
from pyllm.data.render import Row

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=200)
settings = st.one_of(st.builds(lambda n: {"batch": n}, st.integers(1, 7)), st.builds(lambda n: {"tokens": n}, st.integers(12, 40)),
                     st.builds(lambda n, t: {"batch": n, "length": t}, st.integers(1, 4), st.integers(12, 30)))


def flat(bins):
    return [row for bin in bins for row in bin]


@given(lengths, settings, st.integers(0, 3), st.booleans())
def test_each_row_comes_once_an_epoch_and_fits(lengths, settings, seed, shuffle):
    batches = Batches(lengths, lambda bins: bins, seed=seed, shuffle=shuffle, **settings)
    for epoch in range(2):
        seen = []
        while batches.epoch == epoch:
            bins = next(batches)
            sizes = [sum(lengths[row] for row in bin) for bin in bins]
            if "length" in settings:
                assert max(sizes) <= settings["length"] and len(bins) <= settings["batch"]
            elif "tokens" in settings:
                assert all(len(bin) == 1 for bin in bins) and len(bins) * max(sizes) <= settings["tokens"]
            else:
                assert all(len(bin) == 1 for bin in bins) and len(bins) <= settings["batch"]
            seen += flat(bins)
        assert sorted(seen) == list(range(len(lengths)))
    assert sorted(flat(flat(batches.once()))) == list(range(len(lengths)))


@given(lengths, settings, st.integers(0, 40))
def test_a_run_goes_on_with_the_very_next_batch(lengths, settings, stop):
    make = lambda: Batches(lengths, lambda bins: bins, seed=5, **settings)
    one, other = make(), make()
    for _ in range(stop):
        next(one)
    other.load_state(json.loads(json.dumps(one.state())))
    assert [next(one) for _ in range(9)] == [next(other) for _ in range(9)]


def test_the_order_is_the_seeds_and_the_epochs():
    lengths = np.random.default_rng(0).integers(3, 60, 3000)
    orders = [flat(flat(Batches(lengths, None, batch=8, seed=seed).plan(epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3] and orders[0] != orders[1] != orders[2] != orders[0]
    places = np.argsort(orders[0])
    assert abs(np.corrcoef(places, lengths)[0, 1]) < 0.1 and abs(np.corrcoef(places, np.arange(3000))[0, 1]) < 0.1


def test_alike_rows_together_and_packed_rows_full():
    lengths = np.random.default_rng(0).integers(3, 60, 3000)
    padded = [(len(bins) * max(lengths[bin[0]] for bin in bins), sum(lengths[bin[0]] for bin in bins))
              for bins in Batches(lengths, None, batch=16).plan(0)]
    assert sum(real for _, real in padded) / sum(all for all, _ in padded) > 0.93
    packed = Batches(lengths, None, batch=16, length=256).plan(0)
    assert lengths.sum() / (256 * sum(map(len, packed))) > 0.95


def test_errors():
    with pytest.raises(ValueError, match="0 rows.*at least one row"):
        Batches([], None, batch=1)
    with pytest.raises(ValueError, match="row 1 has 9 tokens, expected at most 8"):
        Batches([3, 9], None, batch=2, length=8)
    with pytest.raises(ValueError, match="batch=0, tokens=0"):
        Batches([3], None)
    state = Batches([3, 9], None, batch=2).state()
    with pytest.raises(ValueError, match="rows is 1 here and 2 in the state; tokens_in_all is 12 here"):
        Batches([12], None, batch=2).load_state({**state, "tokens_in_all": 11})


def test_rows_are_collated_or_packed_and_none_is_lost():
    rows = [Row(np.arange(n, dtype=np.int32), np.arange(n) > 0) for n in range(2, 30)]
    for options in ({"batch": 4}, {"tokens": 64}, {"batch": 2, "pack": 32}):
        found = [int(t) for batch in row_batches(rows, **options).once() for t in batch.targets[batch.targets >= 0]]
        assert sorted(found) == sorted(t for n in range(2, 30) for t in range(1, n))
    answers = [Row(np.arange(3, dtype=np.int32), np.zeros(3, bool), np.arange(1, n, dtype=np.int32)) for n in range(2, 9)]
    batch = next(row_batches(answers, start=0, batch=7, shuffle=False))
    assert batch.targets.shape == (7, 7) and batch.decoder_tokens[:, 0].tolist() == [0] * 7 and batch.count == sum(range(1, 8))
