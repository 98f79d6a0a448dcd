"""pyllm pretrain --objective: every corruption trains its families end to end, resumes to the bit, leaves a model that opens."""
import json
import tomllib

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.cli.config import Train, resolve
from pyllm.cli.pretrain import pretrain
from pyllm.data.corruptions import CORRUPTIONS
from pyllm.errors import ConfigError
from pyllm.training import newest, read_log

SMALL = {"layers": 1, "heads": 2, "width": 16, "context": 32, "dropout": 0.1}
RUNS = [("mlm", "bert", "wordpiece"), ("wwm", "bert", "bpe"), ("span", "t5", "unigram"), ("ul2", "t5", "bpe"), ("infill", "bart", "bpe"),
        ("prefix", "bart", "chars"), ("suffix", "llama", "bpe"), ("fim", "gpt2", "bpe")]
EVERY = pytest.mark.parametrize("objective, family, kind", RUNS)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    draw = np.random.default_rng(0)
    sentences = ["the cat sat on a mat. ", "a dog ran! ", "why did the dog run? ", "the mat was red. "]
    path.write_text("\n".join(json.dumps({"text": "".join(draw.choice(sentences, 5))}) for _ in range(120)))
    return path


def config(text, objective, family, kind, steps=12):
    return resolve(({"model": {"family": family, **SMALL}, "tokenizer": {"kind": kind, "vocab_size": 430}, "data": {"path": str(text)},
                     "train": {"objective": objective, "steps": steps, "batch": 6, "warmup": 2, "eval_every": 6, "lr": 1e-2, "seed": 1,
                               "sample_tokens": 4, "eval_batches": 4, "label_smoothing": 0.1, "z_loss": 1e-4}}, "test"))


def test_every_objective_has_a_run_and_a_name_in_the_configuration():
    names = ["clm", *CORRUPTIONS]
    assert list(Train.__dataclass_fields__["objective"].metadata["choices"]) == names and [r[0] for r in RUNS] == names[1:]


@EVERY
def test_a_run_learns_resumes_to_the_bit_and_leaves_a_model(objective, family, kind, text, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain(config(text, objective, family, kind), whole) == 0
    pretrain(config(text, objective, family, kind), parts, until=5)
    assert pretrain(config(text, objective, family, kind), parts, resume=True) == 0
    one, two = newest(whole / "checkpoints"), newest(parts / "checkpoints")
    assert one.name == two.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    lines = read_log(whole / "metrics.jsonl")
    found = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert found == [line["valid_loss"] for line in read_log(parts / "metrics.jsonl") if "valid_loss" in line]
    assert len(found) == 2 and found[1] < found[0] and "bits_per_byte" not in lines[-1]
    model, tokenizer = pyllm.load(whole)
    assert model.config.model_type == family and model.config.vocab_size == tokenizer.vocab_size
    if CORRUPTIONS[objective].loss != "mlm":
        assert len(pyllm.generate(model, tokenizer, "the cat", max_tokens=3, temperature=0).ids) <= 3
        assert len((whole / "samples.jsonl").read_text().splitlines()) == 2


def test_an_encoder_decoder_begins_and_ends_with_its_tokenizers_tokens(text, tmp_path):
    pretrain(config(text, "infill", "bart", "bpe", steps=2), tmp_path)
    model, tokenizer = pyllm.load(tmp_path)
    written = json.loads((tmp_path / "model/config.json").read_text())
    assert written["decoder_start_token_id"] == written["eos_token_id"] == written["forced_eos_token_id"] == tokenizer.eos_id
    assert written["pad_token_id"] == tokenizer.pad_id and model.config.starts == [tokenizer.eos_id]


@pytest.mark.parametrize("flags, message", [
    (["--objective", "mlm"], "model.family='gpt2'; expected one of bert for the objective mlm"),
    (["--objective", "span", "--family", "bert"], "expected one of t5, bart for the objective span"),
    (["--corruption", "0.3"], "the objective clm corrupts nothing"),
    (["--objective", "prefix", "--family", "t5", "--corruption", "0.3"], "corruption rate 0.3; expected none"),
    (["--objective", "mask"], "objective='mask'; expected one of clm, mlm"),
])
def test_what_does_not_go_together_is_named(flags, message, text, tmp_path, capsys):
    assert main(["pretrain", "--data", str(text), "--out", str(tmp_path / "run"), "--vocab-size", "300", *flags]) == 3
    assert message in capsys.readouterr().err


def test_the_share_is_the_users(text, tmp_path):
    tokens = {}
    for share in (0.0, 0.5):
        settings = config(text, "mlm", "bert", "wordpiece", steps=2).table()
        settings["train"]["corruption"] = share
        pretrain(resolve((settings, "test")), tmp_path / str(share))
        tokens[share] = read_log(tmp_path / str(share) / "metrics.jsonl")[0]["tokens"]
    assert 3 < tokens[0.5] / tokens[0.0] < 3.6
    assert tomllib.loads((tmp_path / "0.5/config.resolved.toml").read_text())["train"]["objective"] == "mlm"


def test_a_dry_run_knows_every_kind_of_model(text, tmp_path, capsys):
    for objective, family in (("mlm", "bert"), ("span", "t5"), ("infill", "bart")):
        flags = ["--objective", objective, "--family", family, "--layers", "1", "--width", "16", "--heads", "2", "--context", "32"]
        assert main(["pretrain", "--data", str(text), "--out", str(tmp_path / "run"), "--dry-run", *flags]) == 0
        assert f"model      {family}" in capsys.readouterr().out


def test_a_teachers_probabilities_are_learned(text, tmp_path, capsys):
    """The student of a trained teacher is nearer to it than one that reads the text alone, after as many steps; and resumes to the bit."""
    pretrain(config(text, "suffix", "gpt2", "bpe", steps=60), tmp_path / "teacher")
    settings = config(text, "suffix", "llama", "bpe", steps=20).table()
    settings["tokenizer"]["kind"] = str(tmp_path / "teacher/tokenizer")
    settings["train"].update(label_smoothing=0.0, z_loss=0.0)
    pretrain(resolve((settings, "test")), tmp_path / "alone")
    settings["train"].update(teacher=str(tmp_path / "teacher"), teacher_share=1.0)
    taught = resolve((settings, "test"))
    pretrain(taught, tmp_path / "taught")
    pretrain(taught, tmp_path / "parts", until=7)
    pretrain(taught, tmp_path / "parts", resume=True)
    models = {name: pyllm.load(tmp_path / name) for name in ("teacher", "alone", "taught", "parts")}
    ids = np.array([models["teacher"][1].encode("the cat sat on a mat. a dog ran! ")])
    log_p = {name: pyllm.ops.log_softmax(model(ids)).data for name, (model, _) in models.items()}
    assert np.array_equal(log_p["taught"], log_p["parts"])
    far = {name: (np.exp(log_p["teacher"]) * (log_p["teacher"] - log_p[name])).sum(-1).mean() for name in ("alone", "taught")}
    assert far["taught"] < far["alone"]
    assert {"kl", "ce"} <= read_log(tmp_path / "taught/metrics.jsonl")[0].keys()
    settings["tokenizer"]["kind"] = "chars"
    with pytest.raises(ConfigError, match="has another tokenizer, of 289 tokens; expected the student's"):
        pretrain(resolve((settings, "test")), tmp_path / "other")
    settings["train"].update(z_loss=0.1)
    with pytest.raises(ConfigError, match="z_loss=0.1 with a teacher; expected 0"):
        pretrain(resolve((settings, "test")), tmp_path / "another")
