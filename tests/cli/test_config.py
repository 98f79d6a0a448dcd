"""Layers of settings, their errors, the flags."""
import argparse
import tomllib
from dataclasses import fields

import pytest

from pyllm.cli import config as c
from pyllm.errors import ConfigError
from pyllm.io.files import format_toml


def parsed(*argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("config", nargs="?")
    parser.add_argument("--preset")
    c.add_flags(parser)
    return parser.parse_args(argv)


def load(*argv):
    return c.load_config(parsed(*argv))


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return str(path)

    return write


def test_each_layer_lies_over_the_one_before(toml):
    path = toml("[train]\nlr = 0.5\nsteps = 300\nwarmup = 7\n[model]\nbias = true\nlayers = 2\n")
    found = load(path, "--preset", "nanogpt-cpu", "--steps", "400", "--set", "train.warmup=9", "--set", "tokenizer.kind=bpe")
    assert (found.train.lr, found.train.steps, found.train.warmup, found.train.batch) == (0.5, 400, 9, 12)
    assert (found.model["bias"], found.model["layers"], found.model["width"], found.model["dropout"]) == (True, 2, 128, 0.0)
    assert found.tokenizer.kind == "bpe" and found.data == c.Data()


def test_the_resolved_table_resolves_to_itself():
    found = load("--preset", "nanogpt-cpu", "--data", "x", "--ema", "0.99")
    assert c.resolve((tomllib.loads(format_toml(found.table())), "resolved")) == found


@pytest.mark.parametrize("argv", [("--lr", "0.25"), ("--learning-rate", "0.25"), ("--learning_rate", "0.25"), ("--set", "train.lr=0.25"),
                                  ("--set", "train.lr = 25e-2")])
def test_spellings(argv):
    assert load(*argv).train.lr == 0.25


def test_every_key_has_a_flag_in_both_spellings_and_no_two_share_one():
    names = lambda kind: kind if isinstance(kind, dict) else [f.name for f in fields(kind)]
    dests = [f"{section}.{name}" for section, kind in c.SECTIONS.items() for name in names(kind)]
    parser = argparse.ArgumentParser(conflict_handler="error")
    c.add_flags(parser)
    assert sorted({a.dest for a in parser._actions if "." in a.dest}) == sorted(dests)
    spelled = set(parser._option_string_actions)
    assert all(("--" + s[2:].replace("-", "_") in spelled) for s in spelled if s.startswith("--"))
    assert load("--eval_every", "5", "--weight_decay", "0") == load("--eval-every", "5", "--weight-decay", "0.0")
    for kind in c.SECTIONS.values():
        for f in () if isinstance(kind, dict) else fields(kind):
            assert f.metadata["about"] and type(f.default) is f.type


@pytest.mark.parametrize("text, message", [
    ("[train]\nlearning = 1\n", r"run.toml:2: train.learning: not a key. .*Keys of \[train\]: accumulate"),
    ("# a\n\n[train]\nstep = 1\n", r"run.toml:4: train.step: not a key. Did you mean 'steps'\?"),
    ("[trian]\nsteps = 1\n", r"run.toml:1: 'trian' is not a section. Did you mean 'train'\?"),
    ("steps = 1\n", "run.toml:1: 'steps' is not a section"),
    ("[train]\nsteps = 1.5\n", "run.toml:2: train.steps=1.5; expected a whole number"),
    ("[train]\nsteps = true\n", "run.toml:2: train.steps=True; expected a whole number"),
    ("[train]\nlr = 'fast'\n", "run.toml:2: train.lr='fast'; expected a number"),
    ("[train]\n\nbeta2 = 1.5\n", "run.toml:3: train.beta2=1.5; expected 0.0 to 1.0"),
    ("[train]\nbatch = 0\n", "run.toml:2: train.batch=0; expected at least 1"),
    ("[train]\nlr = nan\n", "run.toml:2: train.lr=nan; expected at least 0"),
    ("[train]\nschedule = 'cosin'\n", r"expected one of constant, linear, cosine, wsd. Did you mean 'cosine'\?"),
    ("[train]\nlr = 1e-5\n", "min_lr=0.0001, lr=1e-05.*expected min_lr <= lr"),
    ("[model]\nlayers = 'two'\n", "run.toml:2: model.layers='two'; expected a whole number"),
    ("[train]\nsteps = = 3\n", "run.toml:2: not TOML at column 9: Invalid value"),
    ("[train]\nsteps = 1\nsteps = 2\n", "run.toml:3: not TOML.*Cannot overwrite"),
    ("[train", "run.toml:1: not TOML"),
])
def test_errors_name_the_place(toml, text, message):
    with pytest.raises(ConfigError, match=message):
        load(toml(text))


def test_errors_of_flags():
    with pytest.raises(ConfigError, match=r"flag: train.steps=0; expected at least 1"):
        load("--steps", "0")
    with pytest.raises(ConfigError, match=r"--set: train.stps: not a key. Did you mean 'steps'\?"):
        load("--set", "train.stps=3")
    with pytest.raises(ConfigError, match="--set 'steps=3'; expected SECTION.KEY=VALUE"):
        load("--set", "steps=3")
    with pytest.raises(ConfigError, match=r"--preset 'nanogpt'; expected one of .*Did you mean 'nanogpt-cpu'\?"):
        load("--preset", "nanogpt")


def test_not_utf8(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"[train]\n# \xff\n")
    with pytest.raises(ConfigError, match="a.toml: not UTF-8 at byte 10"):
        load(str(tmp_path / "a.toml"))
