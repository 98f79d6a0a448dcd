"""The same text twice: exactly, but for case, blanks and punctuation; and nearly. Within a set, and between the sets of training and test.

Nearly: the share of common shingles (runs of 3 words) is at least a threshold. Candidates are found by MinHash (Broder 1997) with bands
(Leskovec et al., Mining of Massive Datasets, 3.4) and then compared exactly, so that no pair is reported that is not one.
"""
import hashlib
import re
import unicodedata

import numpy as np

from pyllm.data.loader import _mix, key

SHINGLE = 3  # words
BANDS, ROWS = 20, 4  # of the signature: a pair that has 0.8 of its shingles in common is missed once in 30,000 times
PIECE = 1 << 12  # texts whose signatures are made at a time


def normalise(text):
    """Words in lower case with one blank between: what two texts have to share to count as the same."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def asked_and_said(example, kind):
    """-> (what is given to a model, all of the example), as text: two of a set are the same by all of it, one of training is in the test
    by what is asked."""
    def flat(value):
        return value if isinstance(value, str) else "\n".join(m["content"] for m in value)

    if kind in ("text", "classification"):
        return example["text"], example["text"]
    if kind == "messages":
        turns = example["messages"]
        return flat(turns[:-1] if turns[-1]["role"] == "assistant" else turns), flat(turns)
    if kind == "question":
        asked = f"{example['question']}\n{example['context']}"
        return asked, asked
    asked = flat(example["prompt"])
    return asked, "\n".join([asked, *(flat(example[k]) for k in ("completion", "chosen", "rejected") if k in example)])


def exact_duplicates(texts, base=None):
    """-> [(i, first)] of the texts whose normalised form stood at `first` < i already. base: i counts from there, `first` up to there."""
    seen, found = {}, []
    for i, text in enumerate(texts):
        digest = hashlib.blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in seen and (base is None or i >= base):
            found.append((i, seen[digest]))
        elif base is None or i < base:
            seen.setdefault(digest, i)
    return found


def near_duplicates(texts, threshold=0.8, base=None):
    """-> [(i, other, share)], other < i: for each text the earlier one that is most like it, where their common shingles are at least
    `threshold` of all that either has. Texts with fewer words than a shingle are compared as one. base: as of exact_duplicates."""
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates: threshold is {threshold}, expected a share above 0, at most 1")
    words, buckets = {}, {}
    best = {i: (-1.0, first) for i, first in exact_duplicates(texts, base)}  # many copies would all be candidates of each other
    shingles = [_shingles(text, words) for text in texts]
    for first in range(0, len(shingles), PIECE):
        for i, row in enumerate(_signatures(shingles[first:first + PIECE]), first):
            if i in best:
                continue
            bands, candidates = [(k, row[k * ROWS:(k + 1) * ROWS].tobytes()) for k in range(BANDS)], set()
            if base is None or i >= base:
                for band in bands:
                    candidates.update(buckets.get(band, ()))
            if base is None or i < base:
                for band in bands:
                    buckets.setdefault(band, []).append(i)
            for other in candidates:
                common = len(np.intersect1d(shingles[i], shingles[other], assume_unique=True))
                share = common / (len(shingles[i]) + len(shingles[other]) - common)
                if share >= threshold and (-share, other) < best.get(i, (0, 0)):
                    best[i] = (-share, other)
    return [(i, other, -share) for i, (share, other) in sorted(best.items())]


def _shingles(text, words):
    """The runs of SHINGLE words, each as 64 bits, once; words: {word: number}, which grows."""
    ids = np.array([words.setdefault(w, len(words)) for w in normalise(text).split() or [""]], np.uint64)
    n = max(len(ids) - SHINGLE + 1, 1)
    mixed = np.zeros(n, np.uint64)
    for k in range(min(SHINGLE, len(ids))):
        mixed = _mix(mixed + ids[k:k + n] + np.uint64(1))
    return np.unique(mixed)


def _signatures(shingles):
    """(D, BANDS * ROWS) uint64: the least of each text's shingles in as many random orders."""
    flat, starts = np.concatenate(shingles), np.cumsum([0, *map(len, shingles)])[:-1]
    return np.stack([np.minimum.reduceat(_mix(flat ^ np.uint64(key(17, k))), starts) for k in range(BANDS * ROWS)], 1)


def deduplicate(examples, kind, near=None):
    """-> (examples without those that are, or nearly are, an earlier one; how many were left out). near: None, or a threshold."""
    texts = [asked_and_said(e, kind)[1] for e in examples]
    dropped = {i for i, _ in exact_duplicates(texts)} | {i for i, _, _ in (near_duplicates(texts, near) if near else ())}
    return [e for i, e in enumerate(examples) if i not in dropped], len(dropped)
