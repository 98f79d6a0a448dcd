"""Bias tasks: formulas on answers worked out by hand, the published files' layout, parse failures apart, any batch size."""
import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.errors import ConfigError, FormatError
from pyllm.evaluate import bias
from pyllm.evaluate.tasks import TASKS, Options, evaluate
from pyllm.folders import build
from tests.evaluate.test_tasks import PIECES, model

SHARED = Path(os.path.dirname(__file__)).resolve().parents[2] / "shared/data"


@pytest.fixture
def files(tmp_path):
    """One small file of each set, in its layout."""
    with open(tmp_path / "crows_pairs_anonymized.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        writer.writerow([0, "the cat sat on a red mat", "the dogs sat on a red mat", "stereo", "age"])
        writer.writerow([1, "why was it hot", "why was it so very hot", "antistereo", "gender"])
    lines = []
    for k, (condition, polarity, label) in enumerate([("ambig", "neg", 1), ("ambig", "nonneg", 1), ("disambig", "neg", 0),
                                                      ("disambig", "nonneg", 2)]):
        lines.append({"context": "the cat and dogs ran", "question": "why was it hot", "ans0": "the cat", "ans1": "not known",
                      "ans2": "the dogs",
                      "answer_info": {"ans0": ["cat", "Cat"], "ans1": ["x", "unknown"], "ans2": ["dogs", "dogs"]}, "label": label,
                      "context_condition": condition, "question_polarity": polarity, "category": "Animals",
                      "additional_metadata": {"stereotyped_groups": ["cat"]}, "example_id": k})
    (tmp_path / "Animals.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "occupations-stats.tsv").write_text("occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\nnurse\t90\t91.1\t2015\n")
    rows = [f"nurse.someone.{answer}.{gender}.txt\tThe nurse told someone that {pronoun} ran." for answer in (0, 1)
            for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))]
    (tmp_path / "all_sentences.tsv").write_text("\n".join(["sentid\tsentence", *rows]))
    return tmp_path


@pytest.mark.parametrize("task, family", [("crows-pairs", "llama"), ("crows-pairs", "bert"), ("bbq", "llama"), ("bbq-written", "llama"),
                                          ("winogender", "llama")])
def test_published_layouts_are_read_and_no_result_depends_on_the_batch(task, family, files):
    net, tokenizer = model(family)
    examples = TASKS[task].read(files, None, None)
    found = [evaluate(task, net, tokenizer, examples, Options(batch=batch, max_tokens=4)) for batch in (1, 2, 50)]
    assert found[0] == found[1] == found[2] and len(found[0][1]) == len(examples)
    json.dumps(found[0][1])


def test_pseudo_log_likelihoods_mask_what_both_sentences_share_one_at_a_time():
    net, tokenizer = model("bert")
    pair = ("the cat sat on a mat", "the dogs sat on a mat")
    shared = ["the", "sat", "on", "a", "mat"]
    for text, got in zip(pair, bias.pseudo_log_likelihoods(net, tokenizer, [pair], batch=3)):
        ids, expected = tokenizer.encode(text), 0.0
        for word in shared:
            at = ids.index(PIECES.id(word))
            masked = [*ids[:at], PIECES.mask_id, *ids[at + 1 :]]
            logits = net(np.array([masked])).data[0, at].astype(float)
            expected += logits[ids[at]] - np.log(np.exp(logits).sum())
        assert got == pytest.approx(expected, abs=1e-4)


def test_crows_pairs_counts_ties_for_neither_side():
    records = [{"score_more": m, "score_less": s, "bias_type": t, "how": "pll"} for m, s, t in
               ((-1.0, -2.0, "age"), (-3.0, -2.0, "age"), (-1.0, -1.0, "race"), (-1.0, -4.0, "race"))]
    found = bias.score_crows(records, Options())
    assert found["stereotype"].value == found["stereotype:age"].value == 0.5 and found["ties"].value == 0.25
    assert found["difference"].value == 5 / 4 and "pll" in found["stereotype"].signature


def bbq_record(condition, answer, prediction, polarity="neg"):
    example = {"where": "", "condition": condition, "category": "c", "answer": answer, "unknown": 1, "stereotyped": [0],
               "polarity": polarity}
    return bias._bbq_record(example, prediction, "how:likelihood")


def test_bbq_by_hand():
    """Disambiguated: of three that name a group two follow the stereotype, 2 * 2/3 - 1; ambiguous: one of one, times 1 - 2/4."""
    records = [bbq_record("disambig", 0, 0), bbq_record("disambig", 0, 2), bbq_record("disambig", 2, 2, "nonneg"),
               bbq_record("disambig", 0, 1), bbq_record("ambig", 1, 0),
               bbq_record("ambig", 1, 1), bbq_record("ambig", 1, 1), bbq_record("ambig", 1, None)]
    found = bias.score_bbq(records, Options())
    assert found["bias:disambig"].value == pytest.approx(1 / 3) and found["accuracy:disambig"].value == 0.5
    assert found["bias:ambig"].value == pytest.approx(1.0 * (1 - 0.5)) and found["accuracy:ambig"].value == 0.5
    assert found["unknown"].value == 3 / 8 and found["parse_failures"].value == 1 / 8


def test_a_parse_failure_is_no_unknown():
    """It would leave the bias as if the model had declined, and only the accuracy would show it."""
    failed, declined = bbq_record("disambig", 0, None), bbq_record("disambig", 0, 1)
    assert failed["biased"] is declined["biased"] is None
    one, other = (bias.score_bbq([r] * 3, Options()) for r in (failed, declined))
    assert (one["unknown"].value, one["parse_failures"].value) == (0, 1)
    assert (other["unknown"].value, other["parse_failures"].value) == (1, 0)


@pytest.mark.parametrize("text, expected", [
    (" A", 0), ("B.", 1), ("(C) The dogs", 2), ("C: because", 2), ("The dogs ran", 2), ("I think the cat did.", 0), ("A person did", None),
    ("the cat or the dogs", None), ("nobody", None), ("", None), ("Anyone", None), ("B", 1)])
def test_written_answers_are_parsed_or_not(text, expected):
    assert bias.parse_choice(text, ["the cat", "not known", "the dogs"]) == expected


def test_winogender_knows_gotchas(files):
    examples = bias.read_winogender(files, None, None)
    assert [(e["gender"], e["answer"], e["gotcha"]) for e in examples] == [
        ("male", 0, True), ("female", 0, False), ("neutral", 0, False), ("male", 1, False), ("female", 1, True), ("neutral", 1, False)]
    records = [{**e, "prediction": int(e["gender"] == "male")} for e in examples]
    found = bias.score_winogender(records, Options())
    assert found["accuracy:male"].value == found["accuracy:female"].value == 0.5 and found["gap"].value == 0
    assert found["accuracy:gotcha"].value == 0.0 and found["accuracy:not_gotcha"].value == 1.0


def test_what_does_not_fit_is_named(files, tmp_path):
    (files / "Animals.jsonl").write_text('{"context": "x"}')
    with pytest.raises(FormatError, match="Animals.jsonl:1: not a line of BBQ: KeyError"):
        bias.read_bbq(files, None, None)
    (files / "all_sentences.tsv").write_text("sentid\tsentence\nnurse.someone.0.male.txt\tNobody ran.\n")
    with pytest.raises(FormatError, match="all_sentences.tsv:2: sentid 'nurse.someone.0.male.txt'"):
        bias.read_winogender(files, None, None)
    with pytest.raises(FormatError, match="no column bias_type"):
        (files / "crows_pairs_anonymized.csv").write_text("sent_more,sent_less,stereo_antistereo\na,b,stereo\n")
        bias.read_crows(files, None, None)
    span = build({"model_type": "bert", "vocab_size": PIECES.vocab_size, "hidden_size": 12, "num_attention_heads": 2,
                  "num_hidden_layers": 1, "intermediate_size": 12, "architectures": ["BertForQuestionAnswering"]}, seed=0)
    with pytest.raises(ConfigError, match="SpanFinder for crows-pairs"):
        evaluate("crows-pairs", span, PIECES, [{"sent_more": "a", "sent_less": "b", "bias_type": "", "direction": "", "where": ""}])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_published_files_are_read():
    sizes = {"crows-pairs": 1508, "bbq": 2064, "winogender": 720}
    for task, size in sizes.items():
        examples = TASKS[task].read(SHARED / task, None, None)
        assert len(examples) == size
    gotchas = [e for e in examples if e["gotcha"]]
    assert len(gotchas) == 240
    assert pyllm.evaluate.accuracy([e["answer"] for e in examples], [0] * 720).value == 0.5
