"""What encoder-decoder families share: the call, the masks between the two sides, the head."""
import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.models.base import Trunk, check_tokens
from pyllm.nn import Linear, Module, virtual


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


class Pair(Module):
    """Abstract: the encoder and the decoder of a family, which defines `embedding`, `sides`, `encode` and `decode`."""

    def sides(self):
        """-> the modules of encoder and decoder."""
        raise NotImplementedError

    def begins(self):
        """See Trunk."""
        return self.sides()[0]

    def encode(self, tokens, segments=None, rng=None):
        """tokens:(B, S) -> Tensor (B, S, C): what the decoder looks at, a prompt's columns first."""
        raise NotImplementedError

    def decode(self, tokens, memory, *, segments, cross, cache, kept, rng):
        """tokens:(B, T) memory:(B, S, C) -> Tensor (B, T, C).

        segments:(B, T) or None; cross: None or the pair (of tokens, of memory); kept: see Memory, or None.
        """
        raise NotImplementedError

    def both(self, tokens, decoder_tokens, segments=None, decoder_segments=None, *, rng=None):
        """-> Tensor (B, T, C): the decoder's last states.

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

    def check(self, tokens, segments=None):
        """See check_tokens."""
        return check_tokens(type(self).__name__, tokens, self.config.vocab_size, segments)

    def check_decoder(self, tokens, segments, cache=None):
        return check_tokens(f"{type(self).__name__} decoder", tokens, self.config.vocab_size, segments, cache)


class ClassificationHead(Module):
    """x:(B, C) -> (B, labels): out_proj(dropout(tanh(dense(dropout(x)))))."""

    def __init__(self, c, labels):
        self.dense, self.out_proj = (Linear(c.d_model, outputs, True, c.init_std) for outputs in (c.d_model, labels))
        self.p = c.head_dropout

    def __call__(self, x, rng=None):
        x = ops.tanh(self.dense(ops.dropout(x, self.p, rng and rng.fold("head"))))
        return self.out_proj(ops.dropout(x, self.p, rng and rng.fold("out")))


class PairTrunk(Pair, Trunk):
    """tokens:(B, T) -> (B, T, C): the decoder's states over the same tokens moved right by one, so that each has read all before it twice.

    This is what the library of these checkpoints classifies from. decoder_tokens:(B, T'): other tokens of the decoder; -> (B, T', C).
    """

    HEADS = {"sequence": "classification_head", "span": "qa_outputs", "value": "value"}

    def __call__(self, tokens, segments=None, decoder_tokens=None, decoder_segments=None, *, rng=None):
        if decoder_tokens is None:
            tokens, segments = self.check(tokens, segments)
            decoder_tokens, decoder_segments = shifted(tokens, segments, self.config.starts), segments
        return self.both(tokens, decoder_tokens, segments, decoder_segments, rng=rng)

    def pooled(self, hidden, tokens, segments):
        """hidden:(B, T, C) -> (B, C) where each row's last EOS stands."""
        tokens, eos = np.asarray(tokens), self.config.eos
        found = (tokens == eos) & (np.ones_like(tokens) if segments is None else np.asarray(segments) > 0)
        if hidden.shape[:2] != tokens.shape or not found.any(1).all():
            raise ValueError(f"{type(self).__name__}: a classifier of sequences reads each row's last EOS (id {eos}); row "
                             f"{int(found.any(1).argmin())} has none. Hint: the tokenizer puts one behind every text")
        return hidden[np.arange(len(tokens)), tokens.shape[1] - 1 - found[:, ::-1].argmax(1)]

    def sequence_layer(self, labels):
        return ClassificationHead(self.config, labels)

    def scores(self, layer, pooled, rng):
        return layer(pooled, rng)

    def aliases(self):
        return SHARED


SHARED = {"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"}


def shifted(tokens, segments, starts):
    """tokens:(B, T) -> (B, T): each document moved right by one, behind the first of `starts`."""
    if not starts:
        raise ValueError("decoder_tokens is None and the configuration has no decoder_start_token_id; expected one of them")
    moved, first = np.roll(tokens, 1, axis=1), np.zeros(tokens.shape, bool)
    first[:, 0] = True
    if segments is not None:
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return np.where(first, starts[0], moved).astype(np.int32)


class EncoderDecoder(Pair):
    """tokens:(B, S), decoder_tokens:(B, T) -> logits Tensor (B, T, V) of the decoder.

    TRUNK: the family's PairTrunk; PREFIX and the others: see Trunk and LanguageModel. OTHERS: {architecture: the class of that name alone}.
    """

    PREFIX, TRANSPOSED, IGNORED, RENAMED, OPTIONAL, ALSO, TRUNK, HEAD, OTHERS = "", (), (), (), (), (), PairTrunk, "lm_head", {}
    generation = None  # see Headed
    architecture = property(lambda self: self.config.architecture)

    def hidden(self, tokens, decoder_tokens, segments=None, decoder_segments=None, *, rng=None):
        """-> Tensor (B, T, C): what the head reads; see `both`."""
        return self.both(tokens, decoder_tokens, segments, decoder_segments, rng=rng)

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

    def head_weight(self):
        """-> Tensor (V, C); the embedding's own where tied."""
        return self.embedding().weight if self.lm_head is None else self.lm_head.weight

    def head_bias(self):
        """-> Tensor (V,), or None."""
        return None

    def aliases(self):
        """-> {name a checkpoint may hold: the parameter it is a copy of}."""
        copies = {self.PREFIX + alias: self.PREFIX + name for alias, name in SHARED.items()}
        return copies if self.lm_head is not None else {**copies, "lm_head.weight": f"{self.PREFIX}shared.weight"}


class Continuation:
    """The decoder of an encoder-decoder, called like a causal language model."""

    def __init__(self, model):
        self.model, self.config, self.head_weight, self.head_bias = model, model.config, model.head_weight, model.head_bias
        self.by_row = model.by_row

    def hidden(self, tokens, cache):
        """tokens:(B, T) -> Tensor (B, T, C)."""
        return self.model.continued(tokens, cache)
