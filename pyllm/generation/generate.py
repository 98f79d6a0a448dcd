"""generate and stream: prompts in, text out."""
from dataclasses import dataclass, field

import numpy as np

from pyllm.generation.decode import Decoder
from pyllm.generation.sampling import Sampling


@dataclass
class Generation:
    """A continuation. text: without the prompt, the end token and the stop string. ids: every token drawn, an end token included.

    finish_reason: "stop" (end token or stop string) or "length" (max_tokens, or the context is full). logprobs: log p of each id under
    the model alone, where asked for.
    """

    text: str = ""
    ids: list = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list | None = None


def generate(model, tokenizer, prompts, *, max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0,
             stop=(), seed=0, logprobs=False):
    """Continues text -> a Generation for one prompt (a str or a list of ids), a list of them for a list of prompts.

    Tokens are chosen in this order: repetition penalty -> temperature -> top-k -> top-p -> min-p -> draw; see Sampling. stop: a string or
    several, at which a row ends. Row i draws from seed + i, so that it gives what a call with its prompt alone and that seed gives.
    tokenizer may be None for prompts of ids; the text is then "". ValueError: no prompt, an empty one, one beyond the context.
    """
    alone = isinstance(prompts, str) or len(prompts) > 0 and isinstance(prompts[0], (int, np.integer))
    rows = [prompts] if alone else list(prompts)
    results = [Generation(logprobs=[] if logprobs else None) for _ in rows]
    texts = [_Text(tokenizer, stop) for _ in rows]
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    decoder = Decoder(model, [_ids(model, tokenizer, p) for p in rows], sampling, [seed + i for i in range(len(rows))], _count(max_tokens),
                      getattr(tokenizer, "vocab_size", None))
    ends = end_ids(model, tokenizer)
    while len(decoder.rows) and max_tokens:
        ids = decoder.step()
        scores = decoder.logprobs() if logprobs else None
        keep = np.ones(len(ids), bool)
        for i, (row, id, full) in enumerate(zip(decoder.rows, ids.tolist(), decoder.full())):
            result, text = results[row], texts[row]
            result.ids.append(id)
            if logprobs:
                result.logprobs.append(float(scores[i]))
            if id in ends or text.push(id):
                result.finish_reason, keep[i] = "stop", False
            elif full or len(result.ids) == max_tokens:
                keep[i] = False
        decoder.advance(keep)
    for result, text in zip(results, texts):
        result.text = text.all()
    return results[0] if alone else results


def stream(model, tokenizer, prompt, *, max_tokens=100, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
           repetition_penalty=1.0, stop=(), seed=0):
    """Continues one prompt -> iterator of text pieces, which together are the text that `generate` gives with the same arguments.

    Never half a character, nor the beginning of what may become a stop string.
    """
    if tokenizer is None:
        raise ValueError("stream: tokenizer is None; expected one, since text is what streams")
    text, ends = _Text(tokenizer, stop), end_ids(model, tokenizer)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    decoder = Decoder(model, [_ids(model, tokenizer, prompt)], sampling, [seed], _count(max_tokens), tokenizer.vocab_size)
    return _stream(decoder, text, ends, max_tokens)


def _stream(decoder, text, ends, max_tokens):
    for drawn in range(1, max_tokens + 1):
        id = int(decoder.step()[0])
        done = id in ends or text.push(id) or drawn == max_tokens or bool(decoder.full()[0])
        piece = text.rest() if done else text.ready()
        if piece:
            yield piece
        if done:
            return
        decoder.advance(np.ones(1, bool))


def end_ids(model, tokenizer):
    """-> the set of ids that end a text: the tokenizer's eos and what config.json names (one or several)."""
    named = model.config.extra.get("eos_token_id")
    ids = {*named} if isinstance(named, list) else {named}
    return (ids | {getattr(tokenizer, "eos_id", None)}) - {None}


def _count(max_tokens):
    if not isinstance(max_tokens, (int, np.integer)) or max_tokens < 0:
        raise ValueError(f"generate: max_tokens={max_tokens!r}; expected a whole number of at least 0")
    return int(max_tokens)


def _ids(model, tokenizer, prompt):
    """-> a prompt's ids; an empty text starts from the beginning- or end-of-text token where there is one."""
    if not isinstance(prompt, str):
        return [int(i) for i in prompt]
    if tokenizer is None:
        raise ValueError("generate: a text prompt without a tokenizer; expected token ids, or a tokenizer")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"generate: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}. "
                         "Hint: is this the model's own tokenizer?")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    return tokenizer.encode(prompt) or ([] if start is None else [start])


class _Text:
    """Text of drawn tokens, held back while it may still become a stop string."""

    def __init__(self, tokenizer, stop):
        self.stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in self.stops:
            raise ValueError("generate: stop holds an empty string, which would stop everything")
        if self.stops and tokenizer is None:
            raise ValueError("generate: stop strings without a tokenizer; expected one")
        self.decoder = tokenizer.stream() if tokenizer is not None else None
        self.text, self.given, self.stopped = "", 0, False

    def push(self, id):
        """-> whether a stop string is complete."""
        if self.decoder is None:
            return False
        self.text += self.decoder.push(id)
        begin = max(0, self.given - max(map(len, self.stops), default=0))
        found = [at for s in self.stops if (at := self.text.find(s, begin)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        return self.stopped

    def ready(self):
        """-> the text not given yet that can no longer be part of a stop string."""
        end = len(self.text)
        held = max((n for s in self.stops for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        piece = self.text[self.given : end - held]
        self.given += len(piece)
        return piece

    def rest(self):
        """-> all not given yet; nothing comes behind it."""
        if self.decoder is not None and not self.stopped:
            self.text += self.decoder.finish()
        piece, self.given = self.text[self.given :], len(self.text)
        return piece

    def all(self):
        self.rest()
        return self.text
