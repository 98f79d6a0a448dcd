"""Rows in batches: each once an epoch, exact resume, packing that is full and leaks nothing, sets in exact proportion."""
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pyllm.data import IGNORED, collate, collate_packed, mixture, prepare, read_examples, row_batches
from pyllm.data.render import Row

DATA = Path(__file__).parents[2] / "../shared/data"
LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=40)
LAYOUTS = st.sampled_from([{"batch": 3}, {"batch": 2, "pack": 32}, {"tokens": 64}, {"tokens": 64, "pack": 30}])


def row(n, name, begin=1):
    """Its first token is its name, so that a batch tells which rows it has."""
    return Row(np.array([name, *range(1, n)], np.int32), np.arange(n) >= begin)


def rows(lengths, name=1000):
    return [row(n, name + i) for i, n in enumerate(lengths)]


def names(batch):
    return batch.tokens[batch.tokens >= 1000].tolist()


def same(a, b):
    assert (a.tokens == b.tokens).all() and (a.targets == b.targets).all() and np.array_equal(a.segments, b.segments)


@settings(max_examples=40)
@given(LENGTHS, LAYOUTS, st.integers(0, 2**63 - 1), st.booleans())
def test_every_row_once_an_epoch(lengths, layout, seed, shuffle):
    batches = row_batches(rows(lengths), seed=seed, shuffle=shuffle, **layout)
    for epoch in range(3):
        seen = Counter()
        while batches.epoch == epoch:
            batch = next(batches)
            seen.update(names(batch))
            assert batch.tokens.size <= 64 if "tokens" in layout else len(batch.tokens) <= layout["batch"]
            assert "pack" not in layout or batch.tokens.shape[1] == layout["pack"]
        assert seen == Counter(range(1000, 1000 + len(lengths)))
    assert sorted(n for batch in batches.once() for n in names(batch)) == sorted(seen)


@settings(max_examples=30)
@given(LENGTHS, LAYOUTS, st.booleans())
def test_resume_mid_epoch_is_the_uninterrupted_run(lengths, layout, mixed):
    def make():
        if mixed:
            return row_batches([rows(lengths), rows([5, 6, 7], 2000)], weights=[0.7, 0.3], seed=3, **layout)
        return row_batches(rows(lengths), seed=3, **layout)

    batches, states, found = make(), [], []
    for _ in range(10):
        states.append(json.loads(json.dumps(batches.state())))
        found.append(next(batches))
    for k, state in enumerate(states):
        again = make()
        next(again)
        again.load_state(state)
        assert again.state() == state
        for expected in found[k:]:
            same(next(again), expected)


def test_a_state_of_other_rows_is_refused():
    state = row_batches(rows([4, 5, 6]), batch=1).state()
    with pytest.raises(ValueError, match="Batches.load_state: fingerprint is .* .the data have changed"):
        row_batches(rows([4, 5, 6], 1001), batch=1).load_state(state)


def test_a_row_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="row 1 has 39 tokens, expected at most 32"):
        row_batches(rows([4, 40]), batch=1, pack=32)
    with pytest.raises(ValueError, match="row 1 has 40 tokens, expected at most 32"):
        row_batches(rows([4, 40]), tokens=32)


def test_pairs_stay_neighbours():
    pairs = [(row(4, 1000 + 2 * i), row(6, 1001 + 2 * i)) for i in range(9)]
    for layout in ({"batch": 2}, {"tokens": 30}):
        for batch in islice(row_batches(pairs, seed=5, **layout), 9):
            first = batch.tokens[:, 0]
            assert (first[::2] % 2 == 0).all() and (first[1::2] == first[::2] + 1).all() and batch.tokens.size <= 30
    with pytest.raises(ValueError, match="pairs cannot be packed"):
        row_batches(pairs, batch=1, pack=32)


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 1)), min_size=1, max_size=4), st.integers(0, 5))
def test_sets_are_mixed_in_exact_proportion(sets, epoch):
    sizes, weights = zip(*sets)
    order, total = mixture(sizes, weights, 7), sum(sizes)
    kind = np.searchsorted(np.cumsum(sizes), order(epoch), "right")
    for k, weight in enumerate(weights):
        assert abs((kind == k).sum() - total * weight / sum(weights)) <= 1
        drawn = np.concatenate([order(e)[np.searchsorted(np.cumsum(sizes), order(e), "right") == k] for e in range(epoch + 1)])
        times = np.bincount(drawn - sum(sizes[:k]), minlength=sizes[k])
        assert times.max() - times.min() <= 1  # none twice before all came once


def test_packed_rows_are_read_as_if_alone():
    """Packing without document masks and reset positions leaks one answer into the next."""
    from pyllm import folders
    from pyllm.models.gpt2 import GPT2Config
    from pyllm.models.llama import LlamaConfig

    data = [row(n, 40 + n, 2) for n in (5, 9, 3, 12, 7)]
    for config in (GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2),
                   LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                               num_key_value_heads=1, max_position_embeddings=32)):
        model = folders.build(config, seed=0)
        packed = collate_packed(data, 20)
        assert len(packed.tokens) == 2 and (packed.segments.max(1) > 1).all()
        together = model(packed.tokens, packed.segments).data
        for r in data:
            alone = collate([r])
            line, at = np.argwhere(packed.tokens == r.tokens[0])[0]
            there = together[line, at:at + len(r) - 1]
            assert np.abs(there - model(alone.tokens, alone.segments).data[0, :-1]).max() < 1e-5
            assert (packed.targets[line, at:at + len(r) - 1] == alone.targets[0, :-1]).all()


@pytest.mark.skipif(not (DATA / "rasbt-instruct").is_dir(), reason="needs ../shared/data/rasbt-instruct and tok-gpt2")
def test_packing_fills_95_percent():
    from pyllm.text import read_tokenizer

    class Data(list):
        kind = "completion"

    tokenizer = read_tokenizer(DATA / "tok-gpt2/tokenizer.json")
    examples = read_examples(DATA / "rasbt-instruct/instruction-data.json")
    data = Data({"prompt": m[0]["content"], "completion": m[1]["content"], "where": e["where"]} for e in examples for m in [e["messages"]])
    found, counts = prepare(data, tokenizer)
    packed = list(row_batches(found, batch=4, pack=512).once())
    assert len(found) == 1100 and sum(np.count_nonzero(b.segments) for b in packed) >= 0.95 * sum(b.tokens.size for b in packed)
    assert counts.learned == collate(found).count == sum((b.targets != IGNORED).sum() for b in packed)
