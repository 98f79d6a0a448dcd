"""pyllm convert and pyllm quantize: every way between folders and files, the table, what is refused. pytest tests/cli/test_convert.py"""
import re

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.folders import build, read_files
from pyllm.io.ggml import kind_of
from pyllm.text import ByteLevelBPE

LLAMA = dict(model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, initializer_range=0.3)
TEXT = "some text to learn from, some more text " * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = ByteLevelBPE.train([TEXT], vocab_size=280)
    pyllm.save(build({**LLAMA, "vocab_size": 288}, seed=1), tokenizer, path)
    return path


def state(path):
    return pyllm.load(path)[0].state()


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(a, two[name]) for name, a in one.items())


def kinds(path):
    return {kind_of(t) for t in read_files(path).tensors.values() if t.ndim == 2}


def test_there_and_back(folder, tmp_path, capsys):
    file, back = str(tmp_path / "m.gguf"), str(tmp_path / "back")
    assert main(["convert", str(folder), file]) == 0 and main(["convert", file, back]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{p}: 21 F32; 0.4 MB" for p in (file, back)]
    assert same(state(folder), state(file)) and same(state(folder), state(back))
    tokenizers = [pyllm.load(path)[1] for path in (folder, file, back)]
    assert len({(t.vocab_size, tuple(t.encode(TEXT))) for t in tokenizers}) == 1


def test_types(folder, tmp_path):
    for type in ("f16", "bf16", "q8_0", "q4_0", "q4_1"):
        assert main(["convert", str(folder), str(tmp_path / f"{type}.gguf"), "--type", type]) == 0
        assert type.upper() in kinds(tmp_path / f"{type}.gguf")
        assert main(["convert", str(tmp_path / f"{type}.gguf"), str(tmp_path / f"{type}-again.gguf")]) == 0
        assert (tmp_path / f"{type}-again.gguf").read_bytes() == (tmp_path / f"{type}.gguf").read_bytes()
    assert main(["convert", str(tmp_path / "q4_0.gguf"), str(tmp_path / "floats")]) == 0
    assert kinds(tmp_path / "floats") == {"F32"} and same(state(tmp_path / "floats"), state(tmp_path / "q4_0.gguf"))
    assert main(["convert", str(tmp_path / "bf16.gguf"), str(tmp_path / "halves"), "--type", "bf16"]) == 0
    assert kinds(tmp_path / "halves") == {"BF16"} and same(state(tmp_path / "halves"), state(tmp_path / "bf16.gguf"))


def test_what_is_refused(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "m"), "--type", "q8_0"]) == 3
    assert "which holds floats. Hint: a name that ends in .gguf" in capsys.readouterr().err
    assert main(["convert", str(folder), str(tmp_path / "m"), "--skip", "lm_head"]) == 3
    assert main(["quantize", str(folder), str(tmp_path / "m.gguf")]) == 3
    assert "with 4 types; expected a name that ends in .gguf, and one --type" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "m")]) == 3
    (tmp_path / "short.txt").write_text("some")
    assert main(["quantize", str(folder), "--data", str(tmp_path / "short.txt")]) == 3
    assert "make no window of 1024" in capsys.readouterr().err


def test_the_table_and_the_file(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = [str(folder), str(tmp_path / "m.gguf"), "--type", "q4_0", "--data", str(tmp_path / "text.txt"), "--length", "32"]
    assert main(["quantize", *arguments, "--skip", "lm_head"]) == 0
    head, floats, packed, written = capsys.readouterr().out.splitlines()
    assert head.split() == ["type", "MB", "perplexity", "more", "tokens/s"] and written.endswith("MB")
    name, size, cost, more, speed = floats.split()
    model, tokenizer = pyllm.load(folder)
    ids = np.array(tokenizer.encode(TEXT))
    ids = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    logits = model(ids[:, :-1]).data.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, ids[:, 1:, None], 2)[..., 0]
    assert (name, size, more) == ("f32", "0.4", "0.00%") and float(speed) > 0
    assert float(cost) == pytest.approx(np.exp(losses.mean()), rel=1e-3)
    assert packed.startswith("q4_0") and float(packed.split()[1]) < 0.3 and re.search(r"-?\d+\.\d\d%", packed)
    assert kinds(tmp_path / "m.gguf") == {"Q4_0", "Q8_0", "F32"}
    assert main(["quantize", str(folder), "--type", "bf16"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["-", "-"]
