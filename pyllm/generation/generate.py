"""generate and stream: prompts in, text out."""
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from pyllm.autograd import no_grad
from pyllm.errors import ConfigError
from pyllm.generation.beam import beam_search
from pyllm.generation.decode import Decoder
from pyllm.generation.settings import settings
from pyllm.models.seq2seq import Continuation, EncoderDecoder
from pyllm.text.chat import turn_ends


@dataclass
class Generation:
    """A continuation. text: without the prompt, the end token, a forced first token, the stop string and half a character at the end.

    ids: every token drawn. finish_reason: "stop" (end token, stop string, or all that a constraint allows) or "length" (max_tokens, or the
    context is full). logprobs: log p of each id in nats, where asked for. score: of beam search, in nats. acceptance: the share of a
    draft's guesses that were right.
    """

    text: str = ""
    ids: list = field(default_factory=list)
    finish_reason: str = "length"
    logprobs: list | None = None
    score: float | None = None
    acceptance: float | None = None


def generate(model, tokenizer, prompts, *, seed=0, slide=False, logprobs=False, sampling=None, constraint=None, draft=None, session=None,
             **given):
    """Continues text -> a Generation for one prompt (a str or a row of ids), a list of them for a list of prompts.

    given: max_tokens (100), stop (a string or several; a row ends before the first of them), the fields of Sampling, which says in what
    order they work, and of Beams; what is not given the model's generation_config.json says, see `settings`. With num_return_sequences
    above 1 a list of Generations stands for each prompt. A row ends at the end token of the tokenizer or of the model. Row i draws from
    seed + i, so that it gives what a call with its prompt alone and that seed gives. An encoder-decoder reads the prompts and answers from
    its start token on. A row that fills the model's context ends there; with slide it forgets the older half and goes on. tokenizer None:
    for prompts of ids; the text is then "".

    logprobs: True gives each token's log p by the model alone, "tempered" by softmax(logits / temperature) (temperature 0: as True),
    neither with penalties and cuts; the bits are those of ops.linear_log_probs over the full forward. sampling: a Sampling, taken as it
    is, whatever the model's files say. constraint: a Constraint that the text matches. draft: PromptLookup or DraftModel, which guess
    tokens ahead: the same tokens in less time. session: a Session, which keeps what was read.

    ValueError: no prompt, an empty one (an empty text starts at the tokenizer's begin or end token where it has one), one beyond the
    context, values out of range, a tokenizer with more tokens than the model. FloatingPointError: the model gives NaN.
    """
    alone = isinstance(prompts, str) or len(prompts) > 0 and isinstance(prompts[0], Integral)
    rows = [prompts] if alone else list(prompts)
    sampling, beams, max_tokens, stop = settings(model, given, sampling)
    if logprobs not in (False, True, "tempered"):
        raise ConfigError(f"generate: logprobs={logprobs!r}; expected True (by the model alone), \"tempered\" or False")
    searched = beams.num_beams > 1
    if searched and (logprobs or slide or draft is not None or stop):
        raise ConfigError(f"generate: num_beams={beams.num_beams} with logprobs, slide, draft or stop; a search has none of them. "
                          "Hint: num_beams=1")
    heat = sampling.temperature if logprobs == "tempered" and sampling.temperature else 1.0
    copies = beams.num_beams if searched else beams.num_return_sequences
    decoder = _decoder(model, tokenizer, rows, sampling, max_tokens, seed, slide, copies, constraint, draft, session)
    results = [Generation(logprobs=[] if logprobs else None) for _ in range(len(rows) * beams.num_return_sequences)]
    texts = [_Text(tokenizer, stop) for _ in results]
    if searched:
        for result, text, found in zip(results, texts, beam_search(decoder, beams, max_tokens)):
            result.score, result.ids = found
            stopped = [_ends(result.ids[: i + 1], text, decoder) for i in range(len(result.ids))]
            result.finish_reason = "stop" if stopped and stopped[-1] else "length"
    else:
        for _ in _continue(decoder, results, texts, max_tokens, heat):
            pass
    for row, (result, text) in enumerate(zip(results, texts)):
        result.text = text.text
        if not searched and decoder.drafted[row]:
            result.acceptance = float(decoder.accepted[row] / decoder.drafted[row])
    if beams.num_return_sequences > 1:
        results = [results[i : i + beams.num_return_sequences] for i in range(0, len(results), beams.num_return_sequences)]
    return results[0] if alone else results


def stream(model, tokenizer, prompt, *, seed=0, slide=False, sampling=None, constraint=None, draft=None, session=None, **given):
    """Continues one prompt -> iterator of text pieces, which together are the text that `generate` gives with the same arguments.

    Never half a character, nor the beginning of what may become a stop string. What is wrong is said at once, not at the first piece.
    """
    if tokenizer is None:
        raise ValueError("stream: tokenizer is None; expected one, since text is what streams")
    sampling, beams, max_tokens, stop = settings(model, {"num_beams": 1, "num_return_sequences": 1, **given}, sampling)
    if beams.num_beams > 1 or beams.num_return_sequences > 1:
        raise ConfigError(f"stream: num_beams={beams.num_beams}, num_return_sequences={beams.num_return_sequences}; "
                          "expected 1: one text streams")
    text = _Text(tokenizer, stop)
    decoder = _decoder(model, tokenizer, [prompt], sampling, max_tokens, seed, slide, 1, constraint, draft, session)

    def pieces():
        for _ in _continue(decoder, [Generation()], [text], max_tokens):
            if piece := text.ready():
                yield piece
        if piece := text.rest():
            yield piece

    return pieces()


def _continue(decoder, results, texts, max_tokens, heat=1.0):
    """Draws until every row has ended; yields when rows have one more token. heat: the temperature of recorded log p."""
    while max_tokens and len(decoder.rows):
        ids, rows = decoder.step().tolist(), decoder.rows[decoder.at]
        if results[0].logprobs is not None:
            for row, score in zip(rows, decoder.logprobs(heat).tolist()):
                results[row].logprobs.append(score)
        keep = np.ones(len(ids), bool)
        for i, (row, id, full, complete) in enumerate(zip(rows, ids, decoder.full(), decoder.complete())):
            result = results[row]
            result.ids.append(id)
            if _ends(result.ids, texts[row], decoder) or complete:
                result.finish_reason, keep[i] = "stop", False
            elif full or len(result.ids) == max_tokens:
                keep[i] = False
        yield
        decoder.advance(keep)


def _ends(ids, text, decoder):
    """Puts the last of a row's drawn ids into its text -> whether the text ends there."""
    if len(ids) == 1 and ids[0] == decoder.sampling.forced_bos_token_id:
        return False
    return ids[-1] in decoder.ends or text.push(ids[-1])


def _decoder(model, tokenizer, prompts, sampling, max_tokens, seed, slide, copies, constraint, draft, session):
    """-> the Decoder of checked arguments."""
    for name, value in (("max_tokens", max_tokens), ("seed", seed)):
        if not isinstance(value, Integral) or value < 0:
            raise ConfigError(f"generate: {name}={value!r}; expected a whole number of at least 0")
    vocabulary = None
    if tokenizer is not None:
        vocabulary = tokenizer.vocab_size
        if vocabulary > model.config.vocab_size:
            raise ValueError(f"generate: the tokenizer has {vocabulary} tokens, the model {model.config.vocab_size}. "
                             "Hint: is this the model's own tokenizer?")
    ends, matcher = end_ids(model, tokenizer), None
    if constraint is not None:
        if tokenizer is None:
            raise ValueError("generate: a constraint without a tokenizer; expected one, since it is text that is constrained")
        matcher = constraint.over(tokenizer, ends)
    if model.by_row and len(model.by_row) != len(prompts):
        raise ValueError(f"generate: {len(prompts)} prompts within peft.rows of {len(model.by_row)}; expected as many")
    ids = [_ids(tokenizer, prompt, row) for row, prompt in enumerate(prompts)]
    memory = None
    if session is not None and (slide or model.by_row or isinstance(model, EncoderDecoder)):
        raise ConfigError("generate: a session with slide, peft.rows or an encoder-decoder; expected a causal model whose text only grows, "
                          "read with the same weights")
    if isinstance(model, EncoderDecoder):
        if not ids or not all(ids):
            raise ValueError("generate: no prompts, or one without tokens; expected at least one token a row")
        with no_grad():
            memory = model.read(ids)
        named = (model.generation or {}).get("decoder_start_token_id")
        model, ids = Continuation(model), [model.config.starts if named is None else [named]] * len(ids)
    return Decoder(model, ids, sampling, [seed + row for row in range(len(ids) * copies)], copies=copies, capacity=min(max_tokens, 256),
                   vocabulary=vocabulary, slide=slide, memory=memory, ends=ends, limit=max_tokens, matcher=matcher, draft=draft,
                   session=session)


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
    """-> the set of ids that end a text: the tokenizer's eos, those that config.json and generation_config.json name, and what ends
    a turn where the tokenizer has a chat template."""
    named = [model.config.extra.get("eos_token_id"), (model.generation or {}).get("eos_token_id"), getattr(tokenizer, "eos_id", None),
             turn_ends(tokenizer)]
    return {i for ids in named for i in (ids if isinstance(ids, list) else [ids])} - {None}


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
