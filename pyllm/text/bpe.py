"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019, GPT-2).

Text is split into words by a pattern, each word's UTF-8 bytes are its first symbols, and the best-ranked pair of neighbours is merged until
none is left. The ids equal those of the `tokenizers` package, in encoding and in training.
"""
import warnings

import numpy as np

from ..errors import ConfigError, FormatError
from ..progress import Progress
from .base import AddedToken, Tokenizer, checked_specials, checked_texts
from .split import GPT2, PATTERNS, class_table

try:
    from . import _bpe as loops
except ImportError:  # not compiled: the same in plain Python
    from . import _bpe_py as loops


def _alphabet():
    """-> 256 characters, so that tokens are visible text: printable Latin-1 is itself, the others take U+0100, U+0101 ... in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return "".join(chr(b if b in shown else 0x100 + hidden.index(b)) for b in range(256))


ALPHABET = _alphabet()  # byte -> character
_TO_LATIN = {ord(c): b for b, c in enumerate(ALPHABET)} | {c: 0xFFFD for c in range(256) if chr(c) not in ALPHABET}


def spelled(data):
    """bytes -> the token's spelling in the vocabulary."""
    return "".join(map(ALPHABET.__getitem__, data))


def _content(token):
    """A vocabulary's spelling -> bytes; one that is not in the alphabet stands for itself."""
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _scanner(pattern):
    if pattern is None:
        return None
    if pattern not in PATTERNS:
        raise ConfigError(f"ByteLevelBPE: no split pattern {pattern!r}; known: {', '.join(map(repr, PATTERNS))}, or None for no splitting")
    entry = PATTERNS[pattern]
    return loops.Scanner(class_table(), entry.rules, entry.contractions, entry.newlines, entry.edge)


class ByteLevelBPE(Tokenizer):
    """vocab: {token: id}; merges: list of (left, right) tokens, best first; added: AddedTokens; together ids 0 .. V-1 without gaps.

    pattern: a key of split.PATTERNS or None; add_prefix_space: a space before text that does not start with one; ignore_merges: a word
    that is a token is taken whole. FormatError where these contradict each other. roles, config: see Tokenizer.
    """

    def __init__(self, vocab, merges, added=(), *, pattern=GPT2, add_prefix_space=False, ignore_merges=False, roles=None, config=None):
        self.vocab, self.merges = vocab, merges
        self.pattern, self.add_prefix_space, self.ignore_merges = pattern, add_prefix_space, ignore_merges
        tokens = by_id(vocab, added)
        contents = [_content(token) for token in tokens]
        for token in added:
            contents[token.id] = token.content.encode()
        super().__init__(tokens, contents, added, roles, config)
        byte_ids = np.array([vocab.get(c, -1) for c in ALPHABET], np.int32)
        whole = {_content(token): i for token, i in vocab.items()} if ignore_merges else None
        self._encoder = loops.Encoder(_scanner(pattern), byte_ids, _merge_rows(vocab, merges), whole)

    def _encode_text(self, text, start):
        if self.add_prefix_space and not text.startswith(" ") and text:
            text = " " + text
        return self._encode(text.encode("utf-8", "surrogatepass"))

    def _encode(self, data):
        ids = np.frombuffer(self._encoder.encode(data), np.uint32)
        if self._encoder.dropped >= 0:
            byte, self._encoder.dropped = self._encoder.dropped, -1
            missing = sum(c not in self.vocab for c in ALPHABET)
            warnings.warn(f"encode: the vocabulary has no token for byte 0x{byte:02X} ({missing} of 256 are missing): "
                          "such bytes are left out of the ids, as `tokenizers` does", stacklevel=4)
        return ids

    def encode_bytes(self, data):
        """bytes, UTF-8 or not -> list of ids; decode_bytes gives the same bytes back. No special tokens, no prefix space."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"encode_bytes: data is a {type(data).__name__}, expected bytes")
        return self._encode(bytes(data)).tolist()

    @classmethod
    def train(cls, texts, vocab_size, *, special_tokens=("<|endoftext|>",), min_frequency=2, max_memory=1 << 30):
        """Learns a tokenizer of at most `vocab_size` ids from an iterable of str; fewer when no pair occurs `min_frequency` times any more.

        Ids: the special tokens, the 256 bytes in the order of their characters in the vocabulary, then the merges. The most frequent pair
        is merged first; of equally frequent ones that with the smaller left id, then the smaller right id. Special tokens in the texts
        are plain text. Counts are 64 bits wide. The texts are read one at a time. max_memory: bytes for the distinct words and for
        learning from them; where more would be needed the rarest words are forgotten and a warning says so once. Without that the ids
        equal those of BpeTrainer in `tokenizers`. ConfigError for a vocab_size below that of the bytes and special tokens, ValueError
        for no text.
        """
        tokens = checked_specials(special_tokens)
        specials = len(tokens)
        tokens += [c for c in sorted(ALPHABET) if c not in tokens]
        if vocab_size < len(tokens):
            raise ConfigError(f"train: vocab_size is {vocab_size}, expected at least {len(tokens)} for 256 bytes and {specials} specials")
        counter = loops.WordCounter(_scanner(GPT2), max_memory)
        told = False
        with Progress(None, "count words", unit="B") as bar:
            for text in checked_texts(texts):
                data = text.encode("utf-8", "surrogatepass")
                counter.add(data)
                bar.update(len(data))
                if counter.pruned and not told:
                    told = True
                    warnings.warn(f"train: too many distinct words for max_memory={max_memory}: the rarest are forgotten", stacklevel=2)
        text, lengths, counts = counter.words()
        del counter
        if not text:
            raise ValueError("train: there is no text in `texts`")
        byte_ids = np.array([tokens.index(c) for c in ALPHABET], np.int32)
        trainer = loops.Trainer(text, lengths, counts, byte_ids, tokens, min_frequency)
        merges = []
        with Progress(vocab_size, "learn merges", unit="tok", start=len(tokens)) as bar:
            while new := trainer.step(vocab_size, 64):
                merges += new
                bar.update(len(tokens) - bar.n)
        added = [AddedToken(i, content) for i, content in enumerate(tokens[:specials])]
        return cls({token: i for i, token in enumerate(tokens)}, [(tokens[a], tokens[b]) for a, b, _ in merges], added)


def by_id(vocab, added):
    """{token: id} and AddedTokens -> list of tokens by id; FormatError where the ids are not 0 .. V-1, each once."""
    size = len({*vocab, *(t.content for t in added)})
    tokens = [None] * size
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < size:
            raise FormatError(f"vocabulary: token {token!r:.60} has id {i!r:.60}; {size} tokens need the ids 0 .. {size - 1} without gaps")
        if tokens[i] is not None:
            raise FormatError(f"vocabulary: id {i} belongs to both {tokens[i]!r:.60} and {token!r:.60}")
        tokens[i] = token
    for token in added:
        if type(token.id) is not int or not 0 <= token.id < size:
            raise FormatError(f"added tokens: {token.content!r:.60} has id {token.id!r:.60}; {size} tokens need the ids 0 .. {size - 1} "
                              "without gaps")
        if not token.content or tokens[token.id] not in (None, token.content) or vocab.get(token.content, token.id) != token.id:
            raise FormatError(f"added tokens: {token.content!r:.60} has id {token.id}, but that id belongs to {tokens[token.id]!r:.60} and "
                              f"that token has id {vocab.get(token.content)}")
        tokens[token.id] = token.content
    if None in tokens:
        raise FormatError(f"added tokens: nothing has id {tokens.index(None)}; {size} tokens need the ids 0 .. {size - 1}, each once")
    return tokens


def _merge_rows(vocab, merges):
    """-> (M, 3) int32: ids of left, right and merged token."""
    rows = np.empty((len(merges), 3), np.int32)
    for rank, (left, right) in enumerate(merges):
        missing = [token for token in (left, right, left + right) if token not in vocab]
        if missing or not left or not right:
            raise FormatError(f"merges: number {rank}, {left!r:.60} + {right!r:.60}, needs tokens that the vocabulary lacks: "
                              f"{str(missing or ['']):.90}")
        rows[rank] = vocab[left], vocab[right], vocab[left + right]
    return rows
