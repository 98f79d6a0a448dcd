"""Heads and encoders: padding, the token that is read, dropout, gradients, bad input."""
import numpy as np
import pytest

from pyllm import Tensor
from pyllm.autograd import Rng, no_grad
from pyllm.folders import build
from pyllm.models import HEADS

BERT = dict(model_type="bert", vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=12, initializer_range=0.3)
LLAMA = dict(model_type="llama", vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
             max_position_embeddings=12, initializer_range=0.3)
GPT2 = dict(model_type="gpt2", vocab_size=31, n_embd=12, n_layer=2, n_head=3, n_positions=12, initializer_range=0.3)
T5 = dict(model_type="t5", vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, initializer_factor=0.7, eos_token_id=2)
BART = dict(model_type="bart", vocab_size=31, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
            decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=12, init_std=0.3, eos_token_id=2)
NAMES = {"bert": "Bert", "llama": "Llama", "gpt2": "GPT2", "t5": "T5", "bart": "Bart"}
TOKENS = np.random.default_rng(0).integers(3, 31, (3, 7)).astype(np.int32)
TOKENS[:, -1] = 2
ALL = [({**config, "architectures": [NAMES[config["model_type"]] + end], "num_labels": 4}) for config in (BERT, LLAMA, GPT2, T5, BART)
       for end in ("Model", *HEADS)] + [BERT, {**T5, "architectures": ["T5EncoderModel"]}]
ALL = [c for c in ALL if c.get("architectures") not in (["BartForTokenClassification"], ["BartModel"])]  # none such; a language model


@pytest.fixture(params=ALL, ids=lambda c: c.get("architectures", ["BertForMaskedLM"])[0])
def model(request):
    return build(request.param, seed=3)


def test_padding_on_either_side_changes_nothing(model):
    plain = model(TOKENS).data
    for left, right in ((0, 3), (3, 0), (2, 2)):
        pad = ((0, 0), (left, right))
        got = model(np.pad(TOKENS, pad, constant_values=5), np.pad(np.ones_like(TOKENS), pad)).data
        if plain.shape[1:2] == (7,):
            got = got[:, left : left + 7]
        np.testing.assert_allclose(got, plain, atol=2e-5)


def test_a_row_does_not_depend_on_its_neighbours(model):
    together = model(TOKENS).data
    assert all(np.array_equal(model(TOKENS[i : i + 1]).data[0], together[i]) for i in range(3))


def test_gradients_dropout_and_checkpointing(model):
    """Every parameter but an unused pooler gets one; the same key gives the same bits, with blocks kept or computed twice."""
    results = []
    for checkpointing in (False, True):
        for p in model.parameters():
            p.grad = None
        model.checkpointing = checkpointing
        out = model(TOKENS, rng=Rng(1))
        (out * Tensor(np.random.default_rng(1).standard_normal(out.shape).astype(np.float32))).sum().backward()
        results.append((out.data, {n: p.grad.copy() for n, p in model.named_parameters() if p.grad is not None}))
    assert np.array_equal(results[0][0], results[1][0]) and results[0][1].keys() == results[1][1].keys()
    exact = model.config.model_type not in ("t5", "bart")  # the decoder's layers add to the encoder's gradient in another order
    assert all(np.allclose(g, results[1][1][n], rtol=0, atol=0 if exact else 2e-6 * np.abs(g).max() + 1e-6)
               for n, g in results[0][1].items())
    missing = dict(model.named_parameters()).keys() - results[0][1].keys()
    assert not [n for n in missing if not n.startswith("pooler")]
    if model.config.model_type in ("bert", "t5", "bart"):
        assert not np.array_equal(results[0][0], model(TOKENS).data)


def test_classifiers_read_the_last_token_that_is_not_padding():
    for config in (LLAMA, GPT2):
        model = build({**config, "architectures": [NAMES[config["model_type"]] + "ForSequenceClassification"]}, seed=0)
        score = model.score_layer
        segments = np.ones_like(TOKENS)
        segments[1, 4:] = 0
        hidden = model.trunk(TOKENS, segments).data
        np.testing.assert_allclose(model(TOKENS, segments).data, hidden[[0, 1, 2], [6, 3, 6]] @ score.weight.data.T, atol=1e-5)
        assert score.bias is None


def test_labels_come_from_the_configuration():
    make = lambda **extra: build({**BERT, "architectures": ["BertForSequenceClassification"], **extra}, seed=0)(TOKENS).shape  # noqa: E731
    assert make() == (3, 2) and make(num_labels=1) == (3, 1) and make(id2label={"0": "a", "1": "b", "2": "c"}) == (3, 3)


def test_token_types():
    model = build({**BERT, "architectures": ["BertModel"]}, seed=1)
    types = (np.arange(7) > 3).astype(np.int64)[None].repeat(3, 0)
    assert np.array_equal(model(TOKENS, types=0 * types).data, model(TOKENS).data)
    assert not np.array_equal(model(TOKENS, types=types).data, model(TOKENS).data)
    for wrong in (types[:, :3], types + 1, types - 1, types.astype(float)):
        with pytest.raises(ValueError, match=r"types of shape .* expected \(3, 7\), whole numbers 0..1"):
            model(TOKENS, types=wrong)


def test_an_encoder_sees_both_sides_and_packed_documents_apart():
    model = build({**BERT, "architectures": ["BertModel"]}, seed=1)
    changed = TOKENS.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 31
    assert (model(changed).data[:, 0] != model(TOKENS).data[:, 0]).any(1).all()
    packed, segments = TOKENS[:2].reshape(1, 14)[:, :12], np.array([[1] * 7 + [2] * 5], np.int32)
    with no_grad():
        got = model(packed, segments).data
        np.testing.assert_allclose(got[:, :7], model(TOKENS[:1]).data, atol=1e-5)
        np.testing.assert_allclose(got[:, 7:], model(TOKENS[1:2, :5]).data, atol=1e-5)


@pytest.mark.parametrize("tokens, text", [([[31]], "token id 31"), ([[0] * 13], "position 12 is beyond the context"),
                                          ([1], "expected integers")])
def test_bad_tokens(model, tokens, text):
    if model.config.model_type == "t5" and "context" in text:
        pytest.skip("relative positions have no end")
    with pytest.raises(ValueError, match=text):
        model(tokens)


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_encoder_decoders_classify_from_the_decoders_last_eos(config):
    name = NAMES[config["model_type"]]
    model = build({**config, "architectures": [name + "ForSequenceClassification"], "num_labels": 3}, seed=4)
    tokens = TOKENS.copy()
    tokens[1, 3] = 2  # not the last one
    language = build(config, seed=0)
    for path, p in model.trunk.named_parameters():
        dict(language.named_parameters())[language.PREFIX + path].data = p.data
    start = np.full((3, 1), model.config.starts[0])
    hidden = language.both(tokens, np.concatenate([start, tokens[:, :-1]], 1)).data[:, -1]
    head = model.score_layer
    hidden = hidden / model.config.d_model**-0.5 if config is T5 else hidden
    expected = np.tanh(hidden @ head.dense.weight.data.T + head.dense.bias.data) @ head.out_proj.weight.data.T + head.out_proj.bias.data
    np.testing.assert_allclose(model(tokens).data, expected, atol=2e-5)
    padded = np.pad(tokens, ((0, 0), (0, 2)), constant_values=2)  # padding that looks like an EOS
    np.testing.assert_allclose(model(padded, np.pad(np.ones_like(tokens), ((0, 0), (0, 2)))).data, expected, atol=2e-5)
    tokens[1] = 5
    with pytest.raises(ValueError, match=r"last EOS \(id 2\); row 1 has none"):
        model(tokens)


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_values_of_an_answer_are_those_of_the_decoders_tokens(config):
    model = build({**config, "architectures": [NAMES[config["model_type"]] + "ForValue"]}, seed=4)
    answer = TOKENS[:, :4]
    values = model(TOKENS, decoder_tokens=answer).data
    assert values.shape == (3, 4)
    np.testing.assert_allclose(model(TOKENS, decoder_tokens=answer[:, :2]).data, values[:, :2], atol=2e-5)


def test_a_decoder_may_see_both_sides():
    import pyllm
    from pyllm.errors import ConfigError

    gemma = {**LLAMA, "model_type": "gemma3_text", "head_dim": 4, "num_key_value_heads": 1,
             "sliding_window": 4, "sliding_window_pattern": 2}
    for config, key in ((LLAMA, {"is_causal": False}), (gemma, {"use_bidirectional_attention": True})):
        causal, both = build(config, seed=1), build({**config, **key}, seed=1)
        changed = TOKENS.copy()
        changed[:, -1] = 9
        first = lambda model, tokens: model(tokens).data[:, 0]  # noqa: E731
        assert np.array_equal(first(causal, TOKENS), first(causal, changed))
        assert (first(both, TOKENS) != first(both, changed)).any(1).all()
        assert np.array_equal(first(both, TOKENS[:1])[0], first(both, TOKENS)[0])
        with pytest.raises(ValueError, match="it predicts no next token"):
            pyllm.generate(both, None, [1, 2])
    # a window of 4 sees 3 keys on each side: 4 // 2 + 1 counts the query's own
    narrow = build({**gemma, "use_bidirectional_attention": True, "num_hidden_layers": 1, "sliding_window_pattern": 9}, seed=1)
    out = narrow(TOKENS).data
    seen = [(narrow(np.where(np.arange(7) == j, 9, TOKENS)).data[0, 3] != out[0, 3]).any() for j in range(7)]
    assert seen == [False, True, True, True, True, True, False]
    with pytest.raises(ConfigError, match="is_causal=False with a window"):
        build({**LLAMA, "model_type": "mistral", "is_causal": False, "num_key_value_heads": 3})


@pytest.mark.parametrize("position", ["sinusoidal", "rope", "alibi", "t5"])
def test_an_encoders_positions_of_ones_own_choice(position):
    """Padding, packing, neighbours, checkpointing, folders, as with the learned ones; order matters, on both sides."""
    model = build({**BERT, "num_attention_heads": 2, "position": position}, seed=3)
    assert not any("position_embeddings" in name for name, _ in model.named_parameters())
    plain = model(TOKENS[:, :6]).data
    pad = ((0, 0), (3, 2))
    np.testing.assert_allclose(model(np.pad(TOKENS[:, :6], pad), np.pad(np.ones((3, 6), int), pad)).data[:, 3:9], plain, atol=2e-5)
    packed = model(TOKENS[:2, :6].reshape(1, 12), np.repeat([[1, 2]], 6, axis=1).astype(np.int32)).data
    np.testing.assert_allclose(packed.reshape(2, 6, -1), plain[:2], atol=2e-5)
    assert all(np.array_equal(model(TOKENS[i : i + 1, :6]).data[0], plain[i]) for i in range(3))
    for order in ([1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4]):
        assert np.abs(model(TOKENS[:, order]).data[:, 2] - plain[:, 2]).max() > 1e-4
    grads = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        for p in model.parameters():
            p.grad = None
        (model(TOKENS[:, :6]) * Tensor(np.random.default_rng(1).standard_normal(plain.shape).astype(np.float32))).sum().backward()
        grads.append({n: p.grad.copy() for n, p in model.named_parameters()})
    assert all(np.allclose(g, grads[1][n], rtol=0, atol=1e-6 + 1e-6 * np.abs(g).max()) for n, g in grads[0].items())
    assert position != "t5" or grads[0]["bert.encoder.relative_attention_bias.weight"].any()
    again = build(model.config.to_dict())
    assert again.config.position == position
