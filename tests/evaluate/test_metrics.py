"""Metrics against their definitions, on numbers worked out by hand or by a plain reference; intervals that cover what they should."""
import importlib.util
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm import evaluate as E
from pyllm.evaluate.metrics import proportion
from pyllm.evaluate.text_metrics import common_subsequence, normalized

Y, P = ["a", "a", "b", "b", "b", "c"], ["a", "b", "b", "b", "a", "b"]


def test_classification_by_hand():
    """a: 1 of 2 guesses, 1 of 2 truths; b: 2 of 4, 2 of 3; c: 0 of 0, 0 of 1."""
    assert E.accuracy(P, Y).value == 0.5
    each = np.array([0.5, 2 * 2 / 7, 0])
    assert math.isclose(E.f1(P, Y).value, each.mean()) and math.isclose(E.f1(P, Y, "b").value, each[1])
    assert math.isclose(E.f1(P, Y, "weighted").value, (each * [2, 3, 1]).sum() / 6) and E.f1(P, Y, "micro").value == 0.5
    assert math.isclose(E.matthews(P, Y).value, (3 * 6 - (2 * 2 + 4 * 3)) / math.sqrt((36 - 20) * (36 - 14)))
    assert E.matthews(["a"] * 6, Y).value == 0 and E.matthews(Y, Y).value == 1


def test_a_label_that_is_nowhere_does_not_enter_the_macro_average():
    """Resamples without any c must not count it as 0: all of them are perfect here."""
    score = E.f1(Y, Y)
    assert (score.value, score.low, score.high) == (1, 1, 1)


def test_wilson_stays_inside_and_is_not_empty_at_the_ends():
    for k in (0, 1, 5, 10):
        score = proportion("p", k, count=10)
        assert 0 <= score.low <= score.value <= score.high <= 1 and score.high - score.low > 0.2
    assert math.isclose(proportion("p", 8, count=10).low, 0.4901625, rel_tol=1e-6)  # 0.49016, 0.94332 in the literature
    assert math.isclose(proportion("p", 8, count=10).high, 0.9433178, rel_tol=1e-6)


@pytest.mark.parametrize("make", [lambda x: proportion("p", x > 0.5), lambda x: E.mean("m", x > 0.5)])
def test_intervals_cover_the_truth_as_often_as_they_say(make):
    draw = np.random.default_rng(0)
    found = [make(draw.random(80)) for _ in range(300)]
    share = np.mean([s.low <= 0.5 <= s.high for s in found])
    assert 0.91 <= share <= 0.98


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).random(50)
    assert E.mean("m", values, seed=3) == E.mean("m", values, seed=3) != E.mean("m", values, seed=4)
    assert E.mean("m", values).signature == "m|ci:bootstrap1000-0" and str(E.mean("m", [0.5] * 9)) == "0.5000 (0.5000 to 0.5000)"


def test_calibration_by_hand():
    p, y = np.array([[0.95, 0.05], [0.95, 0.05], [0.3, 0.7], [0.45, 0.55]]), np.array([0, 1, 1, 0])
    found = E.calibration(p, y)
    assert math.isclose(found["ece"].value, (2 * abs(0.95 - 0.5) + abs(0.7 - 1) + abs(0.55 - 0)) / 4)
    assert math.isclose(found["brier"].value, np.mean([2 * 0.05**2, 2 * 0.95**2, 2 * 0.3**2, 2 * 0.55**2]))
    assert E.calibration(np.eye(2)[[0, 1]], [0, 1])["ece"].value == 0


def test_perplexity_and_bits_per_byte_weigh_documents_by_their_length():
    nll, tokens, sizes = np.array([2.0, 9.0]), np.array([2, 3]), np.array([8, 10])
    assert math.isclose(E.perplexity(nll, tokens).value, math.exp(11 / 5))
    assert math.isclose(E.bits_per_byte(nll, sizes).value, 11 / 18 / math.log(2))


def test_answers_as_squad_compares_them():
    assert normalized("The  U.S.A., a\tstory!") == "usa story"
    assert E.exact_match(["The cat.", "dog", ""], [["a cat", "x"], "cat", ""]).value == 2 / 3
    assert math.isclose(E.token_f1(["big black cat"], [["the cat", "a black cat sat"]]).value, 2 * 2 / 6)
    for prediction, reference, expected in (("", "", 1), ("the", "", 1), ("cat", "", 0), ("", "cat", 0)):
        assert E.token_f1([prediction], [reference]).value == expected


def test_rouge_by_hand():
    """police killed the gunman / police kill the gunman: 3 of 4 words, 1 of 3 pairs; Lin 2004, with S2 and S3."""
    reference = "police killed the gunman"
    for text, one, two, longest in (("Police kill the gunman!", 3 / 4, 1 / 3, 3 / 4), ("the gunman kill police", 3 / 4, 1 / 3, 2 / 4)):
        found = E.rouge([text], [reference])
        assert [found[k].value for k in ("rouge1", "rouge2", "rougeL")] == pytest.approx([one, two, longest])
    assert E.rouge(["x"], [["", reference]])["rouge2"].value == 0
    assert E.rouge(["the the the"], ["the cat"], kinds=("1",))["rouge1"].value == pytest.approx(2 / 5)


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abcd"), max_size=7))
def test_the_longest_common_subsequence_is_the_longest(a, b):
    def subsequences(x, n):
        return set(combinations(x, n))

    expected = max(n for n in range(min(len(a), len(b)) + 1) if subsequences(a, n) & subsequences(b, n))
    assert common_subsequence(a, b) == expected


@pytest.mark.parametrize("call, text", [
    (lambda: E.accuracy([1], [1, 2]), r"\(1,\) predictions for \(2,\) labels"), (lambda: E.accuracy([], []), "no examples"),
    (lambda: E.f1([1, 2], [1, 2], 3), r"average=3; expected .* one of the labels \[1, 2\]"),
    (lambda: E.exact_match(["a"], []), "1 predictions for 0 references"), (lambda: E.token_f1(["a"], [[]]), r"references\[0\] is empty"),
    (lambda: E.calibration([[0.5, 0.6]], [0]), "rows that sum to 1.100"), (lambda: E.calibration([[0.5, 0.5]], [2]), "labels 2 to 2"),
    (lambda: E.rouge(["a"], ["a"], kinds=("3",)), r"kinds \['3'\]"),
])
def test_what_does_not_fit_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.skipif(not importlib.util.find_spec("sacrebleu"), reason="needs sacrebleu")
def test_translations_carry_sacrebleus_signature():
    hypotheses, references = ["the cat sat on a mat .", "hello world , I am fine"] * 3, ["the cat is on the mat .", "hello , I am fine"] * 3
    score = E.bleu(hypotheses, references)
    assert score.low <= score.value <= score.high and score.count == 6
    assert score.signature.startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert E.chrf(hypotheses, references).signature.startswith("chrF2|") and E.ter(hypotheses, references).name == "TER"
    assert E.bleu(references, references).value == pytest.approx(100) and E.ter(references, references).value == 0
    with pytest.raises(ValueError, match="1 to 2 references"):
        E.bleu(["a", "b"], [["a"], ["b", "c"]])


def test_metrics_need_no_network(monkeypatch):
    """Nothing is fetched when a metric is first asked for, as by libraries that load their metrics' code."""
    import socket

    def refuse(*_, **__):
        raise AssertionError("a metric asks the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    hypotheses, references = ["the cat sat", "a dog"], ["the cat sat", "the dog"]
    scores = [E.exact_match(hypotheses, references), E.token_f1(hypotheses, references), *E.rouge(hypotheses, references).values()]
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        pass
    else:
        scores += [metric(hypotheses, references) for metric in (E.bleu, E.chrf, E.ter)]
    assert all(np.isfinite(float(score)) for score in scores)
