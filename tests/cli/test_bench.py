"""pyllm bench: counts, the model of the estimate, hours from a measured step, lines, JSON and the chart; what it measures is made small."""
import json
import struct

import pytest

from pyllm import measure
from pyllm.cli import bench, main
from pyllm.cli.estimate import step_flops
from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.models import GPT2Config

TINY = dict(vocab_size=65, n_positions=16, n_embd=32, n_layer=4, n_head=2)
LIMITS = {"f32": (100.0, "GFLOP/s"), "bf16": (200.0, "GFLOP/s"), "memory read": (20.0, "GB/s")}


@pytest.fixture
def small(monkeypatch):
    """A product, a norm and the two steps of the model."""
    def cases(config):
        yield "matmul", "64 x 64 x 64", "bf16", lambda: bench._matmul(64, 64, 64, "bf16")
        yield "layer norm, and back", "8 x 64", "f32", lambda: bench._norm(8, 64)
        for precision in ("f32", "bf16"):
            yield bench.STEPS, "", precision, lambda p=precision: bench._model_step(config, p)

    monkeypatch.setattr(bench, "cases", cases)
    monkeypatch.setattr(measure, "limits", lambda: LIMITS)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", **TINY}))
    return path


@pytest.mark.parametrize("text,count", [("1000000", 10**6), ("10M", 10**7), ("0.5B", 5 * 10**8), ("2k", 2000), ("1e6", 10**6)])
def test_counts(text, count):
    assert bench.parse_count("--tokens", text) == count


@pytest.mark.parametrize("parameters", [200_000, 10**6, 10**7, 60_000_000, 124_000_000, 350_000_000, 1_500_000_000, 7_000_000_000])
def test_a_gpt2_of_about_a_size(parameters):
    config = bench.shaped(parameters)
    assert config.n_head * 64 == config.n_embd and (10 < config.n_embd / config.n_layer < 160 or config.n_layer == 1)
    size = 12 * config.n_layer * config.n_embd**2 + (config.vocab_size + config.n_positions) * config.n_embd
    assert 0.75 < size / parameters < 1.35


def test_gpt2_small_is_found():
    config = bench.shaped(124_000_000)
    assert (config.n_layer, config.n_embd, config.vocab_size) == (12, 768, 50257)


def test_a_large_model_is_measured_on_fewer_rows_and_layers(monkeypatch):
    config = GPT2Config(**{**TINY, "n_layer": 32})
    whole, rows, length = bench.fitting(config, flops=1e15)
    assert whole is config and (rows, length) == (64, 16)
    whole, rows, _ = bench.fitting(config, flops=step_flops(build(config), 64, 16) / bench.STEP / 3)
    assert whole is config and rows == 16
    cut, rows, _ = bench.fitting(config, flops=step_flops(build(config), 1, 16) / bench.STEP / 3)
    assert cut.n_layer == 8 and rows == 1
    monkeypatch.setattr(bench, "free_bytes", lambda: 0)
    cut, rows, _ = bench.fitting(config, flops=1e15)
    assert cut.n_layer == rows == 1


def test_hours_are_work_over_rate():
    config = GPT2Config(**TINY)
    found = bench.estimate(config, 10**9, {"gflops": 50.0, "precision": "f32", "shape": "64 x 16 tokens", "length": 16})
    hours = step_flops(build(config), 1, 16) / 16 * 1e9 / 50e9 / 3600
    assert found["hours"] == pytest.approx(hours, abs=1e-3) and found["parameters"] == build(config).num_parameters()
    assert bench.in_words([found, {**found, "precision": "bf16", "hours": 1.0}]).startswith(f"estimate: gpt2 with {53.5} K parameters")


def test_lines_of_a_run(small, config_file, capsys):
    assert main(["bench", "--model", str(config_file), "--tokens", "2M"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "f32 100 GFLOP/s" in lines[0] and lines[2].startswith("matmul") and "bf16" in lines[2] and "% of the limit" in lines[2]
    assert "64 x 16 tokens" in lines[4] and lines[7].startswith("estimate: gpt2 with") and "on 2 M tokens: about" in lines[7]


def test_json_of_a_run(small, config_file, capsys):
    assert main(["bench", "--model", str(config_file), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["name"] for r in rows] == ["limit"] * 3 + ["matmul", "layer norm, and back"] + [bench.STEPS] * 2 + ["estimate"] * 2
    assert all(r["median_ms"] > 0 and r["pct_limit"] > 0 and r["threads"] >= 1 for r in rows[3:7])
    assert rows[7]["hours"] > 0 and rows[7]["tokens"] == 10**8 and rows[8]["precision"] == "bf16"


def test_chart(small, config_file, tmp_path, capsys, drawn):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bars.png"
    assert main(["bench", "--model", str(config_file), "--chart", str(path)]) == 0
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG") and width >= 1000 and height >= 300 and f"chart: {path}" in capsys.readouterr().out


def test_models_by_path(tmp_path, config_file):
    assert bench.read_config(config_file).n_layer == 4
    (tmp_path / "run.toml").write_text('[model]\nfamily = "llama"\nlayers = 3\nwidth = 64\n[tokenizer]\nvocab_size = 512\n')
    config = bench.read_config(tmp_path / "run.toml")
    assert (config.model_type, config.num_hidden_layers, config.vocab_size) == ("llama", 3, 512)
    assert bench.read_config(tmp_path).n_embd == 32


@pytest.mark.parametrize("options,words", [
    (["--parameters", "many"], "--parameters 'many'; expected a count such as"), (["--tokens", "0"], "--tokens '0'"),
    (["--tokens=-5M"], "--tokens '-5M'"), (["--tokens", "nan"], "--tokens 'nan'"), (["--tokens", ""], "--tokens ''"),
    (["--parameters", "1000"], "expected at least 200K"), (["--parameters", "1M", "--model", "x"], "expected one of them"),
    (["--model", "nowhere"], "nowhere"), (["--model", "nowhere.json"], "nowhere.json"), (["--chart", "bars.jpg"], "ends in .png"),
    (["--chart", "no/where/bars.png"], "no such folder"),
])
def test_errors_come_before_anything_is_measured(options, words, capsys, monkeypatch):
    monkeypatch.setattr(measure, "limits", lambda: pytest.fail("measured"))
    if "--chart" in options:
        pytest.importorskip("matplotlib")
    assert main(["bench", *options]) == 3
    err = capsys.readouterr().err
    assert words in err and err.startswith("pyllm bench: ") and "Traceback" not in err


def test_a_chart_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "--chart", "bars.png"]) == 3 and "pip install matplotlib" in capsys.readouterr().err


def test_a_config_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt9"}')
    with pytest.raises(ConfigError, match="gpt9"):
        bench.read_config(tmp_path / "config.json")


def test_layers_of_several_types_are_cut_together(tmp_path):
    kinds = ["sliding_attention", "full_attention"] * 8
    config = {"model_type": "qwen2", "vocab_size": 65, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 16,
              "num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": kinds, "max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = bench.read_config(tmp_path / "config.json")
    cut, *_ = bench.fitting(whole, flops=step_flops(build(whole), 1, 16) / bench.STEP / 3)
    assert cut.num_hidden_layers == 4 and cut.layer_types == kinds[:4]
