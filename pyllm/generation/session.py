"""What a model has read and need not read again: the turns of a chat, a beginning that many prompts share."""
from pyllm.nn import Cache


class Session:
    """Keeps keys and values between calls of generate and stream, which take it as `session`; their results do not change by a bit.

    One prompt: what it and the text read last have in common at their beginning stays, the rest is read, and with the tokens drawn it is
    what the next call finds; so each turn of a chat, a prompt with all turns so far, reads the new one alone. Several prompts, or several
    copies: each row starts from a copy of the beginning that all share with the text held, and the session stays as it is;
    generate(..., max_tokens=0, session=session) reads such a beginning.

    model: a causal one, whose weights must not change meanwhile. ids: the tokens whose keys and values are held. reused: how many of them
    the last call found.
    """

    def __init__(self, model):
        self.model, self.cache, self.text, self.reused = model, Cache(1), [], 0

    @property
    def ids(self):
        return self.text[: int(self.cache.lengths[0])]

    def cache_for(self, model, texts, copies, room):
        """-> a Cache of a row for each of texts, which holds the beginning they share with this one, short of a prompt's last token.

        With a text alone it is the session's own, and the decoder then makes the list `text` longer as it reads.
        """
        if model is not self.model:
            raise ValueError("generate: the session belongs to another model; expected one made by Session(model)")
        self.reused = min(shared(text[:-1], self.ids) for text in texts)
        if len(texts) > 1 or copies > 1:
            return self.cache.copies([self.reused] * len(texts), room)
        self.cache.lengths[0], self.text = self.reused, texts[0]
        self.cache.capacity = max(self.cache.capacity, room)
        return self.cache


def shared(one, other):
    """-> how many elements two lists have in common at their beginning."""
    if one == other[: len(one)]:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), len(other))
