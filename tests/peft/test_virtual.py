"""Prefixes and prompts: padding, packing, caches, checkpointing, encoder-decoders, several at once."""
import numpy as np
import pytest

import pyllm
from pyllm import peft
from pyllm.autograd import Rng
from pyllm.data.batch import Batch
from pyllm.errors import ConfigError
from pyllm.models.seq2seq import Memory
from pyllm.nn import Cache
from tests.peft.test_use import agrees_with_the_full_forward, shaken
from tests.peft.tiny import CONFIGS, batch_of, logits, loss, make

METHODS = {"prefix": peft.PrefixTuning(3, std=0.7), "projection": peft.PrefixTuning(2, projection=True, hidden=6),
           "prompt": peft.PromptTuning(3), "p_tuning": peft.PTuning(2, hidden=6)}
CAUSAL = [f for f in CONFIGS if not f.startswith("bert") and f not in ("t5", "bart")]
WINDOWED = ("mistral", "gemma3_text")


def adapted(family, method, **changes):
    return shaken(peft.inject(make(family, **changes), METHODS[method]))


def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CAUSAL)
def test_decoding_over_a_cache_is_the_full_forward(family, method):
    """The virtual tokens are written once, before every row; the one-call step goes on behind them."""
    model = adapted(family, method)
    agrees_with_the_full_forward(model)
    shaken(peft.inject(model, peft.PromptTuning(2), name="more"))
    peft.activate(model, "default", "more")
    agrees_with_the_full_forward(model)


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi", "t5"])
@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_whatever_gpt2_has_for_positions(position, method):
    agrees_with_the_full_forward(adapted("gpt2", method, position=position))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in ("t5", "bart", "bert-classifier", *WINDOWED)])
def test_padding_and_packing_change_nothing(family, method):
    model, tokens = adapted(family, method), batch_of(family).tokens
    plain = model(tokens).data
    for pad in ((0, 3), (3, 0)):
        padded, segments = (np.pad(a, ((0, 0), pad)) for a in (tokens, np.ones_like(tokens)))
        close(model(padded, segments).data[:, pad[0] : pad[0] + 7], plain)
    packed, segments = tokens.reshape(1, -1), np.repeat([[1, 2]], 7, axis=1).astype(np.int32)
    close(model(packed, segments).data.reshape(plain.shape), plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [*WINDOWED, "t5"])
def test_where_distances_count_the_text_stands_behind_its_virtual_tokens(family, method):
    """Left padding would put it further away, silently."""
    model, batch = adapted(family, method), batch_of(family)
    segments = np.ones_like(batch.tokens)
    plain = logits(model, batch).data
    padded, right = (np.pad(a, ((0, 0), (0, 2))) for a in (batch.tokens, segments))
    got = model(padded, right).data[:, :7] if family != "t5" else model(padded, batch.decoder_tokens, right).data
    close(got, plain)
    left = np.pad(segments, ((0, 0), (2, 0)))
    with pytest.raises(ValueError, match="one document a row, padded on the right"):
        model(np.pad(batch.tokens, ((0, 0), (2, 0))), left) if family != "t5" else \
            model(np.pad(batch.tokens, ((0, 0), (2, 0))), batch.decoder_tokens, left)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CONFIGS)
def test_checkpointing_gives_the_same_gradients(family, method):
    """peft#869: through blocks that are computed twice the prefix would learn nothing."""
    grads = []
    for checkpointing in (False, True):
        model = adapted(family, method)
        model.checkpointing = checkpointing
        loss(model, batch_of(family), Rng(3)).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in grads[0].items():
        close(grads[1][name], gradient)
        assert np.abs(gradient).max() > 0, name


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("place", ["encoder", "decoder", "cross"])
def test_prefixes_of_encoder_decoders_are_everywhere_they_are_said_to_be(family, place):
    """peft#2989: never injected into encoders."""
    model, batch = make(family), batch_of(family)
    before, memory = logits(model, batch).data, model.encode(batch.tokens).data
    peft.inject(model, peft.PrefixTuning(3, places=(place,)))
    layers = [a.site for a in peft.adapters(model)]
    assert len(layers) == 2 and not np.allclose(logits(model, batch).data, before)
    assert np.allclose(model.encode(batch.tokens).data, memory) == (place != "encoder")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_decode_over_a_cache_and_pad(family, method):
    model, batch = adapted(family, method), batch_of(family)
    full = logits(model, batch).data
    cache = Cache(2)
    cache.memory, parts = model.read([row.tolist() for row in batch.tokens]), []
    assert isinstance(cache.memory, Memory)
    with pyllm.no_grad():
        for i in range(7):
            hidden = model.continued(batch.decoder_tokens[:, i : i + 1], cache)
            cache.advance(np.ones(2, int))
            parts.append((hidden.data @ model.head_weight().data.T) + (0 if model.head_bias() is None else model.head_bias().data))
    close(np.concatenate(parts, 1), full)


@pytest.mark.parametrize("method", METHODS)
def test_generation_is_that_of_each_row_alone(method):
    model, prompts = adapted("gpt2", method), [[3, 1, 4], [1, 5, 9, 2, 6], [7]]
    together = pyllm.generate(model, None, prompts, max_tokens=6, temperature=0)
    for prompt, got in zip(prompts, together):
        ids = list(prompt)
        for _ in got.ids:
            ids.append(int(model(np.array([ids], np.int32)).data[0, -1].argmax()))
        assert got.ids == ids[len(prompt) :]


@pytest.mark.parametrize("method", METHODS)
def test_generation_ends_where_the_virtual_tokens_and_the_text_fill_the_context(method):
    model = adapted("gpt2", method)
    room = 24 - METHODS[method].tokens
    [got] = pyllm.generate(model, None, [[3, 1, 4]], max_tokens=40, temperature=0)
    assert len(got.ids) == room - 3 + 1
    with pytest.raises(ValueError, match="beyond the context"):
        model(np.ones((1, room + 1), np.int32))


def test_several_stand_before_one_another():
    model, batch = make("llama"), batch_of("llama")
    for name in ("one", "two"):
        shaken(peft.inject(model, peft.PrefixTuning(2), seed=len(name), name=name), name, seed=len(name) + ord(name[0]))
    single = []
    for name in ("one", "two"):
        peft.activate(model, name)
        single.append(logits(model, batch).data)
    peft.activate(model, "one", "two")
    both = logits(model, batch).data
    assert not np.allclose(both, single[0]) and not np.allclose(both, single[1])
    peft.remove(model, "one")
    close(logits(model, batch).data, single[1])


def test_a_cache_that_holds_a_text_is_not_opened_anew():
    model = make("gpt2")
    cache = Cache(1)
    with pyllm.no_grad():
        model.hidden(np.ones((1, 3), np.int32), cache=cache)
        cache.advance(3)
        peft.inject(model, METHODS["prefix"])
        with pytest.raises(ValueError, match="a new cache"):
            model.hidden(np.ones((1, 1), np.int32), cache=cache)


def test_a_batch_of_labels_reads_behind_the_prompt():
    model, batch = adapted("bert-classifier", "prompt"), batch_of("bert-classifier")
    assert logits(model, Batch(batch.tokens, batch.targets, np.ones_like(batch.tokens))).shape == (2, 3)


@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForValue"])
@pytest.mark.parametrize("method", [peft.PromptTuning(tokens=3), peft.PrefixTuning(tokens=3)], ids=["prompt", "prefix"])
def test_virtual_tokens_reach_the_heads_of_encoder_decoders(end, method):
    from pyllm.folders import build

    t5 = dict(model_type="t5", vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, initializer_factor=0.7)
    tokens = np.array([[5, 6, 7, 1]], np.int32)
    plain = build({**t5, "architectures": [f"T5{end}"]}, seed=0)(tokens).data
    got = peft.inject(build({**t5, "architectures": [f"T5{end}"]}, seed=0), method)(tokens).data
    assert got.shape == plain.shape and not np.allclose(got, plain)


@pytest.mark.parametrize("init", [(5, 9, 2), (7,), "sample_vocab", None])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_prefix_of_tokens_begins_as_if_they_had_been_read(family, init):
    """Random keys and values make a decoder begin worse than it was; a place or a layer off by one would do so too, silently."""
    model, text = make(family), batch_of(family).tokens
    ids = np.resize(Rng(4).fold("peft").generator().integers(0, 31, 3) if init in ("sample_vocab", None) else init, 3).astype(np.int32)
    behind = model(np.concatenate([np.tile(ids, (2, 1)), text], 1)).data[:, 3:]
    shaken(peft.inject(model, peft.LoRA(rank=2), targets="all-linear", name="another"), "another")  # not read
    close(peft.inject(model, peft.PrefixTuning(3, init=init), seed=4)(text).data, behind)


@pytest.mark.parametrize("family, more", [("bert", {}), ("t5", {}), ("llama", {"is_causal": False})])
def test_a_prefix_of_tokens_is_a_decoders(family, more):
    model = make(family, **more)
    assert abs(peft.adapters(peft.inject(make(family, **more), peft.PrefixTuning(30)))[0].key.data.std() - 1) < 0.2
    with pytest.raises(ConfigError, match="expected a decoder"):
        peft.inject(model, peft.PrefixTuning(3, init=(4, 5)))
    assert not peft.adapters(model)


@pytest.mark.parametrize("settings", [dict(init="text"), dict(init=()), dict(init=(4, 5), projection=True),
                                      dict(init="sample_vocab", std=0.1)])
def test_what_a_prefix_cannot_begin_as(settings):
    with pytest.raises(ConfigError, match="init="):
        peft.PrefixTuning(3, **settings)
