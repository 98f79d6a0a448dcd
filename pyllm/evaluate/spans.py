"""Answers as spans of a text of any length, a window at a time; whether there is one at all."""
import numpy as np

from pyllm.autograd import no_grad
from pyllm.data import windows
from pyllm.data.render import STRIDE
from pyllm.evaluate.text_metrics import best_f1
from pyllm.progress import Progress

LONGEST = 30  # tokens of an answer


def find_spans(model, tokenizer, examples, *, batch=16, length=384, stride=STRIDE, best=5):
    """examples: dicts with question and context -> for each ([(text, score), ...] of the `best` spans, the best first; of no answer).

    The context is read in windows of `length` tokens, see pyllm.data.windows. A span's score is the sum of its first and last token's
    logits; no answer is what points at the first token twice, of its scores the least over the windows counts, as in SQuAD 2.0's
    baselines. A span has at most 30 tokens.
    """
    parts = [(i, window) for i, example in enumerate(examples) for window in windows(example, tokenizer, length, stride)]
    spans, none = [{} for _ in examples], [np.inf] * len(examples)
    order = sorted(range(len(parts)), key=lambda k: -len(parts[k][1].tokens))
    with no_grad(), Progress(len(parts), "answer", "window") as bar:
        for at in range(0, len(order), batch):
            part = [parts[k] for k in order[at : at + batch]]
            tokens, types, segments = np.zeros((3, len(part), max(len(window.tokens) for _, window in part)), np.int32)
            for row, (_, window) in enumerate(part):
                n = len(window.tokens)
                tokens[row, :n], types[row, :n], segments[row, :n] = window.tokens, window.types, 1
            for scores, (i, window) in zip(model(tokens, segments, types=types).data.astype(np.float64), part):
                none[i] = min(none[i], float(scores[0].sum()))
                for place, score in _best(scores[window.first : window.first + len(window.places)], window.places, best):
                    spans[i][place] = max(score, spans[i].get(place, -np.inf))  # the same span in windows that overlap
            bar.update(len(part))
    ranked = [sorted(found.items(), key=lambda item: (-item[1], item[0]))[:best] for found in spans]
    return [([(example["context"][a:b], score) for (a, b), score in found], without)
            for example, found, without in zip(examples, ranked, none)]


def _best(scores, places, best):
    """scores: (n, 2) places: (n, 2) characters -> [((first character, the one behind the last), sum), ...], the `best` of them."""
    if not len(places):
        return []
    sums = scores[:, None, 0] + scores[None, :, 1]
    behind = np.arange(len(places)) - np.arange(len(places))[:, None]
    sums[(behind < 0) | (behind >= LONGEST)] = -np.inf
    found = [np.unravel_index(k, sums.shape) for k in np.argsort(-sums, axis=None, kind="stable")[:best]]
    return [((int(places[a, 0]), int(places[b, 1])), float(sums[a, b])) for a, b in found if np.isfinite(sums[a, b])]


def best_threshold(records):
    """Records of the task qa -> the no_answer_threshold with the largest token F1 over them, to be used on others.

    By how much no answer may score above the best span which is then still the answer; halfway between two records (SQuAD 2.0's evaluation
    takes the record itself).
    """
    records = sorted(records, key=lambda r: r["no_answer_score"] - r["score"])
    margins = np.array([r["no_answer_score"] - r["score"] for r in records])
    gains = [best_f1(r["n_best"][0]["text"] if r["n_best"] else "", r["references"]) - best_f1("", r["references"]) for r in records]
    ends = [k for k in range(len(records) + 1) if k in (0, len(records)) or margins[k - 1] < margins[k]]
    k = ends[int(np.argmax(np.cumsum([0.0, *gains])[ends]))]
    around = np.array([margins[0] - 2, *margins, margins[-1] + 2])
    return float((around[k] + around[k + 1]) / 2)
