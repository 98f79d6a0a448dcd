"""Metrics of text: likelihood, answers as SQuAD counts them, ROUGE; BLEU, chrF and TER from sacrebleu (extra `eval`)."""
import math
import re
import string
from collections import Counter

import numpy as np

from pyllm.evaluate.metrics import bootstrap, mean, proportion


# ---- likelihood

def perplexity(nll, tokens, *, seed=0):
    """nll: (N,) nats of N documents; tokens: (N,) targets in each -> Score: e^(nats a token)."""
    return bootstrap("perplexity", np.stack([nll, tokens], 1), lambda s: np.exp(s[..., 0] / s[..., 1]), seed=seed)


def bits_per_byte(nll, sizes, *, seed=0):
    """nll: (N,) nats of N documents; sizes: (N,) bytes of their text -> Score, comparable between tokenizers."""
    return bootstrap("bits_per_byte", np.stack([nll, sizes], 1), lambda s: s[..., 0] / s[..., 1] / math.log(2), seed=seed)


# ---- answers

def normalized(text):
    """-> the text as SQuAD compares it: lower case, without punctuation and articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(predictions, references):
    """(N,) texts; references: for each a text or several -> Score: the share that equals one of them, normalized (SQuAD, 2016)."""
    return proportion("exact_match", [max(float(normalized(p) == normalized(r)) for r in several) for p, several in
                                      _paired("exact_match", predictions, references)], "norm:squad")


def token_f1(predictions, references, *, seed=0):
    """(N,) texts; references: for each a text or several -> Score: the mean of the best F1 of words in common.

    As SQuAD 2.0 has it: where either side has no words, 1 if both have none, else 0.
    """
    values = [best_f1(p, several) for p, several in _paired("token_f1", predictions, references)]
    return mean("token_f1", values, "norm:squad", seed=seed)


def best_f1(prediction, references):
    """A text, right ones -> the largest F1 of words in common with one of them."""
    return max(_words_f1(prediction, r) for r in references)


def _words_f1(prediction, reference):
    a, b = normalized(prediction).split(), normalized(reference).split()
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def _paired(name, predictions, references):
    """-> pairs of a prediction and a list of references; ValueError unless there is at least one reference for each."""
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"{name}: {len(predictions)} predictions for {len(references)} references; expected as many, at least one")
    references = [[several] if isinstance(several, str) else list(several) for several in references]
    if (bad := next((i for i, several in enumerate(references) if not several), None)) is not None:
        raise ValueError(f"{name}: references[{bad}] is empty; expected at least one text (\"\" for a question without an answer)")
    return list(zip(predictions, references))


# ---- summaries

def rouge(predictions, references, kinds=("1", "2", "L"), *, seed=0):
    """(N,) texts; references: for each a text or several -> {"rouge1", "rouge2", "rougeL"} of Score: the mean F1 of the best reference.

    Overlap of words, of pairs of words, and the longest common subsequence of words (Lin 2004). Words are runs of a to z and 0 to 9 in
    lower case, without stemming, as in the rouge-score package.
    """
    pairs = [(_rouge_words(p), [_rouge_words(r) for r in several]) for p, several in _paired("rouge", predictions, references)]
    overlap = {"1": lambda a, b: _common_grams(a, b, 1), "2": lambda a, b: _common_grams(a, b, 2),
               "L": lambda a, b: (common_subsequence(a, b), len(a), len(b))}
    if unknown := set(kinds) - overlap.keys():
        raise ValueError(f"rouge: kinds {sorted(unknown)}; expected {', '.join(overlap)}")
    found = {}
    for kind in kinds:
        each = [max(2 * hits / (n + m) if hits else 0.0 for hits, n, m in (overlap[kind](words, r) for r in several))
                for words, several in pairs]
        found[f"rouge{kind}"] = mean(f"rouge{kind}", each, "f1|stem:no", seed=seed)
    return found


def _rouge_words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def _common_grams(a, b, n):
    """-> (n-grams in common, those of a, those of b)."""
    a, b = (Counter(zip(*(words[i:] for i in range(n)))) for words in (a, b))
    return (a & b).total(), a.total(), b.total()


def common_subsequence(a, b):
    """-> length of the longest common subsequence; a row of the table is the bits of one whole number (Hyyro 2004)."""
    places = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = full = (1 << len(a)) - 1
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(a) - row.bit_count()


# ---- translations

def bleu(predictions, references, *, seed=0):
    """(N,) texts; references: for each a text or several, as many for all -> Score 0 to 100: corpus BLEU of sacrebleu's defaults."""
    return _sacrebleu("bleu", "BLEU", predictions, references, seed)


def chrf(predictions, references, *, seed=0):
    """As bleu -> Score 0 to 100: chrF2, F of character 6-grams (Popovic 2015)."""
    return _sacrebleu("chrf", "CHRF", predictions, references, seed)


def ter(predictions, references, *, seed=0):
    """As bleu -> Score from 0, less is better: edits in percent of the reference's words (Snover et al. 2006)."""
    return _sacrebleu("ter", "TER", predictions, references, seed)


def _sacrebleu(name, kind, predictions, references, seed):
    try:
        from sacrebleu import metrics
    except ImportError:
        raise ValueError(f"{name}: sacrebleu is not installed. Hint: pip install \"pyllm[eval]\"") from None
    pairs = _paired(name, predictions, references)
    if len(sizes := {len(several) for _, several in pairs}) > 1:
        raise ValueError(f"{name}: {min(sizes)} to {max(sizes)} references; expected as many for every prediction")
    metric, columns = getattr(metrics, kind)(), list(zip(*(several for _, several in pairs)))
    name = metric.corpus_score(list(predictions), columns).name  # and what the signature tells is set
    # Its counts of each sentence, and the score of their sums: the interval is ours, so that no environment variable seeds it.
    statistics = np.array(metric._extract_corpus_statistics(list(predictions), columns))

    def value(sums):
        scores = [metric._compute_score_from_stats(row.tolist() if kind == "TER" else row.astype(int).tolist()).score
                  for row in np.atleast_2d(sums)]
        return np.array(scores) if np.ndim(sums) > 1 else scores[0]

    return bootstrap(name, statistics, value, str(metric.get_signature()), seed=seed)
