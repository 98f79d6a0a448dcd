"""The steps before the temperature, each against its definition; what a model's generation_config.json says."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllm
from pyllm.errors import FormatError
from pyllm.folders import build
from pyllm.generation import Sampling, generate
from pyllm.generation.sampling import repeating

NEVER = np.float32(-np.inf)


def adjusted(text=(4, 4, 2), prompt=1, ends=(0,), limit=10, allowed=None, **options):
    """-> the adjusted scores of a row whose six logits are 1, 2, ... 6."""
    scores = np.arange(1, 7, dtype=np.float32)[None]
    out = Sampling(**options).adjust(scores, [list(text)], [prompt], ends, limit, allowed)
    assert scores.tolist() == [[1, 2, 3, 4, 5, 6]], "the model's own logits are left alone"
    return out[0].tolist()


@pytest.mark.parametrize("options,expected", [
    (dict(), [1, 2, 3, 4, 5, 6]),
    (dict(logit_bias={0: 5, 3: -1.5}), [6, 2, 3, 2.5, 5, 6]),
    (dict(repetition_penalty=2.0), [1, 2, 1.5, 4, 2.5, 6]),
    (dict(presence_penalty=1.0, text=(4, 2, 2, 3)), [1, 2, 2, 3, 5, 6]),
    (dict(frequency_penalty=1.0, text=(4, 2, 2, 3)), [1, 2, 1, 3, 5, 6]),
    (dict(frequency_penalty=1.0, presence_penalty=0.5, penalize_prompt=True, text=(4, 2, 2, 3)), [1, 2, 0.5, 2.5, 3.5, 6]),
    (dict(no_repeat_ngram_size=2, text=(1, 3, 2, 1, 5, 1)), [1, 2, 3, NEVER, 5, NEVER]),
    (dict(min_tokens=3), [NEVER, 2, 3, 4, 5, 6]),
    (dict(min_tokens=2), [1, 2, 3, 4, 5, 6]),
    (dict(forced_bos_token_id=5, text=(4,)), [NEVER] * 5 + [0]),
    (dict(forced_bos_token_id=5), [1, 2, 3, 4, 5, 6]),
    (dict(forced_eos_token_id=0, limit=3), [0] + [NEVER] * 5),
    (dict(forced_eos_token_id=0, limit=4), [1, 2, 3, 4, 5, 6]),
    (dict(suppress_tokens=[5, 4]), [1, 2, 3, 4, NEVER, NEVER]),
    (dict(begin_suppress_tokens=[5], text=(4,)), [1, 2, 3, 4, 5, NEVER]),
    (dict(begin_suppress_tokens=[5]), [1, 2, 3, 4, 5, 6]),
    (dict(begin_suppress_tokens=[5], forced_bos_token_id=3, text=(4, 3)), [1, 2, 3, 4, 5, NEVER]),
    (dict(allowed=[np.array([1, 0, 1, 0, 0, 0], bool)]), [1, NEVER, 3, NEVER, NEVER, NEVER]),
    (dict(logit_bias={2: 10}, repetition_penalty=2.0), [1, 2, 6.5, 4, 2.5, 6]),  # the bias comes first
    (dict(repetition_penalty=2.0, presence_penalty=1.0), [1, 2, 0.5, 4, 1.5, 6]),  # then the penalties in this order
    (dict(suppress_tokens=[0], forced_eos_token_id=0, limit=3), [NEVER] * 6),  # what is suppressed stays so
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_each_step_and_their_order(options, expected):
    assert adjusted(**options) == expected


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4))
def test_repeated_ngrams_by_definition(text, n):
    grams = {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}
    want = {id for id in range(4) if tuple([*text[max(0, len(text) - n + 1) :], id]) in grams and len(text) >= n}
    assert set(repeating(text, n)) == want


def test_no_text_repeats_an_ngram(any_model):
    for result in generate(any_model, None, [[5, 9, 2], [7, 7, 7]], max_tokens=40, temperature=0, no_repeat_ngram_size=2):
        grams = list(zip(result.ids, result.ids[1:]))
        assert len(set(grams)) == len(grams)


def test_steps_do_not_see_the_neighbours(any_model):
    options = dict(max_tokens=14, seed=4, presence_penalty=2.0, frequency_penalty=0.5, no_repeat_ngram_size=2, min_tokens=5, top_k=20,
                   begin_suppress_tokens=range(100), logit_bias={7: 3.0})
    prompts = [[5, 9, 2], [7] * 20, [1]]
    together = generate(any_model, None, prompts, **options)
    for i, prompt in enumerate(prompts):
        assert together[i].ids == generate(any_model, None, prompt, **{**options, "seed": 4 + i}).ids
        assert together[i].ids[0] >= 100


def test_forced_tokens_frame_a_text(any_model):
    result = generate(any_model, None, [5, 9], max_tokens=6, forced_bos_token_id=17, forced_eos_token_id=18, seed=2)
    assert result.ids[0] == 17 and (result.ids[-1] == 18 or len(result.ids) < 6)


def test_when_nothing_is_allowed_it_is_said(any_model):
    with pytest.raises(ValueError, match="prompt 0: after 0 tokens every token is forbidden"):
        generate(any_model, None, [5], suppress_tokens=range(300))


@pytest.mark.parametrize("options,words", [
    (dict(logit_bias=[3]), r"logit_bias=\[3\], expected \{token id: a number\}"),
    (dict(suppress_tokens=["a"]), "suppress_tokens=.*expected token ids"),
    (dict(min_tokens=-1, presence_penalty="x"), "presence_penalty='x'.*min_tokens=-1"),
    (dict(forced_bos_token_id=1.5), "forced_bos_token_id=1.5"),
    (dict(suppress_tokens=[300]), "suppress_tokens: token id 300; expected 0..299"),
    (dict(logit_bias={-1: 2.0}), "logit_bias: token id -1"),
    (dict(forced_eos_token_id=999, max_tokens=1), "a forced token: token id 999"),
    (dict(temprature=1.0), "unknown argument 'temprature'. Did you mean 'temperature'"),
    (dict(num_beams=0), "num_beams=0"),
    (dict(num_beams=2, num_return_sequences=3), "num_return_sequences=3 of num_beams=2"),
    (dict(bad_words_ids=[[3], []]), "bad_words_ids="),
    (dict(bad_words_ids=[3]), "expected rows of token ids, none empty"),
    (dict(num_beams=2, logprobs=True), "num_beams=2 with logprobs"),
    (dict(early_stopping="soon"), "early_stopping='soon'"),
    (dict(sampling=Sampling(), top_k=3), "sampling and top_k"),
])
def test_bad_settings_are_named(options, words, model_of):
    with pytest.raises(ValueError, match=words):
        generate(model_of("llama"), None, [5], **options)


@pytest.fixture
def filed(model_of):
    """-> a function that gives the small model a generation_config.json."""
    model = model_of("llama")

    def give(values):
        model.generation = values
        return model

    yield give
    model.generation = None


def test_generation_config_decides_where_the_caller_does_not(filed):
    model = filed(None)
    drawn, greedy = (generate(model, None, [5, 9], max_tokens=10, seed=1, **o).ids for o in ({}, {"temperature": 0}))
    cut = generate(model, None, [5, 9], max_tokens=10, seed=1, top_k=50, top_p=0.9, temperature=0.8).ids
    assert drawn != greedy
    ids = lambda **options: generate(model, None, [5, 9], **{"max_tokens": 10, "seed": 1, **options}).ids
    filed({})
    assert ids() == greedy and ids(temperature=1.0) == drawn and ids(sampling=Sampling()) == drawn
    filed({"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 4})
    assert ids() == cut and ids(temperature=0) == greedy and ids(sampling=Sampling()) == drawn
    assert generate(model, None, [5, 9], seed=1).ids == cut[:4]
    filed({"num_beams": 3, "length_penalty": 0.0})
    assert ids() == generate(model, None, [5, 9], max_tokens=10, num_beams=3, length_penalty=0.0).ids and ids(temperature=1.0) == drawn
    filed({"eos_token_id": [greedy[2], 7]})
    assert ids() == greedy[: greedy.index(greedy[2]) + 1]


def test_keys_that_would_change_the_text_are_named(filed):
    with pytest.warns(UserWarning, match=r"typical_p=0.5, sequence_bias=\[\[\[3\], 0.5\]\], which pyllm does not compute"):
        generate(filed({"typical_p": 0.5, "sequence_bias": [[[3], 0.5]], "top_h": None}), None, [5], max_tokens=1)


def test_generation_config_travels_with_the_folder(filed, tmp_path):
    values = {"eos_token_id": [2, 3], "temperature": 0.6, "do_sample": True, "something": {"unknown": [1]}}
    pyllm.save(filed(values), None, tmp_path / "a")
    model, _ = pyllm.load(tmp_path / "a")
    assert model.generation == values
    pyllm.save(filed(None), None, tmp_path / "b")
    assert not (tmp_path / "b/generation_config.json").exists() and pyllm.load(tmp_path / "b")[0].generation is None
    (tmp_path / "a/generation_config.json").write_text("[1]")
    with pytest.raises(FormatError, match="generation_config.json: a list"):
        pyllm.load(tmp_path / "a")


def test_bad_words_never_come_nor_begin_in_the_prompt():
    model = build(dict(model_type="llama", vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=64), seed=2)
    plain = generate(model, None, [1, 2], max_tokens=30, temperature=2.0, seed=3).ids
    bad = [[plain[0]], plain[3:5], [2, plain[7]], [8, 8, 8, 8, 8]]
    text = [1, 2, *generate(model, None, [1, 2], max_tokens=30, temperature=2.0, seed=3, bad_words_ids=bad).ids]
    for words in bad:
        assert not any(text[i : i + len(words)] == words for i in range(2 - len(words[:-1]), len(text)))
    assert generate(model, None, [1, 2], max_tokens=30, temperature=2.0, seed=3, bad_words_ids=[[8, 8, 8, 8, 8, 8]]).ids == plain


def test_the_end_of_a_turn_ends_a_text_of_a_chat_model():
    from pyllm.generation.generate import end_ids
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["some text"], 300, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    model = build(dict(model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                       num_attention_heads=2), seed=2)
    assert end_ids(model, tokenizer) == {tokenizer.eos_id}
    tokenizer.chat_template = "chatml"
    assert end_ids(model, tokenizer) == {tokenizer.eos_id, tokenizer.id("<|im_end|>")}
