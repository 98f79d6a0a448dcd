"""Every example runs from files to a printed metric, in a small form, on a few lines of data of the published layout."""
import csv
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
WORDS = ["a", "man", "runs", "dog", "red", "big", "sees", "the", "film", "good"]


def phrases(count, length, seed=0):
    return [" ".join(np.random.default_rng((seed, i)).choice(WORDS, length)) for i in range(count)]


def lines(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def text_generation(folder):
    lines(folder / "input.txt", [f"ROMEO: {text}" for text in phrases(100, 8)])


def translation(folder):
    for stem, count in (("train", 60), ("val", 8), ("test_2016_flickr", 8)):
        texts = phrases(count, 5)
        lines(folder / f"{stem}.en", texts)
        lines(folder / f"{stem}.de", [text.upper() for text in texts])


def summarisation(folder):
    for split, keys in (("dev", ("summary",)), ("test", ("summary1", "summary2", "summary3"))):
        records = [{"dialogue": f"#Person1#: {text}", **dict.fromkeys(keys, text)} for text in phrases(20, 9)]
        lines(folder / f"dialogsum.{split}.jsonl", map(json.dumps, records))


def question_answering(folder):
    with open(folder / "squadv2_samples.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["", "context", "ref_text", "sample"])
        for i, text in enumerate(phrases(20, 12)):
            table.writerow([i, f"Title: T\n\nBackground: {text} {i}.\n\nQ: Which word?\n\nA: {text.split()[3]}\n\nQ: And which?\n\nA:",
                            "Not in background." if i % 2 else f"{text.split()[2]}|{text.split()[5]}", "x"])


    decoder(folder / "decoder", phrases(20, 12))


def decoder(path, texts):
    from pyllm.folders import build, save
    from pyllm.text import ByteLevelBPE

    tokenizer = ByteLevelBPE.train(texts, 300, special_tokens=("<|endoftext|>",))
    config = dict(model_type="gpt2", vocab_size=tokenizer.vocab_size, n_positions=512, n_embd=16, n_layer=2, n_head=2)
    save(build(config, seed=0), tokenizer, path)


def sentiment(folder):
    for split, count in (("train", 40), ("dev", 8), ("test", 8)):
        lines(folder / f"{split}.tsv", [f"{text}\t{i % 2}" for i, text in enumerate(phrases(count, 6))])


def rlhf_sentiment(folder):
    sentiment(folder)


def constitution(folder):
    (folder / "constitutional-ai/prompts").mkdir(parents=True)
    (folder / "hh-rlhf").mkdir()
    (folder / "constitutional-ai/prompts/CritiqueRevisionInstructions.json").write_text(json.dumps({"harmful0": {
        "prompt": ["\n\nCritiqueRequest: What is harmful?\n\nCritique:"], "edit_request": "\n\nRevisionRequest: Rewrite.\n\nRevision:"}}))
    (folder / "constitutional-ai/prompts/RLMadisonInstructions.json").write_text(json.dumps(["\nChoose the kinder one. Options:"]))
    lines(folder / "hh-rlhf/test.jsonl", [json.dumps({key: f"\n\nHuman: {text}?\n\nAssistant: {key}" for key in ("chosen", "rejected")})
                                          for text in phrases(20, 6)])


def peft_compare(folder):
    from pyllm.folders import build, save
    from pyllm.text import WordPiece

    sentiment(folder)
    tokenizer = WordPiece.train(phrases(40, 6), 60)
    config = dict(model_type="bert", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                  num_attention_heads=2, max_position_embeddings=160, architectures=["BertModel"])
    save(build(config, seed=0), tokenizer, folder / "encoder")
    config = dict(model_type="gpt2", vocab_size=tokenizer.vocab_size, n_positions=160, n_embd=16, n_layer=2, n_head=2)
    save(build(config, seed=0), tokenizer, folder / "decoder")
    (folder / "answers.json").write_text(json.dumps([{"prompt": p, "completion": p[:9]} for p in phrases(50, 6)]))


CASES = {text_generation: r"validation: [\d.]+ nats a character", translation: r"BLEU [\d.]+ .*nrefs:1", summarisation: r"rouge1 [\d.]+ \(",
         question_answering: r"the model, threshold .*: exact_match [\d.]+ .*token_f1_answerable [\d.]+ ",
         sentiment: r"accuracy [\d.]+ \(.* on the test",
         rlhf_sentiment: r"\| PPO \| [\d.]+ \(", constitution: r"\| aligned \| [\d.]+ ",
         peft_compare: r"\| adalora \| [\d.]+ \+- 0.000 \| 1 \| [\d.]+ \|"}
ADAPTED = {constitution: "out/adapter/adapter_model.safetensors", rlhf_sentiment: "out/model/model.safetensors", peft_compare: None}


def test_every_example_has_a_case():
    assert {make.__name__ for make in CASES} == {script.stem for script in (ROOT / "examples").glob("*.py")} - {"common"}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_example(make, tmp_path):
    if make is translation:
        pytest.importorskip("sacrebleu")
    data = tmp_path / "data"
    data.mkdir()
    make(data)
    script = ROOT / "examples" / f"{make.__name__}.py"
    command = [sys.executable, str(script), str(data), "--quick", "--out", str(tmp_path / "out")]
    if make is peft_compare:
        command += ["--model", str(data / "encoder"), "--methods", "full,lora,adalora,prompt"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "PYLLM_THREADS": "1"},
                          timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(CASES[make], done.stdout, re.I), done.stdout
    if make is peft_compare:
        command[2:3] = [str(data / "answers.json")]
        again = subprocess.run([*command, "--model", str(data / "decoder"), "--methods", "full,prefix"], capture_output=True, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "PYLLM_THREADS": "1"}, timeout=300, cwd=tmp_path)
        assert re.search(r"loss, nats.*\| prefix \| [\d.]+ ", again.stdout, re.S), again.stdout + again.stderr
    if make is question_answering:
        again = subprocess.run([*command, "--model", str(data / "decoder")], capture_output=True, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "PYLLM_THREADS": "1"}, timeout=300, cwd=tmp_path)
        assert re.search(r"before: exact_match [\d.]+ .*the model: exact_match", again.stdout, re.S), again.stdout + again.stderr
    if (made := ADAPTED.get(make, "out/model.safetensors")) is not None:
        assert (tmp_path / made).is_file()


def test_ppo_of_the_constitution_learns_from_pairs():
    """What --quick does not reach: its random model agrees with itself about nothing."""
    import pyllm
    from pyllm import peft

    here = runpy.run_path(str(ROOT / "examples/constitution.py"))
    model, tokenizer = here["tiny"]()
    pyllm.quantize(model, "q8_0")
    peft.inject(model, peft.LoRA(rank=4), seed=0)
    args = SimpleNamespace(quick=True, seed=0, base="q8_0", reward_epochs=3, reward_lr=1e-2, iterations=2, ppo_batch=4, ppo_lr=1e-3,
                           kl_coef=0.05, tokens=6)
    pairs = [tuple(here["row"](tokenizer, f"one {i}", text) for text in ("one two", "three " * (i % 3 + 1))) for i in range(20)]
    reward, found = here["preference_model"](pairs, args)
    assert found.accuracy == 1 and found.pairs == 3
    before = [p.data.copy() for p in model.parameters() if p.requires_grad]
    here["reinforce"](model, reward, [here["asked"](tokenizer, [("user", f"one {i}")]) for i in range(8)], here["end_of"](tokenizer), args)
    assert any((a != p.data).any() for a, p in zip(before, (p for p in model.parameters() if p.requires_grad)))
