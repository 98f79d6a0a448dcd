"""Corruptions: a row of ids and randomness -> what a model reads and what it is to tell. Pure functions over NumPy arrays.

Randomness is a numpy Generator, so the same key gives the same row. From what is read and what is told the original can be put together
again, but for BART's, where the original itself is told.
"""
import numpy as np

from pyllm.data.batch import IGNORED


def mask_tokens(ids, rng, mask, ordinary, words=None, rate=0.15):
    """ids (n,) -> tokens (n,), targets (n,): a share of the tokens is to be told, IGNORED elsewhere (Devlin et al. 2019).

    Of those that are chosen 80 % become `mask`, 10 % a token of `ordinary` (ids that random ones are drawn from), 10 % stay. words (n,):
    to which word each token belongs, negative for special tokens, which are never chosen; whole words are chosen then, each of their
    tokens has its own fate. None: every token is a word. round(rate * tokens) are chosen, at least one where there is any; with words, as
    many as fit.
    """
    ids = np.asarray(ids, np.int32)
    words = np.arange(len(ids)) if words is None else np.asarray(words)
    able = np.flatnonzero(words >= 0)
    budget = max(1, round(rate * len(able)))
    names, sizes = np.unique(words[able], return_counts=True)
    order, picked, room = rng.permutation(len(names)), [], budget
    for i in order:
        if sizes[i] <= room:  # a word that does not fit is passed over, shorter ones may still
            picked.append(i)
            room -= sizes[i]
    picked = names[picked if picked else order[:1]]
    chosen = (words >= 0) & np.isin(words, picked)
    targets = np.where(chosen, ids, IGNORED).astype(np.int32)
    fate = rng.random(len(ids))
    tokens = np.where(chosen & (fate < 0.8), np.int32(mask), ids)
    replaced = chosen & (fate >= 0.8) & (fate < 0.9)
    tokens[replaced] = rng.choice(ordinary, np.count_nonzero(replaced))
    return tokens, targets


# ---- spans, as T5 has them

def span_counts(n, density=0.15, mean=3.0):
    """-> (how many of n tokens are noise, in how many spans), as T5's code rounds them."""
    noise = min(max(round(n * density), 1), max(n - 1, 1))
    return noise, min(max(round(noise / mean), 1), max(n - noise, 1))


def span_lengths(n, density=0.15, mean=3.0):
    """-> how long the two sides of corrupt_spans are for n tokens."""
    noise, spans = span_counts(n, density, mean)
    return n - noise + spans, noise + spans + 1


def corrupt_spans(ids, rng, sentinels, density=0.15, mean=3.0):
    """ids (n,) -> inputs, outputs: spans give way to one sentinel each; the outputs tell them, each behind its sentinel, and end with the
    next one (Raffel et al. 2020).

    sentinels: ids in the order they are used, <extra_id_0> first. No two spans touch; the row begins with what is kept and ends with a
    span, as in T5's code.
    """
    ids = np.asarray(ids, np.int32)
    noise, spans = span_counts(len(ids), density, mean)
    if spans >= len(sentinels):
        raise ValueError(f"corrupt_spans: {spans} spans in {len(ids)} tokens, and the one that ends the outputs; there are only "
                         f"{len(sentinels)} sentinels. Hint: shorter rows, or a tokenizer with more of them")
    edges = np.cumsum(np.stack([_parts(len(ids) - noise, spans, rng), _parts(noise, spans, rng)], 1).reshape(-1))
    pieces = np.split(ids, edges[:-1])
    marks = [np.array([s], np.int32) for s in sentinels[: spans + 1]]
    inputs = [a for pair in zip(pieces[::2], marks) for a in pair]
    outputs = [a for pair in zip(marks, pieces[1::2]) for a in pair]
    return np.concatenate(inputs), np.concatenate([*outputs, marks[-1]])


def _parts(total, parts, rng):
    """-> lengths of so many parts of a whole, each at least 1 (0 where the whole is), every way to cut it equally likely."""
    cuts = np.sort(rng.permutation(max(total - 1, 0))[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


# (mode, mean length of a span, share that is noise); no mean: the end of the row is one span
DENOISERS = (("R", 3, 0.15), ("R", 8, 0.15), ("S", None, 0.25), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5))


def denoise(ids, rng, sentinels, modes):
    """ids (n,) -> inputs, outputs of one of UL2's DENOISERS, drawn evenly (Tay et al. 2022); the inputs begin with its mode's token.

    modes: {"R", "S", "X": id}. S tells the end of the row, a quarter on average, from its beginning.
    """
    mode, mean, density = DENOISERS[rng.integers(len(DENOISERS))]
    if mean is None:
        inputs, outputs = split_prefix(ids, rng, 1 - 2 * density)
    else:
        inputs, outputs = corrupt_spans(ids, rng, sentinels, density, mean)
    return np.concatenate([[modes[mode]], inputs]).astype(np.int32), outputs


def split_prefix(ids, rng, least=0.0):
    """ids (n,) -> prefix, suffix, both of at least one token, the prefix at least the share `least`; the place is drawn evenly."""
    ids = np.asarray(ids, np.int32)
    low = min(max(1, round(least * len(ids))), max(len(ids) - 1, 0))
    return np.split(ids, [rng.integers(low, max(len(ids), low + 1))])


# ---- filling in, as BART and code models have it

def infill(ids, rng, mask, rate=0.3, mean=3.0):
    """ids (n,) -> inputs: spans give way to one `mask` each, their lengths drawn from Poisson(mean), a share `rate` of the tokens in all.

    A span of length 0 puts a mask between two tokens. No two masks touch. What is to be told is ids. Lewis et al. 2020.
    """
    ids, lengths, budget = np.asarray(ids, np.int32), [], -int(-rate * len(ids) // 1)
    while sum(lengths) < budget:
        lengths += [int(rng.poisson(mean))]
    if lengths:
        lengths[-1] -= sum(lengths) - budget  # the last one is cut to what is left
    # As many as there are slots before, between and behind the tokens that stay, and so few that the row does not grow.
    lengths = sorted(lengths, reverse=True)[: min(len(ids) - budget + 1, budget)]
    lengths = np.array(lengths, int)[rng.permutation(len(lengths))]
    slots = np.sort(rng.permutation(len(ids) - lengths.sum() + 1)[: len(lengths)])
    begins = slots + np.cumsum(lengths) - lengths
    keep = np.ones(len(ids), bool)
    for begin, length in zip(begins, lengths):
        keep[begin : begin + length] = False
    return np.insert(ids[keep], slots, np.int32(mask))


def permute_sentences(ids, rng, ends):
    """ids (n,); ends (n,) bool: where a sentence ends -> the sentences in random order."""
    pieces = np.split(np.asarray(ids, np.int32), np.flatnonzero(np.asarray(ends)[:-1]) + 1)
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


def fill_in_middle(ids, rng, prefix, suffix, middle, spm=0.5):
    """ids (n,) -> (n + 3,): two cuts drawn evenly, the middle moved to the end (Bavarian et al. 2022).

    prefix, suffix, middle: ids of the marks. PSM: <prefix> a <suffix> c <middle> b; in the share `spm` SPM, where the middle follows what
    comes before it: <prefix> <suffix> c <middle> a b.
    """
    a, b, c = np.split(np.asarray(ids, np.int32), np.sort(rng.integers(0, len(ids) + 1, 2)))
    if rng.random() < spm:
        return np.concatenate([[prefix, suffix], c, [middle], a, b]).astype(np.int32)
    return np.concatenate([[prefix], a, [suffix], c, [middle], b]).astype(np.int32)
