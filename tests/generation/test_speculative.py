"""Guessing ahead changes nothing but the number of calls."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.generation import DraftModel, PromptLookup, Session, generate, stream
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.text import CharTokenizer

pytestmark = pytest.mark.skipif(K.active() == "reference", reason="NumPy's products differ in their last bits")

PROMPTS = [[5, 9, 2, 5, 9, 2, 5, 9], [7] * 20, [1], [30, 31, 32, 30, 31]]
DRAFTS = {
    "lookup": lambda model: PromptLookup(),
    "short": lambda model: PromptLookup(tokens=2, longest=1),
    "itself": lambda model: DraftModel(model, 4),
    "other": lambda model: DraftModel(near(model), 3),
    "narrow": lambda model: DraftModel(near(model, context=40)),
}


def near(model, context=96):
    """-> a model that is nearly the given one: its weights, disturbed."""
    config = model.config.to_dict()
    config[model.config.SIZES["context"][0]] = context
    small, draw = build(config, seed=0), np.random.default_rng(0)
    own = dict(model.named_parameters())
    for name, p in small.named_parameters():
        data = own[name].data[: len(p.data)]
        p.data = data + np.float32(0.02 * data.std()) * draw.standard_normal(p.shape).astype(np.float32)
    return small


def skip_what_is_none(draft, model):
    if draft not in ("lookup", "short") and isinstance(model, EncoderDecoder):
        pytest.skip("a draft is a causal model")


@pytest.mark.parametrize("options", [
    {"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.3, "top_k": 20},
    {"temperature": 0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_tokens": 4},
], ids=["greedy", "drawn", "cool", "steps"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_same_tokens_and_bits(any_model, draft, options):
    skip_what_is_none(draft, any_model)
    options = dict(max_tokens=40, seed=6, logprobs=True, **options)
    plain = generate(any_model, None, PROMPTS, **options)
    fast = generate(any_model, None, PROMPTS, draft=DRAFTS[draft](any_model), **options)
    assert [(g.ids, g.logprobs, g.finish_reason) for g in fast] == [(g.ids, g.logprobs, g.finish_reason) for g in plain]
    alone = generate(any_model, None, PROMPTS[0], draft=DRAFTS[draft](any_model), **options)
    assert alone.ids == plain[0].ids


@pytest.mark.parametrize("draft", DRAFTS)
def test_rows_end_at_different_places(any_model, draft, monkeypatch):
    skip_what_is_none(draft, any_model)
    monkeypatch.setitem(any_model.config.extra, "eos_token_id", list(range(0, 300, 9)))
    options = dict(max_tokens=30, seed=2, temperature=0.5, num_return_sequences=2)
    plain = [g for row in generate(any_model, None, PROMPTS, **options) for g in row]
    fast = [g for row in generate(any_model, None, PROMPTS, draft=DRAFTS[draft](any_model), **options) for g in row]
    assert [(g.ids, g.finish_reason) for g in fast] == [(g.ids, g.finish_reason) for g in plain]
    assert len({len(g.ids) for g in plain}) > 1


@pytest.mark.parametrize("slide", [False, True])
@pytest.mark.parametrize("draft", ["lookup", "itself", "narrow"])
def test_up_to_the_end_of_the_context_and_beyond(causal, draft, slide):
    options = dict(max_tokens=150, temperature=0, slide=slide)
    prompts = [[5, 9, 2], [7] * 80, [1] * 90]
    fast = generate(causal, None, prompts, draft=DRAFTS[draft](causal), **options)
    assert [g.ids for g in fast] == [g.ids for g in generate(causal, None, prompts, **options)]


def test_a_draft_that_is_the_model_itself_is_always_right(causal, monkeypatch):
    calls, hidden = [], type(causal).hidden
    monkeypatch.setattr(type(causal), "hidden", lambda self, tokens, **o: calls.append(tokens.shape[1]) or hidden(self, tokens, **o))
    for options in ({"temperature": 0}, {"temperature": 1.0, "top_p": 0.9}):
        calls.clear()
        result = generate(causal, None, [5, 9, 2], max_tokens=31, draft=DraftModel(causal, 4), **options)
        assert result.acceptance == 1.0 and sum(n == 5 for n in calls) == 6  # 1 + 6 * 5 tokens
    assert generate(causal, None, [5, 9, 2], max_tokens=31).acceptance is None
    assert 0 < generate(causal, None, [5, 9, 2], max_tokens=60, seed=1, draft=DraftModel(near(causal))).acceptance <= 1


def test_lookup_finds_what_stood_there_before():
    ids = lambda *text, **options: PromptLookup(**options)._after(np.array(text, np.int32)).tolist()
    assert ids(1, 2, 3, 4, 9, 2, 3) == [4, 9, 2, 3]
    assert ids(1, 2, 3, 4, 5, 2, 3, 7, 8, 2, 3, tokens=2) == [7, 8]  # the nearest of two
    assert ids(3, 8, 1, 2, 3, 5, 9, 1, 3) == [5, 9, 1, 3]  # 1 3 stands nowhere, 3 does
    assert ids(1, 2, 3) == ids(1) == []


def test_with_streams_and_sessions(causal):
    tokenizer = CharTokenizer.train([bytes(range(32, 127)).decode()])
    options = dict(max_tokens=30, temperature=0.4, seed=3)
    plain = generate(causal, tokenizer, "abcabcab", **options)
    pieces = list(stream(causal, tokenizer, "abcabcab", draft=PromptLookup(), **options))
    assert "".join(pieces) == plain.text and len(pieces) == 30
    session, text = Session(causal), [5, 9, 2, 5, 9]
    for seed in range(3):
        got = generate(causal, None, text, max_tokens=9, seed=seed, temperature=0, session=session, draft=PromptLookup())
        assert got.ids == generate(causal, None, text, max_tokens=9, seed=seed, temperature=0).ids
        text = [*text, *got.ids, 4]


@pytest.mark.parametrize("make,words", [
    (lambda model: PromptLookup(tokens=0), "PromptLookup: tokens=0"),
    (lambda model: DraftModel(model, 1.5), "DraftModel: tokens=1.5"),
    (lambda model: DraftModel(model.trunk), "a GPT2Trunk; expected a causal model|a .*expected a causal model"),
    (lambda model: generate(model, None, [1], draft=DraftModel(build({**model.config.to_dict(), "vocab_size": 10}, seed=0))),
     "10 tokens in its vocabulary, 300"),
    (lambda model: generate(model, None, [1], num_beams=2, draft=PromptLookup()), "num_beams=2 with"),
])
def test_drafts_that_do_not_fit_are_named(model_of, make, words):
    with pytest.raises(ConfigError, match=words):
        make(model_of("gpt2"))
