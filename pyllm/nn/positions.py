"""Where a token stands: position ids from segments or the cache; what stands in for positions in scores and embeddings."""
import math

import numpy as np


def positions(tokens, segments=None, cache=None, limit=None):
    """tokens:(B, T) -> int32 (B, T), 0 at each document's first token; behind the cached ones with a cache.

    segments: (B, T) int32, 0 = padding, k = k-th document of the row. limit: positions there are; ValueError beyond it.
    """
    b, t = tokens.shape
    if segments is None:
        at = np.arange(t, dtype=np.int32)[None] + (np.zeros((b, 1), np.int32) if cache is None else cache.starts[:, None].astype(np.int32))
    else:
        index = np.arange(t, dtype=np.int32)[None]
        fresh = np.ones((b, t), bool)
        fresh[:, 1:] = segments[:, 1:] != segments[:, :-1]
        at = index - np.maximum.accumulate(np.where(fresh, index, 0), axis=1)
    if limit is not None and at.size and at.max() >= limit:
        raise ValueError(f"position {at.max()} is beyond the context: the model has {limit} positions. "
                         "Hint: shorten the text or the batch's rows")
    return np.ascontiguousarray(at, np.int32)


def distances(queries, keys, starts):
    """starts:(S,) key index of the first query -> (S, queries, keys): key index - query index."""
    return np.arange(keys) - (np.asarray(starts)[:, None, None] + np.arange(queries)[None, :, None])


def relative_buckets(distance, bidirectional, buckets=32, farthest=128):
    """distance: key index - query index, any shape -> int32 bucket numbers. Raffel et al. 2020, section 2.1.

    Half of the buckets are one distance each, the others grow logarithmically up to `farthest`, beyond which all share the last one.
    bidirectional: the upper half of the numbers is for keys behind the query; else those count as distance 0, and all are for the past.
    """
    distance = np.asarray(distance)
    side = 0
    if bidirectional:
        buckets //= 2
        side = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # in float32, like the models' own: 16, 32, 64 lie on borders between buckets
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    far = np.minimum(exact + (ratio * np.float32(buckets - exact)).astype(np.int32), buckets - 1)
    return (side + np.where(distance < exact, distance, far)).astype(np.int32)


def alibi_slopes(heads):
    """-> (H,) float32: 2^(-8 i / H) for powers of two, filled up from the next one otherwise. Press et al. 2022."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(slopes, np.float32)


def alibi(heads, queries, keys, starts, causal=True):
    """starts:(S,) key index of the first query -> (S, H, queries, keys) float32: what is added to the scores of keys further away.

    Without causal, of those behind the query too.
    """
    distance = distances(queries, keys, starts)
    away = np.minimum(distance, 0) if causal else -np.abs(distance)
    return alibi_slopes(heads)[:, None, None] * away[:, None].astype(np.float32)


def sinusoids(rows, channels):
    """-> (P, C) float32: sines in the even channels, cosines in the odd ones. Vaswani et al. 2017, section 3.5."""
    angles = np.arange(rows)[:, None] * 10000.0 ** (-np.arange(0, channels, 2) / channels)
    table = np.empty((rows, channels), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles[:, : channels // 2])
    return table
