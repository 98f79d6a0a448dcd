"""pyllm pretrain as a person runs it: run folder, resume, kill -9, signals, errors."""
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.io import safetensors
from pyllm.training import newest, read_log

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--tokenizer", "chars", "--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch", "3", "--steps", "30",
         "--warmup", "3", "--eval-every", "10", "--sample-tokens", "5", "--dropout", "0.1", "--accumulate", "2"]
TIMINGS = {"seconds", "tokens_per_second", "peak_memory_mb"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(["the ", "cat ", "sat ", "on ", "a ", "mat.\n", "dog "], 2000)
    path.write_text("".join(words))
    return str(path)


def pretrain(*args):
    return main(["pretrain", *SMALL, *map(str, args)])


def command(*args):
    return [sys.executable, "-m", "pyllm", "pretrain", *SMALL, *map(str, args)]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def start(*args, **more):
    return subprocess.Popen(command(*args), env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process, path, count):
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def log(path):
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_log(path)]


def same(a, b):
    """Two run folders hold the same bits and the same lines."""
    one, two = newest(a / "checkpoints"), newest(b / "checkpoints")
    assert one.name == two.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    state = lambda p: json.loads((p / "trainer_state.json").read_text())["state"]
    assert state(one) == state(two)
    assert log(a / "metrics.jsonl") == log(b / "metrics.jsonl") and log(a / "samples.jsonl") == log(b / "samples.jsonl")
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain("--data", text, "--out", out) == 0
    return out


def test_the_run_folder(whole):
    names = {p.name for p in whole.iterdir()}
    assert names - {"loss.png"} == {"config.resolved.toml", "metrics.jsonl", "samples.jsonl", "checkpoints", "model", "shards", "tokenizer"}
    config = tomllib.loads((whole / "config.resolved.toml").read_text())
    assert config["train"]["steps"] == 30 and config["model"]["width"] == 16 and config["train"]["beta2"] == 0.95
    lines = read_log(whole / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31)) and steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert steps[0]["tokens"] <= 2 * 3 * 16 and TIMINGS < set(steps[0])
    valid = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in valid] == [10, 20, 30]
    assert all(abs(line["perplexity"] - np.exp(line["valid_loss"])) < 1e-9 for line in valid)
    samples = read_log(whole / "samples.jsonl")
    assert [s["step"] for s in samples] == [10, 20, 30] and all(len(s["text"]) == 5 for s in samples)
    model, tokenizer = pyllm.load(whole)
    assert model.config.vocab_size == tokenizer.vocab_size and model.config.resid_pdrop == 0.1
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["best", "last", "step-000020", "step-000030"]


def test_the_chart(whole):
    pytest.importorskip("matplotlib")
    assert (whole / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_a_hint(whole, monkeypatch, capsys):
    from pyllm.cli.run import chart

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    chart(whole)
    assert "pip install matplotlib" in capsys.readouterr().out


def test_a_run_stops_and_resumes_with_the_bits_of_one_that_did_not(whole, text, tmp_path, capsys):
    from pyllm.cli.config import read_toml, resolve
    from pyllm.cli.pretrain import pretrain as run

    config = resolve(read_toml(whole / "config.resolved.toml"))
    for until in (7, 20, None):
        assert run(config, tmp_path / "r", resume=True, until=until) == 0
    assert "step 20" in capsys.readouterr().out
    same(whole, tmp_path / "r")
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*.safetensors")}
    assert main(["pretrain", "--out", str(tmp_path / "r"), "--resume"]) == 0  # a finished run stays what it is
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*.safetensors")} == before


@pytest.mark.parametrize("threads", [(1, 2, 4, 3), (4, 2, 1, 1)], ids=str)
def test_kill_9_and_resume_is_bitwise_equal(whole, text, tmp_path, threads):
    """Killed three times at whatever it was doing, then left to finish, each time on another number of threads."""
    out = tmp_path / "killed"
    arguments = ("--data", text, "--out", out, "--save-every", 4)
    for lines, n in zip((4, 9, 15), threads):
        process = start(*arguments, "--resume", PYLLM_THREADS=str(n))
        wait_for_lines(process, out / "metrics.jsonl", lines)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    done = subprocess.run(command(*arguments, "--resume"), env=environment(PYLLM_THREADS=str(threads[3])), capture_output=True, text=True)
    assert done.returncode == 0 and "resumed" in done.stdout, done
    same(whole, out)
    assert not [p for p in out.rglob(".*")]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(text, tmp_path, number, code):
    out = tmp_path / "stopped"
    process = start("--data", text, "--out", out, "--steps", 100000, "--eval-every", 100000)
    wait_for_lines(process, out / "metrics.jsonl", 5)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code and "stopping after this step" in stderr and "--resume goes on" in stdout
    step = int(re.search(r"stopped at step (\d+)", stdout)[1])
    assert newest(out / "checkpoints").name == f"step-{step:06d}"
    assert [line["step"] for line in log(out / "metrics.jsonl")] == list(range(1, step + 1))


def test_a_second_signal_stops_at_once():
    from pyllm.cli.interrupt import Interrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt() as stop:
        assert stop.code == 0
        signal.raise_signal(signal.SIGINT)
        assert stop.code == 130
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_in_the_middle_of_a_line_of_progress_is_noted(monkeypatch, capfd):
    from pyllm.cli.interrupt import Interrupt

    class Terminal(io.RawIOBase):
        writable = lambda self: True

        def write(self, data):
            if not stop.signal:
                signal.raise_signal(signal.SIGINT)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Terminal())))
    with Interrupt() as stop:
        print("step 1", file=sys.stderr, flush=True)
    assert stop.code == 130 and "stopping after this step" in capfd.readouterr().err


def test_a_full_disk_leaves_the_old_checkpoint(text, tmp_path):
    """A limit on the size of a file stands in for the disk: the second checkpoint does not fit."""
    out = tmp_path / "full"
    assert pretrain("--data", text, "--out", out, "--steps", 10) == 0
    old = newest(out / "checkpoints")
    size = (old / "optimizer.safetensors").stat().st_size

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

    done = subprocess.run(command("--data", text, "--out", out, "--steps", 20, "--resume"), env=environment(), capture_output=True,
                          text=True, preexec_fn=limit)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "optimizer.safetensors" in done.stderr and f"{size} bytes needed" in done.stderr
    assert newest(out / "checkpoints") == old
    assert pretrain("--data", text, "--out", out, "--steps", 20, "--resume") == 0
    assert newest(out / "checkpoints").name == "step-000020"


def test_a_diverging_run_says_where_and_keeps_its_checkpoint(text, tmp_path, capsys):
    out = tmp_path / "nan"
    assert pretrain("--data", text, "--out", out, "--steps", 4, "--warmup", 0) == 0
    capsys.readouterr()
    options = ["--resume", "--steps", 30, "--lr", "1e30", "--sample-tokens", 0]
    assert pretrain("--data", text, "--out", out, *options, "--eval-every", 100) == 3
    error = capsys.readouterr().err
    assert re.search(r"train: step \d+.*(loss|gradient) is -?(nan|inf)", error) and "PYLLM_DEBUG=2" in error
    assert pretrain("--data", text, "--out", out, *options, "--eval-every", 1) == 3
    assert re.search(r"(evaluate|train|save_checkpoint): .*(nan|inf|not finite)", capsys.readouterr().err)
    assert newest(out / "checkpoints").name >= "step-000004" and np.isfinite(read_log(out / "metrics.jsonl")[-1]["loss"])


@pytest.mark.parametrize("arguments, message", [
    (["--set", "train.stps=5"], "Did you mean 'steps'?"),
    (["--set", "model.n_layers=5"], "model.n_layers: not a key of gpt2. Did you mean 'n_layer'?"),
    (["--family", "gpt"], "qwen2, qwen3, gemma3_text for the objective clm. Did you mean 'gpt2'?"),
    (["--family", "bert"], "model.family='bert'; expected one of gpt2"),
    (["--heads", "3"], "n_embd=16 is not a multiple of n_head=3"),
    (["--length", "17"], "data.length=17; expected at most the model's context, 16"),
    (["--train-fraction", "1"], "fraction is 1.0"),
    (["--data", "nowhere.txt"], "nowhere.txt"),
    (["--tokenizer", "nowhere"], "nowhere"),
    (["missing.toml"], "missing.toml"),
])
def test_errors_are_one_line(text, tmp_path, arguments, message, capsys):
    assert pretrain("--data", text, "--out", tmp_path / "r", *arguments) == 3
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_errors_of_the_folder(whole, text, tmp_path, capsys):
    assert pretrain("--data", text, "--out", whole) == 3
    assert "holds a run already (step-000030). Hint: --resume" in capsys.readouterr().err
    assert pretrain("--out", tmp_path / "r") == 3 and "no data; expected --data PATH" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text(" \n")
    assert pretrain("--data", tmp_path / "empty.txt", "--out", tmp_path / "r") == 3 and "no text" in capsys.readouterr().err
    assert main(["pretrain"]) == 2


def test_a_resumed_run_must_have_the_same_model_and_data(whole, text, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(whole, tmp_path / "copy")
    assert main(["pretrain", "--out", str(copy), "--resume", "--width", "32", "--steps", "40"]) == 4
    assert "transformer.h.0.attn.c_attn.weight" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(copy), "--resume", "--width", "16", "--seed", "9", "--steps", "40"]) == 3
    assert "seed is 9 here and 0 in the state" in capsys.readouterr().err
    assert main(["pretrain", "--out", str(copy), "--resume", "--seed", "0", "--steps", "40"]) == 0  # more steps are fine


def test_dry_run(text, tmp_path, capsys):
    assert pretrain("--data", text, "--out", tmp_path / "r", "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"gpt2, [\d,]+ parameters, vocabulary \d+", out)
    assert "MB (estimate)" in out and "steps (estimate from two measured" in out
    assert not (tmp_path / "r").exists()


def test_llama_bpe_folders_average_and_patience(text, tmp_path, capsys):
    """The other choices, together: its own validation files, an average of the weights, a stop when nothing improves."""
    data = tmp_path / "data"
    data.mkdir()
    lines = Path(text).read_text().splitlines()
    (data / "train.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (data / "valid.jsonl").write_text(json.dumps({"text": "the cat sat on a mat. " * 9}) + "\n")
    out = tmp_path / "r"
    options = ["--family", "llama", "--tokenizer", "bpe", "--vocab-size", 270, "--ema", 0.9, "--eval-every", 2, "--patience", 2]
    assert pretrain("--data", data, "--out", out, *options, "--lr", 0, "--min-lr", 0, "--dropout", 0) == 0
    assert "stopped early: 2 evaluations in a row" in capsys.readouterr().out
    assert [line["step"] for line in log(out / "metrics.jsonl") if "valid_loss" in line] == [2, 4, 6]  # lr 0: nothing can improve
    last = newest(out / "checkpoints")
    weights, average = safetensors.read(last / "model.safetensors"), safetensors.read(last / "ema.safetensors")
    for name, array in weights.items():
        np.testing.assert_allclose(average[name], array, rtol=1e-6, atol=1e-9, err_msg=name)
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0 and newest(out / "checkpoints") == last


def test_ready_token_shards(text, tmp_path, capsys):
    from pyllm.data.shards import tokenize
    from pyllm.text import CharTokenizer

    tokenizer = CharTokenizer.train([Path(text).read_text()])
    tokenizer.save(tmp_path / "tok")
    tokenize(text, tmp_path / "shards", tokenizer)
    assert pretrain("--data", tmp_path / "shards", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "r", "--steps", 4) == 0
    assert not (tmp_path / "r/shards").exists() and pyllm.load(tmp_path / "r")[1].vocab == tokenizer.vocab


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(whole, text, tmp_path, seed):
    """15 kills a run with a checkpoint every step: while it starts, trains, writes; it loses no step that it had saved, needs no help."""
    draw, out, writing, kills = random.Random(seed), tmp_path / "killed", 0, 0
    arguments, lines = ("--data", text, "--out", out, "--save-every", 1, "--resume"), out / "metrics.jsonl"
    for kills in range(15):
        before, saved = lines.read_bytes().count(b"\n") if lines.exists() else 0, newest(out / "checkpoints")
        process = start(*arguments, PYLLM_THREADS=str(draw.choice([1, 2, 3])))
        if draw.random() < 0.8:
            wait_for_lines(process, lines, min(before + draw.choice([1, 1, 2, 3]), 30))
            time.sleep(draw.uniform(0, 0.03))
        else:
            time.sleep(draw.uniform(0, 1.5))
        process.kill()
        process.communicate()
        writing += any(p.name.startswith(".") for p in out.rglob("*"))
        if saved:
            assert newest(out / "checkpoints").name >= saved.name
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done
    print(f"{kills + 1} kills, {writing} of them in the middle of a write")
    assert writing
    same(whole, out)
    assert not [p for p in out.rglob(".*")]


TINYSHAKESPEARE = ROOT / "../shared/data/tinyshakespeare"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1337, 1, 2])
@pytest.mark.skipif(not TINYSHAKESPEARE.is_dir(), reason="no tinyshakespeare beside the checkout")
def test_tinyshakespeare(tmp_path, seed):
    """At most 1.88 nats a character on the whole validation split."""
    arguments = ["--data", str(TINYSHAKESPEARE), "--out", str(tmp_path / "r"), "--seed", str(seed)]
    assert main(["pretrain", "--preset", "nanogpt-cpu", *arguments]) == 0
    assert read_log(tmp_path / "r/metrics.jsonl")[-1]["valid_loss"] <= 1.88
