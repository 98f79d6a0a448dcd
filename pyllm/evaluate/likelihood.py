"""log p of tokens, many rows at a time; a row's numbers do not depend on the others, nor on how many there are."""
import numpy as np

from pyllm.autograd import no_grad, ops
from pyllm.data.batch import IGNORED
from pyllm.models.base import CausalLM
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.progress import Progress


def log_likelihoods(model, rows, *, batch=16, label="likelihood"):
    """rows: (context, continuation) pairs of ids -> for each (len(continuation),) float64: log p of its tokens, nats.

    A causal model reads the context and the continuation as one row; of an encoder-decoder the context is the encoder's. The context
    has at least one token. batch: rows at a time, alike in length. ValueError for a row beyond the model's context.
    """
    rows = [(list(context), list(continuation)) for context, continuation in rows]
    decodes = isinstance(model, EncoderDecoder)
    if not decodes and not isinstance(model, CausalLM):
        raise ValueError(f"log_likelihoods: a {type(model).__name__} predicts no next token; expected a causal model or an encoder-decoder")
    limit = model.config.size("context")
    for i, (context, continuation) in enumerate(rows):
        n = max(len(context), len(continuation)) if decodes else len(context) + len(continuation) - 1
        if not context or not continuation or n > limit and type(model).__name__ != "T5":
            raise ValueError(f"log_likelihoods: row {i} has a context of {len(context)} and a continuation of {len(continuation)} tokens; "
                             f"expected at least one of each, and at most {limit}, the model's context")
    found, order = [None] * len(rows), sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    with no_grad(), Progress(len(rows), label, "row") as bar:
        for begin in range(0, len(order), batch):
            part = order[begin : begin + batch]
            hidden, targets = _decoder(model, [rows[i] for i in part]) if decodes else _causal(model, [rows[i] for i in part])
            log_probs = ops.linear_log_probs(hidden, model.head_weight(), model.head_bias(), targets).data
            for i, row, wanted in zip(part, log_probs, targets):
                found[i] = row[wanted != IGNORED].astype(np.float64)
            bar.update(len(part))
    return found


def _causal(model, rows):
    tokens, segments, targets = _blank(rows, lambda context, continuation: len(context) + len(continuation) - 1)
    for i, (context, continuation) in enumerate(rows):
        n = len(context) + len(continuation) - 1
        tokens[i, :n], segments[i, :n] = [*context, *continuation[:-1]], 1
        targets[i, len(context) - 1 : n] = continuation
    return model.hidden(tokens, segments), targets


def _decoder(model, rows):
    starts = model.config.starts
    tokens, segments, _ = _blank(rows, lambda context, continuation: len(context))
    decoder, decoder_segments, targets = _blank(rows, lambda context, continuation: len(starts) - 1 + len(continuation))
    for i, (context, continuation) in enumerate(rows):
        tokens[i, : len(context)], segments[i, : len(context)] = context, 1
        n = len(starts) - 1 + len(continuation)
        decoder[i, :n], decoder_segments[i, :n] = [*starts, *continuation[:-1]], 1
        targets[i, len(starts) - 1 : n] = continuation
    return model.hidden(tokens, decoder, segments, decoder_segments), targets


def _blank(rows, length):
    """-> tokens, segments and targets (B, T), nothing in them."""
    shape = len(rows), max(length(*row) for row in rows)
    return np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)


def windows(ids, length, stride=0):
    """ids of a long text -> (context, continuation) pairs in which each id but the first is told once, from up to `length` ids before it.

    stride: ids told in a window; the fewer, the more each of them sees, at the price of time. 0: as many as there are.
    """
    stride = min(stride or length, length)
    found = []
    for begin in range(1, len(ids), stride):
        end = min(begin + stride, len(ids))
        found.append((ids[max(0, end - 1 - length) : begin], ids[begin:end]))
    return found
