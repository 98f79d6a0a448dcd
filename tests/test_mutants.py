"""Mutated files: 26,000 of safetensors, 26,000 of GGUF, 1,800 config.json, 1,000 whole GGUF models: an error of a documented class, or
none."""
import json
import random
import shutil
import sys

import numpy as np
import pytest

import pyllm
from pyllm.errors import ConfigError, FormatError
from pyllm.folders import build
from pyllm.io import gguf, safetensors
from pyllm.io.ggml import Blocks, float32
from pyllm.io.safetensors import to_bf16
from pyllm.kernels.packed import Packed
from pyllm.text import ByteLevelBPE, SentencePieceBPE
from tests import mutate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is set as Linux has it")
FLOATS = np.arange(64, dtype=np.float32).reshape(2, 32)
SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             max_position_embeddings=16)
CONFIGS = [
    {"model_type": "llama", **SMALL, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "architectures": ["LlamaForCausalLM"]},
    {"model_type": "gemma3_text", **SMALL, "head_dim": 16, "layer_types": ["full_attention", "sliding_attention"],
     "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}},
    {"model_type": "gpt2", "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2, "architectures": ["GPT2ForSequenceClassification"],
     "id2label": {"0": "a", "1": "b", "2": "c"}},
    {"model_type": "bert", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
     "max_position_embeddings": 16},
    {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    {"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
     "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16},
]


def read_safetensors(path):
    for array in safetensors.read(path).values():
        array.tobytes()


def read_gguf(path):
    for tensor in gguf.read(path)[1].values():
        float32(tensor) if isinstance(tensor, Blocks) else tensor.tobytes()


def tables(path, format):
    """-> the bytes of a file with tensors and metadata of many types."""
    tensors = {"a.weight": FLOATS, "b": FLOATS[0].astype(np.float16), "c": to_bf16(FLOATS), "none": np.zeros((0, 4), np.int64)}
    if format == "gguf":
        tensors |= {f: Blocks(f.upper(), FLOATS.shape, Packed.quantize(FLOATS, f).to_blocks()) for f in ("q8_0", "q4_1")}
        gguf.write(path, {"general.architecture": "llama", "n": 3, "x": 0.5, "yes": True, "texts": ["a", "bc", ""],
                          "numbers": np.arange(5, dtype=np.uint16)}, tensors)
    else:
        safetensors.write(path, {**tensors, "d": np.array([True, False])}, {"format": "pt", "k": "v"})
    return path.read_bytes()


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_mutated_weights(tmp_path, format):
    """Of bytes, and for safetensors of the header's JSON too."""
    rng, path, read = random.Random(1), tmp_path / "x", {"safetensors": read_safetensors, "gguf": read_gguf}[format]
    seed = tables(path, format)
    length = int.from_bytes(seed[:8], "little")
    read(path)

    def mutant(i):
        if format == "gguf" or i % 3:
            return mutate.of_bytes(seed, rng)
        header = json.dumps(mutate.of_json(json.loads(seed[8 : 8 + length]), rng)).encode()
        return len(header).to_bytes(8, "little") + header + seed[8 + length :]

    def read_one(data):
        path.unlink(missing_ok=True)  # a new file each time: some file systems flush one that is cut and written again
        path.write_bytes(data)
        read(path)

    accepted = mutate.survive(read_one, map(mutant, range(26_000)), FormatError)
    assert 100 < accepted < 20_000


@pytest.fixture(scope="module")
def tokenizers():
    text = ["some text to learn from, some more text"]
    return {"bytes": ByteLevelBPE.train(text, vocab_size=280), "pieces": SentencePieceBPE.train(text, vocab_size=290)}


@pytest.mark.filterwarnings("ignore:tokenizer.ggml.pre names no split pattern")
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_mutated_gguf_models(tmp_path, tokenizers, kind):
    """Whole files with a tokenizer, opened as a user would: mutants of the metadata's values, and of the bytes before the data."""
    rng, path, out = random.Random(2), tmp_path / "m.gguf", tmp_path / "x.gguf"
    config = {**(CONFIGS[0] if kind == "bytes" else {**CONFIGS[1], "layer_types": None, "query_pre_attn_scalar": 16})}
    model = build({**config, "vocab_size": 320}, seed=1)
    pyllm.save(pyllm.quantize(model, "q8_0"), tokenizers[kind], path)
    metadata, tensors = gguf.read(path)
    seed = path.read_bytes()
    end = seed.index(b"output_norm")
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}

    def mutant(i):
        return mutate.of_bytes(seed[:end], rng) + seed[end:] if i % 2 else mutate.of_json(plain, rng)

    def read(found):
        if isinstance(found, dict):
            try:
                gguf.write(out, found, tensors)
            except (TypeError, UnicodeEncodeError):  # a value that no file can hold
                return
        else:
            out.unlink(missing_ok=True)
            out.write_bytes(found)
        pyllm.load(out)

    accepted = mutate.survive(read, map(mutant, range(500)), FormatError)
    assert 10 < accepted < 400


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["model_type"])
def test_mutated_configurations(tmp_path, config):
    rng = random.Random(3)
    pyllm.save(build({**config, "vocab_size": 40}, seed=1), None, tmp_path / "m")
    seed = json.loads((tmp_path / "m/config.json").read_text())

    def read(values):
        (tmp_path / "m/config.json").write_text(json.dumps(values))
        pyllm.load(tmp_path / "m")

    accepted = mutate.survive(read, (mutate.of_json(seed, rng) for _ in range(300)), (FormatError, ConfigError))
    assert 10 < accepted < 280


def test_mutated_indices(tmp_path, monkeypatch):
    """model.safetensors.index.json, generation_config.json and 1_Pooling/config.json."""
    monkeypatch.setattr("pyllm.folders.SHARD", 10_000)
    rng, folder = random.Random(4), tmp_path / "m"
    pyllm.save(build({**CONFIGS[3], "vocab_size": 40}, seed=1), None, folder)
    (folder / "1_Pooling").mkdir()
    files = {"model.safetensors.index.json": None, "generation_config.json": {"temperature": 0.5, "eos_token_id": [1, 2]},
             "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
        seed = json.loads((folder / name).read_text())

        def read(values, name=name):
            (folder / name).write_text(json.dumps(values))
            pyllm.load(folder)

        mutate.survive(read, (mutate.of_json(seed, rng) for _ in range(300)), (FormatError, ConfigError))
        (folder / name).write_text(json.dumps(seed))
    shutil.rmtree(folder)
