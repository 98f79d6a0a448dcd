"""pyllm demo in a reduced form: every stage runs, the run folder is left where asked for."""
import math

from pyllm.cli import main
from pyllm.training import read_log


def test_demo(tmp_path, capsys):
    assert main(["demo", "--steps", "8", "--out", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    assert "stopped at step 4" in out and "resumed" in out and "step-000004, step 4" in out and "'The ' -> " in out
    lines = read_log(tmp_path / "d/run/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert valid[-1] < valid[0] < math.log(1024) + 0.2


def test_demo_needs_a_middle(capsys):
    assert main(["demo", "--steps", "1"]) == 3 and "--steps 1" in capsys.readouterr().err
