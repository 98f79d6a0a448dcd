"""The command line's shell and its small verbs, as a person would call them."""
import io
import json
import os
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


def environment(**variables):
    return {"env": {**os.environ, **variables}}


def test_help_is_instant_and_loads_no_numpy():
    done = python("-c", "import sys; from pyllm.cli import main; code = main(['--help']); print('numpy' in sys.modules); sys.exit(code)")
    assert done.returncode == 0 and done.stdout.endswith("False\n")
    assert all(f"\n    {verb} " in done.stdout.replace("\n     ", " ") for verb in VERBS)
    code = """
import resource, subprocess, sys
def spent(*command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(min(spent("-m", "pyllm", "--help") for _ in range(5)))
"""
    assert float(python("-c", code).stdout) <= 0.15  # seconds of the CPU, which other processes do not disturb


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
    assert main([*command, "--stream"]) == 0
    assert capsys.readouterr().out == streamed.out and streamed.err == ""
    assert main(["generate", *command[2:]]) == 0 and capsys.readouterr().out == streamed.out
    model, tokenizer = pyllm.load(folder)
    assert streamed.out == pyllm.generate(model, tokenizer, "the quick", max_tokens=12, seed=3).text + "\n"


def test_generate_reads_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the quick"))
    assert main(["generate", "--model", str(folder), "--prompt", "-", "--max-tokens", "4", "--temp", "0"]) == 0
    piped = capsys.readouterr().out
    assert main(["generate", "--model", str(folder), "--prompt", "the quick", "--max-tokens", "4", "--temp", "0"]) == 0
    assert capsys.readouterr().out == piped


def test_generate_reads_a_pipe_and_writes_into_one(folder):
    command = [sys.executable, "-m", "pyllm", "generate", "--model", folder, "--max-tokens", "6", "--temp", "0"]
    piped = subprocess.run(command, input=b"the quick\n", capture_output=True, timeout=60)
    given = subprocess.run([*command, "--prompt", "the quick"], capture_output=True, timeout=60)
    assert piped.returncode == given.returncode == 0 and piped.stdout == given.stdout and piped.stderr == b""


def test_generate_says_where_the_context_ends_and_slides(folder, capsys):
    command = ["generate", "--model", str(folder), "--prompt", "the quick", "--max-tokens", "90", "--seed", "2"]
    assert main(command) == 0
    short = capsys.readouterr()
    assert "the model's context is 64" in short.err and "--slide" in short.err
    assert main([*command, "--slide"]) == 0
    long = capsys.readouterr()
    assert long.err == "" and long.out.startswith(short.out[:-1]) and len(long.out) > len(short.out)


def test_generate_takes_the_newest_checkpoint_of_an_unfinished_run(folder, tmp_path, capsys):
    model, tokenizer = pyllm.load(folder)
    pyllm.training.save_checkpoint(tmp_path / "run/checkpoints", 5, model, tokenizer, pyllm.training.AdamW(model), {})
    for path in (folder, tmp_path / "run"):
        assert main(["generate", "--model", str(path), "--prompt", "the", "--max-tokens", "4", "--stop", "zz", "--stop", "yy"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_a_folder_without_a_tokenizer(folder, tmp_path, capsys):
    pyllm.save(pyllm.load(folder)[0], None, tmp_path / "m")
    assert main(["generate", "--model", str(tmp_path / "m"), "--prompt", "a"]) == 4
    assert "such as tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece", "unigram", "wordpiece", "chars"])
def test_tokenizers_of_every_kind_are_trained(kind, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT * 20)
    options = ["--vocab-size", "400", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path)]
    assert main(["tokenize", "train", "--kind", kind, *options]) == 0
    assert main(["tokenize", "encode", "--tokenizer", str(tmp_path), "--text", "the fox"]) == 0
    trained, ids = capsys.readouterr().out.splitlines()
    assert "characters a token" in trained and all(id.isdecimal() for id in ids.split())


@pytest.mark.parametrize("raised,code,words", [
    (KeyboardInterrupt(), 130, "pyllm: interrupted"), (pyllm.errors.FormatError("torn"), 4, "pyllm info: torn"),
    (OSError(28, "No space left on device", "x.bin"), 3, "No space left on device: x.bin"), (MemoryError(), 3, "MemoryError"),
    (FloatingPointError("NaN"), 3, "NaN"), (ImportError("PYLLM_ISA='z80'"), 3, "z80"),
])
def test_exit_codes(raised, code, words, monkeypatch, capsys):
    def fail(args):
        raise raised

    monkeypatch.setattr("pyllm.cli.info.run", fail)
    assert main(["info"]) == code
    assert words in capsys.readouterr().err
    if isinstance(raised, Exception):
        monkeypatch.setenv("PYLLM_DEBUG", "1")
        with pytest.raises(type(raised)):
            main(["info"])


def test_a_fault_of_ours_shows_where(monkeypatch):
    monkeypatch.setattr("pyllm.cli.info.run", lambda args: args.nothing)
    with pytest.raises(AttributeError):
        main(["info"])


def test_warnings_are_a_line(monkeypatch, capsys):
    import warnings

    def warn(args):
        warnings.simplefilter("always")
        warnings.warn("take care", stacklevel=2)
        return 0

    monkeypatch.setattr("pyllm.cli.info.run", warn)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "pyllm info: warning: take care\n"


@pytest.mark.parametrize("variable", ["PYLLM_ISA", "PYLLM_THREADS", "PYLLM_DEBUG"])
def test_wrong_variables_are_a_line(variable):
    done = python("-m", "pyllm", "info", **environment(**{variable: "z80"}))
    assert done.returncode == 3 and "z80" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_output_that_cannot_be_written(folder):
    command = f"{sys.executable} -m pyllm tokenize encode --tokenizer {folder} --text '{TEXT * 50}'"
    if os.path.exists("/dev/full"):
        done = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 3 and done.stderr == "pyllm tokenize: No space left on device\n"
    done = subprocess.run(f"({command}; echo $? >&2) | head -c 1", shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr in ("141\n", "0\n") and "Traceback" not in done.stderr


@pytest.mark.parametrize("args,code,words", [
    (["generate", "--model", "nowhere"], 3, "expected a model folder"),
    (["generate", "--model", "{folder}", "--prompt", "a", "--temp", "-1"], 3, "temperature=-1"),
    (["generate", "--model", "{folder}", "--prompt", "a" * 500], 3, "context is 64"),
    (["info", "nowhere"], 3, "expected a model folder"),
    (["tokenize", "encode", "--tokenizer", "nowhere", "--text", "x"], 3, "nowhere"),
    (["tokenize", "decode", "--tokenizer", "{folder}", "--text", "1 x"], 3, "whole numbers"),
    (["tokenize", "decode", "--tokenizer", "{folder}", "--text", "1 999"], 3, "id 999"),
    (["tokenize", "train", "--data", "nowhere", "--out", "x"], 3, "nowhere"),
    (["tokenize", "train", "--data", "{folder}", "--out", "x"], 3, ""),
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
    assert facts["family"] == "gpt2" and facts["context"] == 64 and facts["types"] == ["F32"]
    assert facts["parameters"] == pyllm.load(folder)[0].num_parameters()
    assert main(["info"]) == 0 and "isa available" in capsys.readouterr().out


def test_tokenize_gives_the_bytes_back(folder, capsysbinary, monkeypatch):
    text = "a b\n\n\ttrailing 東京 \n"
    assert main(["tokenize", "encode", "--tokenizer", str(folder), "--text", text]) == 0
    ids = capsysbinary.readouterr().out.decode()
    monkeypatch.setattr("sys.stdin", io.StringIO(ids))
    assert main(["tokenize", "decode", "--tokenizer", str(folder)]) == 0
    assert capsysbinary.readouterr().out == text.encode()


def test_tokenize_show(folder, capsys, monkeypatch):
    command = ["tokenize", "show", "--tokenizer", str(folder), "--text", "the fox\n東"]
    assert main(command) == 0
    plain, counts = capsys.readouterr().out.splitlines()
    assert plain.startswith("the|") and plain.endswith("\\n|\\xe6|\\x9d|\\xb1")
    tokens = plain.count("|") + 1
    assert counts == f"{tokens} tokens, {tokens} of them different, 9 characters, {9 / tokens:.2f} characters a token"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(command) == 0
    assert capsys.readouterr().out.count("\x1b[0m") == tokens


def test_tokenize(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    out = str(tmp_path / "tok")
    assert main(["tokenize", "train", "--data", str(tmp_path / "a.txt"), "--vocab-size", "270", "--out", out]) == 0
    assert "270 tokens" in capsys.readouterr().out
    assert main(["tokenize", "encode", "--tokenizer", out, "--text", "the fox"]) == 0
    ids = capsys.readouterr().out
    assert main(["tokenize", "decode", "--tokenizer", out, "--text", ids]) == 0
    assert capsys.readouterr().out == "the fox"
    assert main(["tokenize", "show", "--tokenizer", out, "--text", "the fox"]) == 0
    assert "7 characters" in capsys.readouterr().out
    assert main(["tokenize", "train", "--data", str(tmp_path / "a.txt"), "--kind", "chars", "--out", out]) == 0
    assert f"{len(set(TEXT))} tokens" in capsys.readouterr().out
