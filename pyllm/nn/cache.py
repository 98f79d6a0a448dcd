"""Keys and values of what a model has read, for rows of unequal length."""
import numpy as np


class Cache:
    """Per layer k, v:(B, Hkv, capacity, D), so that a head's keys lie side by side; row b holds lengths[b] tokens.

    A model writes its new keys behind each row's own length (`append`), the caller then says how many of them were real (`advance`):
    what a shorter row wrote beyond that is overwritten by its next token, and until then lies behind every query, where causal
    attention does not look. So ragged rows need no padding and no mask.
    """

    def __init__(self, rows, capacity=64):
        self.lengths = np.zeros(rows, np.int64)
        self.capacity = capacity
        self.ahead = 0  # virtual tokens before the first one, the same of every row; see virtual.py
        self.layers = {}
        self.shared = False  # a part of another one
        self.memory = None  # of an encoder-decoder: what its rows look at, a Memory with as many
        self.step = None  # what step.py keeps for the model that fills the cache,
        self.bound = None  # and for the arrays in `layers`

    def append(self, layer, k, v):
        """k, v:(B, T, Hkv, D) -> all keys and values so far, views (B, capacity, Hkv, D)."""
        b, t, h, d = k.shape
        keys, values = self.room(layer, t, h, d).swapaxes(2, 3)
        at = np.arange(b)[:, None], self.starts[:, None] + np.arange(t)
        keys[at], values[at] = k, v
        return keys, values

    def room(self, layer, t, h, d):
        """-> a layer's keys and values, (2, B, Hkv, capacity, D), with room for t more tokens a row."""
        store, b, needed = self.layers.get(layer), len(self.lengths), int(self.starts.max()) + t
        if store is None or needed > store.shape[3]:
            store = self.layers[layer] = self._grown(store, (2, b, h, needed, d))
        return store

    def _grown(self, store, needed):
        """-> room for twice what there was, or for the shape `needed`; the system gives memory to what is written only."""
        if self.shared:
            raise ValueError(f"Cache.append: {needed[3]} tokens in a part with room for {self.capacity}. Hint: a larger capacity")
        held = 0 if store is None else store.shape[3]
        self.capacity, self.bound = max(needed[3], 2 * held, self.capacity), None
        grown = np.zeros((*needed[:3], self.capacity, needed[4]), np.float32)
        if held:
            grown[:, :, :, :held] = store
        return grown

    @property
    def starts(self):
        """-> (B,) where the next token's key goes."""
        return self.lengths + self.ahead

    def lead(self, count):
        """What was appended to every row are `count` virtual tokens."""
        self.ahead += count
        self.capacity += count

    def advance(self, counts):
        """counts:(B,) tokens of the last call that were real."""
        self.lengths += counts

    def part(self, start, stop):
        """-> a Cache of rows start..stop-1 that writes into this one. Its layers are those there are, at the capacity there is."""
        part = Cache(0, self.capacity)
        part.lengths, part.shared, part.step, part.ahead = self.lengths[start:stop], True, self.step, self.ahead
        part.layers = {layer: store[:, start:stop] for layer, store in self.layers.items()}
        part.memory = self.memory and self.memory.rows(slice(start, stop))
        return part

    def select(self, index, same=0):
        """Row i becomes what row index[i] is, for as many rows as `index` has; only rows that change are copied.

        same: tokens at the beginning, 1 or more, in which rows i and index[i] agree, as they then do in what they look at; for as many
        rows as there were.
        """
        index = np.asarray(index, np.int64)
        moved, before = np.flatnonzero(index != np.arange(len(index))), len(self.lengths)
        self.lengths, self.bound = self.lengths[index], None
        if self.memory is not None and not same:
            self.memory = self.memory.rows(index)
        longest, end = (int(starts.max(initial=0)) for starts in (self.starts, self.starts[moved]))
        same = same and same + self.ahead
        for layer, store in self.layers.items():
            taken = store[:, index[moved], :, same:end]
            if len(index) > before:
                wide = np.zeros((2, len(index), *store.shape[2:]), np.float32)
                wide[:, :before, :, :longest] = store[:, :, :, :longest]
                store = wide
            store = self.layers[layer] = store[:, : len(index)]
            store[:, moved, :, same:end] = taken

    def copies(self, lengths, capacity):
        """lengths: B numbers -> a Cache of B rows; row i holds the first lengths[i] tokens of this one's only row."""
        made = Cache(len(lengths), max(capacity, *lengths) + self.ahead)
        made.lengths[:], made.step, made.ahead = lengths, self.step, self.ahead
        for layer, store in self.layers.items():
            room = made.layers[layer] = np.zeros((2, len(lengths), store.shape[2], made.capacity, store.shape[4]), np.float32)
            for row, held in enumerate(made.starts):
                room[:, row, :, :held] = store[:, 0, :, :held]
        return made
