"""Varied data: only what is read changes, by the asked share, the same for the same seed and any batch."""
from functools import partial
from itertools import islice

import numpy as np
import pytest

from pyllm.data import row_batches
from pyllm.data.augment import Augmented, drop_tokens, mask_spans, replace_words
from pyllm.data.render import Row


def row(n=1000, learned=200, name=7):
    return Row(np.arange(n, dtype=np.int32) + name, np.arange(n) >= n - learned)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_only_tokens_that_are_read_are_dropped_or_masked():
    special = [10, 20, 30]
    dropped = [drop_tokens(row(), rng(s), 0.2, special) for s in range(20)]
    masked = [mask_spans(row(), rng(s), 0.2, 5, special) for s in range(20)]
    for one, other in zip(dropped, masked):
        assert one.tokens[one.learned].tolist() == other.tokens[other.learned].tolist() == row().tokens[800:].tolist()
        assert one.tokens[0] == other.tokens[0] == 7 and set(special) <= {*one.tokens.tolist()} & {*other.tokens.tolist()}
        assert (np.diff(one.tokens) > 0).all() and len(other) == 1000
    assert abs(np.mean([1000 - len(r) for r in dropped]) / 800 - 0.2) < 0.02
    share = np.mean([(r.tokens == 5).sum() for r in masked]) / 800
    assert abs(share - 0.2) < 0.03
    spans = np.mean([((r.tokens[1:] == 5) & (r.tokens[:-1] != 5)).sum() for r in masked])
    assert 2.5 < share * 800 / spans < 4
    with pytest.raises(ValueError, match="a span of its tokens"):
        drop_tokens(Row(np.arange(5), np.zeros(5, bool), label=(1, 2)), rng(), 0.5)


def test_rows_vary_by_seed_and_epoch_not_by_batch_or_resuming():
    rows = [row(30, 5, 100 * i) for i in range(8)]
    vary = partial(drop_tokens, rate=0.3)

    def seen(batches, n):
        found = []
        for batch in islice(batches, n):
            full = np.ones_like(batch.tokens) if batch.segments is None else batch.segments
            found += [(t[s > 0]).tolist() for t, s in zip(batch.tokens, full)]
        return sorted(found)

    one, two = (row_batches(rows, batch=n, seed=1, augment=vary) for n in (1, 4))
    first = seen(one, 8)
    assert first == seen(two, 2) and first != seen(one, 8) and first != seen(row_batches(rows, batch=4, seed=2, augment=vary), 2)
    assert seen(row_batches(rows, batch=4, seed=1, augment=vary).once(), 2) == seen(row_batches(rows, batch=4, seed=1), 2)
    half = row_batches(rows, batch=2, seed=1, augment=vary)
    next(half), next(half)
    again = row_batches(rows, batch=2, seed=1, augment=vary)
    again.load_state(half.state())
    assert seen(again, 6) == seen(half, 6)


class Data(list):
    kind = "messages"


def test_text_is_changed_where_it_is_read():
    talk = [{"role": "system", "content": "good"}, {"role": "user", "content": "a good day"}, {"role": "assistant", "content": "good"}]
    change = partial(replace_words, synonyms={"good": ["fine", "nice"]}.get, rate=1.0)
    found = list(Augmented(Data([{"messages": talk, "id": 3, "where": "x"}]), change, copies=6))
    assert found[0]["messages"] == talk and len(found) == 7 and all("id" not in e for e in found[1:])
    said = {e["messages"][1]["content"] for e in found[1:]}
    assert said == {"a fine day", "a nice day"} and all(e["messages"][::2] == talk[::2] for e in found)
    assert found == list(Augmented(Data([{"messages": talk, "id": 3, "where": "x"}]), change, copies=6))
    data = Data([{"text": "one two", "label": "1", "where": "x"}])
    data.kind = "classification"
    assert [e["text"] for e in Augmented(data, lambda text, rng: text[::-1])] == ["one two", "owt eno"]
    data.kind = "text"
    with pytest.raises(ValueError, match="of which nothing is only read"):
        Augmented(data, change)


def test_words_are_replaced_by_the_asked_share():
    text = " ".join(["word"] * 4000)
    assert abs(replace_words(text, rng(), lambda w: ["other"], 0.1).split().count("other") / 4000 - 0.1) < 0.02
    assert replace_words(text, rng(), lambda w: [], 1.0) == text
