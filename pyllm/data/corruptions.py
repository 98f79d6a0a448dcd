"""Windows of a token stream -> Batches of corrupted text: what pretraining other than by the next token reads.

CORRUPTIONS: name -> how a window is corrupted, the loss that learns from it, the special tokens it puts in. A window is one text; end
tokens mark the documents in it, which masked and filled-in rows keep apart by segments too.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyllm.data import corrupt
from pyllm.data.batch import IGNORED, Batch
from pyllm.errors import ConfigError

SENTINELS = tuple(f"<extra_id_{k}>" for k in range(100))
MODES = tuple(zip("RSX", (("[R]", "[NLU]"), ("[S]", "[S2S]"), ("[X]", "[NLG]"))))
MIDDLE = (("<|fim_prefix|>", "<fim_prefix>"), ("<|fim_suffix|>", "<fim_suffix>"), ("<|fim_middle|>", "<fim_middle>"))


@dataclass(frozen=True)
class Corruption:
    """loss: its name in OBJECTIVES: mlm, seq2seq, or clm. specials: tokens to reserve in a new vocabulary, beside its end token.

    window: T -> how many tokens of text fit into rows of T. row: (ids (n + 1,), borders, rng, marks) -> of the first n ids, or for clm of
    all, what is read, what is told and where documents begin in it. rate: share of the tokens, or of the rows, that is corrupted.
    """

    loss: str
    specials: tuple
    window: object
    row: object
    rate: float | None = None


class Corrupted:
    """A corruption bound to a tokenizer: what Loader and validation make of their windows.

    starts: ids an encoder-decoder's answer begins with (its config.starts). rate: None for the corruption's own.
    ConfigError for an unknown name, a rate that makes no sense, special tokens that the tokenizer lacks.
    """

    def __init__(self, name, tokenizer, starts=(), rate=None):
        if name not in CORRUPTIONS:
            raise ConfigError(f"corruption {name!r}; expected one of {', '.join(CORRUPTIONS)}")
        self.name, self.marks = name, Marks(tokenizer, CORRUPTIONS[name], rate)
        self.loss, self.row, self.starts = CORRUPTIONS[name].loss, CORRUPTIONS[name].row, list(starts)
        if self.loss == "seq2seq" and not self.starts:
            raise ConfigError(f"corruption {name}: no starts; expected the ids that the model's decoder begins with")

    def window(self, length):
        """-> tokens of text in a row of `length`."""
        n = CORRUPTIONS[self.name].window(length - len(self.marks.around), self.marks.rate)
        if n < 2:
            raise ConfigError(f"corruption {self.name}: rows of {length} tokens have no room for text")
        return n

    def batch(self, windows, keys):
        """windows: (ids, borders) pairs, see packing.window; keys: 64 bits each -> Batch. A row depends on its window and its key alone."""
        rows = [self.row(np.asarray(ids, np.int32), borders, np.random.Generator(np.random.Philox(key=key)), self.marks)
                for (ids, borders), key in zip(windows, keys)]
        read, told, borders = zip(*rows)
        if self.loss == "seq2seq":
            tokens, segments = _padded(read, 0)
            decoder, decoder_segments = _padded([[*self.starts, *ids[:-1]] for ids in told], 0)
            return Batch(tokens, _padded([[*self.starts[1:], *ids] for ids in told], IGNORED)[0], segments, decoder, decoder_segments)
        tokens, segments = _padded(read, 0)
        targets = _padded(told, IGNORED)[0]
        for row, begins in enumerate(borders):
            for begin in begins:
                segments[row, begin:][segments[row, begin:] > 0] += 1
        return Batch(tokens, targets, segments)


def _padded(rows, fill):
    """-> (B, T) int32, segments (B, T) of 1 and 0."""
    out, segments = np.full((len(rows), max(map(len, rows))), fill, np.int32), np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)], segments[i, : len(row)] = row, 1
    return out, segments


class Marks:
    """The ids that a corruption puts into a row, and what it has to know of a vocabulary."""

    def __init__(self, tokenizer, corruption, rate=None):
        self._tokenizer = tokenizer
        self.rate = corruption.rate if rate is None else rate
        if rate is not None and (corruption.rate is None or not 0 < rate < 1):
            raise ConfigError(f"corruption rate {rate}; expected " + ("none" if corruption.rate is None else "a share between 0 and 1"))
        named = {token.content: token.id for token in tokenizer.added}
        find = lambda names: next((named[n] for n in names if n in named), None)  # noqa: E731
        self.eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self.mask, self.prefix, self.suffix, self.middle = tokenizer.mask_id, *map(find, MIDDLE)
        self.modes = {mode: find(names) for mode, names in MODES}
        self.sentinels = []
        while len(self.sentinels) < len(SENTINELS) and (id := named.get(SENTINELS[len(self.sentinels)])) is not None:
            self.sentinels.append(id)
        self.before, self.after = ([], []) if corruption.loss == "clm" else _template(tokenizer)
        if corruption.loss == "seq2seq" and not self.after:
            self.after = self.eos
        has = {"<mask>": self.mask, SENTINELS[0]: len(self.sentinels) > 1 or None, **{names[0]: self.modes[m] for m, names in MODES},
               **dict(zip((names[0] for names in MIDDLE), (self.prefix, self.suffix, self.middle)))}
        if missing := [token for token in corruption.specials if token in has and has[token] is None]:
            raise ConfigError(f"this corruption needs the special token{'s' if len(missing) > 1 else ''} {', '.join(missing)}, which the "
                              "tokenizer does not have. Hint: a tokenizer that is trained for the objective has them")

    def wrapped(self, ids):
        """ids -> the same with the template's tokens around them, or at least an end token."""
        return [*self.before, *ids, *self.after]

    around = property(lambda self: [*self.before, *self.after])

    @cached_property
    def _contents(self):
        return [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size)]

    @cached_property
    def special(self):
        """(V,) bool."""
        special = np.zeros(self._tokenizer.vocab_size, bool)
        special[[token.id for token in self._tokenizer.added if token.special]] = True
        return special

    @cached_property
    def ordinary(self):
        """The ids that random tokens are drawn from."""
        return np.flatnonzero(~self.special).astype(np.int32)

    @cached_property
    def _begins(self):
        """(V,) bool each: tokens that begin a word; tokens behind which one begins. A lone space belongs to the word behind it."""
        alone = np.array([c.isascii() and c.strip() != b"" and not any(chr(b).isalnum() for b in c) for c in self._contents])
        return (np.array([c[:1].isspace() for c in self._contents]) | alone,
                np.array([c[-1:].isspace() and c != b" " for c in self._contents]) | alone)

    def words(self, ids):
        """ids (n,) -> (n,): the number of each token's word, -1 for special tokens. A word ends at a space or at punctuation."""
        begins, ends = self._begins
        new = begins[ids]
        new[1:] |= ends[ids[:-1]] | self.special[ids[:-1]]
        return np.where(self.special[ids], -1, np.cumsum(new))

    @cached_property
    def sentence_ends(self):
        """(V,) bool: tokens that end a sentence."""
        ends = np.array([c.rstrip().endswith((b".", b"!", b"?", b"\xe3\x80\x82")) for c in self._contents])
        ends[self.eos] = True
        return ends


def _template(tokenizer):
    """-> the ids that the tokenizer's template puts before a text, and those behind it."""
    empty = tokenizer.encode("")
    begins = next((i for i, id in enumerate(empty) if id in (tokenizer.eos_id, tokenizer.sep_id)), len(empty))
    return empty[:begins], empty[begins:]


# ---- a window each

def _masked(whole_words):
    def row(ids, borders, rng, m):
        ids = ids[:-1]
        words = m.words(ids) if whole_words else np.where(m.special[ids], -1, np.arange(len(ids)))
        tokens, targets = corrupt.mask_tokens(ids, rng, m.mask, m.ordinary, words, m.rate)
        ignored = [IGNORED] * len(m.around)
        begins = [b + len(m.before) for b in borders if b < len(ids)]
        return m.wrapped(tokens), [*ignored[: len(m.before)], *targets, *ignored[len(m.before) :]], begins
    return row


def _spans(ids, borders, rng, m):
    inputs, outputs = corrupt.corrupt_spans(ids[:-1], rng, m.sentinels, m.rate)
    return m.wrapped(inputs), m.wrapped(outputs), ()


def _spans_window(length, rate):
    """The most tokens whose inputs fit, as T5's code finds it."""
    n = 0
    while corrupt.span_lengths(n + 1, rate)[0] <= length:
        n += 1
    return n


def _denoised(ids, borders, rng, m):
    inputs, outputs = corrupt.denoise(ids[:-1], rng, m.sentinels, m.modes)
    return m.wrapped(inputs), m.wrapped(outputs), ()


def _infilled(ids, borders, rng, m):
    ids = ids[:-1]
    inputs = corrupt.infill(corrupt.permute_sentences(ids, rng, m.sentence_ends[ids]), rng, m.mask, m.rate)
    return m.wrapped(inputs), m.wrapped(ids), ()


def _prefix(ids, borders, rng, m):
    prefix, suffix = corrupt.split_prefix(ids[:-1], rng)
    return m.wrapped(prefix), m.wrapped(suffix), ()


def _suffix(ids, borders, rng, m):
    """The prefix is read, not told; of a decoder it is read causally, as attention has no mask of a third kind."""
    prefix, _ = corrupt.split_prefix(ids, rng)
    return _next(ids, borders, len(prefix) - 1)


def _filled(ids, borders, rng, m):
    """The longest document of the window is rearranged, so that a row holds three marks more or none."""
    if rng.random() >= m.rate:
        return _next(ids, borders)
    edges = [0, *borders, len(ids)]
    k = int(np.argmax(np.diff(edges)))
    begin, end = edges[k : k + 2]
    ends = [*ids[end - 1 : end]] if [ids[end - 1]] == m.eos else []
    moved = corrupt.fill_in_middle(ids[begin : end - len(ends)], rng, m.prefix, m.suffix, m.middle)
    ids = np.concatenate([ids[:begin], moved, ends, ids[end:]]).astype(np.int32)
    return _next(ids, [b + 3 * (b > begin) for b in borders])


def _next(ids, borders, read=0):
    """-> tokens, targets, borders of the next token's prediction; `read`: positions at the beginning that predict nothing."""
    targets = ids[1:].copy()
    targets[:read] = IGNORED
    targets[[b - 1 for b in borders]] = IGNORED
    return ids[:-1], targets, [b for b in borders if b < len(ids) - 1]


CORRUPTIONS = {
    "mlm": Corruption("mlm", ("<mask>",), lambda length, rate: length, _masked(False), 0.15),
    "wwm": Corruption("mlm", ("<mask>",), lambda length, rate: length, _masked(True), 0.15),
    "span": Corruption("seq2seq", SENTINELS, _spans_window, _spans, 0.15),
    "ul2": Corruption("seq2seq", (*SENTINELS, *(names[0] for _, names in MODES)), lambda length, rate: length - 1, _denoised),
    "infill": Corruption("seq2seq", ("<mask>",), lambda length, rate: length, _infilled, 0.3),
    "prefix": Corruption("seq2seq", (), lambda length, rate: length, _prefix),
    "suffix": Corruption("clm", (), lambda length, rate: length, _suffix),
    "fim": Corruption("clm", tuple(names[0] for names in MIDDLE), lambda length, rate: length - 3, _filled, 0.5),
}
