"""The decoding engine: rows of unequal length, continued a token at a time over cached keys and values."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd import Rng, no_grad
from pyllm.generation.sampling import Sampling
from pyllm.nn import Cache

PREFILL = 512  # positions of a prompt read at once: bounds the memory of long prompts


class Decoder:
    """Continues `prompts`, a list of B lists of token ids; step() gives one token for every row that is left.

    A row's tokens depend on the prompt, its seed and the sampling alone, not on its neighbours: rows are kept at their own length, and the
    kernels give a row the same bits in any batch. seeds: an int a row; draw t of a row comes from Rng(seed).fold(t). vocabulary: ids from
    there on, such as rows that only pad an embedding, are never drawn.
    """

    def __init__(self, model, prompts, sampling=Sampling(), seeds=None, capacity=0, vocabulary=None):
        self.model, self.sampling, self.vocabulary = model, sampling, vocabulary or model.config.vocab_size
        self.keys = [Rng(seed) for seed in (seeds if seeds is not None else range(len(prompts)))]
        lengths = np.array([len(p) for p in prompts])
        if not len(prompts) or lengths.min() == 0:
            raise ValueError(f"generate: {'no prompts' if not len(prompts) else f'prompt {int(lengths.argmin())} has no tokens'}; "
                             "expected at least one token a row")
        self.context = model.config.size("context")
        if lengths.max() > self.context:
            raise ValueError(f"generate: prompt {int(lengths.argmax())} has {lengths.max()} tokens, the model's context is {self.context}. "
                             "Hint: shorten it")
        self.rows = np.arange(len(prompts))  # which prompt each row continues
        self.drawn = 0
        self.cache = Cache(len(prompts), min(self.context, max(int(lengths.max()) + capacity, 16)))
        self.seen = None
        if sampling.repetition_penalty != 1:
            self.seen = np.zeros((len(prompts), self.vocabulary), bool)
        tokens = np.zeros((len(prompts), lengths.max()), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        self.logits = self._prefill(tokens, lengths)
        if self.seen is not None:
            for row, prompt in enumerate(prompts):
                self.seen[row, [i for i in prompt if i < self.vocabulary]] = True

    def _prefill(self, tokens, lengths):
        last = np.empty((len(tokens), self.model.head_weight().shape[1]), np.float32)
        with no_grad():
            for begin in range(0, tokens.shape[1], PREFILL):
                hidden = self.model.hidden(np.ascontiguousarray(tokens[:, begin : begin + PREFILL]), cache=self.cache).data
                real = np.clip(lengths - begin, 0, hidden.shape[1])
                ends = (real > 0) & (lengths <= begin + PREFILL)
                last[ends] = hidden[ends, real[ends] - 1]
                self.cache.advance(real)
        return self._head(last)

    def _head(self, hidden):
        """hidden:(B, C) -> logits:(B, V)."""
        return K.matmul(hidden, self.model.head_weight().data[: self.vocabulary], tb=True)

    def step(self):
        """-> ids:(B,) int32, the next token of each row left; the tokens are appended to the rows."""
        self.ids = self.sampling.choose(self.logits, self.seen, [self.keys[row].fold(self.drawn) for row in self.rows])
        self.drawn += 1
        return self.ids

    def logprobs(self):
        """-> (B,) log p of the tokens of the last step(), by the model itself: before penalty, temperature and cuts."""
        return np.take_along_axis(K.log_softmax(self.logits), self.ids[:, None].astype(np.int64), 1)[:, 0]

    def full(self):
        """-> (B,) bool: rows that fill the context, so that the token just drawn has no place to be read from."""
        return self.cache.lengths >= self.context

    def advance(self, keep):
        """Reads the tokens of the last step() in the rows that `keep`:(B,) bool marks; the others leave the batch."""
        if not keep.all():
            self.rows, self.ids = self.rows[keep], self.ids[keep]
            self.cache.keep(keep)
            self.seen = None if self.seen is None else self.seen[keep]
        if not len(self.rows):
            return
        if self.seen is not None:
            self.seen[np.arange(len(self.ids)), self.ids] = True
        with no_grad():
            hidden = self.model.hidden(self.ids[:, None], cache=self.cache).data
        self.cache.advance(1)
        self.logits = self._head(hidden[:, 0])
