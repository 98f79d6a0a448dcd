"""Encoder-decoders: padding, packing, what the decoder may see, caches, dropout, checkpointing, bad input."""
import numpy as np
import pytest

import pyllm
from pyllm.autograd import Rng, no_grad, ops
from pyllm.folders import build
from pyllm.models.seq2seq import Memory
from pyllm.nn import Cache

SMALL = {
    "t5": dict(model_type="t5", vocab_size=31, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3),
    "t5-gated": dict(model_type="t5", vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_decoder_layers=2, num_heads=2,
                     feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": dict(model_type="bart", vocab_size=31, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
                 decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=24, max_position_embeddings=24, init_std=0.3,
                 attention_dropout=0.1, activation_dropout=0.1),
}
TOKENS = np.random.default_rng(0).integers(0, 31, (3, 9)).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(0, 31, (3, 6)).astype(np.int32)


@pytest.fixture(params=SMALL.values(), ids=SMALL)
def model(request):
    return build(request.param, seed=3)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


def test_padding_of_either_text_on_either_side_changes_nothing(model):
    plain = model(TOKENS, TARGETS).data
    for pad in ((4, 0), (0, 4), (2, 1)):
        padded, segments = (np.pad(x, ((0, 0), pad)) for x in (TOKENS, np.ones_like(TOKENS)))
        close(model(padded, TARGETS, segments).data, plain)
        ours, theirs = (np.pad(x, ((0, 0), pad)) for x in (TARGETS, np.ones_like(TARGETS)))
        close(model(padded, ours, segments, theirs).data[:, pad[0] : pad[0] + 6], plain)


def test_packed_pairs_equal_their_own(model):
    tokens, targets = np.concatenate([TOKENS[:1], TOKENS[1:2, :5]], 1), np.concatenate([TARGETS[:1], TARGETS[1:2, :4]], 1)
    segments, theirs = np.repeat([[1, 2]], [9, 5], axis=1).astype(np.int32), np.repeat([[1, 2]], [6, 4], axis=1).astype(np.int32)
    got = model(tokens, targets, segments, theirs).data
    close(got[:, :6], model(TOKENS[:1], TARGETS[:1]).data)
    close(got[:, 6:], model(TOKENS[1:2, :5], TARGETS[1:2, :4]).data)


def test_the_decoder_sees_its_past_and_all_of_the_encoder(model):
    plain = model(TOKENS, TARGETS).data
    later, other = TARGETS.copy(), TOKENS.copy()
    later[:, 4] = (later[:, 4] + 1) % 31
    other[:, -1] = (other[:, -1] + 1) % 31
    assert np.array_equal(model(TOKENS, later).data[:, :4], plain[:, :4])
    assert (model(other, TARGETS).data[:, 0] != plain[:, 0]).any(1).all()


def test_ragged_cached_decoding_equals_the_full_forward(model):
    """Rows of unequal length that leave: each row's hidden states are those of its own text alone."""
    mask = np.ones_like(TOKENS)
    mask[1, 6:] = 0
    with no_grad():
        cache = Cache(3, capacity=1)
        cache.memory = Memory(model.encode(TOKENS, mask), mask)
        first = model.continued(TARGETS[:, :3], cache).data
        lengths = np.array([3, 1, 2])
        cache.advance(lengths)
        full = [model.hidden(TOKENS[i : i + 1], TARGETS[i : i + 1], mask[i : i + 1]).data[0] for i in range(3)]
        for i, n in enumerate(lengths):
            close(first[i, :n], full[i][:n])
        for step in range(2):
            here = np.array([[TARGETS[i, n + step]] for i, n in enumerate(lengths)])
            got = model.continued(here, cache).data
            cache.advance(np.ones(3, int))
            for i, n in enumerate(lengths):
                close(got[i, 0], full[i][n + step])
        cache.select([2, 1])
        got = model.continued(TARGETS[[2, 1], [4, 3]][:, None], cache).data
        close(got[0, 0], full[2][4])
        close(got[1, 0], full[1][3])


def test_generation(model):
    """Greedy answers to prompts of unequal length are those of the full forward and of each prompt alone; drawn ones too."""
    prompts = [TOKENS[0].tolist(), TOKENS[1, :4].tolist(), TOKENS[2, :6].tolist()]
    free = dict(max_tokens=6, forced_eos_token_id=None)
    together = pyllm.generate(model, None, prompts, temperature=0, **free)
    for prompt, got in zip(prompts, together):
        ids = list(model.config.starts)
        for _ in got.ids:
            ids.append(int(model(np.array([prompt]), np.array([ids])).data[0, -1].argmax()))
        assert got.ids == ids[len(model.config.starts) :]
        assert got.ids == pyllm.generate(model, None, prompt, temperature=0, **free).ids
    drawn = [g.ids for g in pyllm.generate(model, None, prompts, seed=3, **free)]
    assert drawn == [pyllm.generate(model, None, p, seed=3 + i, **free).ids for i, p in enumerate(prompts)]
    with pytest.raises(ValueError, match="at least one token a row"):
        pyllm.generate(model, None, [[1], []])


def test_gradients_dropout_and_checkpointing(model):
    results = []
    for checkpointing in (False, True):
        for p in model.parameters():
            p.grad = None
        model.checkpointing = checkpointing
        logits = model(TOKENS, TARGETS, rng=Rng(1))
        ops.cross_entropy(logits, TARGETS).backward()
        results.append((logits.data, {n: p.grad.copy() for n, p in model.named_parameters() if p.requires_grad}))
    assert np.array_equal(results[0][0], results[1][0])
    assert all(np.allclose(g, results[1][1][n], rtol=0, atol=1e-6 * np.abs(g).max()) and g.any() for n, g in results[0][1].items()
               if not n.endswith(("k_proj.bias")))
    assert not np.array_equal(results[0][0], model(TOKENS, TARGETS).data)


def test_bad_input(model):
    name = type(model).__name__
    for arguments, text in (((TOKENS, TARGETS[:2]), "expected as many rows"), ((TOKENS + 31, TARGETS), f"{name}: token id"),
                            ((TOKENS, TARGETS + 31), f"{name} decoder: token id"),
                            ((TOKENS, TARGETS, TARGETS), "expected the shape of tokens"),
                            ((TOKENS, TARGETS, None, TOKENS), "decoder: segments"), ((TOKENS[0], TARGETS), "expected integers")):
        with pytest.raises(ValueError, match=text):
            model(*arguments)
    if name == "Bart":
        with pytest.raises(ValueError, match="position 24 is beyond the context"):
            model(np.zeros((1, 25), int), TARGETS[:1])
