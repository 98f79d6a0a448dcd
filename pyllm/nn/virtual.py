"""Virtual tokens, learned vectors that stand before a text: prompts among the embeddings, prefixes among keys and values.

A prompt or a prefix is a Module that is called for what it holds and gives None where it holds nothing; `size` says how much. A row of
several documents gets a copy before its first token for each of them, which that document alone sees.
"""
import numpy as np

from pyllm.autograd import Tensor, ops


def size(part):
    """part: a prompt, a prefix, or None -> how many virtual tokens it holds."""
    return 0 if part is None else part.size


def embedded(prompt, x, at, segments, offset=0, ordered=False):
    """x:(B, T, C) at:(B, T) segments:(B, T) or None -> the same with the prompt's columns before them, and how many these are.

    The prompt's positions begin at offset, those of a text go on behind them. ordered: see attended.
    """
    p = size(prompt)
    if not p:
        return x, at, segments, 0
    _directly_behind(segments, ordered)
    ids, their = _copies(p, len(x.data), segments)
    x = ops.concat(ops.embedding(prompt(), ids), x, axis=1)
    at = at if at is None else np.concatenate([ids + offset, at + p], 1).astype(np.int32)
    return x, at, segments if segments is None else np.concatenate([their, segments], 1), ids.shape[1]


def extended(prompt, segments):
    """segments:(B, S) of an encoder's texts -> those of what it gives, the prompt's columns before them."""
    p = size(prompt)
    return np.concatenate([_copies(p, len(segments), segments)[1], segments], 1) if p else segments


def attended(prefix, k, v, segments, ordered):
    """k, v:(B, S, H, D) -> those of the prefix, (P, H, D), before them, and segments as a pair.

    ordered: the distance to the prefix counts; ValueError then where a row's text does not stand directly behind it.
    """
    mine, theirs = segments if isinstance(segments, tuple) else (segments, segments)
    _directly_behind(theirs, ordered)
    (b, _, h, d), (keys, values) = k.shape, prefix()
    ids, before = _copies(len(keys), b, theirs)
    k, v = (ops.concat(ops.embedding(t.reshape(len(keys), h * d), ids).reshape(*ids.shape, h, d), x, axis=1)
            for t, x in ((keys, k), (values, v)))
    return k, v, theirs if theirs is None else (mine, np.concatenate([before, theirs], 1))


def begin(cache, prefixes, prompt, run):
    """Writes what stands before every text into a cache, once in its life: prefixes, one a layer, and behind them a prompt.

    run(x, at) takes the prompt's vectors, x:(B, P, C), at positions at:(B, P), through the layers over the cache.
    """
    if cache is None or cache.ahead or not size(prefixes[0]) + size(prompt):
        return
    if cache.lengths.any():
        raise ValueError("virtual tokens were switched on before a text that the cache holds already. Hint: a new cache")
    rows = len(cache.lengths)
    if size(prefixes[0]):
        for layer, prefix in enumerate(prefixes):
            cache.append(layer, *(np.broadcast_to(t.data, (rows, *t.shape)) for t in prefix()))
        cache.lead(prefixes[0].size)
    if size(prompt):
        x = np.ascontiguousarray(np.broadcast_to(prompt().data, (rows, *prompt().shape)))
        run(Tensor(x), np.tile(cache.ahead + np.arange(prompt.size, dtype=np.int32), (rows, 1)))
        cache.lead(prompt.size)


def _directly_behind(segments, ordered):
    """ValueError where distances count and a row's text does not stand directly behind its virtual tokens."""
    if ordered and segments is not None and ((segments > 1).any() or (segments[:, 0] == 0).any()):
        raise ValueError("virtual tokens before layers with a window or relative positions take one document a row, padded on the right")


def _copies(p, rows, segments):
    """-> ids:(B, n P) int32 of virtual tokens and their segments, n the largest number of documents in a row."""
    n = 1 if segments is None else max(1, int(segments.max(initial=1)))
    ids = np.tile(np.arange(p, dtype=np.int32), (rows, n))
    return ids, np.broadcast_to(np.repeat(np.arange(1, n + 1, dtype=np.int32), p), ids.shape)
