"""The loader: every token once an epoch, exact resume, the computed permutation."""
import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pyllm.data.batch import IGNORED
from pyllm.data.loader import Loader, permute, validation
from pyllm.data.shards import in_memory

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2)


def corpus(sizes):
    """Documents whose ids are all different, so that a target names its place."""
    ends = np.cumsum(sizes)
    return in_memory([np.arange(end - n, end) for n, end in zip(sizes, ends)], 1000)


def predicted(batches):
    """How often each id was a target; on the way: it follows its token, in the same document."""
    seen = Counter()
    for batch in batches:
        valid = batch.targets != IGNORED
        assert (batch.targets[valid] == batch.tokens[valid] + 1).all()
        seen.update(batch.targets[valid].tolist())
    return seen


def once(sizes):
    """Every id but the first of each document, once."""
    return Counter(set(range(sum(sizes))) - set((np.cumsum(sizes) - sizes).tolist()))


def same(a, b):
    for x, y in ((a.tokens, b.tokens), (a.targets, b.targets), (a.segments, b.segments)):
        assert (x is None and y is None) or (x == y).all()


@given(SIZES, st.integers(1, 20), st.integers(0, 2**63 - 1), st.booleans())
def test_every_token_once_an_epoch(sizes, length, seed, shuffle):
    loader = Loader(corpus(sizes), 1, length, seed, shuffle)
    for epoch in range(3):
        def batches():
            while loader.epoch == epoch:
                yield next(loader)
        assert predicted(batches()) == once(sizes)


@given(SIZES, st.integers(1, 20), st.integers(1, 5))
def test_validation_predicts_every_token_once(sizes, length, batch):
    shards = corpus(sizes)
    batches = list(validation(shards, batch, length))
    assert predicted(batches) == once(sizes)
    rows = [len(b.tokens) for b in batches]
    assert all(n == batch for n in rows[:-1]) and sum(rows) == -(-(len(shards) - 1) // length)
    pad = np.concatenate([(np.zeros_like(b.tokens) if b.segments is None else b.segments == 0).ravel() for b in batches])
    assert pad.sum() == sum(rows) * length - (len(shards) - 1) and not pad[:len(shards) - 1].any()


@settings(max_examples=30)
@given(SIZES, st.integers(1, 12), st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_resume_at_every_position_is_the_uninterrupted_run(sizes, length, batch, seed, shuffle):
    shards = corpus(sizes)
    loader, states, given_ = Loader(shards, batch, length, seed, shuffle), [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(loader.state())))
        given_.append(next(loader))
    for k, state in enumerate(states):
        again = Loader(shards, batch, length, seed, shuffle)
        next(again)
        again.load_state(state)
        assert again.state() == state
        for expected in given_[k:]:
            same(next(again), expected)


def test_number_of_rows_may_change_on_resume():
    shards = corpus([200])
    one, loader = Loader(shards, 1, 7, 3), Loader(shards, 4, 7, 3)
    next(loader)
    for _ in range(4):
        next(one)
    one.load_state(loader.state())
    rows = np.concatenate([next(one).tokens for _ in range(4)])
    assert (rows == next(loader).tokens).all()


def test_epochs_and_seeds_differ_and_repeat():
    shards = corpus([500])

    def epoch(seed, n):
        loader = Loader(shards, 1, 10, seed)
        loader.epoch = n
        return [next(loader).tokens.tolist() for _ in range(40)]

    assert epoch(1, 0) == epoch(1, 0)
    assert len({str(epoch(seed, n)) for seed in (1, 2) for n in (0, 1)}) == 4


def test_each_epoch_has_its_own_order():
    loader = Loader(corpus([500]), 1, 10, 1)
    order = [[int(next(loader).tokens[0, 0]) // 10 for _ in range(45)] for loader.epoch, loader.position in ((0, 0), (1, 0))]
    assert np.abs(np.subtract(*order)).mean() > 5


def test_phase_moves_the_borders():
    shards = corpus([500])
    firsts = set()
    for n in range(8):
        loader = Loader(shards, 1, 10, 5)
        loader.epoch = n
        full = [b.tokens[0, 0] % 10 for b in islice(loader, 30) if b.segments is None]
        assert len(set(full)) <= 2  # one phase (and, at the end, the next epoch's)
        firsts.add(full[0])
    assert len(firsts) > 3


def test_order_without_shuffle():
    batches = islice(Loader(corpus([10]), 2, 3, 0, shuffle=False), 3)
    assert [b.tokens[:, 0].tolist() for b in batches] == [[0, 3], [6, 0], [3, 6]]


def test_corpus_of_two_tokens():
    loader = Loader(corpus([2]), 3, 8, 0)
    batch = next(loader)
    assert batch.tokens.shape == (3, 8) and batch.count == 3 and loader.epoch == 3


# ---- refusals

def test_bad_arguments():
    shards = corpus([5])
    one = corpus([2]).part(0, 1)
    for args, message in (((shards, 0, 4, 0), "batch is 0"), ((shards, 2, 1.5, 0), "length is 1.5"),
                          ((shards, True, 4, 0), "batch is True"), ((shards, 2, 4, -1), "seed is -1"),
                          ((shards, 2, 4, None), "seed is None"), ((one, 1, 1, 0), "1 tokens")):
        with pytest.raises(ValueError, match=f"Loader: {message}"):
            Loader(*args)
    with pytest.raises(ValueError, match="validation: batch is 0"):
        next(validation(shards, 0, 4))


def test_states_that_do_not_fit():
    shards, other = corpus([50]), corpus([51])
    loader = Loader(shards, 2, 4, seed=1)
    state = Loader(other, 2, 4, seed=1).state()
    with pytest.raises(ValueError, match=f"{shards.fingerprint}.*{other.fingerprint}.*data have changed"):
        loader.load_state(state)
    good = loader.state()
    for change, message in (({"seed": 2}, "seed is 1 here and 2 in the state"), ({"length": 5, "shuffle": False}, "shuffle.*length"),
                            ({"epoch": -1}, "epoch is -1"), ({"epoch": 1.0}, "epoch is 1.0"),
                            ({"position": 14}, "position is 14, expected 0 to"), ({"position": None}, "position is None"),
                            ({"extra": 1}, "expected a dict with the keys epoch, position")):
        with pytest.raises(ValueError, match=message):
            loader.load_state(good | change)
    with pytest.raises(ValueError, match="expected a dict"):
        loader.load_state(None)
    assert loader.state() == good


# ---- the permutation

@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permute_huge_sizes_one_by_one():
    size = (1 << 40) + 12345
    index = np.array([0, 1, 2, size - 1])
    got = permute(index, size, 9)
    assert len(set(got.tolist())) == 4 and (0 <= got).all() and (got < size).all()
    assert [int(permute(np.array([i]), size, 9)[0]) for i in index] == got.tolist()


@pytest.mark.parametrize("size", [2, 5, 24, 100])
def test_permute_is_even(size):
    """Chi-squared of where each index goes over many keys, against the 99.9 % point (normal approximation)."""
    keys = 1000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, key * 0x9E3779B97F4A7C15 % 2**64)] += 1
    expected = keys / size
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), (size - 1) ** 2
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 10
