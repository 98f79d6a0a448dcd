"""Endless, shuffled batches of rows of unequal length, with an exact cursor: what fine-tuning reads."""
import hashlib
from itertools import accumulate

import numpy as np

from pyllm.data.collate import collate, collate_packed
from pyllm.data.loader import Cursor, key, permute
from pyllm.data.packing import best_fit
from pyllm.data.render import rows_of

POOL = 50  # batches whose rows are sorted by length, or packed, together: enough to fill them, few enough to keep the order random


def row_batches(items, *, batch=0, tokens=0, pack=0, seed=0, shuffle=True, weights=None, augment=None,
                **collation):
    """Rows, or pairs of them that stay neighbours (see pyllm.data.render) -> Batches, an endless iterator of Batch.

    batch: items a batch, or packed rows of it; or tokens: at most so many tokens a batch, padding included. pack: 0, or T: items lie side
    by side in rows of T tokens. weights: None; or one for each of several sets of items, of which then every epoch has that share (see
    `mixture`). augment: None, or a function (row, rng) -> Row, such as drop_tokens of pyllm.data.augment: for training, not for `once`;
    what it does to a row depends on the seed, the epoch and the row. collation: side,
    multiple, length, start of `collate`. Raises ValueError naming the item that is too long.
    """
    order = None
    if weights is not None:
        order, items = mixture([len(part) for part in items], weights, seed), [item for part in items for item in part]
    groups = [rows_of([item]) for item in items]
    if pack and any(len(group) > 1 for group in groups):
        raise ValueError("row_batches: pairs cannot be packed: rows 2 i and 2 i + 1 of a batch are one")
    widths = [max(len(row) + (0 if row.decoder is None else len(row.decoder)) for row in group) * len(group) for group in groups]
    if pack:
        widths = [width - 1 for width in widths]  # the last token predicts nothing and takes no room

    def make(bins):
        chosen = [items[i] if augment is None or found.drawn is None else varied(i) for bin in bins for i in bin]
        if not pack:
            return collate(chosen, **collation)
        ends = list(accumulate(map(len, bins)))
        return collate_packed(chosen, pack, [range(end - len(bin), end) for end, bin in zip(ends, bins)])

    def varied(i):
        rng = np.random.Generator(np.random.Philox(key=key(seed, found.drawn, i, 5)))
        return tuple(augment(row, rng) for row in items[i]) if isinstance(items[i], tuple) else augment(items[i], rng)

    digest = hashlib.sha256()
    for row in rows_of(items):
        for part in (row.tokens, row.learned, row.decoder, row.label, sorted(row.extra.items())):
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    found = Batches(widths, make, batch=batch, tokens=tokens, length=pack, seed=seed, shuffle=shuffle, order=order,
                    fingerprint=digest.hexdigest()[:16])
    return found


def mixture(sizes, weights, seed):
    """Rows of several sets, numbered one set behind the other -> order(epoch): which of them an epoch has, (sum of sizes,) int64.

    Every epoch has weights[k] / sum(weights) of its rows from set k, to the nearest whole number. Each set goes through its own shuffled
    passes, one behind the other: a small one comes round more often, and no row of a set comes twice before all have come once.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(sizes),) or not len(sizes) or min(sizes) < 1 or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(f"mixture: sets of {list(sizes)} rows and weights {weights.tolist()}; expected rows and a number above 0 for each")
    bounds = np.cumsum([0, *sizes])
    ends = np.rint(np.cumsum(weights) / weights.sum() * bounds[-1]).astype(np.int64)  # so that the shares add up
    shares = np.diff(ends, prepend=0)

    def order(epoch):
        drawn = [bounds[k] + _passes(epoch * share, share, sizes[k], key(seed, k, 3)) for k, share in enumerate(shares.tolist())]
        drawn = np.concatenate(drawn)
        return drawn[permute(np.arange(len(drawn)), len(drawn), key(seed, epoch, 0))]

    return order


def _passes(first, n, size, seed):
    """The places first .. first + n - 1 of an endless row of permutations of 0 .. size - 1."""
    places = np.arange(first, first + n)
    return np.concatenate([permute(places[places // size == k] % size, size, key(seed, k)) for k in np.unique(places // size).tolist()]
                          or [places])


class Batches(Cursor):
    """Endless iterator of make(bins) over rows of `lengths`:(n,), tokens. bins: lists of row numbers, one list a row of the batch.

    batch: rows a batch. length: 0, each row by itself, those of like length in one batch; or rows of so many tokens, packed by best fit.
    tokens: at most so many tokens a batch, padding included, instead of `batch` rows. seed: the order depends on it and the epoch alone.
    Each row comes exactly once an epoch, or as often as order(epoch), row numbers, has it; the last batch of an epoch may have fewer rows.
    `position` counts the batches of an epoch that have been given. fingerprint: names the rows' content, for `load_state`.
    """

    def __init__(self, lengths, make, *, batch=0, tokens=0, length=0, seed=0, shuffle=True, order=None, fingerprint=""):
        super().__init__(seed, shuffle)
        self.lengths, self.make = np.asarray(lengths), make
        if not self.lengths.size or self.lengths.min() < 1:
            raise ValueError(f"Batches: {self.lengths.size} rows, the shortest of {self.lengths.min(initial=0)} tokens; expected at least "
                             "one row, none empty")
        if (batch > 0) == (tokens > 0):
            raise ValueError(f"Batches: batch={batch}, tokens={tokens}; expected one of them above 0")
        limit = min(n for n in (tokens, length, 1 << 62) if n)
        if (worst := int(self.lengths.argmax())) >= 0 and self.lengths[worst] > limit:
            raise ValueError(f"Batches: row {worst} has {self.lengths[worst]} tokens, expected at most {limit}. Hint: truncate it")
        if order is not None and not shuffle:
            raise ValueError("Batches: an order of its own and shuffle=False; expected one of them")
        self.batch, self.tokens, self.length, self.order, self.fingerprint = batch, tokens, length, order, fingerprint
        self._planned, self.drawn = None, None  # drawn: the epoch of the batch that is being made, None for `once`

    def __next__(self):
        (epoch, at, _), = self.take(1)
        self.drawn = epoch
        batch = self.make(self.plan(epoch)[at])
        self.drawn = None
        return batch

    def once(self):
        """-> iterator over one epoch in the order of the first, as evaluation reads it; moves nothing."""
        return map(self.make, self.plan(0))

    def plan(self, epoch):
        """-> the batches of an epoch, a list of lists of bins."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def _plan(self, epoch):
        n, order = len(self.lengths), np.arange(len(self.lengths))
        if self.order is not None:
            order = self.order(epoch)
        elif self.shuffle:
            order = permute(order, n, key(self.seed, epoch, 0))
        mean = max(1, int(self.lengths.mean()))
        rows = max(1, self.tokens // mean) if self.tokens else self.batch * max(1, self.length // mean)  # a batch holds about so many
        batches = []
        for pool in np.array_split(order, max(1, round(len(order) / (POOL * rows)))):  # of equal size, so that none is too small to fill
            if self.length:
                bins = [[int(pool[i]) for i in row] for row in best_fit(self.lengths[pool].tolist(), self.length)]
                if self.shuffle:  # best fit puts the fullest first
                    bins = [bins[i] for i in permute(np.arange(len(bins)), len(bins), key(self.seed, epoch, 2, len(batches)))]
                sizes = [self.length] * len(bins)
            else:
                pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
                bins, sizes = [[int(i)] for i in pool], self.lengths[pool].tolist()
            batches += self._cut(bins, sizes)
        if self.shuffle:
            batches = [batches[i] for i in permute(np.arange(len(batches)), len(batches), key(self.seed, epoch, 1))]
        return batches

    def _cut(self, bins, sizes):
        """bins: the longest first -> batches of them."""
        batches, at = [], 0
        while at < len(bins):
            rows = max(1, self.tokens // sizes[at]) if self.tokens else self.batch
            batches.append(bins[at : at + rows])
            at += rows
        return batches

    def count(self, epoch):
        return len(self.plan(epoch))

    def identity(self):
        return {"rows": len(self.lengths), "tokens_in_all": int(self.lengths.sum()), "batch": self.batch, "tokens": self.tokens,
                "length": self.length, "fingerprint": self.fingerprint}
