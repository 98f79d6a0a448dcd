"""Learning vocabularies of words' pieces: WordPiece and SentencePiece's BPE (merges), Unigram (EM with pruning). Deterministic; counts are
of 64 bits; beyond `max_memory` bytes the rarest words are forgotten and a warning says so once."""
import math
import warnings
from collections import Counter

import numpy as np

from ..errors import ConfigError
from ..progress import Progress
from .base import checked_specials, checked_texts
from .bpe import learn_merges
from .normalize import normalizer
from .pre_tokenize import pre_tokenizer
from .words import utf8

ENTRY = 400  # bytes that a distinct word takes, here and in learning from it
LONGEST = 16  # characters of a Unigram piece
SMALLEST = 0.5  # expected occurrences below which a piece is dropped


def count_words(texts, parts, max_memory, cut=None):
    """texts: iterable of str; parts: see Tokenizer; cut: str -> list of words, where that is not the pre-tokenizer's work
    -> {word: count} in the order of first occurrence. ValueError for no text."""
    normalize = normalizer(parts["normalizer"]) if parts.get("normalizer") else None
    split = pre_tokenizer(parts["pre_tokenizer"]) if parts.get("pre_tokenizer") else None
    counts, told = Counter(), False
    with Progress(None, "count words", unit="B") as bar:
        for text in checked_texts(texts):
            if "\ud800" <= max(text, default="") and any("\ud800" <= c <= "\udfff" for c in text):
                text = text.encode("utf-8", "replace").decode()
            bar.update(len(text))
            if normalize:
                text = normalize(text, None, True)[0]
            if text:
                counts.update(split([text], None, True)[0] if split else cut(text))
            if len(counts) * ENTRY > max_memory:
                floor = 1
                while len(counts) * ENTRY > max_memory // 2:
                    floor *= 2
                    counts = Counter({word: count for word, count in counts.items() if count >= floor})
                if not told:
                    told = True
                    warnings.warn(f"train: too many distinct words for max_memory={max_memory}: the rarest are forgotten", stacklevel=3)
    if not counts:
        raise ValueError("train: there is no text in `texts`")
    return counts


def alphabet(counts, limit=None, coverage=1.0):
    """-> sorted characters of the words: the `limit` most frequent, or as many as make up `coverage` of the text."""
    chars = Counter()
    for word, count in counts.items():
        for c in word:
            chars[c] += count
    ranked = sorted(chars, key=lambda c: (-chars[c], c))
    wanted, total, kept = coverage * sum(chars.values()), 0, []
    for c in ranked[:limit]:
        if total >= wanted:
            break
        total += chars[c]
        kept.append(c)
    return sorted(kept)


def merged_vocabulary(counts, tokens, ids, vocab_size, min_frequency, prefix=""):
    """counts: {word: count}; tokens: list of str by id, extended; ids: {(character, whether inside a word): id} -> merges."""
    if vocab_size < len(tokens):
        raise ConfigError(f"train: vocab_size is {vocab_size}, expected at least {len(tokens)} for special tokens and characters")
    symbols, lengths = [], []
    for word in counts:
        found = [i for at, c in enumerate(word) if (i := ids.get((c, at > 0 and bool(prefix)))) is not None]
        symbols += found
        lengths.append(len(found))
    symbols, lengths, times = np.array(symbols, np.int32), np.array(lengths, np.int64), np.array(list(counts.values()), np.int64)
    return learn_merges(symbols, lengths, times, tokens, vocab_size, min_frequency, prefix)


def word_piece(texts, vocab_size, special_tokens, min_frequency, parts, prefix, limit, max_memory):
    """-> tokens by id: the special ones, the characters, the characters inside words, then the merges, as BPE learns them."""
    counts = count_words(texts, parts, max_memory)
    tokens, chars = checked_specials(special_tokens), alphabet(counts, limit)
    known = set(chars)
    inside = sorted({c for word in counts for c in word[1:] if c in known})
    for token in (*chars, *(prefix + c for c in inside)):
        if token not in tokens:
            tokens.append(token)
    place = {token: i for i, token in enumerate(tokens)}
    ids = {(c, False): place[c] for c in chars} | {(c, True): place[prefix + c] for c in inside}
    merged_vocabulary(counts, tokens, ids, vocab_size, min_frequency, prefix)
    return tokens


def sentencepiece_bpe(texts, vocab_size, special_tokens, min_frequency, parts, cut, coverage, byte_fallback, max_memory):
    """-> (tokens by id: the special ones, the bytes, the characters, then the merges; merges)."""
    counts = count_words(texts, parts, max_memory, cut)
    tokens = checked_specials(special_tokens) + [f"<0x{b:02X}>" for b in range(256) if byte_fallback]
    chars = alphabet(counts, coverage=coverage)
    tokens += [c for c in chars if c not in set(tokens)]
    place = {token: i for i, token in enumerate(tokens)}
    merges = merged_vocabulary(counts, tokens, {(c, False): place[c] for c in chars}, vocab_size, min_frequency)
    return tokens, merges


# ---- Unigram ------------------------------------------------------------------------------------------------------------


def unigram(texts, vocab_size, special_tokens, parts, loops, seed_size, shrinking, rounds, max_memory):
    """-> list of (piece, log probability), special tokens first with 0, then the most probable first.

    Seeds are the characters and the repeated substrings of words that cannot be made longer without becoming rarer; then EM, and in
    turns the pieces whose loss costs the likelihood least are dropped, down to 1.1 times what is wanted.
    """
    counts = count_words(texts, parts, max_memory)
    words, times = list(counts), np.array(list(counts.values()), np.int64)
    specials, chars = checked_specials(special_tokens), alphabet(counts)
    wanted = vocab_size - len(specials)
    if wanted < len(chars):
        raise ConfigError(f"train: vocab_size is {vocab_size}, expected at least {len(specials) + len(chars)} for special tokens and "
                          "characters")
    pieces = seeds(words, times, seed_size)
    text, lengths = b"".join(map(utf8, words)), np.array([len(utf8(word)) for word in words], np.int64)
    with Progress(None, "learn pieces", unit="round") as bar:
        while True:
            for _ in range(rounds):
                expected = np.zeros(len(pieces) + 1)
                lattice(pieces, loops).expect(text, lengths, times, expected)
                kept = [(piece, n) for (piece, _), n in zip(pieces, expected.tolist()) if n >= SMALLEST]
                whole = digamma(sum(n for _, n in kept))
                pieces = [(piece, digamma(n) - whole) for piece, n in kept]
                bar.update(1)
            if len(pieces) <= wanted * 11 // 10:
                break
            pieces = pruned(pieces, words, times.tolist(), loops, max(wanted * 11 // 10, int(len(pieces) * shrinking)))
    scores, worst = dict(pieces), min(score for _, score in pieces)
    missing = [c for c in chars if c not in scores]  # a character stays, whatever it is worth
    required = {c: scores.get(c, worst) for c in chars} | {c: worst - 1e-4 * i for i, c in enumerate(missing)}
    rest = sorted(((piece, score) for piece, score in pieces if piece not in required and piece not in specials),
                  key=lambda item: (-item[1], item[0]))
    found = [*((c, score) for c, score in required.items() if c not in specials), *rest[:wanted - len(required)]]
    return [(token, 0.0) for token in specials] + sorted(found, key=lambda item: (-item[1], item[0]))


def lattice(pieces, loops):
    scores = np.array([score for _, score in pieces])
    ids = np.arange(len(pieces), dtype=np.int32)
    return loops.Lattice([utf8(piece) for piece, _ in pieces], ids, scores, len(pieces), scores.min() - 10)


def seeds(words, times, most):
    """words: list of N str; times: (N,) int64 -> list of at most `most` (substring, log probability), all characters among them."""
    flat = np.frombuffer("\0".join([*words, ""]).encode("utf-32-le"), np.uint32).astype(np.int64) + 1
    sizes = np.array([len(word) + 1 for word in words])
    weight = np.repeat(times, sizes)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(flat)) - 1  # characters from here to the end of the word
    rank = flat.copy()
    for step in (1, 2, 4, 8):  # order of all suffixes by their first LONGEST characters
        key = rank * (rank.max() + 1) + np.append(rank[step:], np.zeros(min(step, len(rank)), np.int64))[:len(rank)]
        rank = np.unique(key, return_inverse=True)[1]
    order = np.argsort(rank, kind="stable")
    common, same = np.zeros(len(order), np.int64), np.ones(len(order), bool)  # characters shared with the suffix before
    same[0] = False
    before = np.append(order[:1], order[:-1])
    for k in range(LONGEST):
        same &= (left[order] > k) & (left[before] > k)
        at = np.minimum(order + k, len(flat) - 1), np.minimum(before + k, len(flat) - 1)
        same &= flat[at[0]] == flat[at[1]]
        common += same
    found = []
    for length in range(2, LONGEST + 1):
        starts = np.flatnonzero(common < length)
        ends = np.append(starts[1:], len(order))
        branches = np.add.reduceat((common == length) if length < LONGEST else common >= length, starts)
        several = np.flatnonzero((ends - starts >= 2) & (branches > 0))
        totals = np.add.reduceat(weight[order], starts)[several]
        found += [(int(n) * length, length, int(order[starts[g]])) for n, g in zip(totals, several)]
    text = "".join(map(chr, (flat - 1).tolist()))
    ranked = sorted(((-score, text[at:at + length]) for score, length, at in found))
    chars = Counter()
    for word, count in zip(words, times.tolist()):
        for c in word:
            chars[c] += count
    chosen = [(c, chars[c]) for c in sorted(chars)] + [(piece, -score) for score, piece in ranked[:max(most - len(chars), 0)]]
    total = math.log(sum(n for _, n in chosen))
    return [(piece, math.log(n) - total) for piece, n in chosen]


def pruned(pieces, words, times, loops, size):
    """-> the `size` pieces whose loss would cost the likelihood most, and all that nothing can stand for."""
    model = lattice(pieces, loops)
    used = [0] * (len(pieces) + 1)
    for word, count in zip(words, times):
        for i in model.best(utf8(word))[0]:
            used[i] += count
    total, every = sum(used), sum(times)
    kept, candidates = [], []
    for i, (piece, score) in enumerate(pieces):
        other = model.best(utf8(piece), False) if len(piece) > 1 else None
        if other is None or len(pieces) in other[0]:
            kept.append((piece, score))
            continue
        if not used[i] or sum(pieces[k][1] for k in other[0]) >= score:
            continue
        after = math.log(total + used[i] * (len(other[0]) - 1))
        loss = used[i] / every * (math.log(used[i] / total) - sum(math.log(used[k] + used[i]) - after for k in other[0]))
        candidates.append((-loss, piece, score))
    candidates.sort()
    return kept + [(piece, score) for _, piece, score in candidates[:max(size - len(kept), 0)]]


def digamma(x):
    """The derivative of log gamma, x > 0: recurrence up to 7, then the asymptotic series at x - 1/2."""
    total = 0.0
    while x < 7:
        total -= 1 / x
        x += 1
    x -= 0.5
    y = 1 / (x * x)
    return total + math.log(x) + y / 24 - 7 / 960 * y**2 + 31 / 8064 * y**3 - 127 / 30720 * y**4
