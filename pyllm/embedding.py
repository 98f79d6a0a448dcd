"""embed: texts -> vectors."""
import warnings

import numpy as np

from pyllm.autograd import no_grad
from pyllm.errors import ConfigError
from pyllm.models.base import trunk_of
from pyllm.models.seq2seq import Pair

POOLINGS = ("mean", "cls", "last")
TOKENS = 4096  # of a batch, padding included


def embed(model, tokenizer, texts, *, pooling=None, normalize=True, limit=None, done=None):
    """texts: a list of str, or of rows of ids with tokenizer None -> (N, C) float32, a vector a text; hidden states pooled, an
    encoder-decoder's of its encoder.

    pooling: mean over the tokens, the first one (cls) or the last one; None: what the model's folder says, or else mean. normalize: vectors
    of length 1. limit: tokens of a text that are read; None: what the folder says, or else the context; of a longer one, which a warning
    counts, the beginning and its last token, which ends it. The tokenizer's own truncation is not asked. done: called with the number of
    texts after each batch. A text's vector does not depend on the others. ValueError: no texts, or a text without tokens.
    """
    trunk = trunk_of(model)
    states = trunk.encode if isinstance(trunk, Pair) else trunk
    pooling = pooling or model.config.extra.get("pooling", "mean")
    context = model.config.size("context")
    if limit is None:
        limit = min(context, model.config.extra.get("max_seq_length") or context)
    if pooling not in POOLINGS:
        raise ConfigError(f"embed: pooling={pooling!r}; expected one of {', '.join(POOLINGS)}")
    if not 0 < limit <= context:
        raise ConfigError(f"embed: limit={limit}; expected 1 to {context}, the model's context")
    if isinstance(texts, str):
        raise TypeError("embed: texts is a str; expected a list of them")
    encode = None if tokenizer is None else tokenizer.untruncated().encode
    rows = [np.asarray(text if encode is None else encode(text), np.int64) for text in texts]
    empty = [i for i, ids in enumerate(rows) if not ids.size]
    if not rows or empty:
        raise ValueError(f"embed: {f'text {empty[0]} has no tokens' if rows else 'no texts'}; expected at least one")
    if long := sum(len(ids) > limit for ids in rows):
        warnings.warn(f"embed: {long} of {len(rows)} texts have more than {limit} tokens; what follows is not read", stacklevel=2)
    rows = [ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1]) for ids in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    vectors = np.empty((len(rows), model.config.size("width")), np.float32)
    while order:
        length = len(rows[order[-1]])
        part, order = order[-max(1, TOKENS // length) :], order[: -max(1, TOKENS // length)]
        tokens, segments = np.zeros((2, len(part), length), np.int32)
        for row, i in enumerate(part):
            tokens[row, : len(rows[i])], segments[row, : len(rows[i])] = rows[i], 1
        with no_grad():
            vectors[part] = pool(states(tokens, segments).data[:, -length:], segments, pooling)
        if done is not None:
            done(len(part))
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors


def pool(hidden, segments, pooling):
    """hidden:(B, T, C) segments:(B, T), rows padded on the right -> (B, C)."""
    if pooling == "cls":
        return hidden[:, 0]
    counts = (segments > 0).sum(1)
    if pooling == "last":
        return hidden[np.arange(len(hidden)), counts - 1]
    return np.stack([row[:count].mean(0) for row, count in zip(hidden, counts)])
