"""The decoding engine: rows of unequal length, continued a token at a time over cached keys and values."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd import Rng, no_grad, ops
from pyllm.generation.sampling import Sampling
from pyllm.nn import Cache

PREFILL = 512  # tokens of prompts read in one call, over all rows: bounds the memory of long prompts and what short ones are filled up with


class Decoder:
    """Continues `prompts`, B lists of token ids: step() draws a token for every row left, advance() reads those tokens.

    A row's tokens depend on its prompt, its seed and the sampling alone, not on its neighbours: each row stands at its own length in the
    cache, and the kernels give a row the same bits in any batch. seeds: an int a row; draw t of a row comes from Rng(seed).fold(t).
    capacity: tokens there will probably be. vocabulary: ids from there on, such as rows that only fill up an embedding, are never drawn.
    memory: what a row each of an encoder-decoder looks at; model is then its Continuation, prompts the decoder's first tokens.
    slide: a row that fills the context goes on from the last half of it, read anew. ValueError: no or an empty prompt, one beyond the
    context (without slide), an id beyond the vocabulary.

    rows:(b,) the prompts that the rows left continue; history: their ids so far, prompt included.
    """

    def __init__(self, model, prompts, sampling=Sampling(), seeds=None, capacity=0, vocabulary=None, slide=False, memory=None):
        if not len(prompts) or not all(map(len, prompts)):
            what = f"prompt {[len(p) for p in prompts].index(0)} has no tokens" if len(prompts) else "no prompts"
            raise ValueError(f"generate: {what}; expected at least one token a row")
        self.model, self.sampling, self.slide = model, sampling, slide
        self.context, self.vocabulary = model.config.size("context"), vocabulary or model.config.vocab_size
        lengths = [len(p) for p in prompts]
        longest = max(lengths)
        if longest > self.context and not slide:
            raise ValueError(f"generate: prompt {lengths.index(longest)} has {longest} tokens, the model's context is {self.context}. "
                             "Hint: shorten it, or slide=True, which forgets its beginning")
        self.rows = np.argsort([-n for n in lengths], kind="stable")  # the longest first, as _read wants them
        self.history = [list(prompts[row]) for row in self.rows]
        self.keys = [Rng(seed) for seed in (seeds if seeds is not None else range(len(prompts)))]
        self.drawn = 0
        self.seen = None
        if sampling.repetition_penalty != 1:
            self.seen = np.zeros((len(prompts), self.vocabulary), bool)
            for seen, ids in zip(self.seen, self.history):
                seen[[i for i in ids if i < self.vocabulary]] = True
        self.cache = Cache(len(prompts), min(self.context, longest + capacity))
        self.cache.memory = memory and memory.rows(self.rows)
        texts = [ids if len(ids) <= self.context else self._recent(ids) for ids in self.history]
        self.logits = self._head(self._read(self.cache, texts))

    def _recent(self, ids):
        return ids[-max(1, self.context // 2) :]

    def _read(self, cache, texts):
        """texts: B lists of ids, the longest first, read behind what the rows of `cache` hold -> hidden:(B, C) of their last tokens."""
        lengths, begin, last = np.array([len(ids) for ids in texts]), 0, None
        while begin < lengths[0]:
            b = int((lengths > begin).sum())  # the rows with something left are the first ones
            t = min(max(1, PREFILL // b), int(lengths[0]) - begin)
            tokens = np.zeros((b, t), np.int32)
            for row, ids in enumerate(texts[:b]):
                chunk = ids[begin : begin + t]
                tokens[row, : len(chunk)] = chunk
            rows = cache if b == len(texts) else cache.part(0, b)
            with no_grad():
                hidden = self.model.hidden(tokens, cache=rows).data
            real = np.minimum(lengths[:b] - begin, t)
            rows.advance(real)
            if last is None:
                last = np.empty((len(texts), hidden.shape[2]), np.float32)
            last[:b] = hidden[np.arange(b), real - 1]  # of a row that goes on, replaced by the next chunk's
            begin += t
        return last

    def _head(self, hidden):
        """hidden:(B, C) -> logits:(B, V)."""
        finite = np.isfinite(hidden).all(1)
        if not finite.all():
            raise FloatingPointError(f"generate: the model gives NaN or infinity for prompt {self.rows[finite.argmin()]} after "
                                     f"{self.drawn} tokens. Hint: are its weights whole?")
        with no_grad():
            return ops.linear(hidden, self.model.head_weight(), self.model.head_bias()).data

    def step(self):
        """-> ids:(b,) int32, the next token of each row left."""
        keys = [self.keys[row].fold(self.drawn) for row in self.rows]
        self.ids = self.sampling.choose(self.logits[:, : self.vocabulary], self.seen, keys)
        self.drawn += 1
        for ids, id in zip(self.history, self.ids.tolist()):
            ids.append(id)
        return self.ids

    def logprobs(self, temperature=1.0):
        """-> (b,) log p, nats, of the tokens of the last step() under softmax(logits / temperature), before penalties and cuts.

        The bits are those of ops.linear_log_probs over the full forward: what a policy is trained on is what was recorded.
        """
        logits = self.logits if temperature == 1 else self.logits / np.float32(temperature)
        return K.log_softmax(logits)[np.arange(len(self.ids)), self.ids]

    def full(self):
        """-> (b,) bool: rows that fill the context, so that the token just drawn has no place to be read from; none with slide."""
        return (self.cache.lengths >= self.context) & (not self.slide)

    def advance(self, keep):
        """Reads the tokens of the last step() in the rows that `keep`:(b,) bool marks; the others leave the batch."""
        if not keep.all():
            self._leave(np.flatnonzero(~keep))
        if not len(self.rows):
            return
        if self.seen is not None:
            self.seen[np.arange(len(self.ids)), self.ids] = True
        for row in np.flatnonzero(self.cache.lengths >= self.context):
            self.cache.lengths[row] = 0
            if len(recent := self._recent(self.history[row])[:-1]):  # the last one is read below, with those of the others
                self._read(self.cache.part(row, row + 1), [recent])
        with no_grad():
            hidden = self.model.hidden(self.ids[:, None], cache=self.cache).data
        self.cache.advance(1)
        self.logits = self._head(hidden[:, 0])

    def _leave(self, rows):
        order = list(range(len(self.rows)))
        for row in rows[::-1]:
            self.cache.remove(row)
            order[row] = order[-1]
            order.pop()
        self.rows, self.ids, self.history = self.rows[order], self.ids[order], [self.history[row] for row in order]
        self.seen = None if self.seen is None else self.seen[order]
