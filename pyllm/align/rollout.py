"""Rollouts: what a policy drew, with masks that say which token is what. NumPy only, so that no gradient leaks in."""
from dataclasses import dataclass, fields, replace

import numpy as np

from pyllm.autograd import Rng, Tensor, no_grad
from pyllm.data.batch import IGNORED, Batch
from pyllm.generation import Decoder, Sampling


@dataclass(frozen=True)
class Rollout:
    """B responses to B prompts, every row from column 0 on: prompt, response, padding.

    tokens (B, T) int32; segments (B, T), 1 where there is a token, 0 = padding; targets (B, T): the response token that a position
    predicts, IGNORED elsewhere. So every array of (B, T) below speaks at t of the token drawn at t, which stands at t + 1 of tokens.
    prompt_lengths, lengths (B,): tokens; the end token is the response's last. ended (B,): whether it has one.
    logp (B, T): log p when it was drawn, nats, at `temperature`. ref_logp, values (B, T), scores (B,) or (B, T): filled in later.
    """

    tokens: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    prompt_lengths: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    logp: np.ndarray
    temperature: float
    ref_logp: np.ndarray | None = None
    values: np.ndarray | None = None
    scores: np.ndarray | None = None

    @property
    def mask(self):
        """(B, T) bool: where a response token is drawn."""
        return self.targets != IGNORED

    @property
    def last(self):
        """(B,) the position that draws each response's last token."""
        return self.prompt_lengths + self.lengths - 2

    def prompt(self, row):
        """-> ids of the row's prompt."""
        return self.tokens[row, : self.prompt_lengths[row]]

    def response(self, row, end=False):
        """-> ids of the row's response, without the end token unless `end`."""
        begin = self.prompt_lengths[row]
        return self.tokens[row, begin : begin + self.lengths[row] - (self.ended[row] and not end)]

    def with_(self, **arrays):
        """-> the Rollout with arrays filled in."""
        return replace(self, **arrays)

    def rows(self, index):
        """-> the Rollout of some rows, an array of their numbers."""
        arrays = {f.name: a[index] for f in fields(self) if isinstance(a := getattr(self, f.name), np.ndarray)}
        return replace(self, **arrays)

    def batch(self, **extra):
        """-> Batch of all rows, extra arrays beside."""
        return Batch(self.tokens, self.targets, self.segments, extra=extra)


def rollout(policy, prompts, *, max_tokens, copies=1, temperature=1.0, stop=(), stop_after=0, seed=0, vocabulary=None, value=None):
    """Draws `copies` responses of 1 to max_tokens tokens to each of `prompts`, lists of token ids -> Rollout; a prompt's are neighbours.

    stop: ids that end a response, from its token number stop_after on (counted from 0; earlier ones are tokens like others). seed: a number
    or an Rng; row i draws from its fold(i), so a row does not depend on how many there are. A prompt is read once for all its copies.
    Nothing but the temperature is done to the distribution: a cut tail or a forbidden token would make the divergence from the reference
    a wrong number (trl#235). vocabulary: ids from there on are never drawn. value: a layer from the policy's hidden states to
    values:(..., 1), which are then kept too. ValueError for an empty prompt, or one that leaves no room for max_tokens.
    """
    check_prompts(policy, prompts, max_tokens)
    if not temperature > 0:
        raise ValueError(f"rollout: temperature={temperature!r}; expected a number above 0: a policy that always takes the likeliest "
                         "token has no probabilities to learn from")
    keys = seed if isinstance(seed, Rng) else Rng(seed)
    stops = {int(i) for i in stop if i is not None}
    rows = [prompt for prompt in prompts for _ in range(copies)]
    ids, logps, states = ([[] for _ in rows] for _ in range(3))
    ended = np.zeros(len(rows), bool)
    seeds = [keys.fold(i).key for i in range(len(rows))]
    decoder = Decoder(policy, prompts, Sampling(temperature), seeds, copies=copies, capacity=max_tokens, vocabulary=vocabulary)
    for drawn in range(max_tokens):
        tokens = decoder.step()
        keep = np.ones(len(tokens), bool)
        for i, (row, id, logp) in enumerate(zip(decoder.rows, tokens.tolist(), decoder.logprobs(temperature))):
            ids[row].append(id)
            logps[row].append(logp)
            if value is not None:
                states[row].append(decoder.hidden[i, 0])
            if id in stops and drawn >= stop_after:
                ended[row], keep[i] = True, False
        if drawn + 1 == max_tokens or not keep.any():
            break
        decoder.advance(keep)
    drawn = assemble(rows, ids, ended, logps, temperature)
    if value is None:
        return drawn
    values = np.zeros(drawn.targets.shape, np.float32)
    with no_grad():
        values[drawn.mask] = value(Tensor(np.concatenate([np.stack(row) for row in states]))).data[:, 0]
    return drawn.with_(values=values)


def assemble(prompts, responses, ended, logps=None, temperature=1.0):
    """prompts, responses: B lists of ids each, logps: B lists of log p, or None for zeros; ended: (B,) bool -> Rollout."""
    if not all(map(len, responses)):
        raise ValueError(f"rollout: response {[len(r) for r in responses].index(0)} is empty; expected at least one token")
    b, width = len(prompts), max(len(p) + len(r) for p, r in zip(prompts, responses))
    tokens, segments = np.zeros((b, width), np.int32), np.zeros((b, width), np.int32)
    targets, logp = np.full((b, width), IGNORED, np.int32), np.zeros((b, width), np.float32)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        p, n = len(prompt), len(response)
        tokens[row, :p], tokens[row, p : p + n], segments[row, : p + n] = prompt, response, 1
        targets[row, p - 1 : p + n - 1] = response
        if logps is not None:
            logp[row, p - 1 : p + n - 1] = logps[row]
    lengths = (np.array([len(x) for x in rows]) for rows in (prompts, responses))
    return Rollout(tokens, segments, targets, *lengths, np.asarray(ended, bool), logp, temperature)


def check_prompts(policy, prompts, max_tokens):
    """ValueError unless there are prompts, none empty, and each leaves room for max_tokens in the context."""
    context = policy.config.size("context")
    if not len(prompts):
        raise ValueError("rollout: no prompts")
    if max_tokens < 1:
        raise ValueError(f"rollout: max_tokens={max_tokens}; expected at least 1")
    lengths = [len(p) for p in prompts]
    if not min(lengths):
        raise ValueError(f"rollout: prompt {lengths.index(0)} is empty; expected at least one token")
    if max(lengths) + max_tokens > context:
        raise ValueError(f"rollout: prompt {lengths.index(max(lengths))} has {max(lengths)} tokens and responses up to {max_tokens}: "
                         f"more than the context of {context}. Hint: shorten prompts, or responses")
