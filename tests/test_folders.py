"""Model folders: save and load again, names with and without prefix, every mismatch named, what was there stays on failure."""
import json
import mmap
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm import objectives, training
from pyllm.data.batch import Batch
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build, checkpoint_tensors, load_weights
from pyllm.io import files, safetensors
from pyllm.models import FAMILIES, HEADS
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.text import ByteLevelBPE

ROOT = Path(__file__).parents[1]

GPT2 = dict(model_type="gpt2", vocab_size=300, n_positions=16, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.1)
LLAMA = dict(model_type="llama", vocab_size=300, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=16)
BERT = dict(model_type="bert", vocab_size=300, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16)
T5 = dict(model_type="t5", vocab_size=300, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
BART = dict(model_type="bart", vocab_size=300, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_position_embeddings=16)
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
    with pytest.raises(FormatError, match="are the same weight: it stands there twice"):
        load_weights(model, tensors)


def test_unusable_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or file; expected a folder with config.json"):
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


# ---- every family, every head ------------------------------------------------------------------------------------------


EVERY = [GPT2, LLAMA, *({**LLAMA, "model_type": kind} for kind in ("mistral", "qwen2")),
         *({**LLAMA, "model_type": kind, "head_dim": 4} for kind in ("qwen3", "gemma3_text")),
         BERT, {**BERT, "tie_word_embeddings": False}, T5, {**T5, "tie_word_embeddings": False}, BART]


def call(model):
    return model(TOKENS, TOKENS[:, ::-1]) if isinstance(model, EncoderDecoder) else model(TOKENS)


def base_of(config):
    return FAMILIES[config["model_type"]][0].base_architecture.removesuffix("Model")


def architectures(config):
    ends = [] if config["model_type"] in ("t5", "bart") else ["Model", *HEADS]
    return [build(config).architecture, *(base_of(config) + end for end in ends)]


NAMED = [pytest.param(c, name, id=f"{name}-{i}") for i, c in enumerate(EVERY) for name in architectures(c)]


@pytest.mark.parametrize("config, name", NAMED)
def test_architectures_pick_the_head(config, name, tmp_path):
    model = build({**config, "architectures": [name], "num_labels": 5}, seed=1)
    assert model.architecture == name
    out = call(model).data
    ends = {"Model": (2, 6, 8), "ForValue": (2, 6), "ForSequenceClassification": (2, 5), "ForTokenClassification": (2, 6, 5),
            "ForQuestionAnswering": (2, 6, 2)}
    heads = {base_of(config) + end: shape for end, shape in ends.items()}
    assert out.shape == heads.get(name, (2, 6, 300))
    pyllm.save(model, None, tmp_path / "m")
    again, _ = pyllm.load(tmp_path / "m")
    assert type(again) is type(model) and again.architecture == name and np.array_equal(call(again).data, out)


def test_unknown_architectures_name_the_known_ones():
    with pytest.raises(ConfigError, match="'BertForMultipleChoice'; expected for bert one of BertForMaskedLM, .*BertForTokenCl"):
        build({**BERT, "architectures": ["BertForMultipleChoice"]})
    with pytest.raises(ConfigError, match="architectures='BartForTokenClassification'; expected for bart one of BartForCond.*BartForQuest"):
        build({"model_type": "bart", "architectures": ["BartForTokenClassification"]})
    with pytest.raises(ConfigError, match="expected a list of names"):
        build({**BERT, "architectures": "BertModel"})


def test_names_of_older_bert_files():
    """gamma and beta, a prefix where the model has none, buffers, the heads of pretraining: all are told in the report."""
    model = build({**BERT, "architectures": ["BertModel"]}, seed=2)
    tensors = {f"bert.{n}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a
               for n, a in checkpoint_tensors(model).items()} | {"bert.embeddings.position_ids": np.arange(16)[None]}
    again = build({**BERT, "architectures": ["BertModel"]})
    report = {name: (dtype, kind) for name, dtype, _, kind in load_weights(again, tensors)}
    assert report["bert.embeddings.position_ids"] == ("I64", "ignored") and report["bert.embeddings.LayerNorm.gamma"] == ("F32", "loaded")
    assert np.array_equal(again(TOKENS).data, model(TOKENS).data)
    language = build({**BERT, "architectures": ["BertForPreTraining"]}, seed=2)
    tensors = checkpoint_tensors(language) | {"cls.seq_relationship.weight": np.zeros((2, 8)), "bert.pooler.dense.bias": np.zeros(8),
                                              "cls.predictions.decoder.weight": language.head_weight().data}
    kinds = {name: kind for name, _, _, kind in load_weights(build(BERT), tensors)}
    assert kinds["cls.seq_relationship.weight"] == kinds["bert.pooler.dense.bias"] == "ignored"
    assert kinds["cls.predictions.decoder.weight"] == "a copy of bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize("config", [GPT2, {**LLAMA, "tie_word_embeddings": True}, BERT, T5, BART], ids=lambda c: c["model_type"])
def test_copies_of_tied_weights(config):
    """A copy may stand in for the weight, must be equal beside it, and is never loaded where config.json unties them."""
    model = build(config, seed=1)
    tensors = checkpoint_tensors(model)
    for alias, name in model.aliases().items():
        load_weights(build(config), {**tensors, alias: tensors[name]})
        instead = {(alias if n == name else n): a for n, a in tensors.items()}
        again = build(config)
        load_weights(again, instead)
        assert np.array_equal(again.state()[name], tensors[name])
        with pytest.raises(FormatError, match=f"{alias} differs from {name}, of which config.json makes it a copy"):
            load_weights(build(config), {**tensors, alias: tensors[name] + 1})


def test_files_of_bart_without_a_head():
    model = build(BART, seed=1)
    tensors = {n.removeprefix("model."): a for n, a in checkpoint_tensors(model).items() if n != "final_logits_bias"}
    again = build({**BART, "architectures": ["BartModel"]})
    load_weights(again, tensors)
    assert np.array_equal(call(again).data, call(model).data)


def test_weights_of_another_kind_are_named():
    model = build(GPT2, seed=0)
    tensors = {n: a.astype(np.int64) if n.endswith("ln_f.bias") else a for n, a in checkpoint_tensors(model).items()}
    with pytest.raises(FormatError, match="transformer.ln_f.bias: dtype I64, expected one of F32, F16"):
        load_weights(model, tensors)


def test_shards(model, tmp_path, monkeypatch):
    monkeypatch.setattr("pyllm.folders.SHARD", 3000)
    pyllm.save(model, None, tmp_path / "m")
    names = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in model.state().values())
    same(model, pyllm.load(tmp_path / "m")[0])
    index["weight_map"][next(iter(index["weight_map"]))] = "../m/model.safetensors"
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="expected the plain name of a file in this folder"):
        pyllm.load(tmp_path / "m")


# ---- mapped weights ----------------------------------------------------------------------------------------------------


def mapped(array):
    """Whether an array lies in a mapped file."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array is not None


def test_weights_are_mapped_and_training_does_not_reach_the_file(tmp_path):
    model = build(LLAMA, seed=1)
    pyllm.save(model, None, tmp_path / "m")
    before = (tmp_path / "m/model.safetensors").read_bytes()
    again, other = pyllm.load(tmp_path / "m")[0], pyllm.load(tmp_path / "m")[0]
    assert all(mapped(p.data) for p in again.parameters())
    loader = [Batch(TOKENS[:, :-1], TOKENS[:, 1:])] * 2
    list(training.train(again, objectives.clm, loader, training.AdamW(again), steps=2, lr=0.1))
    assert all((p.data != q.data).any() for p, q in zip(again.parameters(), model.parameters()))
    same(model, other)  # another model of the same file sees nothing of it
    assert (tmp_path / "m/model.safetensors").read_bytes() == before
    pyllm.save(again, None, tmp_path / "m")  # over the file that it lies in
    same(again, pyllm.load(tmp_path / "m")[0])
    same(model, other)


def test_gpt2_is_turned_and_halves_become_floats_in_memory_of_their_own(tmp_path):
    pyllm.save(build(GPT2, seed=1), None, tmp_path / "m")
    model = pyllm.load(tmp_path / "m")[0]
    assert {name for name, p in model.named_parameters() if not mapped(p.data)} == {
        f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert all(p.data.flags.c_contiguous for p in model.parameters())
    pyllm.save(build(LLAMA, seed=1), None, tmp_path / "h", dtype="bf16")
    assert not any(mapped(p.data) for p in pyllm.load(tmp_path / "h")[0].parameters())
    packed = pyllm.load(tmp_path / "h", packed=True)[0]
    assert {w.format for _, w in packed.named_packed()} == {"bf16"} and len(dict(packed.named_packed())) == 2 + 7 * 2
    assert np.array_equal(packed.get("lm_head.weight").dequantize(), pyllm.load(tmp_path / "h")[0].get("lm_head.weight").data)


def test_arrays_given_to_load_weights_stay_the_givers():
    one = build(LLAMA, seed=1)
    other = build(LLAMA)
    load_weights(other, checkpoint_tensors(one))
    other.parameters()[0].data += 1
    assert not np.array_equal(one.parameters()[0].data, other.parameters()[0].data)


def test_pages_given_back_are_read_again(tmp_path):
    values = np.arange(40000, dtype=np.float32)
    safetensors.write(tmp_path / "x", {"a": values})
    for private in (False, True):
        array = safetensors.read(tmp_path / "x", private=private)["a"]
        assert array.flags.writeable == private and np.array_equal(array, values)
        files.release(array)
        assert np.array_equal(array, values)
    files.release(values)  # no mapped one: nothing to do


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_no_more_than_the_file(tmp_path):
    """Of a mapped model, of one that lies transposed, of one that is packed from halves: the file and 16 MB, in a process of its own."""
    code = """
import sys, pyllm
pyllm.load, pyllm.generate, pyllm.models, pyllm.kernels.set_num_threads(1)
memory = lambda kind: int(open("/proc/self/status").read().split(kind + ":")[1].split()[0]) * 1024
before = memory("VmRSS")
model, _ = pyllm.load(sys.argv[1], packed=True)
pyllm.generate(model, None, [[1, 2]], max_tokens=1)
print(memory("VmHWM") - before)
"""
    large = {**LLAMA, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    gpt2 = {**GPT2, "n_embd": 512, "n_layer": 5}
    for name, config, dtype in (("llama", large, "f32"), ("gpt2", gpt2, "f32"), ("halves", large, "bf16")):
        pyllm.save(build(config, seed=1), None, tmp_path / name, dtype=dtype)
        size = (tmp_path / name / "model.safetensors").stat().st_size
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, timeout=100,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        assert size > 25e6 and int(done.stdout) < size + 16e6, name


# ---- what stands beside the weights ------------------------------------------------------------------------------------


def test_generation_settings_and_chat_templates_come_back_whole(tmp_path):
    model, settings = build({**GPT2, "vocab_size": 280}, seed=0), {"eos_token_id": [1, 2], "temperature": 0.6, "unknown": {"a": [None]}}
    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=270)
    assert model.generation is None
    model.generation, tokenizer.chat_template = settings, "{{ messages }}"
    pyllm.save(model, tokenizer, tmp_path / "m")
    again, its_tokenizer = pyllm.load(tmp_path / "m")
    assert again.generation == settings and its_tokenizer.chat_template == "{{ messages }}"
    pyllm.save(again, its_tokenizer, tmp_path / "n")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / "m" / name).read_text()) == json.loads((tmp_path / "n" / name).read_text())
    (tmp_path / "m/generation_config.json").write_text("[1]")
    with pytest.raises(FormatError, match="generation_config.json: a list; expected an object"):
        pyllm.load(tmp_path / "m")


def test_config_json_tells_what_the_weights_are(tmp_path):
    """A checkpoint in bfloat16 that is saved in float32 says so: others would round it again."""
    model = build({**LLAMA, "torch_dtype": "bfloat16"}, seed=0)
    for dtype, word in (("f32", "float32"), ("bf16", "bfloat16"), ("f16", "float16")):
        pyllm.save(model, None, tmp_path / "m", dtype=dtype)
        config = json.loads((tmp_path / "m/config.json").read_text())
        assert config["dtype"] == word and "torch_dtype" not in config
    with pytest.raises(ValueError, match="dtype='f64'; expected one of f32, f16, bf16"):
        pyllm.save(model, None, tmp_path / "m", dtype="f64")


def test_torch_files_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02.")
        with pytest.raises(FormatError, match="a PyTorch file.*weights_only=True"):
            pyllm.load(tmp_path)
        with pytest.raises(FormatError, match="a PyTorch file.*weights_only=True"):
            pyllm.load(tmp_path / name)
        (tmp_path / name).unlink()
