"""Tokens guessed ahead and checked in one call of the model, which reads its weights once for all of them: the same text in less time.

A guess counts where it is the token that the model itself would have drawn there, from the same logits with the same key; what follows a
wrong one is thrown away. So nothing changes but the time, greedy or drawn. For a guess without chance the usual rule, to accept it with the
model's probability of it (Leviathan et al. 2023, Chen et al. 2023), is this one; a draft model draws with the model's own keys, so that
two similar distributions mostly give one token.

A draft has start(decoder) -> its state, with guess(decoder, room) -> (b, n) int32, n <= room, -1 for none; select(index) as Cache.select.
"""
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import no_grad, ops
from pyllm.errors import ConfigError
from pyllm.generation.decode import hidden_of, read
from pyllm.models.base import CausalLM
from pyllm.nn import Cache


@dataclass(frozen=True)
class PromptLookup:
    """Guesses what followed the last tokens where they stood before: quotations, code, lists. Saxena 2023.

    tokens: guesses at most; longest: how many of the last tokens are looked for, fewer where they stand nowhere else.
    """

    tokens: int = 10
    longest: int = 3

    def __post_init__(self):
        _at_least_one(self, "tokens", "longest")

    def start(self, decoder):
        return self

    def select(self, index):
        pass

    def guess(self, decoder, room):
        """-> (b, n) int32."""
        found = [self._after(np.array(text, np.int32)) for text in decoder.history]
        guesses = np.full((len(found), min(room, max(map(len, found)))), -1, np.int32)
        for row, ids in zip(guesses, found):
            row[: len(ids)] = ids[: len(row)]
        return guesses

    def _after(self, text):
        for n in range(min(self.longest, len(text) - 1), 0, -1):
            places = np.ones(len(text) - n, bool)  # the beginnings of all n-grams but the last
            for i in range(n):
                places &= text[i : i + len(places)] == text[len(text) - n + i]
            if places.any():
                begin = len(places) - 1 - int(places[::-1].argmax()) + n
                return text[begin : begin + self.tokens]
        return text[:0]


@dataclass(frozen=True)
class DraftModel:
    """Guesses what a smaller model draws. model: a causal one with the vocabulary of the large one; tokens: guesses a round."""

    model: CausalLM
    tokens: int = 5

    def __post_init__(self):
        _at_least_one(self, "tokens")
        if not isinstance(self.model, CausalLM):
            raise ConfigError(f"DraftModel: a {type(self.model).__name__}; expected a causal model")

    def start(self, decoder):
        return _Drafting(self, decoder)


class _Drafting:
    """A draft model's cache, whose rows follow those of the decoder."""

    def __init__(self, draft, decoder):
        self.model, self.tokens = draft.model, draft.tokens
        if self.model.config.vocab_size < decoder.vocabulary or decoder.cache.memory is not None:
            raise ConfigError(f"DraftModel: {self.model.config.vocab_size} tokens in its vocabulary, {decoder.vocabulary} in the model's; "
                              "expected a causal model's, and as many")
        self.context = self.model.config.size("context")
        order = sorted(range(len(decoder.history)), key=lambda row: -len(decoder.history[row]))
        self.cache = Cache(len(order), self.context)
        read(self.model, self.cache, [decoder.history[row][: self.context] for row in order], decoder.numbers[order])
        self.context -= self.cache.ahead
        self.cache.select(np.argsort(order))

    def select(self, index):
        self.cache.select(index)

    def guess(self, decoder, room):
        """-> (b, n) int32."""
        lengths = np.array([len(text) for text in decoder.history])
        n = min(self.tokens, room, self.context - int(lengths.max()) - 1)
        if n <= 0:
            return np.empty((len(lengths), 0), np.int32)
        self.cache.lengths[:] = np.minimum(self.cache.lengths, lengths - 1)  # what was guessed wrong is forgotten
        texts, guesses = [list(text) for text in decoder.history], np.empty((len(lengths), n), np.int32)
        for j in range(n):
            logits = self._read([text[held:] for text, held in zip(texts, self.cache.lengths)], decoder.numbers)
            scores = decoder.sampling.adjust(logits[:, : decoder.vocabulary], texts, decoder.prompts, decoder.ends, decoder.limit)
            keys = [decoder.keys[row].fold(decoder.drawn(i) + j) for i, row in enumerate(decoder.rows)]
            guesses[:, j] = decoder.sampling.choose(scores, keys)
            for text, id in zip(texts, guesses[:, j].tolist()):
                text.append(id)
        return guesses

    def _read(self, unread, numbers):
        """unread: each row's tokens behind those of the cache, one or more; numbers: see hidden_of -> logits:(b, V) behind the last."""
        for row, ids in enumerate(unread):
            if len(ids) > 2:  # behind rounds without guesses
                read(self.model, self.cache.part(row, row + 1), [ids[:-1]], numbers[[row]])
                unread[row] = ids[-1:]
        counts = np.array([len(ids) for ids in unread])
        tokens = np.zeros((len(unread), counts.max()), np.int32)
        for row, ids in zip(tokens, unread):
            row[: len(ids)] = ids
        hidden = hidden_of(self.model, tokens, self.cache, numbers)[np.arange(len(unread)), counts - 1]
        self.cache.advance(counts)
        with no_grad():
            return ops.linear(hidden, self.model.head_weight(), self.model.head_bias()).data


def _at_least_one(draft, *names):
    wrong = [f"{name}={value!r}" for name in names if not isinstance(value := getattr(draft, name), int) or value < 1]
    if wrong:
        raise ConfigError(f"{type(draft).__name__}: {', '.join(wrong)}; expected a whole number of at least 1")
