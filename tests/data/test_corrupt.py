"""Corruptions: nothing of a row is lost, shares are those of the papers."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.data import corrupt
from pyllm.data.batch import IGNORED

SENTINELS = list(range(999, 899, -1))  # as in T5's vocabulary: the last ids, descending
ROWS = st.integers(1, 150)
SEEDS = st.integers(0, 10_000)


def row(n, seed):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 900, n).astype(np.int32), np.random.default_rng(seed + 1)


def rejoin(inputs, outputs):
    """The original, from both sides of corrupt_spans."""
    spans, current = {}, None
    for id in outputs.tolist():
        if id in SENTINELS:
            current = spans.setdefault(id, [])
        else:
            current.append(id)
    assert outputs[-1] in spans and not spans[outputs[-1]]
    return np.array([x for id in inputs.tolist() for x in (spans[id] if id in SENTINELS else [id])], np.int32)


# ---- masked tokens

@given(ROWS, SEEDS)
def test_masked_rows_and_their_targets_give_the_original(n, seed):
    ids, rng = row(n, seed)
    tokens, targets = corrupt.mask_tokens(ids, rng, 950, np.arange(900))
    told = targets != IGNORED
    assert np.array_equal(np.where(told, targets, tokens), ids) and told.sum() == max(1, round(0.15 * n))


def test_of_the_chosen_tokens_80_percent_are_masked_10_random_10_kept():
    """Chi-square with 2 degrees of freedom stays below 13.8, the 0.1 % quantile; a third of random tokens gone wrong would give 900."""
    ids, rng = np.full(200, 7, np.int32), np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(400):
        tokens, targets = corrupt.mask_tokens(ids, rng, 950, np.arange(8, 900))
        told = tokens[targets != IGNORED]
        counts += np.count_nonzero(told == 950), np.count_nonzero((told != 950) & (told != 7)), np.count_nonzero(told == 7)
    expected = counts.sum() * np.array([0.8, 0.1, 0.1])
    assert counts.sum() == 400 * 30 and ((counts - expected) ** 2 / expected).sum() < 13.8


def test_random_tokens_are_ordinary_ones_and_special_ones_are_never_chosen():
    ids, rng = np.arange(100, dtype=np.int32), np.random.default_rng(0)
    words = np.where(ids % 2, ids, -1)
    for _ in range(50):
        tokens, targets = corrupt.mask_tokens(ids, rng, 950, np.array([201, 203]), words)
        assert not (targets[::2] != IGNORED).any()
        assert set(tokens[tokens != ids].tolist()) <= {950, 201, 203}
    tokens, targets = corrupt.mask_tokens(ids, rng, 950, np.arange(900), np.full(100, -1))
    assert np.array_equal(tokens, ids) and (targets == IGNORED).all()


def test_whole_words_are_chosen_whole_and_also_replaced_at_random():
    words = np.repeat(np.arange(40), np.tile([1, 2, 3, 4], 10))
    ids, rng, random = np.arange(len(words), dtype=np.int32), np.random.default_rng(0), 0
    for _ in range(100):
        tokens, targets = corrupt.mask_tokens(ids, rng, 950, np.arange(300, 900), words)
        told = targets != IGNORED
        assert all(told[words == w].all() or not told[words == w].any() for w in range(40))
        assert 12 <= told.sum() <= 15  # of 100; at most one word of 4 does not fit
        random += np.count_nonzero(tokens >= 300) - np.count_nonzero(tokens == 950)
    assert 100 <= random <= 200
    assert (corrupt.mask_tokens([5, 6, 7], rng, 950, np.arange(9), [0, 0, 0])[1] != IGNORED).all()  # longer than the budget


# ---- spans

@given(ROWS, SEEDS, st.sampled_from([(0.15, 3), (0.15, 8), (0.5, 3), (0.15, 64), (0.5, 64)]))
def test_corrupted_spans_give_the_original(n, seed, kind):
    ids, rng = row(n, seed)
    inputs, outputs = corrupt.corrupt_spans(ids, rng, SENTINELS, *kind)
    assert np.array_equal(rejoin(inputs, outputs), ids)
    assert (len(inputs), len(outputs)) == corrupt.span_lengths(n, *kind)
    marks = [id for id in inputs if id in SENTINELS]
    assert marks == SENTINELS[: len(marks)] and outputs[-1] == SENTINELS[len(marks)]  # descending, the next one ends the outputs


def test_lengths_are_those_of_t5s_code():
    """568 tokens become 512 with the end token, and 114 of targets, beside the sentinel that ends them."""
    assert corrupt.span_counts(568) == (85, 28) and corrupt.span_lengths(568) == (511, 114)


def test_spans_are_spread_evenly_and_of_the_mean_length():
    ids, rng, places, sizes = np.arange(60, dtype=np.int32), np.random.default_rng(0), np.zeros(60), []
    for _ in range(3000):
        inputs, outputs = corrupt.corrupt_spans(ids, rng, SENTINELS, 0.3, 3.0)
        places[outputs[outputs < 60]] += 1
        sizes += np.diff(np.flatnonzero(outputs >= 60)).tolist()
    assert abs(np.mean(sizes) - 1 - 3) < 1e-9 and min(sizes) == 2 and max(sizes) > 8
    assert places[0] == 0 and places[59] == 3000  # kept first, a span last
    assert places[10:50].std() / places[10:50].mean() < 0.1


def test_too_few_sentinels_are_named():
    with pytest.raises(ValueError, match="28 spans in 568 tokens.* only 20 sentinels"):
        corrupt.corrupt_spans(np.zeros(568), np.random.default_rng(0), SENTINELS[:20])


@given(st.integers(2, 150), SEEDS)
def test_every_denoiser_gives_the_original(n, seed):
    ids, rng = row(n, seed)
    modes = {"R": 901, "S": 902, "X": 903}
    inputs, outputs = corrupt.denoise(ids, rng, SENTINELS[:90], modes)
    whole = np.concatenate([inputs[1:], outputs]) if inputs[0] == 902 else rejoin(inputs[1:], outputs)
    assert inputs[0] in modes.values() and np.array_equal(whole, ids)


def test_denoisers_are_drawn_evenly():
    rng, counts = np.random.default_rng(0), {"R": 0, "S": 0, "X": 0}
    suffixes = []
    for _ in range(2000):
        inputs, outputs = corrupt.denoise(np.arange(100), rng, SENTINELS, {"R": 901, "S": 902, "X": 903})
        mode = {901: "R", 902: "S", 903: "X"}[int(inputs[0])]
        counts[mode] += 1
        suffixes += [len(outputs)] if mode == "S" else []
    expected = np.array([2, 1, 4]) * 2000 / 7
    assert ((np.array(list(counts.values())) - expected) ** 2 / expected).sum() < 13.8
    assert abs(np.mean(suffixes) - 25) < 3 and max(suffixes) <= 50


@given(st.integers(2, 50), SEEDS)
def test_a_prefix_and_its_suffix_give_the_original(n, seed):
    ids, rng = row(n, seed)
    prefix, suffix = corrupt.split_prefix(ids, rng)
    assert len(prefix) and len(suffix) and np.array_equal(np.concatenate([prefix, suffix]), ids)


# ---- filling in

@given(ROWS, SEEDS)
def test_infilling_keeps_the_order_and_leaves_a_mask_for_what_is_gone(n, seed):
    ids, rng = np.arange(n, dtype=np.int32), row(n, seed)[1]
    inputs = corrupt.infill(ids, rng, 950)
    rest = inputs[inputs != 950]
    assert len(rest) == n - -int(-0.3 * n // 1) and (np.diff(rest) > 0).all()
    masks = inputs == 950
    assert not (masks[1:] & masks[:-1]).any()
    gaps = np.split(rest, np.cumsum(~masks)[masks])  # between masks nothing is missing
    assert all((np.diff(gap) == 1).all() for gap in gaps)


def test_spans_of_infilling_are_poisson():
    """Their lengths, zero included, against the probabilities of Poisson(3), by chi-square with 7 degrees of freedom (24.3: 0.1 %)."""
    rng, counts = np.random.default_rng(0), np.zeros(9)
    for _ in range(300):
        inputs = corrupt.infill(np.arange(400, dtype=np.int32), rng, 950)
        ids = np.concatenate([[-1], inputs, [400]])
        at = np.flatnonzero(ids == 950)
        lengths = ids[at + 1] - ids[at - 1] - 1
        counts += np.bincount(np.minimum(lengths, 8), minlength=9)
    p = np.exp(-3) * np.cumprod([1, *(3 / k for k in range(1, 8))])
    expected = counts.sum() * np.append(p, 1 - p.sum())
    # A row's last span is cut to the budget, one of 40: shares move by that much at most.
    assert np.abs(counts / counts.sum() - expected / counts.sum()).max() < 0.02 and counts[0] > 0.8 * expected[0]


def test_sentences_change_places_and_stay_whole():
    ids = np.arange(12, dtype=np.int32)
    ends = np.isin(ids, [2, 3, 8])
    seen = set()
    for seed in range(200):
        out = corrupt.permute_sentences(ids, np.random.default_rng(seed), ends).tolist()
        seen.add(tuple(out))
        for sentence in ([0, 1, 2], [3], [4, 5, 6, 7, 8], [9, 10, 11]):
            at = out.index(sentence[0])
            assert out[at : at + len(sentence)] == sentence
    assert len(seen) == 24


@given(ROWS, SEEDS)
def test_a_filled_in_middle_gives_the_original(n, seed):
    ids, rng = row(n, seed)
    out = corrupt.fill_in_middle(ids, rng, 990, 991, 992).tolist()
    assert len(out) == n + 3 and out[0] == 990
    suffix, middle = out.index(991), out.index(992)
    a, c, b = out[1:suffix], out[suffix + 1 : middle], out[middle + 1 :]  # of SPM the first is empty, the last is both
    assert a + b + c == ids.tolist()


def test_both_orders_of_filling_in_occur():
    orders = [corrupt.fill_in_middle(np.arange(50), np.random.default_rng(seed), 990, 991, 992)[1] == 991 for seed in range(300)]
    assert 0.4 < np.mean(orders) < 0.6
