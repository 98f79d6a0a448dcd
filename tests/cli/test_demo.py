"""pyllm demo in a reduced form: every stage runs, the run folder is left where asked for."""
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from pyllm.cli import main
from pyllm.training import read_log

ROOT = Path(__file__).resolve().parents[2]


def test_demo(tmp_path, capsys):
    assert main(["demo", "--steps", "8", "--out", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert "stopped at step 4" in out and "resumed" in out and "step-000004, step 4" in out and "'The ' -> " in out
    lines = read_log(tmp_path / "d/run/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    for words in ("it ranks", "iteration 1    reward", "KL 0.00 nats", "answers that break the principle", "after  "):
        assert words in out
    assert (tmp_path / "d/aligned/model.safetensors").is_file()
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert re.search(r"right answers before: 0 % of \d+\n.*right answers after: \d+ %", out) and (tmp_path / "d/answers/model").is_dir()
    assert valid[-1] < valid[0] < math.log(1024) + 0.2


def test_demo_needs_a_middle(capsys):
    assert main(["demo", "--steps", "1"]) == 3 and "--steps 1" in capsys.readouterr().err


def test_an_interrupt_ends_the_demo(tmp_path):
    """With the exit code of Ctrl-C, and not with the next stage."""
    command = [sys.executable, "-c", "import sys; from pyllm.cli import main; sys.exit(main())", "demo", "--steps", "2000", "--out", "d"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for line in run.stdout:
            if "loss" in line:
                run.send_signal(signal.SIGINT)
                break
        rest = run.stdout.read()
        assert run.wait(60) == 130, rest
    assert "resumed" not in rest and list((tmp_path / "d/run/checkpoints").iterdir())
