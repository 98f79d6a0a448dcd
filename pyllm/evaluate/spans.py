"""Answers as spans of a text, of any length: a window at a time."""
import numpy as np

from pyllm.autograd import no_grad
from pyllm.progress import Progress

LONGEST = 30  # tokens of an answer


def find_spans(model, tokenizer, examples, *, batch=16, length=384, stride=128):
    """examples: dicts with question and context -> for each (text or "", score of the best span, score of no answer).

    The context is read in windows of `length` tokens, question included, each `stride` tokens behind the one before. A span's score is
    the sum of its first and last token's logits; no answer is what points at the first token twice, of its scores the least over the
    windows counts, as in SQuAD 2.0's baselines. A span has at most 30 tokens.
    """
    windows, owners, places = [], [], []
    for i, example in enumerate(examples):
        ids, types, spans = tokenizer.encode_pair(example["question"], example["context"])
        inside = [k for k, (kind, (a, b)) in enumerate(zip(types, spans.tolist())) if kind == 1 and a < b]
        begin, end = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
        room = length - (len(ids) - (end - begin))
        if room < 1:
            raise ValueError(f"find_spans: the question {example['question']!r:.60} leaves no room for a context in {length} tokens")
        for at in range(begin, max(end, begin + 1), min(stride, room)):
            part = slice(at, min(at + room, end))
            windows.append(([*ids[:begin], *ids[part], *ids[end:]], [*types[:begin], *types[part], *types[end:]]))
            owners.append(i)
            places.append((begin, spans[part]))
            if part.stop >= end:
                break
    best, none = [(-np.inf, 0, 0)] * len(examples), [np.inf] * len(examples)
    order = sorted(range(len(windows)), key=lambda k: -len(windows[k][0]))
    with no_grad(), Progress(len(windows), "answer", "window") as bar:
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            tokens, types, segments = np.zeros((3, len(part), max(len(windows[k][0]) for k in part)), np.int32)
            for row, k in enumerate(part):
                n = len(windows[k][0])
                tokens[row, :n], types[row, :n], segments[row, :n] = *windows[k], 1
            for scores, k in zip(model(tokens, segments, types=types).data.astype(np.float64), part):
                begin, spans = places[k]
                none[owners[k]] = min(none[owners[k]], float(scores[0].sum()))
                best[owners[k]] = max(best[owners[k]], _best(scores[begin : begin + len(spans)], spans))
            bar.update(len(part))
    return [(example["context"][first:last] if score > without else "", score, without)
            for example, (score, first, last), without in zip(examples, best, none)]


def _best(scores, spans):
    """scores: (n, 2) spans: (n, 2) characters -> (the best sum, its first character, the one behind its last)."""
    if not len(spans):
        return -np.inf, 0, 0
    sums = scores[:, None, 0] + scores[None, :, 1]
    behind = np.arange(len(spans)) - np.arange(len(spans))[:, None]
    sums[(behind < 0) | (behind >= LONGEST)] = -np.inf
    first, last = np.unravel_index(sums.argmax(), sums.shape)
    return float(sums[first, last]), int(spans[first, 0]), int(spans[last, 1])
