"""pyllm tune: what is tried follows from the seed and the trials before; a search that stopped goes on; errors before the first trial."""
import json
import re
import tomllib

import pytest

from pyllm.cli import main
from pyllm.cli.tune import tune

optuna = pytest.importorskip("optuna")
RANGES = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "train.batch": [2, 4, 8]}


class Settings(dict):
    def table(self):
        return {"train": {name.removeprefix("train."): value for name, value in self.items()}}


def loss(settings):
    """Least at lr 1e-2 and batch 4."""
    import math

    return (math.log10(settings["train.lr"]) + 2) ** 2 + abs(settings["train.batch"] - 4)


def search(out, trials, resume=False, stop=None, tried=None):
    tried = [] if tried is None else tried

    def train(settings, folder, watch):
        if len(tried) == stop:
            return 130
        tried.append(dict(settings))
        folder.mkdir(parents=True)
        for step in (1, 2, 3):
            if watch(step, loss(settings) + 1 / step):
                break
        return 0

    return tune(Settings, train, RANGES, out, trials, seed=3, resume=resume), tried


def test_a_search_that_stopped_goes_on_as_one_that_did_not(tmp_path, capsys, drawn):
    code, whole = search(tmp_path / "whole", 12)
    assert code == 0 and len(whole) == 12
    code, cut = search(tmp_path / "cut", 12, stop=5)
    assert code == 130 and len(cut) == 5 and "--resume goes on with trial 6" in capsys.readouterr().out
    assert search(tmp_path / "cut", 12, resume=True, tried=cut)[0] == 0
    assert cut == whole
    best = tomllib.loads((tmp_path / "cut/best.toml").read_text())["train"]
    out = capsys.readouterr().out
    lines = re.findall(r"^ *(\d{3})  +([\d.]+)  train.lr (\S+), train.batch (\d+)(  given up)?$", out, re.M)
    assert len(lines) == 12 and [f[4] for f in lines] == sorted(f[4] for f in lines) and any(f[4] for f in lines)
    ended = [float(score) for _, score, *_, given_up in lines if not given_up]
    assert ended == sorted(ended) and best["batch"] == int(lines[0][3])
    assert [p.name for p in (tmp_path / "cut/trials").iterdir()] == [lines[0][0]]
    assert "pip install matplotlib" in out or (tmp_path / "cut/tune.png").is_file()


def test_the_first_trials_are_not_alike(tmp_path):
    """Seeds beside one another drew 4.04e-5, 4.21e-5 and 4.08e-5 of 1e-5 to 1e-3."""
    for seed in range(8):
        tried = []

        def train(settings, folder, watch):
            tried.append(settings["train.lr"])
            folder.mkdir(parents=True)
            watch(1, 1.0)
            return 0

        assert tune(Settings, train, RANGES, tmp_path / str(seed), 3, seed=seed) == 0
        assert max(tried) / min(tried) > 3  # of a range of a thousand


def test_a_metric_is_shown_as_it_is_the_best_first(tmp_path, capsys):
    def train(settings, folder, watch):
        folder.mkdir(parents=True)
        watch(1, -1 / (1 + loss(settings)))  # minus a metric
        return 0

    assert tune(Settings, train, RANGES, tmp_path / "s", 4) == 0
    scores = [float(score) for score in re.findall(r"^ *\d{3}  +([\d.]+)  train", capsys.readouterr().out, re.M)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)


def test_a_trial_that_diverges_is_given_up_and_the_search_goes_on(tmp_path, capsys):
    def train(settings, folder, watch):
        folder.mkdir(parents=True)
        if settings["train.batch"] != 4:
            raise FloatingPointError("train: step 3: the loss is nan")
        watch(1, loss(settings))
        return 0

    assert tune(Settings, train, RANGES, tmp_path / "s", 8) == 0
    out = capsys.readouterr().out
    assert "the loss is nan" in out and out.count("given up") >= 2
    assert tomllib.loads((tmp_path / "s/best.toml").read_text())["train"]["batch"] == 4


@pytest.fixture
def toml(here, tmp_path):
    def write(search):
        path = tmp_path / "space.toml"
        path.write_text(f"[model]\npath = {json.dumps(str(here / 'gpt2'))}\n[data]\npath = {json.dumps(str(here / 'answers.jsonl'))}\n"
                        f"[train]\nsteps = 4\neval_every = 2\nsample_tokens = 0\n[search]\n{search}\n")
        return str(path)

    return write


def test_real_runs(toml, tmp_path, capsys):
    space = toml('"train.lr" = {low = 1e-4, high = 1e-2, log = true}\n"train.batch" = [4, 8]')
    out = tmp_path / "search"
    assert main(["tune", space, "--out", str(out), "--trials", "3", "--keep"]) == 0
    assert capsys.readouterr().out.count("[[learned]]") == 1  # an example of the data, once
    assert len(list((out / "trials").iterdir())) == 3 and all((p / "model").is_dir() for p in (out / "trials").iterdir())
    assert main(["tune", space, "--out", str(out), "--trials", "3"]) == 3 and "--resume" in capsys.readouterr().err
    assert main(["tune", space, "--out", str(out), "--trials", "4", "--resume"]) == 0
    assert main(["sft", str(out / "best.toml"), "--out", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize("search, message", [
    ("", "no [search]"), ('"train.lr" = 3', "'train.lr' = 3; expected"), ('"train.lr" = {low = 1.0, high = 0.1}', "with low < high"),
    ('"train.lr" = {low = 0, high = 1.0, log = true}', "low above 0"), ('"lr" = [1, 2]', "SECTION.KEY"),
    ('"train.rate" = [1, 2]', "train.rate: not a key"), ('"train.batch" = [4, 0]', "train.batch=0; expected at least 1"),
])
def test_errors_come_before_the_first_trial(toml, tmp_path, capsys, search, message):
    assert main(["tune", toml(search), "--out", str(tmp_path / "s")]) == 3
    assert message in capsys.readouterr().err and not (tmp_path / "s").exists()
