"""Adapters from the shell: training, resuming with the same bits, merging, generating, listing; what does not fit."""
from contextlib import nullcontext

import numpy as np
import pytest

import pyllm
from pyllm import peft
from pyllm.cli import main
from pyllm.cli.adapters import BASES, METHODS
from pyllm.io import safetensors
from pyllm.kernels.packed import FORMATS
from pyllm.training import newest, read_log
from tests.cli.test_sft import TIMINGS, sft

LORA = ("--peft", "lora", "--rank", "4", "--targets", "all-linear", "--options", "dropout=0.1")


def test_every_method_has_its_word():
    assert set(METHODS) == set(peft.METHODS) and set(BASES) == {"f32", *FORMATS}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_from_the_shell(here, tmp_path, capsys, method):
    more = {"bitfit": ("--options", "add=true"), "prefix": ("--options", "tokens=3"), "prompt": ("--options", "tokens=3"),
            "p_tuning": ("--options", "tokens=3")}.get(method, ())
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "r", "--steps", "2", "--peft", method, *more) == 0
    assert not (tmp_path / "r/model").exists()
    advised = "pyllm merge" in capsys.readouterr().out
    model, _ = pyllm.load(here / "gpt2")
    assert peft.load(model, tmp_path / "r/adapter") is model
    with nullcontext() if advised else pytest.raises(ValueError, match="merge"):  # the hint is one that works
        peft.merge(model)


@pytest.mark.parametrize("more", [LORA, ("--peft", "prefix", "--options", "tokens=3,projection=true"),
                                  ("--peft", "adalora", "--options", "init_r=6,target_r=3,tinit=1,tfinal=1"),
                                  (*LORA, "--base", "bf16", "--ema", "0.5")])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(here, tmp_path, more):
    from pyllm.cli import sft as verb
    from pyllm.cli.config import read_toml, resolve

    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "whole", "--steps", "6", *more) == 0
    table, places = read_toml(tmp_path / "whole/config.resolved.toml")
    config = resolve((table, places), sections=verb.SECTIONS)
    verb.sft(config, tmp_path / "parts", until=3)
    checkpoint = newest(tmp_path / "parts/checkpoints")
    assert not (checkpoint / "model.safetensors").exists() and (checkpoint / "adapter.safetensors").exists()
    assert main(["sft", "--out", str(tmp_path / "parts"), "--resume"]) == 0
    one, two = (safetensors.read(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    logs = [[{k: v for k, v in line.items() if k not in TIMINGS} for line in read_log(tmp_path / name / "metrics.jsonl")]
            for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_checkpointing_leaves_every_bit(here, tmp_path, monkeypatch):
    from pyllm.nn import attention

    blocks, whole = [], attention.checkpoint
    monkeypatch.setattr(attention, "checkpoint", lambda f, *x: blocks.append(f) or whole(f, *x))
    for name, more in (("kept", ()), ("twice", ("--checkpointing",))):
        assert not blocks and sft(here, "gpt2", "answers.jsonl", tmp_path / name, "--steps", "3", *LORA, *more) == 0
    assert blocks
    one, two = (safetensors.read(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("kept", "twice"))
    assert all(np.array_equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("model, data", [("gpt2", "answers.jsonl"), ("bert", "labels"), ("bart", "answers.jsonl")])
def test_merged_from_the_shell_it_is_the_adapted_model(here, tmp_path, capsys, model, data):
    run, out = tmp_path / "r", tmp_path / "merged"
    assert sft(here, model, data, run, "--epochs", "2", *LORA) == 0
    assert f"pyllm merge --model {here / model}" in capsys.readouterr().out
    assert main(["merge", "--model", str(here / model), "--adapter", str(run), "--out", str(out)]) == 0
    assert "differ by at most" in capsys.readouterr().out
    merged, _ = pyllm.load(out)
    assert model != "bert" or merged.architecture == "BertForSequenceClassification" and merged.config.labels() == 2
    if model == "gpt2":
        texts = []
        for more in (("--model", str(out)), ("--model", str(here / model), "--adapter", str(run)), ("--model", str(run))):
            assert main(["generate", *more, "--prompt", "red cat dog ?", "--max-tokens", "4", "--temp", "0"]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1] == texts[2]


def test_several_adapters_are_stacked_and_a_run_of_one_is_no_base(here, tmp_path, capsys):
    """An adapter trained on top of another one's run would silently begin from the bare model."""
    from pyllm.cli.generate import opened

    zero, one = (tmp_path / seed for seed in "01")
    for run in (zero, one):
        sft(here, "gpt2", "answers.jsonl", run, "--epochs", "2", "--seed", run.name, *LORA)
    tokens = np.arange(6, dtype=np.int32).reshape(1, 6)
    stacked, named, first = (opened(*way)[0](tokens).data for way in ((zero, [one]), (here / "gpt2", [zero, one]), (zero,)))
    assert np.array_equal(stacked, named) and not np.allclose(stacked, first)
    assert sft(here, tmp_path / "0", "answers.jsonl", tmp_path / "2", "--steps", "1") == 3
    assert "learned an adapter" in capsys.readouterr().err


def test_an_adapter_learns_at_its_own_rate_unless_told(here, tmp_path):
    """At the rate of all weights an adapter hardly moves, without a word."""
    from pyllm.cli.config import read_toml

    for name, more, expected in (("own", LORA, peft.LoRA.RATE), ("told", (*LORA, "--lr", "0.02"), 0.02), ("all", (), 5e-5),
                                ("end", (*LORA, "--min-lr", "1e-4"), peft.LoRA.RATE)):
        where = ["--model", str(here / "gpt2"), "--data", str(here / "answers.jsonl"), "--out", str(tmp_path / name)]
        assert main(["sft", *where, "--steps", "1", *more]) == 0
        assert read_toml(tmp_path / name / "config.resolved.toml")[0]["train"]["lr"] == expected > 0


def test_a_run_stopped_before_its_first_adapter_says_so(here, tmp_path, capsys):
    from pyllm.cli import sft as verb
    from pyllm.cli.config import read_toml, resolve

    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "whole", "--steps", "4", *LORA) == 0
    verb.sft(resolve(read_toml(tmp_path / "whole/config.resolved.toml"), sections=verb.SECTIONS), tmp_path / "part", until=1)
    assert main(["generate", "--model", str(tmp_path / "part"), "--prompt", "a"]) == 3
    assert "before its first evaluation" in capsys.readouterr().err


def test_list_says_what_an_adapter_is(here, tmp_path, capsys):
    sft(here, "gpt2", "answers.jsonl", tmp_path / "r", "--steps", "1", *LORA)
    capsys.readouterr()
    assert main(["adapters", "list", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "LORA" in out and "r 4" in out and "c_attn" in out and str(here / "gpt2") in out


def test_adapters_are_combined_and_exported(here, tmp_path, capsys):
    for seed in "01":
        sft(here, "gpt2", "answers.jsonl", tmp_path / seed, "--steps", "1", "--seed", seed, *LORA)
    parts = [f"{tmp_path / '0' / 'adapter'}:0.5", str(tmp_path / "1" / "adapter")]
    common = ["--model", str(here / "gpt2"), "--out"]
    assert main(["adapters", "combine", *parts, *common, str(tmp_path / "both"), "--type", "cat"]) == 0
    capsys.readouterr()
    assert main(["adapters", "list", str(tmp_path / "both")]) == 0
    assert "r 8" in capsys.readouterr().out
    assert main(["adapters", "export", str(tmp_path / "both"), *common, str(tmp_path / "both.gguf")]) == 0
    assert (tmp_path / "both.gguf").read_bytes()[:4] == b"GGUF"
    assert main(["adapters", "export", str(tmp_path / "both"), *common, str(tmp_path / "x"), "--format", "adapterhub"]) == 3
    assert main(["adapters", "combine", f"{tmp_path}/0/adapter:heavy", *common, str(tmp_path / "x")]) == 3


@pytest.mark.parametrize("more, words", [
    (("--peft", "lora", "--options", "drop=0.1"), "dropout"), (("--peft", "prefix", "--rank", "4"), "rank: not a setting of prefix"),
    (("--peft", "lora", "--targets", "q_proj"), "attn.c_attn"), (("--peft", "lora", "--rank", "999"), "above the smaller side"),
])
def test_settings_that_do_not_fit_are_said_before_the_first_step(here, tmp_path, capsys, more, words):
    assert sft(here, "gpt2", "answers.jsonl", tmp_path / "r", *more) == 3
    assert words in capsys.readouterr().err
