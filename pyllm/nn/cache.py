"""Keys and values of what a model has read, for rows of unequal length."""
import numpy as np


class Cache:
    """Per layer k, v:(B, capacity, Hkv, D); row b holds lengths[b] tokens.

    A model writes its new keys behind each row's own length (`append`), the caller then says how many of them were real (`advance`):
    what a shorter row wrote beyond that is overwritten by its next token, and until then lies behind every query, where causal
    attention does not look. So ragged rows need no padding and no mask.
    """

    def __init__(self, rows, capacity=64):
        self.lengths = np.zeros(rows, np.int64)
        self.capacity = capacity
        self.layers = {}

    def append(self, layer, k, v):
        """k, v:(B, T, Hkv, D) -> all keys and values so far, (B, capacity, Hkv, D) each."""
        b, t, h, d = k.shape
        if layer not in self.layers:
            self.layers[layer] = np.zeros((2, b, self.capacity, h, d), np.float32)
        store = self.layers[layer]
        needed = int(self.lengths.max()) + t
        if needed > store.shape[2]:
            self.capacity = max(needed, 2 * store.shape[2])
            grown = np.zeros((2, b, self.capacity, h, d), np.float32)
            grown[:, :, : store.shape[2]] = store
            store = self.layers[layer] = grown
        for row, start in enumerate(self.lengths):
            store[0, row, start : start + t] = k[row]
            store[1, row, start : start + t] = v[row]
        return store[0], store[1]

    def advance(self, counts):
        """counts:(B,) tokens of the last call that were real."""
        self.lengths += counts

    def keep(self, rows):
        """Drops all but `rows` (indices into the rows there are)."""
        self.lengths = self.lengths[rows]
        self.layers = {layer: store[:, rows] for layer, store in self.layers.items()}
