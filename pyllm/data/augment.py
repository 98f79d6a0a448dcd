"""Training data varied: of what is read, never of what is learned. On rows: tokens dropped, spans masked; on text: any function, such as
words replaced by synonyms or a translation there and back.
"""
from dataclasses import replace

import numpy as np

from pyllm.data.loader import key

MEAN_SPAN = 3  # tokens


def drop_tokens(row, rng, rate, special=()):
    """Each token that is only read, but the first and special ones (ids), is dropped with probability `rate` (Iyyer et al. 2015) -> Row."""
    keep = ~_free(row, special) | (rng.random(len(row)) >= rate)
    return replace(row, tokens=row.tokens[keep], learned=row.learned[keep], types=None if row.types is None else row.types[keep])


def mask_spans(row, rng, rate, mask_id, special=()):
    """Spans of about 3 tokens that are only read become mask_id, token by token, so that `rate` of these are masked on average -> Row."""
    free = _free(row, special)
    masked = np.zeros(len(row), bool)
    for begin in np.flatnonzero(rng.random(len(row)) < rate / MEAN_SPAN / max(1 - rate / 2, 0.5)).tolist():
        masked[begin:begin + rng.geometric(1 / MEAN_SPAN)] = True
    return replace(row, tokens=np.where(masked & free, np.int32(mask_id), row.tokens))


def _free(row, special):
    """(n,) bool: the tokens that may be changed. ValueError for spans, whose places would move."""
    if isinstance(row.label, tuple):
        raise ValueError(f"augment: {row.where}: a row whose label is a span of its tokens; expected rows of answers or classes")
    free = ~row.learned & ~np.isin(row.tokens, list(special))
    free[:1] = False
    return free


class Augmented:
    """Examples, and behind each `copies` of it with change(text, rng) in place of each text that is read: an iterable like Examples.

    Changed are prompts, texts to classify and what users say; answers, labels and system messages stay. rng: a numpy Generator of (seed,
    example, copy) alone. Hooks: partial(replace_words, synonyms=...), or a translation there and back, lambda text, rng: back(there(text)).
    """

    def __init__(self, examples, change, copies=1, seed=0):
        self.examples, self.change, self.copies, self.seed = examples, change, copies, seed
        self.kind = examples.kind
        if self.kind not in ("prompt", "completion", "messages", "unpaired", "classification", "preference"):
            raise ValueError(f"Augmented: examples of kind {self.kind}, of which nothing is only read")

    def __iter__(self):
        for i, example in enumerate(self.examples):
            yield example
            for copy in range(self.copies):
                rng = np.random.Generator(np.random.Philox(key=key(self.seed, i, copy, 7)))
                changed = {name: self._changed(example[name], rng) for name in ("prompt", "messages") if name in example}
                if self.kind == "classification":
                    changed["text"] = self.change(example["text"], rng)
                yield {**{k: v for k, v in example.items() if k != "id"}, **changed}

    def _changed(self, value, rng):
        if isinstance(value, str):
            return self.change(value, rng)
        return [{**m, "content": self.change(m["content"], rng)} if m["role"] == "user" else m for m in value]


def replace_words(text, rng, synonyms, rate=0.1):
    """Words, each with probability `rate`, become one of synonyms(word), a list of str, where there is any (Wei and Zou 2019) -> str."""
    parts = text.split(" ")
    for i, word in enumerate(parts):
        if word and rng.random() < rate and (known := synonyms(word)):
            parts[i] = known[int(rng.integers(len(known)))]
    return " ".join(parts)
