"""Model folders: save and load again, names with and without prefix, every mismatch named, what was there stays on failure."""
import json

import numpy as np
import pytest

import pyllm
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build, checkpoint_tensors, load_weights
from pyllm.io import safetensors

GPT2 = dict(model_type="gpt2", vocab_size=300, n_positions=16, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.1)
LLAMA = dict(model_type="llama", vocab_size=300, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=16)
CONFIGS = [GPT2, {**GPT2, "tie_word_embeddings": False}, {**GPT2, "bias": False}, LLAMA, {**LLAMA, "tie_word_embeddings": True}]
TOKENS = np.arange(12, dtype=np.int32).reshape(2, 6)


@pytest.fixture(params=CONFIGS, ids=lambda c: f"{c['model_type']}-{list(c.items())[-1]}")
def model(request):
    return build(request.param, seed=3)


def same(one, two):
    assert one.config == two.config and one.state().keys() == two.state().keys()
    assert all(np.array_equal(a, two.state()[name]) for name, a in one.state().items())
    assert np.array_equal(one(TOKENS).data, two(TOKENS).data)


def rewrite(folder, change):
    """Replaces the weights of a folder by change(weights)."""
    tensors = {n: np.array(a) for n, a in safetensors.read(folder / "model.safetensors").items()}
    safetensors.write(folder / "model.safetensors", change(tensors))


def test_round_trip(model, tmp_path):
    pyllm.save(model, None, tmp_path / "m")
    again, tokenizer = pyllm.load(tmp_path / "m")
    same(model, again)
    assert tokenizer is None
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    again.parameters()[0].data += 1  # loaded weights can be trained
    pyllm.save(again, None, tmp_path / "m")
    same(again, pyllm.load(str(tmp_path / "m"))[0])


def test_tokenizer_comes_along(tmp_path):
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=280)
    pyllm.save(build(GPT2, seed=0), tokenizer, tmp_path / "m")
    _, again = pyllm.load(tmp_path / "m")
    assert again.encode("some text") == tokenizer.encode("some text")
    size = tokenizer.vocab_size
    pyllm.save(build({**GPT2, "vocab_size": size - 1}, seed=0), tokenizer, tmp_path / "small")
    with pytest.raises(FormatError, match=f"the tokenizer has {size} tokens, the model {size - 1}"):
        pyllm.load(tmp_path / "small")


def test_checkpoint_names_are_those_of_the_family():
    names = {"wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias",
             "h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias", "h.0.ln_2.weight", "h.0.ln_2.bias", "h.0.mlp.c_fc.weight",
             "h.0.mlp.c_fc.bias",
             "h.0.mlp.c_proj.weight", "h.0.mlp.c_proj.bias", "ln_f.weight", "ln_f.bias"}
    tensors = checkpoint_tensors(build({**GPT2, "n_layer": 1}))
    assert tensors.keys() == {f"transformer.{n}" for n in names}
    assert tensors["transformer.h.0.attn.c_attn.weight"].shape == (8, 24)  # (in, out), as OpenAI stored it
    tensors = checkpoint_tensors(build({**LLAMA, "num_hidden_layers": 1}))
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    block = {f"model.layers.0.{part}.weight" for part in parts}
    assert tensors.keys() == block | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (12, 8)


def test_files_of_the_first_release(model, tmp_path):
    """Without the prefix, with the mask buffers of old files, with the tied head written out."""
    pyllm.save(model, None, tmp_path / "m")

    def old(tensors):
        tensors = {n.removeprefix(model.PREFIX): a for n, a in tensors.items()}
        if model.config.model_type == "gpt2":
            tensors |= {f"h.{i}.attn.bias": np.ones((1, 1, 16, 16), np.float32) for i in (0, 1)} | {"h.0.attn.masked_bias": np.array(-1e4)}
        if model.lm_head is None:
            tensors["lm_head.weight"] = model.head_weight().data
        return tensors

    rewrite(tmp_path / "m", old)
    same(model, pyllm.load(tmp_path / "m")[0])


def test_half_precision_weights_come_as_float32(model, tmp_path):
    pyllm.save(model, None, tmp_path / "m")
    rewrite(tmp_path / "m", lambda t: {n: safetensors.to_bf16(a) for n, a in t.items()})
    again, _ = pyllm.load(tmp_path / "m")
    for name, a in model.state().items():
        got = again.state()[name]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, a, rtol=2**-8)


def test_every_mismatch_comes_in_one_error(model, tmp_path):
    pyllm.save(model, None, tmp_path / "m")

    def spoil(tensors):
        names = list(tensors)
        tensors["extra.weight"] = np.zeros(2, np.float32)
        tensors[names[1]] = np.zeros((1, 2), np.float32)
        del tensors[names[0]]
        return tensors

    rewrite(tmp_path / "m", spoil)
    with pytest.raises(FormatError) as error:
        pyllm.load(tmp_path / "m")
    text = str(error.value)
    assert "3 mismatches" in text and str(tmp_path) in text
    assert "missing: " in text and "unexpected: extra.weight (2,)" in text and ", expected (" in text


def test_a_name_with_and_without_prefix_is_twice(model):
    tensors = {n: np.array(a) for n, a in checkpoint_tensors(model).items()}
    first = next(n for n in tensors if n.startswith(model.PREFIX))
    tensors[first.removeprefix(model.PREFIX)] = tensors[first]
    with pytest.raises(FormatError, match="twice"):
        load_weights(model, tensors)


def test_unusable_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; expected one with config.json"):
        pyllm.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        pyllm.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(FormatError, match="config.json"):
        pyllm.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    with pytest.raises(ConfigError, match="model_type='mystery'"):
        pyllm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**GPT2, "n_embd": 9}))
    with pytest.raises(ConfigError, match="n_embd=9 is not a multiple of n_head=2"):
        pyllm.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        pyllm.load(tmp_path)


def test_a_failed_save_leaves_the_old_folder(model, tmp_path):
    class Broken:
        def save(self, folder):
            raise OSError("disk full")

    pyllm.save(model, None, tmp_path / "m")
    other = build({**GPT2, "n_layer": 1}, seed=9)
    with pytest.raises(OSError, match="disk full"):
        pyllm.save(other, Broken(), tmp_path / "m")
    same(model, pyllm.load(tmp_path / "m")[0])
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
