"""What encoder-decoder families share: the call, the masks between the two sides, the head."""
import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.models.base import check_tokens
from pyllm.nn import Module, virtual


class Memory:
    """What a decoder looks at: hidden:(B, S, C), segments:(B, S), rows as its own, and each layer's keys and values, made once."""

    def __init__(self, hidden, segments):
        self.hidden, self.segments, self.kept = hidden, (np.asarray(segments) > 0).astype(np.int32), {}

    def keys(self, attention, memory):
        """-> what attention.keys(memory) gives, for the whole life of the rows."""
        if attention.layer not in self.kept:
            self.kept[attention.layer] = attention.keys(memory)
        return self.kept[attention.layer]

    def rows(self, index):
        """-> a Memory of the rows `index`."""
        part = Memory(Tensor(self.hidden.data[index]), self.segments[index])
        part.kept = {layer: tuple(Tensor(t.data[index]) for t in pair) for layer, pair in self.kept.items()}
        return part


class EncoderDecoder(Module):
    """tokens:(B, S), decoder_tokens:(B, T) -> logits Tensor (B, T, V) of the decoder.

    A family defines `embedding`, `sides`, `encode` and `decode`. ALIASES: see `aliases`; the others: see Trunk.
    """

    PREFIX, TRANSPOSED, IGNORED, RENAMED, OPTIONAL, ALIASES, ALSO, TRUNK, HEAD = "", (), (), (), (), {}, (), None, "lm_head"
    generation = None
    architecture = property(lambda self: self.config.architecture)

    def sides(self):
        """-> the modules of encoder and decoder."""
        raise NotImplementedError

    def encode(self, tokens, segments=None, rng=None):
        """tokens:(B, S) -> Tensor (B, S, C): what the decoder looks at, a prompt's columns first."""
        raise NotImplementedError

    def decode(self, tokens, memory, *, segments, cross, cache, kept, rng):
        """tokens:(B, T) memory:(B, S, C) -> Tensor (B, T, C).

        segments:(B, T) or None; cross: None or the pair (of tokens, of memory); kept: see Memory, or None.
        """
        raise NotImplementedError

    def hidden(self, tokens, decoder_tokens, segments=None, decoder_segments=None, *, rng=None):
        """-> Tensor (B, T, C): what the head reads.

        segments:(B, S) of the encoder, 0 = padding, k = k-th document; decoder_segments:(B, T) the same of the decoder: document k looks
        at document k. Without them a row of the decoder looks at all of its row that is not padding.
        """
        tokens, segments = check_tokens(type(self).__name__, tokens, self.config.vocab_size, segments)
        decoder_tokens, decoder_segments = self.check_decoder(decoder_tokens, decoder_segments)
        if len(tokens) != len(decoder_tokens):
            raise ValueError(f"{type(self).__name__}: tokens {tokens.shape} and decoder_tokens {decoder_tokens.shape}; "
                             "expected as many rows")
        memory, cross = self.encode(tokens, segments, rng), None
        if segments is not None or decoder_segments is not None:
            theirs = np.ones_like(tokens) if segments is None else segments
            cross = decoder_segments, theirs
            if decoder_segments is None:
                cross = np.ones_like(decoder_tokens), (theirs > 0).astype(np.int32)
            cross = cross[0], virtual.extended(self.sides()[0].prompt, cross[1])
        return self.decode(decoder_tokens, memory, segments=decoder_segments, cross=cross, cache=None, kept=None,
                           rng=rng and rng.fold("decoder"))

    def __call__(self, tokens, decoder_tokens, segments=None, decoder_segments=None, *, rng=None):
        hidden = self.hidden(tokens, decoder_tokens, segments, decoder_segments, rng=rng)
        return ops.linear(hidden, self.head_weight(), self.head_bias())

    def read(self, rows):
        """rows: lists of ids -> the Memory of these texts."""
        tokens, segments = np.zeros((2, len(rows), max(map(len, rows))), np.int32)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        return Memory(self.encode(tokens, segments), virtual.extended(self.sides()[0].prompt, segments))

    def continued(self, tokens, cache):
        """tokens:(B, T) behind those of the cache, whose memory they look at -> hidden states (B, T, C), without gradients."""
        tokens, _ = self.check_decoder(tokens, None, cache)
        memory = cache.memory
        cross = np.ones_like(tokens), memory.segments
        return self.decode(tokens, memory.hidden, segments=None, cross=cross, cache=cache, kept=memory.keys, rng=None)

    def check_decoder(self, tokens, segments, cache=None):
        return check_tokens(f"{type(self).__name__} decoder", tokens, self.config.vocab_size, segments, cache)

    def head_weight(self):
        """-> Tensor (V, C); the embedding's own where tied."""
        return self.embedding().weight if self.lm_head is None else self.lm_head.weight

    def head_bias(self):
        """-> Tensor (V,), or None."""
        return None

    def check(self, tokens, segments=None):
        """See check_tokens."""
        return check_tokens(type(self).__name__, tokens, self.config.vocab_size, segments)

    def aliases(self):
        """-> {name a checkpoint may hold: the parameter it is a copy of}."""
        shared = next(iter(self.ALIASES.values()))
        return self.ALIASES if self.lm_head is not None else {**self.ALIASES, "lm_head.weight": shared}


class Continuation:
    """The decoder of an encoder-decoder, called like a causal language model."""

    def __init__(self, model):
        self.model, self.config, self.head_weight, self.head_bias = model, model.config, model.head_weight, model.head_bias

    def hidden(self, tokens, cache):
        """tokens:(B, T) -> Tensor (B, T, C)."""
        return self.model.continued(tokens, cache)
