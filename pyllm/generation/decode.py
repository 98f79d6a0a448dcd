"""The decoding engine: rows of unequal length, continued a token at a time over cached keys and values."""
from contextlib import nullcontext

import numpy as np

from pyllm import kernels as K
from pyllm.autograd import Rng, no_grad, ops
from pyllm.generation.sampling import Sampling
from pyllm.nn import Cache, token

PREFILL = 512  # tokens of prompts read in one call, over all rows: bounds the memory of long prompts and what short ones are filled up with


class Decoder:
    """Continues `prompts`, B lists of token ids: step() draws tokens, advance() reads them.

    A row's tokens depend on its prompt, its seed and the sampling alone, not on its neighbours: each row stands at its own length in the
    cache, and the kernels give a row the same bits in any batch. copies: rows that continue each prompt, which is read once; rows
    i * copies, ... continue prompt i. seeds: an int a row; draw t of a row comes from Rng(seed).fold(t). capacity: tokens there will
    probably be. vocabulary: ids from there on, such as rows that only fill up an embedding, are never drawn. memory: what a row each of an
    encoder-decoder looks at; model is then its Continuation, prompts the decoder's first tokens. slide: a row that fills the context goes
    on from the last half of it, read anew. ends, limit: see Sampling.adjust. matcher: see constrained.py. draft: guesses tokens ahead,
    see speculative.py. session: what was read before, see session.py. ValueError: no or an empty prompt, one beyond the context (without
    slide), an id beyond the vocabulary.

    rows:(b,) which rows are left; history: their ids so far, prompt included; prompts:(b,) the prompts' lengths. hidden:(b, n, C) what
    their next tokens are drawn from.
    """

    def __init__(self, model, prompts, sampling=Sampling(), seeds=None, *, copies=1, capacity=0, vocabulary=None, slide=False, memory=None,
                 ends=(), limit=None, matcher=None, draft=None, session=None):
        if not len(prompts) or not all(map(len, prompts)):
            what = f"prompt {[len(p) for p in prompts].index(0)} has no tokens" if len(prompts) else "no prompts"
            raise ValueError(f"generate: {what}; expected at least one token a row")
        self.model, self.sampling, self.slide, self.ends, self.limit, self.copies = model, sampling, slide, ends, limit, copies
        self.context, self.vocabulary = model.config.size("context"), vocabulary or model.config.vocab_size
        lengths = np.array([len(p) for p in prompts])
        longest = int(lengths.max())
        if longest > self.context and not slide:
            raise ValueError(f"generate: prompt {lengths.argmax()} has {longest} tokens, the model's context is {self.context}. "
                             "Hint: shorten it, or slide=True, which forgets its beginning")
        order = np.argsort(-lengths, kind="stable")  # the longest first, as `read` wants them
        texts = [list(prompts[row]) for row in order]
        room = min(self.context, longest + capacity)
        self.cache = Cache(len(texts), room) if session is None else session.cache_for(model, texts, copies, room)
        self.in_session = session is not None and session.cache is self.cache
        self.cache.memory = memory and memory.rows(order)
        unread = [ids[n:] if len(ids) <= self.context else self._recent(ids) for ids, n in zip(texts, self.cache.lengths)]
        hidden = read(model, self.cache, unread, order)
        self.context -= self.cache.ahead
        self.rows, self.history, self.matcher, self.states, self.draft = order, texts, matcher, None, None
        self.prompts, self.drafted, self.accepted = lengths[order], *np.zeros((2, len(prompts) * copies), np.int64)
        if copies > 1:
            self._select(np.repeat(np.arange(len(texts)), copies))
            self.rows, hidden = self.rows * copies + np.tile(np.arange(copies), len(texts)), np.repeat(hidden, copies, 0)
        self.keys = [Rng(seed) for seed in (seeds if seeds is not None else range(len(self.rows)))]
        self.states = matcher and [matcher.start] * len(self.rows)
        self.draft = draft and draft.start(self)
        self._round(hidden[:, None], np.full((len(self.rows), 1), -1))

    @property
    def numbers(self):
        """-> (b,) which prompt each row left continues."""
        return self.rows // self.copies

    def _recent(self, ids):
        return ids[-max(1, self.context // 2) :]

    def _round(self, hidden, guesses, logits=None):
        """hidden:(b, n, C) of the tokens read last, logits:(b, n, V) or None: the head's of them.

        guesses:(b, n): guesses[:, j] is what was read behind the j-th of them, -1 nothing.
        """
        self._check(hidden)
        self.hidden, self.guesses, self.place = hidden, guesses, 0
        self.logits = self._head(hidden) if logits is None else logits
        self.at, self.going = np.arange(len(hidden)), np.ones(len(hidden), bool)

    def _check(self, hidden):
        """FloatingPointError where one of hidden:(b, n, C) is no number."""
        if not np.isfinite(hidden).all():
            row = np.isfinite(hidden).all((1, 2)).argmin()
            raise FloatingPointError(f"generate: the model gives NaN or infinity for prompt {self.rows[row]} after {self.drawn(row)} "
                                     "tokens. Hint: are its weights whole?")

    def _head(self, hidden):
        """hidden:(b, n, C) -> logits:(b, n, V)."""
        with no_grad():
            return ops.linear(hidden, self.model.head_weight(), self.model.head_bias()).data

    def drawn(self, row):
        """-> how many tokens the row left at place `row` has drawn."""
        return len(self.history[row]) - int(self.prompts[row])

    def scores(self, logp=False):
        """-> (m, V) float32: the logits, or log p, of the next token of the rows at places `at`, after the steps before the temperature."""
        self.current = self.logits[:, 0] if self.logits.shape[1] == 1 else self.logits[self.at, self.place]
        scores = (K.log_softmax(self.current) if logp else self.current)[:, : self.vocabulary]
        if not (self.matcher or self.sampling.adjusts):
            return scores
        allowed = self.matcher and [self.matcher.allowed(self.states[i], self._left(i)) for i in self.at]
        texts = [self.history[i] for i in self.at]
        return self.sampling.adjust(scores, texts, self.prompts[self.at], self.ends, self.limit, allowed)

    def _left(self, row):
        """-> how many tokens the row at place `row` may still draw."""
        room = INFINITE if self.slide else self.context + 1 - len(self.history[row])
        return room if self.limit is None else min(room, self.limit - self.drawn(row))

    def step(self):
        """Draws the next token of each row left -> ids:(m,) int32 of the rows at places `at`: with a draft, of those with logits."""
        scores = self.scores()
        if (self.matcher or self.sampling.adjusts) and not (possible := scores.max(1) > -np.inf).all():
            row = self.at[possible.argmin()]
            raise ValueError(f"generate: prompt {self.rows[row]}: after {self.drawn(row)} tokens every token is forbidden. "
                             "Hint: fewer suppressed tokens, or a constraint that the vocabulary can spell")
        self.ids = self.sampling.choose(scores, (self.keys[self.rows[i]].fold(self.drawn(i)) for i in self.at))
        self._append(self.at, self.ids)
        return self.ids

    def _append(self, at, ids):
        for i, id in zip(at, ids.tolist()):
            self.history[i].append(id)
            if self.matcher:
                self.states[i] = self.matcher.after(self.states[i], id)

    def logprobs(self, temperature=1.0):
        """-> (m,) log p, nats, of the tokens of the last step() under softmax(logits / temperature), before penalties and cuts.

        The bits are those of ops.linear_log_probs over the full forward: what a policy is trained on is what was recorded.
        """
        logits = self.current if temperature == 1 else self.current / np.float32(temperature)
        return K.log_softmax(logits)[np.arange(len(self.ids)), self.ids]

    def full(self):
        """-> (m,) bool: rows that fill the context, so that the token just drawn has no place to be read from; none with slide."""
        return (self.cache.lengths[self.at] >= self.context) & (not self.slide)

    def complete(self):
        """-> (m,) bool: rows whose text matches the constraint and cannot go on."""
        return np.array([self.matcher is not None and self.matcher.complete(self.states[i]) for i in self.at])

    def ends_with(self, row, id):
        """-> whether the text of the row at place `row` would end with the token `id`."""
        return id in self.ends or self.matcher is not None and self.matcher.complete(self.matcher.after(self.states[row], id))

    def advance(self, keep):
        """Reads the tokens of the last step() in the rows that `keep`:(m,) bool marks; the others leave the batch."""
        self.going[self.at[~keep]] = False
        if self.guesses.shape[1] > 1:
            right = self.at[keep & (self.ids == self.guesses[self.at, self.place])]
            self.cache.lengths[right] += 1
            self.accepted[self.rows[right]] += 1
            if len(right):  # what comes behind a guess that was right is known already
                self.at, self.place = right, self.place + 1
                return
        if not self.going.all():
            self._leave(np.flatnonzero(~self.going))
        if len(self.rows):
            self._next()

    def branch(self, parents, ids):
        """Row i becomes what the row at place parents[i] is, followed by the token ids[i], which is read.

        Where rows stay as many, row i and its parent continue the same prompt.
        """
        self._select(parents, same=int(self.prompts.min()) if len(parents) == len(self.rows) else 0)
        self._append(range(len(parents)), ids)
        self._next()

    def _next(self):
        """Reads each row's last token, and behind it what the draft guesses."""
        for row in np.flatnonzero(self.cache.lengths >= self.context):
            self.cache.lengths[row] = 0
            if len(recent := self._recent(self.history[row])[:-1]):  # the last one is read below, with those of the others
                read(self.model, self.cache.part(row, row + 1), [recent], self.numbers[[row]])
        last = np.array([ids[-1] for ids in self.history], np.int32)[:, None]
        guesses = np.empty((len(last), 0), np.int32)
        if self.draft is not None and (room := int(self.context - 1 - self.cache.lengths.max())) > 0:
            guesses = self.draft.guess(self, room)
            self.drafted[self.rows] += (guesses >= 0).sum(1)
        found, logits = None if guesses.size or self.model.by_row else token(self.model, last[:, 0], self.cache), None
        if found is None:
            hidden = hidden_of(self.model, np.concatenate([last, np.maximum(guesses, 0)], 1), self.cache, self.numbers)
        else:
            hidden, logits = (x[:, None] for x in found)
        self.cache.advance(1)
        self._round(hidden, np.concatenate([guesses, np.full_like(last, -1)], 1), logits)

    def _leave(self, rows):
        order = list(range(len(self.rows)))
        for row in rows[::-1]:
            order[row] = order[-1]
            order.pop()
        self._select(order)

    def _select(self, index, same=0):
        """Row i becomes what row index[i] is; see Cache.select."""
        index = np.asarray(index, np.int64)
        again = len(set(index.tolist())) < len(index)
        if not self.in_session or len(index):  # the session goes on with what its row has read
            self.cache.select(index, same)
        self.rows, self.prompts = self.rows[index], self.prompts[index]
        self.history = [list(self.history[i]) if again else self.history[i] for i in index]
        self.states = self.states and [self.states[i] for i in index]
        if self.draft is not None:
            self.draft.select(index)


INFINITE = 1 << 62


def hidden_of(model, tokens, cache, numbers):
    """tokens:(B, T) behind those of the cache -> hidden:(B, T, C) without gradients.

    numbers:(B,) which prompt each row continues: where every prompt has adapters of its own (pyllm.peft.rows), the row has those.
    """
    with no_grad(), model.by_row(numbers) if model.by_row else nullcontext():
        return model.hidden(tokens, cache=cache).data


def read(model, cache, texts, numbers):
    """texts: B lists of ids, the longest first, read behind what the rows of `cache` hold -> hidden:(B, C) of their last tokens.

    numbers:(B,) see hidden_of.
    """
    lengths, begin, last = np.array([len(ids) for ids in texts]), 0, None
    while begin < lengths[0]:
        b = int((lengths > begin).sum())  # the rows with something left are the first ones
        t = min(max(1, PREFILL // b), int(lengths[0]) - begin)
        tokens = np.zeros((b, t), np.int32)
        for row, ids in enumerate(texts[:b]):
            chunk = ids[begin : begin + t]
            tokens[row, : len(chunk)] = chunk
        rows = cache if b == len(texts) else cache.part(0, b)
        hidden = hidden_of(model, tokens, rows, numbers[:b])
        real = np.minimum(lengths[:b] - begin, t)
        rows.advance(real)
        if last is None:
            last = np.empty((len(texts), hidden.shape[2]), np.float32)
        last[:b] = hidden[np.arange(b), real - 1]  # of a row that goes on, replaced by the next chunk's
        begin += t
    return last
