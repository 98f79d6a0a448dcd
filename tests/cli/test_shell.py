"""The command line's shell and its small verbs, as a person would call them."""
import io
import json
import subprocess
import sys

import pytest

import pyllm
from pyllm.cli import VERBS, main
from pyllm.models import GPT2, GPT2Config
from pyllm.text import ByteLevelBPE

TEXT = "the quick brown fox jumps over the lazy dog. " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = ByteLevelBPE.train([TEXT], 280)
    model = GPT2(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2)).initialize(0)
    pyllm.save(model, tokenizer, path)
    return path


def python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, **options)


def test_help_is_instant_and_loads_no_numpy():
    done = python("-c", "import sys; from pyllm.cli import main; code = main(['--help']); print('numpy' in sys.modules); sys.exit(code)")
    assert done.returncode == 0 and done.stdout.endswith("False\n")
    assert all(f"\n    {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"pyllm {verb}" in capsys.readouterr().out


def test_module_and_version():
    assert python("-m", "pyllm", "--version").stdout == f"pyllm {pyllm.__version__}\n"


def test_wrong_usage_is_2(capsys):
    assert main(["generate"]) == 2 and "--model" in capsys.readouterr().err
    assert main(["genrate"]) == 2 and "generate" in capsys.readouterr().err
    assert main([]) == 2


def test_generate_prints_the_continuation_alone(folder, capsys):
    command = ["generate", "--model", str(folder), "--prompt", "the quick", "--max-tokens", "12", "--seed", "3", "--temp", "1"]
    assert main(command) == 0
    streamed = capsys.readouterr()
    assert main([*command, "--no-stream"]) == 0
    assert capsys.readouterr().out == streamed.out and streamed.err == ""
    model, tokenizer = pyllm.load(folder)
    assert streamed.out == pyllm.generate(model, tokenizer, "the quick", max_tokens=12, seed=3).text + "\n"


def test_generate_reads_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the quick"))
    assert main(["generate", "--model", str(folder), "--prompt", "-", "--max-tokens", "4", "--temp", "0"]) == 0
    piped = capsys.readouterr().out
    assert main(["generate", "--model", str(folder), "--prompt", "the quick", "--max-tokens", "4", "--temp", "0"]) == 0
    assert capsys.readouterr().out == piped


@pytest.mark.parametrize("args,code,words", [
    (["generate", "--model", "nowhere"], 3, "expected a model folder"),
    (["generate", "--model", "{folder}", "--temp", "-1"], 3, "temperature=-1"),
    (["generate", "--model", "{folder}", "--prompt", "a" * 500], 3, "context is 64"),
    (["info", "nowhere"], 3, "expected a model folder"),
    (["tokenize", "encode", "--tokenizer", "nowhere", "--text", "x"], 3, "nowhere"),
    (["tokenize", "decode", "--tokenizer", "{folder}", "--text", "1 x"], 3, "whole numbers"),
    (["bench", "--parameters", "many"], 3, "--parameters 'many'"),
])
def test_errors_are_one_line(folder, args, code, words, capsys):
    assert main([a.replace("{folder}", str(folder)) for a in args]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err and err.startswith(f"pyllm {args[0]}: ")


def test_broken_weights_are_4(folder, tmp_path, capsys):
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert main(["generate", "--model", str(broken), "--prompt", "a"]) == 4
    assert "model.safetensors" in capsys.readouterr().err


def test_info(folder, capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == pyllm.__version__ and facts["isa"] in facts["isa_available"] and facts["threads"] >= 1
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "gpt2" and facts["context"] == 64 and facts["dtypes"] == ["float32"]
    assert facts["parameters"] == pyllm.load(folder)[0].num_parameters()
    assert main(["info"]) == 0 and "isa available" in capsys.readouterr().out


def test_tokenize(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    out = str(tmp_path / "tok")
    assert main(["tokenize", "train", "--data", str(tmp_path / "a.txt"), "--vocab-size", "270", "--out", out]) == 0
    assert "270 tokens" in capsys.readouterr().out
    assert main(["tokenize", "encode", "--tokenizer", out, "--text", "the fox"]) == 0
    ids = capsys.readouterr().out
    assert main(["tokenize", "decode", "--tokenizer", out, "--text", ids]) == 0
    assert capsys.readouterr().out == "the fox\n"
    assert main(["tokenize", "show", "--tokenizer", out, "--text", "the fox"]) == 0
    assert "7 characters" in capsys.readouterr().out
    assert main(["tokenize", "train", "--data", str(tmp_path / "a.txt"), "--kind", "char", "--out", out]) == 0
    assert f"{len(set(TEXT))} tokens" in capsys.readouterr().out
