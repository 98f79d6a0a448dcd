"""generate and stream: prompts in, text out."""
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from pyllm.autograd import no_grad
from pyllm.errors import ConfigError
from pyllm.generation.decode import Decoder
from pyllm.generation.sampling import Sampling
from pyllm.models.base import CausalLM
from pyllm.models.seq2seq import Continuation, EncoderDecoder


@dataclass
class Generation:
    """A continuation. text: without the prompt, the end token, the stop string and half a character at the end. ids: every token drawn.

    finish_reason: "stop" (end token or stop string) or "length" (max_tokens, or the context is full). logprobs: log p of each id in nats,
    where asked for.
    """

    text: str = ""
    ids: list = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list | None = None


def generate(model, tokenizer, prompts, *, max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
             stop=(), seed=0, slide=False, logprobs=False):
    """Continues text -> a Generation for one prompt (a str or a row of ids), a list of them for a list of prompts.

    Tokens are chosen in this order: repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw; see Sampling. stop: a string or
    several; a row ends before the first of them, or at the end token of the tokenizer or the model. Row i draws from seed + i, so that it
    gives what a call with its prompt alone and that seed gives. An encoder-decoder reads the prompts and answers from its start tokens on.
    A row that fills the model's context ends there; with slide it forgets the older half and goes on. tokenizer None: for prompts of ids;
    the text is then "". ValueError: no prompt, an empty one (an empty text starts at the tokenizer's begin or end token where it has one),
    one beyond the context, values out of range, a tokenizer with more tokens than the model. FloatingPointError: the model gives NaN.
    """
    alone = isinstance(prompts, str) or len(prompts) > 0 and isinstance(prompts[0], Integral)
    rows = [prompts] if alone else list(prompts)
    decoder = _decoder(model, tokenizer, rows, Sampling(temperature, top_k, top_p, min_p, repetition_penalty), max_tokens, seed, slide)
    results = [Generation(logprobs=[] if logprobs else None) for _ in rows]
    texts = [_Text(tokenizer, stop) for _ in rows]
    if logprobs not in (False, True, "tempered"):
        raise ConfigError(f"generate: logprobs={logprobs!r}; expected True (by the model alone), \"tempered\" or False")
    heat = temperature if logprobs == "tempered" and temperature else 1.0
    for _ in _continue(decoder, results, texts, end_ids(model, tokenizer), max_tokens, heat):
        pass
    for result, text in zip(results, texts):
        result.text = text.text
    return results[0] if alone else results


def stream(model, tokenizer, prompt, *, max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, stop=(),
           seed=0, slide=False):
    """Continues one prompt -> iterator of text pieces, which together are the text that `generate` gives with the same arguments.

    Never half a character, nor the beginning of what may become a stop string. What is wrong is said at once, not at the first piece.
    """
    if tokenizer is None:
        raise ValueError("stream: tokenizer is None; expected one, since text is what streams")
    text, ends = _Text(tokenizer, stop), end_ids(model, tokenizer)
    decoder = _decoder(model, tokenizer, [prompt], Sampling(temperature, top_k, top_p, min_p, repetition_penalty), max_tokens, seed, slide)

    def pieces():
        for _ in _continue(decoder, [Generation()], [text], ends, max_tokens):
            if piece := text.ready():
                yield piece
        if piece := text.rest():
            yield piece

    return pieces()


def _continue(decoder, results, texts, ends, max_tokens, heat=1.0):
    """Draws until every row has ended; yields when each row left has one more token. heat: the temperature of recorded log p."""
    while max_tokens and len(decoder.rows):
        ids = decoder.step().tolist()
        if results[0].logprobs is not None:
            for row, score in zip(decoder.rows, decoder.logprobs(heat).tolist()):
                results[row].logprobs.append(score)
        keep = np.ones(len(ids), bool)
        for i, (row, id, full) in enumerate(zip(decoder.rows, ids, decoder.full())):
            result = results[row]
            result.ids.append(id)
            if id in ends or texts[row].push(id):
                result.finish_reason, keep[i] = "stop", False
            elif full or len(result.ids) == max_tokens:
                keep[i] = False
        yield
        decoder.advance(keep)


def _decoder(model, tokenizer, prompts, sampling, max_tokens, seed, slide):
    """-> the Decoder of checked arguments."""
    for name, value in (("max_tokens", max_tokens), ("seed", seed)):
        if not isinstance(value, Integral) or value < 0:
            raise ConfigError(f"generate: {name}={value!r}; expected a whole number of at least 0")
    if not isinstance(model, (CausalLM, EncoderDecoder)):
        raise ValueError(f"generate: a {type(model).__name__} predicts no next token; expected a causal model or an encoder-decoder")
    vocabulary = None
    if tokenizer is not None:
        vocabulary = tokenizer.vocab_size
        if vocabulary > model.config.vocab_size:
            raise ValueError(f"generate: the tokenizer has {vocabulary} tokens, the model {model.config.vocab_size}. "
                             "Hint: is this the model's own tokenizer?")
    ids = [_ids(tokenizer, prompt, row) for row, prompt in enumerate(prompts)]
    memory = None
    if isinstance(model, EncoderDecoder):
        if not ids or not all(ids):
            raise ValueError("generate: no prompts, or one without tokens; expected at least one token a row")
        with no_grad():
            memory = model.read(ids)
        model, ids = Continuation(model), [model.config.starts] * len(ids)
    return Decoder(model, ids, sampling, [seed + row for row in range(len(ids))], min(max_tokens, 256), vocabulary, slide, memory)


def _ids(tokenizer, prompt, row):
    """-> a prompt's ids; an empty text starts from the begin or end token where there is one."""
    if not isinstance(prompt, str):
        ids = np.asarray(prompt)
        if ids.ndim != 1 or ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"generate: prompt {row} is a {type(prompt).__name__} of {ids.dtype} with shape {ids.shape}; "
                            "expected a str or one row of token ids")
        return ids.tolist()
    if tokenizer is None:
        raise ValueError("generate: a text prompt without a tokenizer; expected token ids, or a tokenizer")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    return tokenizer.encode(prompt) or ([] if start is None else [start])


def end_ids(model, tokenizer):
    """-> the set of ids that end a text: the tokenizer's eos and what config.json names (one or several)."""
    named = model.config.extra.get("eos_token_id")
    ids = {*named} if isinstance(named, list) else {named}
    return (ids | {getattr(tokenizer, "eos_id", None)}) - {None}


class _Text:
    """Text of drawn tokens, held back while it may still become a stop string."""

    def __init__(self, tokenizer, stop):
        self.stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(s, str) and s for s in self.stops):
            raise ConfigError(f"generate: stop={stop!r}; expected a string or several, none empty (an empty string would stop everything)")
        if self.stops and tokenizer is None:
            raise ValueError("generate: stop strings without a tokenizer; expected one")
        self.decoder = tokenizer.stream() if tokenizer is not None else None
        self.text, self.given = "", 0
        self.overlap = max(map(len, self.stops), default=0)

    def push(self, id):
        """-> whether a stop string is complete."""
        if self.decoder is None:
            return False
        begin = max(0, len(self.text) - self.overlap)
        self.text += self.decoder.push(id)
        found = [at for s in self.stops if (at := self.text.find(s, begin)) >= 0]
        if found:
            self.text, self.stops = self.text[: min(found)], []  # the end: nothing is held back any more
        return bool(found)

    def ready(self):
        """-> the text not given yet that can no longer be part of a stop string."""
        held = max((n for s in self.stops for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        piece = self.text[self.given : len(self.text) - held]
        self.given += len(piece)
        return piece

    def rest(self):
        """-> all not given yet: nothing comes behind it."""
        piece, self.given = self.text[self.given :], len(self.text)
        return piece
