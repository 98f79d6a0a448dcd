"""Endless, shuffled batches of rows of unequal length, with an exact cursor: what fine-tuning reads."""
import numpy as np

from pyllm.data.loader import key, permute
from pyllm.data.packing import best_fit

POOL = 50  # batches whose rows are sorted by length, or packed, together: enough to fill them, few enough to keep the order random


class Batches:
    """Endless iterator of make(bins) over rows of `lengths`:(n,), tokens. bins: lists of row numbers, one list a row of the batch.

    batch: rows a batch. length: 0, each row by itself, those of like length in one batch; or rows of so many tokens, packed by best fit.
    tokens: at most so many tokens a batch, padding included, instead of `batch` rows. seed: the order depends on it and the epoch alone.
    Each row comes exactly once an epoch; the last batch of an epoch may have fewer rows. `epoch` counts from 0, as does `position`, the
    batches of this epoch that have been given.
    """

    def __init__(self, lengths, make, *, batch=0, tokens=0, length=0, seed=0, shuffle=True):
        self.lengths, self.make = np.asarray(lengths), make
        if not self.lengths.size or self.lengths.min() < 1:
            raise ValueError(f"Batches: {self.lengths.size} rows, the shortest of {self.lengths.min(initial=0)} tokens; expected at least "
                             "one row, none empty")
        if (batch > 0) == (tokens > 0):
            raise ValueError(f"Batches: batch={batch}, tokens={tokens}; expected one of them above 0")
        limit = tokens or length
        if limit and (worst := int(self.lengths.argmax())) >= 0 and self.lengths[worst] > limit:
            raise ValueError(f"Batches: row {worst} has {self.lengths[worst]} tokens, expected at most {limit}. Hint: truncate it")
        self.batch, self.tokens, self.length, self.seed, self.shuffle = batch, tokens, length, seed, shuffle
        self.epoch, self.position, self._planned = 0, 0, None

    def __iter__(self):
        return self

    def __next__(self):
        plan = self.plan(self.epoch)
        bins = plan[self.position]
        self.position += 1
        if self.position == len(plan):
            self.epoch, self.position = self.epoch + 1, 0
        return self.make(bins)

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
        if self.shuffle:
            order = permute(order, n, key(self.seed, epoch, 0))
        mean = max(1, int(self.lengths.mean()))
        rows = max(1, self.tokens // mean) if self.tokens else self.batch * max(1, self.length // mean)  # a batch holds about so many
        batches = []
        for start in range(0, n, POOL * rows):
            pool = order[start : start + POOL * rows]
            if self.length:
                bins = [[int(pool[i]) for i in row] for row in best_fit(self.lengths[pool].tolist(), self.length)]
                if self.shuffle:  # best fit puts the fullest first
                    bins = [bins[i] for i in permute(np.arange(len(bins)), len(bins), key(self.seed, epoch, 2, start))]
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

    def state(self):
        """The data cursor, for JSON: what `load_state` needs to go on with the very next batch."""
        return {"epoch": self.epoch, "position": self.position, **self._settings()}

    def _settings(self):
        return {"rows": len(self.lengths), "tokens_in_all": int(self.lengths.sum()), "batch": self.batch, "tokens": self.tokens,
                "length": self.length, "seed": self.seed, "shuffle": self.shuffle}

    def load_state(self, state):
        """Go on where `state` was taken. ValueError names all that does not fit."""
        wrong = [f"{name} is {mine!r} here and {state.get(name)!r} in the state" for name, mine in self._settings().items()
                 if state.get(name) != mine]
        if wrong:
            raise ValueError(f"Batches.load_state: {'; '.join(wrong)}. Hint: have data or settings changed since the state was saved?")
        self.epoch, self.position = state["epoch"], state["position"]
