"""Generation: cached decoding is the full forward, rows do not know their neighbours, sampling follows its documented order."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllm
from pyllm import kernels as K
from pyllm.autograd import ops
from pyllm.folders import build
from pyllm.generation import Decoder, Sampling, generate, stream
from pyllm.models import GPT2, GPT2Config, Llama, LlamaConfig
from pyllm.text import ByteLevelBPE, CharTokenizer

TEXT = "the cat sat on the mat, the dog sat on the log; naïve café 東京 🙂 " * 4


def sharp(model):
    """Random weights large enough that the likeliest tokens differ from row to row."""
    model.initialize(3)
    for p in model.parameters():
        p.data *= 4
    return model


MODELS = {
    "gpt2": sharp(GPT2(GPT2Config(vocab_size=300, n_positions=48, n_embd=32, n_layer=2, n_head=4))),
    "llama": sharp(Llama(LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     num_key_value_heads=2, max_position_embeddings=48))),
}
BPE = ByteLevelBPE.train([TEXT], 300)
PROMPTS = [[5, 9, 2], [7] * 20, [1], [30, 31, 32, 33, 34]]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def test_cached_decoding_has_the_bits_of_the_full_forward(model):
    result = generate(model, None, PROMPTS[0], max_tokens=40, seed=1, logprobs=True)
    with pyllm.no_grad():
        logp = K.log_softmax(model(np.array([PROMPTS[0] + result.ids])).data)[0]
    want = logp[np.arange(len(result.ids)) + len(PROMPTS[0]) - 1, result.ids]
    if K.active() == "reference":
        np.testing.assert_allclose(result.logprobs, want, atol=1e-5)
    else:
        assert np.float32(result.logprobs).tobytes() == want.tobytes()


@pytest.mark.parametrize("logprobs,heat", [(True, 1.0), ("tempered", 0.7)])
def test_recorded_log_probabilities_are_those_of_the_training_forward(model, logprobs, heat):
    """With a tokenizer of fewer tokens than the model too: softmax runs over all that the model has."""
    together = generate(model, BPE, PROMPTS, max_tokens=20, temperature=0.7, top_k=9, repetition_penalty=1.2, logprobs=logprobs)
    for prompt, result in zip(PROMPTS, together):
        with pyllm.no_grad():
            hidden = model.hidden(np.array([prompt + result.ids]))[:, len(prompt) - 1 : -1]
            want = ops.linear_log_probs(hidden, model.head_weight(), None, np.int32([result.ids]), heat).data[0]
        if K.active() == "reference":
            np.testing.assert_allclose(result.logprobs, want, atol=1e-5)
        else:
            assert np.float32(result.logprobs).tobytes() == want.tobytes()


def test_greedy_is_the_argmax_of_the_full_forward(model):
    ids = list(PROMPTS[3])
    result = generate(model, None, PROMPTS[3], max_tokens=12, temperature=0)
    for id in result.ids:
        with pyllm.no_grad():
            assert id == model(np.array([ids])).data[0, -1].argmax()
        ids.append(id)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 5, "repetition_penalty": 1.3}, {"top_p": 0.7, "min_p": 0.05}])
def test_a_row_does_not_know_its_neighbours(model, options):
    together = generate(model, None, PROMPTS, max_tokens=15, seed=7, **options)
    for i, prompt in enumerate(PROMPTS):
        assert together[i].ids == generate(model, None, prompt, max_tokens=15, seed=7 + i, **options).ids


def test_long_prompts_are_read_in_chunks(model, monkeypatch):
    whole = generate(model, None, PROMPTS, max_tokens=8, seed=2)
    monkeypatch.setattr("pyllm.generation.decode.PREFILL", 3)
    assert [g.ids for g in generate(model, None, PROMPTS, max_tokens=8, seed=2)] == [g.ids for g in whole]


def test_seed_decides(model):
    once, again, other = (generate(model, None, PROMPTS[0], max_tokens=20, seed=s).ids for s in (4, 4, 5))
    assert once == again != other


def test_the_cache_grows(model):
    decoder, ids = Decoder(model, [[5, 9, 2]], seeds=[1], capacity=0), []
    assert decoder.cache.capacity == 3
    for _ in range(20):
        ids += decoder.step().tolist()
        decoder.advance(np.ones(1, bool))
    assert ids == generate(model, None, [5, 9, 2], max_tokens=20, seed=1).ids and decoder.history == [[5, 9, 2, *ids]]


@pytest.mark.parametrize("prompt", [[5, 9, 2], list(range(48)), list(range(100))], ids=len)
def test_sliding_goes_on_from_the_last_half_of_the_context(model, prompt):
    window, ids = prompt if len(prompt) <= 48 else prompt[-24:], []
    for _ in range(80):
        with pyllm.no_grad():
            ids.append(int(model(np.array([window])).data[0, -1].argmax()))
        window = [*window, ids[-1]]
        window = window if len(window) <= 48 else window[-24:]
    together = generate(model, None, [[7] * 20, prompt, [1]], max_tokens=80, temperature=0, slide=True)
    assert together[1].ids == ids and together[1].finish_reason == "length"


def test_full_context_ends_a_row(model):
    result = generate(model, None, [1] * 40, max_tokens=100)
    assert len(result.ids) == 48 - 40 + 1 and result.finish_reason == "length"
    assert len(generate(model, None, [1] * 48, max_tokens=5).ids) == 1
    with pytest.raises(ValueError, match="49 tokens, the model's context is 48"):
        generate(model, None, [1] * 49, max_tokens=5)


def test_no_tokens_wanted(model):
    assert generate(model, BPE, "cat", max_tokens=0) == pyllm.generation.generate.__globals__["Generation"]()
    assert list(stream(model, BPE, "cat", max_tokens=0)) == []


def test_end_token_stops_a_row_and_is_not_text(model, monkeypatch):
    ends = generate(model, BPE, PROMPTS[0], max_tokens=30, seed=1).ids[4]
    monkeypatch.setitem(model.config.extra, "eos_token_id", [299, ends])
    result = generate(model, BPE, PROMPTS[0], max_tokens=30, seed=1)
    assert result.finish_reason == "stop" and result.ids[-1] == ends and ends not in result.ids[:-1]
    assert result.text == "".join(map(BPE.stream().push, result.ids[:-1]))


def test_rows_leave_one_by_one(model, monkeypatch):
    monkeypatch.setitem(model.config.extra, "eos_token_id", list(range(0, 300, 12)))
    prompts, options = PROMPTS * 3, dict(max_tokens=20, seed=5, repetition_penalty=1.2, logprobs=True)
    together = generate(model, None, prompts, **options)
    assert len({len(result.ids) for result in together}) > 4
    options.pop("seed")
    alone = [generate(model, None, prompt, seed=5 + i, **options) for i, prompt in enumerate(prompts)]
    if K.active() == "reference":  # the same tokens; NumPy's products differ in their last bits
        together, alone = ([(r.ids, r.finish_reason) for r in results] for results in (together, alone))
    assert together == alone


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_streaming_gives_the_same_text(seed, length):
    model = MODELS["gpt2"]
    free = generate(model, BPE, "the cat", max_tokens=16, seed=seed)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + length]
    for stops in ((), [stop] if stop else (), [stop, "zzz"] if stop else ()):
        whole = generate(model, BPE, "the cat", max_tokens=16, seed=seed, stop=stops)
        pieces = list(stream(model, BPE, "the cat", max_tokens=16, seed=seed, stop=stops))
        assert "".join(pieces) == whole.text and all(pieces)
        assert not any(s in whole.text for s in stops)
        if stops:
            assert whole.finish_reason == "stop" and free.text.startswith(whole.text)


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from(["t5", "bart"]))
def test_streaming_of_an_encoder_decoder(seed, name):
    sizes = {"t5": dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4),
             "bart": dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
                          encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, forced_bos_token_id=7)}
    model = sharp(build({"model_type": name, "vocab_size": 300, **sizes[name]}, seed=0))
    free = generate(model, BPE, "the cat", max_tokens=16, seed=seed)
    if name == "bart":  # a forced first token is no text
        assert free.ids[0] == 7 and free.text == "".join(map(BPE.stream().push, [id for id in free.ids[1:] if id != BPE.eos_id]))
    middle = len(free.text) // 2
    stops = [free.text[middle : middle + 2]] if free.text[middle:] else []
    whole = generate(model, BPE, ["dog", "the cat"], max_tokens=16, seed=seed - 1, stop=stops)[1] if seed else free
    pieces = list(stream(model, BPE, "the cat", max_tokens=16, seed=seed, stop=stops if seed else ()))
    assert "".join(pieces) == whole.text and all(pieces) and free.text.startswith(whole.text)
    assert not seed or not any(stop in whole.text for stop in stops)


def test_streaming_never_gives_half_a_character():
    tokenizer = ByteLevelBPE.train([TEXT], 257)  # bytes alone: every character of 東京 takes three tokens
    model = sharp(GPT2(GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2)))
    ids, pieces = tokenizer.encode("東京🙂"), []
    text = pyllm.generation.stream.__globals__["_Text"](tokenizer, ())
    for id in ids:
        text.push(id)
        pieces.append(text.ready())
    assert [p for p in pieces if p] == list("東京🙂") and len(pieces) == 10
    text.push(ids[0])
    assert text.ready() == text.rest() == "" and text.text == "東京🙂"
    assert "".join(stream(model, tokenizer, "a", max_tokens=20)) == generate(model, tokenizer, "a", max_tokens=20).text


def test_streaming_says_at_once_what_is_wrong_and_leaves_recording_on():
    with pytest.raises(ValueError, match="top_k=-1"):
        stream(MODELS["gpt2"], BPE, "x", top_k=-1)
    for _ in stream(MODELS["gpt2"], BPE, "the cat", max_tokens=5, seed=1):
        assert pyllm.autograd.tensor.recording()


@pytest.mark.parametrize("prompts", [(5, 9, 2), np.array([5, 9, 2]), np.uint16([5, 9, 2])], ids=["tuple", "int64", "uint16"])
def test_rows_of_ids_may_be_any_sequence(prompts):
    want = generate(MODELS["gpt2"], None, [5, 9, 2], max_tokens=4)
    assert generate(MODELS["gpt2"], None, prompts, max_tokens=4) == want
    assert generate(MODELS["gpt2"], None, np.array([prompts]), max_tokens=4) == [want]
    assert want.text == "" and want.logprobs is None


def test_broken_weights_are_named():
    model = GPT2(GPT2Config(vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=1)).initialize(0)
    model.get("transformer.ln_f.weight").data[3] = np.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity for prompt . after 0 tokens"):
        generate(model, None, [[1], [2, 3]])


def test_penalty_counts_the_row_and_never_padding():
    logits = np.zeros((2, 5), np.float32) + np.float32([2.0, 1.9, -1.0, -1.1, 0.5])
    got = Sampling(repetition_penalty=2.0).adjust(logits, [[0], [2]], [1, 1])
    np.testing.assert_array_equal(got, np.float32([[1.0, 1.9, -1.0, -1.1, 0.5], [2.0, 1.9, -2.0, -1.1, 0.5]]))
    together = generate(MODELS["gpt2"], None, [[5, 9], [7] * 10], max_tokens=8, temperature=0, repetition_penalty=1.5)
    assert together[0].ids == generate(MODELS["gpt2"], None, [5, 9], max_tokens=8, temperature=0, repetition_penalty=1.5).ids


@pytest.mark.parametrize("options,kept", [({}, 6), ({"top_k": 3}, 3), ({"top_p": 0.75}, 3), ({"min_p": 0.3}, 3)])
def test_draws_follow_the_distribution(options, kept):
    """Chi-square over 4000 draws with fixed seeds; 99.9 % quantile of 5 degrees of freedom: 20.5."""
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    logits, n = np.log(p).astype(np.float32)[None].repeat(4000, 0), 4000
    keys = [pyllm.Rng(11).fold(i) for i in range(n)]
    counts = np.bincount(Sampling(**options).choose(logits, keys), minlength=6)
    want = np.where(np.arange(6) < kept, p, 0) / p[:kept].sum() * n
    assert counts[kept:].sum() == 0
    assert ((counts - want)[:kept] ** 2 / want[:kept]).sum() < 20.5


@pytest.mark.parametrize("call,words", [
    (lambda m: generate(m, None, "text"), "without a tokenizer"),
    (lambda m: generate(m, None, [[1], []]), "prompt 1 has no tokens"),
    (lambda m: generate(m, None, []), "no prompts"),
    (lambda m: generate(m, None, [300]), "token id 300"),
    (lambda m: generate(m, None, [1], temperature=-1), "temperature=-1"),
    (lambda m: generate(m, None, [1], temperature=float("inf")), "temperature=inf"),
    (lambda m: generate(m, None, [1], top_p=1.5, top_k=0.5), "top_k=0.5.*top_p=1.5"),
    (lambda m: generate(m, None, [1], temperature="1"), "temperature='1'"),
    (lambda m: generate(m, None, [1], min_p=float("nan")), "min_p=nan"),
    (lambda m: generate(m, None, [1], repetition_penalty=0), "repetition_penalty=0"),
    (lambda m: generate(m, None, [1], seed=1.5), "seed=1.5"),
    (lambda m: generate(m, None, [1], max_tokens=-1), "max_tokens=-1"),
    (lambda m: generate(m, None, [1], logprobs="all"), "logprobs='all'"),
    (lambda m: generate(m, BPE, "x", stop=[""]), "empty string"),
    (lambda m: generate(m, None, [1], stop="a"), "stop strings without a tokenizer"),
    (lambda m: generate(m, CharTokenizer.train(["abc"]), ""), "has no tokens"),
    (lambda m: stream(m, None, "x"), "tokenizer is None"),
])
def test_bad_input_is_named(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model)


def test_a_model_without_a_next_token_is_named():
    sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    encoder = build({"model_type": "bert", **sizes}, seed=0)
    with pytest.raises(ValueError, match="a BertLM predicts no next token"):
        generate(encoder, None, [1])


def test_empty_prompt_starts_at_the_end_token(model):
    assert generate(model, BPE, "", max_tokens=5, seed=3).ids == generate(model, BPE, [BPE.eos_id], max_tokens=5, seed=3).ids


def test_tokenizer_of_another_model_is_named():
    small = GPT2(GPT2Config(vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=1)).initialize(0)
    with pytest.raises(ValueError, match=f"{BPE.vocab_size} tokens, the model 10"):
        generate(small, BPE, "cat")


@pytest.mark.parametrize("prompts", [[[1.5]], [b"text"], [[[1]]], [{1: 2}]], ids=repr)
def test_prompts_of_another_kind_are_named(prompts):
    with pytest.raises(TypeError, match="prompt 0 is a .*expected a str or one row of token ids"):
        generate(MODELS["gpt2"], None, prompts)


def test_ids_beyond_the_tokenizer_are_never_drawn():
    tokenizer = ByteLevelBPE.train([TEXT], 257)
    for result in generate(MODELS["gpt2"], tokenizer, ["the cat", "dog"], max_tokens=40, temperature=5.0, repetition_penalty=0.5):
        assert max(result.ids) < 257
