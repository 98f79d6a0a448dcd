"""The options of pyllm generate are those of pyllm.generate."""
import json
import re

import pytest

import pyllm
from pyllm.cli import main
from pyllm.folders import build
from pyllm.generation import Constraint
from pyllm.text import ByteLevelBPE

TEXT = "the quick brown fox jumps over the lazy dog. {\"a\": [1, 2.5]} " * 20


@pytest.fixture(scope="module", params=["llama", "t5"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = ByteLevelBPE.train([TEXT], 280)
    sizes = {"llama": dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64),
             "t5": dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)}[request.param]
    model = build({"model_type": request.param, "vocab_size": tokenizer.vocab_size, **sizes}, seed=0)
    for p in model.parameters():
        p.data *= 3
    pyllm.save(model, tokenizer, path)
    return path


def said(folder, capsys, *options):
    """-> what the command prints."""
    assert main(["generate", "--model", str(folder), "--prompt", "the quick", "--max-tokens", "12", *options]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("options,same", [
    ((), dict(temperature=0.8)),
    (("--temp", "0"), dict(temperature=0)),
    (("--top-k", "5", "--top_p", "0.9", "--min-p", "0.01", "--seed", "4"), dict(temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, seed=4)),
    (("--presence-penalty", "1", "--frequency-penalty", "0.5", "--repetition-penalty", "1.2", "--no-repeat-ngram-size", "2", "--min-tokens",
      "3"), dict(temperature=0.8, presence_penalty=1, frequency_penalty=0.5, repetition_penalty=1.2, no_repeat_ngram_size=2, min_tokens=3)),
    (("--num-beams", "3", "--length-penalty", "0.5"), dict(num_beams=3, length_penalty=0.5)),
    (("--prompt-lookup", "4", "--temp", "0"), dict(temperature=0)),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_options_are_those_of_the_function(folder, capsys, options, same):
    model, tokenizer = pyllm.load(folder)
    assert said(folder, capsys, *options) == pyllm.generate(model, tokenizer, "the quick", max_tokens=12, **same).text


def test_generation_config_decides_what_is_not_said(folder, tmp_path, capsys):
    model, tokenizer = pyllm.load(folder)
    model.generation = {"max_new_tokens": 5, "repetition_penalty": 1.5}
    pyllm.save(model, tokenizer, tmp_path / "m")
    assert main(["generate", "--model", str(tmp_path / "m"), "--prompt", "the quick"]) == 0
    want = pyllm.generate(model, tokenizer, "the quick", max_tokens=5, temperature=0, repetition_penalty=1.5).text
    assert capsys.readouterr().out == want + "\n"


def test_constraints(folder, tmp_path, capsys):
    assert re.fullmatch("(yes|no)[.!]", said(folder, capsys, "--regex", "(yes|no)[.!]"))
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}, "required": ["a"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for more in ((), ("--stream",), ("--num-beams", "2")):
        text = said(folder, capsys, "--json-schema", str(tmp_path / "schema.json"), "--max-tokens", "40", *more)
        assert Constraint.json(schema).matches(text) and isinstance(json.loads(text)["a"], list)
    assert main(["generate", "--model", str(folder), "--prompt", "a", "--regex", "[a-z ]{200}", "--max-tokens", "3"]) == 0
    assert "the text was cut before" in capsys.readouterr().err


def test_a_draft_changes_nothing(folder, capsys):
    if "T5" in (folder / "config.json").read_text():
        assert main(["generate", "--model", str(folder), "--prompt", "a", "--draft", str(folder)]) == 3
        assert "expected a causal model" in capsys.readouterr().err
    else:
        assert said(folder, capsys, "--draft", str(folder), "--seed", "3") == said(folder, capsys, "--seed", "3")


@pytest.mark.parametrize("options,words", [
    (("--regex", "a", "--json-schema", "b"), "--regex and --json-schema"), (("--draft", "a", "--prompt-lookup", "3"), "--draft and"),
    (("--regex", "(a"), r"a \( without its"), (("--prompt-lookup", "0"), "PromptLookup: tokens=0"),
    (("--num-beams", "0"), "num_beams=0, expected a whole number of at least 1"),
])
def test_wrong_options_are_named(folder, capsys, options, words):
    assert main(["generate", "--model", str(folder), "--prompt", "a", *options]) == 3
    assert re.search(words, capsys.readouterr().err)
