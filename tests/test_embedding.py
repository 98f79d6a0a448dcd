"""embed: pooling, batches, limits, what a folder says, bad input."""
import json

import numpy as np
import pytest

import pyllm
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build

BERT = dict(model_type="bert", vocab_size=300, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=16, initializer_range=0.3, architectures=["BertModel"])
LLAMA = dict(model_type="llama", vocab_size=300, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
             max_position_embeddings=16, initializer_range=0.3)
T5 = dict(model_type="t5", vocab_size=300, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, initializer_factor=0.7, n_positions=16)
ENCODER = {**T5, "architectures": ["T5EncoderModel"]}
GPT2 = dict(model_type="gpt2", vocab_size=300, n_embd=12, n_layer=2, n_head=3, n_positions=16, initializer_range=0.3)
ROWS = [np.random.default_rng(n).integers(0, 300, n).tolist() for n in (5, 1, 9, 16, 3)]


@pytest.fixture(params=[BERT, LLAMA, GPT2, T5, ENCODER], ids=["bert", "llama", "gpt2", "t5", "t5-encoder"])
def model(request):
    return build(request.param, seed=1)


def hidden(model, row):
    if model.config.model_type == "t5":
        return (model.encode if model.architecture == "T5ForConditionalGeneration" else model)(np.array([row])).data[0]
    trunk = model if model.config.model_type == "bert" else model.trunk
    return trunk(np.array([row])).data[0]


def test_vectors_are_pooled_hidden_states(model):
    for pooling, pool in (("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]), ("last", lambda h: h[-1])):
        expected = np.array([pool(hidden(model, row)) for row in ROWS])
        np.testing.assert_allclose(pyllm.embed(model, None, ROWS, pooling=pooling, normalize=False), expected, atol=1e-5)
        got = pyllm.embed(model, None, ROWS, pooling=pooling)
        np.testing.assert_allclose(got, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
        assert got.dtype == np.float32


def test_a_vector_does_not_depend_on_the_others(model, monkeypatch):
    together = pyllm.embed(model, None, ROWS)
    assert all(np.array_equal(pyllm.embed(model, None, [row])[0], v) for row, v in zip(ROWS, together))
    monkeypatch.setattr("pyllm.embedding.TOKENS", 10)
    assert np.array_equal(pyllm.embed(model, None, ROWS), together)


def test_long_texts_keep_their_last_token(model):
    long = list(range(40))
    with pytest.warns(UserWarning, match="1 of 2 texts have more than 16 tokens"):
        assert np.array_equal(pyllm.embed(model, None, [long, [1]])[:1], pyllm.embed(model, None, [[*range(15), 39]]))
    model.config.extra["max_seq_length"] = 4
    with pytest.warns(UserWarning, match="more than 4 tokens"):
        assert np.array_equal(pyllm.embed(model, None, [long]), pyllm.embed(model, None, [[0, 1, 2, 39]]))
    with pytest.warns(UserWarning, match="more than 3 tokens"):
        assert np.array_equal(pyllm.embed(model, None, [long], limit=3), pyllm.embed(model, None, [[0, 1, 39]]))


def test_the_tokenizers_truncation_is_not_asked(model):
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=280)
    whole = pyllm.embed(model, tokenizer, ["some text to learn"])
    tokenizer.truncation = {"max_length": 2, "strategy": "LongestFirst", "direction": "Right"}
    assert np.array_equal(pyllm.embed(model, tokenizer, ["some text to learn"]), whole) and tokenizer.truncation


def test_texts(model):
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=280)
    got = pyllm.embed(model, tokenizer, ["some text", "more"])
    assert np.array_equal(got, pyllm.embed(model, None, [tokenizer.encode("some text"), tokenizer.encode("more")]))


def test_the_folder_says_how_to_pool(tmp_path):
    model = build(BERT, seed=1)
    pyllm.save(model, None, tmp_path / "m")
    (tmp_path / "m" / "1_Pooling").mkdir()
    write = (tmp_path / "m" / "1_Pooling" / "config.json").write_text
    write(json.dumps({"word_embedding_dimension": 12, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    again, _ = pyllm.load(tmp_path / "m")
    assert np.array_equal(pyllm.embed(again, None, ROWS), pyllm.embed(model, None, ROWS, pooling="cls"))
    pyllm.save(again, None, tmp_path / "copy")
    assert pyllm.load(tmp_path / "copy")[0].config.extra["pooling"] == "cls"
    write(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(FormatError, match="pooling_mode_max_tokens"):
        pyllm.load(tmp_path / "m")


def test_bad_input(model):
    for arguments, options, error, text in ((([],), {}, ValueError, "no texts"), (([[1], []],), {}, ValueError, "text 1 has no tokens"),
                                            ((ROWS,), dict(pooling="max"), ConfigError, "pooling='max'; expected one of mean, cls, last"),
                                            ((ROWS,), dict(limit=17), ConfigError, "limit=17"), (("text",), {}, TypeError, "a list")):
        with pytest.raises(error, match=text):
            pyllm.embed(model, None, *arguments, **options)
