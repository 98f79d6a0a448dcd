"""Every family: names, masks, packing, caches, checkpointing, seeds, bad input. Configurations are drawn by Hypothesis."""
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import objectives
from pyllm.autograd import Rng, no_grad, ops
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build
from pyllm.models import FAMILIES
from pyllm.models.base import CausalLM
from pyllm.nn import Cache

ROTARY = dict(vocab_size=31, max_position_embeddings=12, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
              num_key_value_heads=1, dropout=0.1, attention_dropout=0.1)
SMALL = {  # one configuration of each causal family; a new family adds its line
    "gpt2": dict(vocab_size=31, n_positions=12, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "llama": ROTARY,
    "mistral": {**ROTARY, "sliding_window": 3},
    "qwen2": {**ROTARY, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {**ROTARY, "head_dim": 6},
    "gemma3_text": {**ROTARY, "head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
}
CAUSAL = [name for name, (_, model) in FAMILIES.items() if issubclass(model, CausalLM)]
CONTEXT = 12


def make(family, seed=1, **changes):
    """A small model with weights large enough that every path matters."""
    model = build({"model_type": family, **SMALL[family], "initializer_range": 0.2, **changes}, seed=seed)
    draw = np.random.default_rng(seed)
    for _, p in model.named_parameters():
        p.data = p.data + draw.standard_normal(p.shape, np.float32) * np.float32(0.1)
    return model


def ids(*shape, seed=0, high=31):
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)


def close(a, b, scale=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * max(1, np.abs(b).max(initial=0)))


def loss_and_gradients(model, batch, rng=None):
    for p in model.parameters():
        p.grad = None
    loss = objectives.clm(model, batch, rng)
    loss.total.backward()
    return loss.total.item(), {name: p.grad.copy() for name, p in model.named_parameters() if p.grad is not None}


GPT2S = st.fixed_dictionaries(dict(
    model_type=st.just("gpt2"), vocab_size=st.integers(1, 70), n_positions=st.just(CONTEXT), n_layer=st.integers(1, 3),
    activation_function=st.sampled_from(["gelu_new", "gelu", "relu", "silu"]), bias=st.booleans(), tie_word_embeddings=st.booleans(),
    n_inner=st.sampled_from([None, 1, 7, 32]), position=st.sampled_from(["learned", "sinusoidal", "rope", "alibi", "t5"]),
    scale_attn_weights=st.booleans(), scale_attn_by_inverse_layer_idx=st.booleans(),
    initializer_range=st.just(0.2), shape=st.sampled_from([(1, 1), (3, 1), (1, 8), (5, 5), (4, 2), (2, 17), (3, 11)])))
LLAMAS = st.fixed_dictionaries(dict(
    model_type=st.sampled_from([f for f in SMALL if f != "gpt2"]), vocab_size=st.integers(1, 70), max_position_embeddings=st.just(CONTEXT),
    num_hidden_layers=st.integers(1, 3), intermediate_size=st.sampled_from([1, 7, 24]),
    hidden_act=st.sampled_from(["silu", "gelu", "gelu_new"]),
    attention_bias=st.booleans(), mlp_bias=st.booleans(), tie_word_embeddings=st.booleans(), initializer_range=st.just(0.2),
    rope_theta=st.sampled_from([100.0, 1e4, 5e5]), hidden_size=st.sampled_from([8, 12, 24]), rope_scaling=st.sampled_from([
        None, {"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 6}]),
    sliding_window=st.sampled_from([1, 3, 20]), use_sliding_window=st.booleans(), max_window_layers=st.integers(0, 2),
    sliding_window_pattern=st.integers(1, 3),
    shape=st.sampled_from([(1, 1, None), (2, 1, 2), (2, 2, 4), (4, 2, None), (6, 3, 10), (4, 1, 2)])))


def any_model(values):
    known = {f.name for f in dataclasses.fields(FAMILIES[values["model_type"]][0])} | {"model_type", "shape"}
    values = {key: value for key, value in values.items() if key in known}
    shape = values.pop("shape")
    if values["model_type"] == "gpt2":
        values |= dict(n_head=shape[0], n_embd=shape[0] * shape[1] * (1 + (values["position"] == "rope")))
    else:
        heads, kv, head_dim = shape
        values |= dict(num_attention_heads=heads, num_key_value_heads=kv, head_dim=head_dim,
                       hidden_size=8 * heads if head_dim is None else values["hidden_size"])
    return build(values, seed=3)


# ---- any configuration -----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(values=st.one_of(GPT2S, LLAMAS), rows=st.integers(1, 3), length=st.integers(1, CONTEXT))
def test_any_configuration(values, rows, length):
    """Shapes; logits and the fused loss agree; every parameter gets a gradient; the future is not seen; a cache gives the same logits."""
    model = any_model(values)
    v = model.config.vocab_size
    tokens = ids(rows, length, high=v)
    logits = model(tokens).data
    assert logits.shape == (rows, length, v) and logits.dtype == np.float32 and np.isfinite(logits).all()

    batch = Batch(tokens, ids(rows, length, seed=1, high=v))
    total, grads = loss_and_gradients(model, batch)
    separate = ops.cross_entropy(model(tokens), batch.targets)
    assert abs(total - separate.item()) <= 1e-4 * max(1, abs(total))
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert all(np.isfinite(g).all() and g.dtype == np.float32 for g in grads.values())

    cut = length // 2
    changed = tokens.copy()
    changed[:, cut:] = (changed[:, cut:] + 1) % v
    assert np.array_equal(model(changed).data[:, :cut], logits[:, :cut])

    with no_grad():
        cache, parts = Cache(rows, capacity=1), []
        for part in (tokens[:, :cut], *[tokens[:, i : i + 1] for i in range(cut, length)]):
            if part.size:
                parts.append(model(part, cache=cache).data)
                cache.advance(np.full(rows, part.shape[1]))
    close(np.concatenate(parts, 1), logits)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CAUSAL)
def test_padding_on_either_side_changes_nothing(family):
    model, tokens = make(family), ids(2, 6)
    plain = model(tokens).data
    for left, right in ((0, 3), (3, 0), (2, 2)):
        pad = ((0, 0), (left, right))
        padded = np.pad(tokens, pad, constant_values=5)
        segments = np.pad(np.ones_like(tokens), pad)
        close(model(padded, segments).data[:, left : left + 6], plain)
        targets = np.pad(ids(2, 6, seed=1), pad, constant_values=IGNORED)
        total, grads = loss_and_gradients(model, Batch(padded, targets, segments))
        expected, expected_grads = loss_and_gradients(model, Batch(tokens, ids(2, 6, seed=1)))
        assert abs(total - expected) < 1e-4
        for name, g in expected_grads.items():
            close(grads[name], g, 2e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_packed_row_equals_its_documents(family):
    """Documents of 5, 1 and 4 tokens in one row, padding between and behind: logits, loss and gradients of three rows."""
    model, documents = make(family), [ids(1, n, seed=n) for n in (5, 1, 4)]
    targets = [ids(1, n, seed=n + 10) for n in (5, 1, 4)]
    gap = np.full((1, 1), 3, np.int32)
    packed = np.concatenate([documents[0], gap, documents[1], documents[2], gap], 1)
    segments = np.array([[1] * 5 + [0] + [2] + [3] * 4 + [0]], np.int32)
    wanted = np.full((1, 12), IGNORED, np.int32)
    wanted[0, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]] = np.concatenate(targets, 1)[0]
    logits = model(packed, segments).data
    close(logits[:, :5], model(documents[0]).data)
    close(logits[:, 6:7], model(documents[1]).data)
    close(logits[:, 7:11], model(documents[2]).data)
    total, grads = loss_and_gradients(model, Batch(packed, wanted, segments))
    parts = [loss_and_gradients(model, Batch(d, t)) for d, t in zip(documents, targets)]
    assert abs(total - sum(p[0] for p in parts)) < 1e-4
    for name in grads:
        close(grads[name], sum(p[1][name] for p in parts), 2e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_row_does_not_depend_on_its_neighbours(family):
    model, tokens = make(family), ids(5, 9)
    together = model(tokens).data
    for i in range(5):
        assert np.array_equal(model(tokens[i : i + 1]).data, together[i : i + 1])


@pytest.mark.parametrize("family", CAUSAL)
def test_all_padding_and_all_ignored(family):
    model, tokens = make(family), ids(2, 4)
    logits = model(tokens, np.zeros_like(tokens)).data
    assert np.isfinite(logits).all()
    total, grads = loss_and_gradients(model, Batch(tokens, np.full_like(tokens, IGNORED)))
    assert total == 0 and all(not g.any() for g in grads.values())


@pytest.mark.parametrize("family", CAUSAL)
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), steps=st.integers(1, 5))
def test_ragged_decoding_equals_the_full_forward(family, lengths, steps):
    """Prompts of unequal length in one batch, no padding tricks: each row's logits are those of its own text."""
    model, rows = make(family), len(lengths)
    text = ids(rows, 6 + steps)
    with no_grad():
        cache = Cache(rows, capacity=2)
        logits = model(text[:, : max(lengths)], cache=cache).data
        cache.advance(np.array(lengths))
        last = np.array([logits[row, n - 1] for row, n in enumerate(lengths)])
        for step in range(steps):
            for row, n in enumerate(lengths):
                close(last[row], model(text[row : row + 1, : n + step]).data[0, -1])
            here = np.array([[text[row, n + step]] for row, n in enumerate(lengths)], np.int32)
            last = model(here, cache=cache).data[:, 0]
            cache.advance(np.ones(rows, int))


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "t5"])
def test_positions_of_ones_own_choice(position):
    """Padding, packing, ragged rows of a cache, checkpointing, as with the learned ones; and the order of the tokens matters."""
    model = make("gpt2", n_head=2, position=position)
    assert not any("wpe" in name for name, _ in model.named_parameters())
    tokens = ids(2, 6)
    plain = model(tokens).data
    got = model(np.pad(tokens, ((0, 0), (3, 2))), np.pad(np.ones_like(tokens), ((0, 0), (3, 2)))).data[:, 3:9]
    close(got, plain)
    packed = model(tokens.reshape(1, 12), np.repeat([[1, 2]], 6, axis=1).astype(np.int32)).data
    close(packed.reshape(plain.shape), plain)
    assert np.abs(model(tokens[:, [1, 0, 2, 3, 4, 5]]).data[:, -1] - plain[:, -1]).max() > 1e-4
    with no_grad():
        cache = Cache(2, capacity=1)
        model(tokens[:, :4], cache=cache)
        cache.advance(np.array([4, 2]))
        rest = model(np.stack([tokens[0, 4:6], tokens[1, 2:4]]), cache=cache).data
    close(rest[0], plain[0, 4:6])
    close(rest[1], plain[1, 2:4])
    batch = Batch(tokens, ids(2, 6, seed=1))
    one = loss_and_gradients(model, batch, Rng(3))
    model.checkpointing = True
    two = loss_and_gradients(model, batch, Rng(3))
    assert one[0] == two[0] and one[1].keys() == two[1].keys() == dict(model.named_parameters()).keys()
    for name, g in one[1].items():
        close(two[1][name], g)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_is_exactly_so_many_keys(window):
    """One layer: a token's logits depend on the `window` tokens up to it and on no other, with and without a cache."""
    model = make("mistral", num_hidden_layers=1, sliding_window=window)
    tokens = ids(1, 12)
    logits = model(tokens).data
    for at in range(12):
        changed = tokens.copy()
        changed[0, at] = (changed[0, at] + 1) % 31
        differs = (model(changed).data != logits).any(2)[0]
        assert np.flatnonzero(differs).tolist() == list(range(at, min(12, at + window)))
    with no_grad():
        cache = Cache(1, capacity=1)
        for at in range(12):
            close(model(tokens[:, at : at + 1], cache=cache).data[:, 0], logits[:, at])
            cache.advance(np.ones(1, int))


# ---- dropout, checkpointing, seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("rng", [None, Rng(4)])
def test_checkpointing_gives_the_same_bits(family, rng):
    batch = Batch(ids(3, 8), ids(3, 8, seed=1))
    plain, saving = make(family), make(family)
    saving.checkpointing = True
    one, two = loss_and_gradients(plain, batch, rng), loss_and_gradients(saving, batch, rng)
    assert one[0] == two[0] and all(np.array_equal(g, two[1][name]) for name, g in one[1].items())


@pytest.mark.parametrize("family", CAUSAL)
def test_dropout_follows_the_key(family):
    model, tokens = make(family), ids(2, 8)
    plain, one, again, other = (model(tokens, rng=rng).data for rng in (None, Rng(1), Rng(1), Rng(2)))
    assert np.array_equal(one, again) and not np.array_equal(one, other) and not np.array_equal(one, plain)
    assert np.array_equal(plain, model(tokens).data)


@pytest.mark.parametrize("family", CAUSAL)
def test_weights_depend_on_seed_and_path(family):
    one, two, other = (build({"model_type": family, **SMALL[family]}, seed=s) for s in (1, 1, 2))
    layers = FAMILIES[family][0].SIZES["layers"][0]
    deeper = build({"model_type": family, **SMALL[family], layers: 3, "layer_types": None}, seed=1)
    for name, a in one.state().items():
        assert np.array_equal(a, two.state()[name])
        if name.endswith("embed_tokens.weight") or name.endswith("wte.weight"):
            assert not np.array_equal(a, other.state()[name]) and np.array_equal(a, deeper.state()[name])


@pytest.mark.parametrize("family", CAUSAL)
def test_the_first_loss_is_that_of_a_uniform_guess(family):
    model = build({"model_type": family, **SMALL[family]}, seed=0)
    loss = objectives.clm(model, Batch(ids(8, 12), ids(8, 12, seed=1)))
    assert abs(loss.total.item() / loss.count - np.log(31)) < 0.05


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("tokens, text", [
    ([[0, -1]], r"token id -1 at \(0, 1\); expected 0..30"), ([[31, 0]], r"token id 31 at \(0, 0\)"),
    (np.array([[2**32]], np.uint64), "token id 4294967296"), ([[2**31 + 1]], "token id 2147483649"), ([1, 2], r"shape \(2,\)"),
    ([[]], "not empty"), (np.zeros((0, 3), int), "not empty"), ([[1.0]], "dtype float64"), ([[True]], "dtype bool"),
    ([[0] * 13], "position 12 is beyond the context"), (["text"], "expected integers"),
])
def test_bad_tokens(family, tokens, text):
    with pytest.raises(ValueError, match=text):
        make(family)(tokens)


@pytest.mark.parametrize("family", CAUSAL)
def test_bad_segments_and_caches(family):
    model, tokens = make(family), ids(2, 4)
    with pytest.raises(ValueError, match=r"segments \(2, 3\), expected the shape of tokens \(2, 4\)"):
        model(tokens, tokens[:, :3])
    with pytest.raises(ValueError, match="no gradient flows through a cache"):
        model(tokens, cache=Cache(2))
    with no_grad():
        with pytest.raises(ValueError, match="exclude each other"):
            model(tokens, np.ones_like(tokens), cache=Cache(2))
        with pytest.raises(ValueError, match="a cache of 3 rows for tokens"):
            model(tokens, cache=Cache(3))


@pytest.mark.parametrize("family", CAUSAL)
def test_documents_may_be_as_long_as_the_context_each(family):
    model = make(family)
    tokens, segments = ids(1, 24), np.repeat([[1, 2]], 12, axis=1).astype(np.int32)
    close(model(tokens, segments).data[:, 12:], model(tokens[:, 12:]).data)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, ">i4"])
def test_any_whole_numbers_will_do(family, dtype):
    model, tokens = make(family), ids(2, 4)
    assert np.array_equal(model(tokens.astype(dtype)).data, model(tokens).data)
    assert np.array_equal(model(np.asfortranarray(tokens)).data, model(tokens).data)
    assert np.array_equal(model(tokens.tolist()).data, model(tokens).data)


def test_every_family_is_tested():
    assert SMALL.keys() == set(CAUSAL)


def test_attention_weights_are_dropped():
    """Of every family that has a key for it, when a key for dropout is given and only then; the other dropouts are off."""
    off = dict(resid_pdrop=0.0, embd_pdrop=0.0, dropout=0.0)
    for family in CAUSAL:
        known = {f.name for f in dataclasses.fields(FAMILIES[family][0])}
        key = "attn_pdrop" if family == "gpt2" else "attention_dropout"
        model = make(family, **{k: v for k, v in off.items() if k in known}, **{key: 0.4})
        tokens = ids(2, 6)
        plain = model(tokens).data
        assert not np.array_equal(model(tokens, rng=Rng(0)).data, plain)
        for block in (model.trunk.h if family == "gpt2" else model.trunk.layers):
            (block.attn if family == "gpt2" else block.self_attn).p = 1e-9  # drops nothing, by the same operations
        close(model(tokens, rng=Rng(0)).data, plain)
        segments = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 2, 2, 2, 0]], np.int32)
        batch = Batch(tokens, np.where(segments > 0, ids(2, 6, seed=1), IGNORED), segments)
        (one, grads), (two, expected) = loss_and_gradients(model, batch, Rng(0)), loss_and_gradients(model, batch)
        assert abs(one - two) < 1e-4
        for name, g in expected.items():
            close(grads[name], g, 2e-5)
