"""From logits to a token: one documented order of steps."""
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real

import numpy as np

from pyllm import kernels as K
from pyllm.errors import ConfigError
from pyllm.kernels.reference import kept

INFINITY = float("inf")
FORBIDDEN = np.float32(-INFINITY)


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The order, which is that of transformers where it has the step:

    logit bias -> repetition penalty -> presence and frequency penalties -> repeated n-grams -> bad words -> min_tokens -> constraint ->
    forced first token -> forced last token -> suppressed tokens -> tokens suppressed at the beginning -> temperature -> top-k -> top-p ->
    min-p -> draw.

    "Drawn" tokens are those behind the prompt; of an encoder-decoder the start token is the prompt.
    """

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int = 0  # the k likeliest; 0 = all
    top_p: float = 1.0  # the smallest set whose probability reaches top_p. Holtzman et al. 2020
    min_p: float = 0.0  # at least min_p times the likeliest. Nguyen et al. 2024
    logit_bias: Mapping | None = None  # {id: what is added to its logit}
    repetition_penalty: float = 1.0  # of tokens the row holds already, prompt included; 1 = none. Keskar et al. 2019, section 4.1
    presence_penalty: float = 0.0  # taken from the logit of a token that was drawn
    frequency_penalty: float = 0.0  # the same, times how often
    penalize_prompt: bool = False  # presence and frequency count the prompt's tokens too
    no_repeat_ngram_size: int = 0  # no n tokens in a row twice, prompt included; 0 = off. Paulus et al. 2017
    bad_words_ids: tuple = ()  # rows of ids that never stand in what is drawn, nor begin in the prompt
    min_tokens: int = 0  # no end token before so many are drawn
    forced_bos_token_id: int | None = None  # the first token drawn
    forced_eos_token_id: int | None = None  # the last one that max_tokens allows
    suppress_tokens: tuple = ()  # never drawn
    begin_suppress_tokens: tuple = ()  # not drawn as the first one, behind a forced first one as the second

    def __post_init__(self):
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if _rows(self.bad_words_ids or ()):
            object.__setattr__(self, "bad_words_ids", tuple(map(tuple, self.bad_words_ids or ())))
        wrong = [f"{field.name}={value!r}, expected {words}" for field in fields(self)
                 if not _RIGHT[field.name][0](value := getattr(self, field.name)) for words in [_RIGHT[field.name][1]]]
        if wrong:
            raise ConfigError(f"sampling: {'; '.join(wrong)}")

    @cached_property
    def adjusts(self):
        """Whether a step before the temperature changes anything."""
        return any(getattr(self, f.name) != f.default for f in fields(self) if f.name not in ("temperature", "top_k", "top_p", "min_p"))

    def adjust(self, scores, texts, prompts, ends=(), limit=None, allowed=None):
        """scores:(B, V) float32, logits or log p -> the same after the steps before the temperature, as a copy where anything changes.

        texts: B lists of ids so far; prompts:(B,) how many of each are prompt; ends: ids that end a text; limit: tokens drawn at most;
        allowed: of each row the tokens that a constraint allows, (V,) bool, or None.
        """
        if not self.adjusts and allowed is None:
            return scores
        scores = np.array(scores)
        v, ends = scores.shape[1], [i for i in ends if i < scores.shape[1]]
        for row, (x, text, prompt) in enumerate(zip(scores, texts, prompts)):
            drawn = len(text) - int(prompt)
            for id, bias in (self.logit_bias or {}).items():
                x[_inside("logit_bias", [id], v)] += np.float32(bias)
            if self.repetition_penalty != 1:
                held, by = [i for i in set(text) if i < v], np.float32(self.repetition_penalty)
                x[held] = np.where(x[held] > 0, x[held] / by, x[held] * by)
            if self.presence_penalty or self.frequency_penalty:
                counts = Counter(i for i in (text if self.penalize_prompt else text[prompt:]) if i < v)
                often = np.fromiter(counts.values(), np.float32, len(counts))
                x[list(counts)] -= np.float32(self.frequency_penalty) * often + np.float32(self.presence_penalty)
            if self.no_repeat_ngram_size:
                x[[i for i in repeating(text, self.no_repeat_ngram_size) if i < v]] = FORBIDDEN
            for *before, id in self.bad_words_ids:
                if not before or text[-len(before) :] == before:
                    x[_inside("bad_words_ids", [id], v)] = FORBIDDEN
            if drawn < self.min_tokens:
                x[ends] = FORBIDDEN
            if allowed is not None:
                x[~allowed[row]] = FORBIDDEN
            forced = [self.forced_bos_token_id] * (drawn == 0) + [self.forced_eos_token_id] * (drawn + 1 == limit)
            for id in forced:
                if id is not None:
                    x[:], x[_inside("a forced token", [id], v)] = FORBIDDEN, 0
            x[_inside("suppress_tokens", self.suppress_tokens, v)] = FORBIDDEN
            if drawn == (self.forced_bos_token_id is not None):
                x[_inside("begin_suppress_tokens", self.begin_suppress_tokens, v)] = FORBIDDEN
        return scores

    def choose(self, scores, keys):
        """scores:(B, V), adjusted; keys: an Rng a row, for this position -> ids:(B,) int32."""
        uniform = np.zeros(len(scores)) if self.temperature == 0 else np.array([key.uniform() for key in keys])
        return K.sample(scores, uniform, self.temperature, self.top_k, self.top_p, self.min_p)

    def cut(self, scores):
        """scores:(B, V), adjusted -> the same divided by the temperature, FORBIDDEN where top-k, top-p or min-p leave a token out."""
        scores = scores / np.float32(self.temperature)
        if not (self.top_k or self.top_p < 1 or self.min_p):
            return scores
        cut = np.full(scores.shape, FORBIDDEN)
        for row, x in zip(cut, scores):
            if len(possible := np.flatnonzero(x > FORBIDDEN)):
                ids = possible[kept(x[possible].astype(np.float64), self.top_k, self.top_p, self.min_p)[0]]
                row[ids] = x[ids]
        return cut


def repeating(text, n):
    """text: a list of ids -> the tokens that would end an n-gram which stands in the text already."""
    if len(text) < n:
        return []
    ids = np.array(text)
    ends = np.ones(len(ids) - n + 1, bool)  # of the n-gram that begins at each place, whether its first n - 1 are the text's last
    for i in range(n - 1):
        ends &= ids[i : i + len(ends)] == ids[len(ids) - n + 1 + i]
    return ids[n - 1 :][ends].tolist()


def _inside(name, ids, v):
    """-> ids as a list; ValueError for one that is no token."""
    wrong = [i for i in ids if not 0 <= i < v]
    if wrong:
        raise ValueError(f"generate: {name}: token id {wrong[0]}; expected 0..{v - 1}")
    return list(ids)


def _number(low, high, words):
    return lambda x: isinstance(x, Real) and low <= x <= high and abs(x) < INFINITY, words


def _whole(words, none=False):
    return lambda x: none and x is None or isinstance(x, Integral) and x >= 0, words


def _ids(x):
    return all(isinstance(i, Integral) for i in x)


def _rows(x):
    return isinstance(x, (list, tuple)) and all(isinstance(ids, (list, tuple)) and len(ids) and _ids(ids) for ids in x)


_RIGHT = {  # field -> (what is right, in words)
    "temperature": _number(0, INFINITY, "a number of at least 0"),
    "top_k": _whole("a whole number, 0 for all"),
    "top_p": _number(0, 1, "a number from 0 to 1"),
    "min_p": _number(0, 1, "a number from 0 to 1"),
    "logit_bias": (lambda x: x is None or isinstance(x, Mapping) and _ids(x) and all(isinstance(b, Real) and b == b for b in x.values()),
                   "{token id: a number}"),
    "repetition_penalty": (lambda x: isinstance(x, Real) and 0 < x < INFINITY, "a number above 0, 1 for none"),
    "presence_penalty": _number(-INFINITY, INFINITY, "a number, 0 for none"),
    "frequency_penalty": _number(-INFINITY, INFINITY, "a number, 0 for none"),
    "penalize_prompt": (lambda x: isinstance(x, bool), "True or False"),
    "no_repeat_ngram_size": _whole("a whole number, 0 for none"),
    "bad_words_ids": (_rows, "rows of token ids, none empty"),
    "min_tokens": _whole("a whole number of at least 0"),
    "forced_bos_token_id": _whole("a token id or None", none=True),
    "forced_eos_token_id": _whole("a token id or None", none=True),
    "suppress_tokens": (_ids, "token ids"),
    "begin_suppress_tokens": (_ids, "token ids"),
}
