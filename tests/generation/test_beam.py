"""Beam search against a search that keeps everything, and over cached rows against the full forward."""
import itertools

import numpy as np
import pytest

import pyllm
from pyllm import kernels as K
from pyllm.folders import build
from pyllm.generation import generate
from pyllm.models.seq2seq import EncoderDecoder


def log_probs(model, prompt, ids):
    """-> log p of each of ids, by the full forward."""
    with pyllm.no_grad():
        if isinstance(model, EncoderDecoder):
            start = model.config.starts
            logits = model(np.array([prompt]), np.array([start + ids[:-1]])).data[0]
        else:
            logits = model(np.array([prompt + ids])).data[0, len(prompt) - 1 : -1]
    return K.log_softmax(logits)[np.arange(len(ids)), ids]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_search_finds_the_best_of_all_texts(penalty):
    """Eight tokens, three steps: 512 texts, and those that an end token cuts."""
    model = build(dict(model_type="llama", vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=16, eos_token_id=3), seed=1)
    for p in model.parameters():
        p.data *= 5
    texts = {tuple(ids[: ids.index(3) + 1] if 3 in ids else ids) for ids in map(list, itertools.product(range(8), repeat=3))}
    scored = sorted(((float(log_probs(model, [1, 2], list(t)).sum()) / len(t) ** penalty, list(t)) for t in texts), reverse=True)
    options = dict(num_beams=70, num_return_sequences=5, length_penalty=penalty, early_stopping="never")
    found = generate(model, None, [1, 2], max_tokens=3, **options)
    assert [g.ids for g in found] == [ids for _, ids in scored[:5]]
    np.testing.assert_allclose([g.score for g in found], [score for score, _ in scored[:5]], rtol=1e-4)


def test_scores_are_those_of_the_full_forward(any_model):
    """Rows change places at every step: keys of a wrong parent would show here."""
    for prompt, found in zip([[5, 9, 2], [7]], generate(any_model, None, [[5, 9, 2], [7]], max_tokens=12, num_beams=4,
                                                         num_return_sequences=4, forced_eos_token_id=None)):
        for g in found:
            assert g.score == pytest.approx(log_probs(any_model, prompt, g.ids).sum() / len(g.ids), rel=1e-4)
        assert [g.score for g in found] == sorted((g.score for g in found), reverse=True)
        assert len({tuple(g.ids) for g in found}) == 4


def test_a_search_is_at_least_as_good_as_greedy(any_model):
    options = dict(max_tokens=10, forced_eos_token_id=None)
    for seed in range(5):
        prompt = [seed + 1, 3 * seed + 2]
        greedy = generate(any_model, None, prompt, temperature=0, **options)
        best = generate(any_model, None, prompt, num_beams=6, **options)
        assert best.score >= log_probs(any_model, prompt, greedy.ids).mean() - 1e-4


def test_a_full_context_and_no_tokens_end_a_search(any_model):
    if not isinstance(any_model, EncoderDecoder):
        found = generate(any_model, None, [1] * 95, max_tokens=20, num_beams=3)
        assert len(found.ids) == 2 and found.finish_reason == "length"
    nothing = generate(any_model, None, [1], max_tokens=0, num_beams=3)
    assert nothing.ids == [] and nothing.text == ""


def test_drawn_beams_are_likely_texts_that_a_seed_decides():
    """Row by row as alone; never a forbidden token; with one token left to choose from, beam search's own."""
    model = build(dict(model_type="llama", vocab_size=30, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=32, eos_token_id=3), seed=1)
    for p in model.parameters():
        p.data *= 5
    options = dict(num_beams=4, max_tokens=8, temperature=1.0, num_return_sequences=4)
    found = {seed: generate(model, None, [1, 2], seed=seed, **options) for seed in range(6)}
    texts = {tuple(tuple(g.ids) for g in row) for row in found.values()}
    assert len(texts) > 1 and found[0] == generate(model, None, [1, 2], seed=0, **options)
    for row in found.values():
        assert len({tuple(g.ids) for g in row}) == 4 and [g.score for g in row] == sorted((g.score for g in row), reverse=True)
        for g in row:
            assert g.score == pytest.approx(log_probs(model, [1, 2], g.ids).sum() / len(g.ids), rel=1e-4)
    batch = generate(model, None, [[1, 2], [5, 6, 7]], seed=0, **options)
    assert batch[0] == found[0] and batch[1] == generate(model, None, [5, 6, 7], seed=4, **options)
    searched = [generate(model, None, [1, 2], num_beams=4, max_tokens=8, seed=seed, top_k=1) for seed in (0, 1)]
    assert len({tuple(g.ids) for g in searched}) == 1


def test_the_first_tokens_of_drawn_beams_have_the_models_frequencies():
    model = build(dict(model_type="llama", vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=8, eos_token_id=5), seed=3)
    model.get("lm_head.weight").data *= 40
    p = np.exp([log_probs(model, [1], [i])[0] for i in range(6)])
    # two beams, four of six looked at, the best of them returned: every token but the least likely ones can win, the likeliest most often
    wins = np.bincount([generate(model, None, [1], num_beams=2, max_tokens=1, temperature=1.0, seed=seed).ids[0] for seed in range(300)],
                       minlength=6) / 300
    order, expected = np.argsort(-p), np.zeros(6)
    for drawn in itertools.permutations(range(6), 4):
        left, chance = 1.0, 1.0
        for i in drawn:
            chance, left = chance * p[i] / left, left - p[i]
        expected[next(i for i in order if i in drawn)] += chance
    assert np.abs(wins - expected).max() < 0.09
