"""Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019, GPT-2).

Text is split into words by a pattern, each word's UTF-8 bytes are its first symbols, and the best-ranked pair of neighbours is merged until
none is left. The ids equal those of the `tokenizers` package, in encoding and in training.
"""
import warnings
from itertools import repeat
from operator import add

import numpy as np

from ..errors import ConfigError, FormatError
from ..progress import Progress
from .added import AddedToken
from .base import Tokenizer, by_id, checked_specials, checked_texts
from .normalize import flag
from .pattern import short
from .pre_tokenize import pre_tokenizer
from .split import DIGITS, GPT2, PATTERNS

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
    return PATTERNS[pattern].scanner(loops)


class ByteLevelBPE(Tokenizer):
    """vocab: {token: id}; merges: list of (left, right) tokens, best first; added: AddedTokens; together ids 0 .. V-1 without gaps.

    pattern: a key of split.PATTERNS or None; add_prefix_space: a space before text that does not start with one; ignore_merges: a word
    that is a token is taken whole; before: pre-tokenizers, as tokenizer.json writes them, that cut the text first. FormatError where these
    contradict each other. roles, config, parts: see Tokenizer.
    """

    def __init__(self, vocab, merges, added=(), *, pattern=GPT2, add_prefix_space=False, ignore_merges=False, before=(), roles=None,
                 config=None, parts=None):
        self.vocab, self.merges = vocab, merges
        self.pattern, self.add_prefix_space, self.ignore_merges, self.before = pattern, add_prefix_space, ignore_merges, list(before)
        self._steps = [pre_tokenizer(spec) for spec in before]
        tokens = by_id(vocab, added)
        contents = [_content(token) for token in tokens]
        self._sizes = np.array(list(map(len, contents)), np.int64)
        for token in added:
            contents[token.id] = token.content.encode()
        own = {"pre_tokenizer": write_pre_tokenizer(pattern, add_prefix_space, before), "decoder": byte_level(True, True)}
        super().__init__(tokens, contents, added, roles, config, {**(parts or {}), **own})
        byte_ids = np.array([vocab.get(c, -1) for c in ALPHABET], np.int32)
        whole = {_content(token): i for token, i in vocab.items()} if ignore_merges else None
        self._encoder = loops.Encoder(_scanner(pattern), byte_ids, merge_rows(vocab, merges), whole)

    def _encode_text(self, text, src, start):
        words, srcs = [text], None if src is None else [src]
        for step in self._steps:
            words, srcs = step(words, srcs, start == 0)
        if len(words) == 1:
            return self._encode_word(words[0], srcs and srcs[0])
        found = [self._encode_word(word, srcs and srcs[i]) for i, word in enumerate(words)]
        if not found:
            return np.empty(0, np.uint32), np.empty((0, 2), np.int64)
        return np.concatenate([ids for ids, _ in found]), None if srcs is None else np.concatenate([spans for _, spans in found])

    def _encode_word(self, text, src):
        if self.add_prefix_space and not text.startswith(" "):
            text = " " + text
            src = None if src is None else np.concatenate([src[:1], src])
        ids = self._encode(text.encode("utf-8", "surrogatepass"))
        if src is None:
            return ids, None
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        places = np.repeat(src, 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000))  # of each byte
        ends = np.cumsum(self._sizes[ids])
        starts = np.minimum(np.concatenate([[0], ends[:-1]]), len(places) - 1) if len(ids) else ends
        return ids, np.stack([places[starts], places[np.minimum(ends, len(places)) - 1] + 1], 1)

    def _encode(self, data):
        ids = np.frombuffer(self._encoder.encode(data), np.uint32)
        if self._encoder.dropped >= 0:
            byte, self._encoder.dropped = self._encoder.dropped, -1
            missing = sum(c not in self.vocab for c in ALPHABET)
            warnings.warn(f"encode: the vocabulary has no token for byte 0x{byte:02X} ({missing} of 256 are missing): "
                          "such bytes are left out of the ids, as `tokenizers` does", stacklevel=5)
        return ids

    def encode_bytes(self, data):
        """bytes, UTF-8 or not -> list of ids; decode_bytes gives the same bytes back. No special tokens, no prefix space."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"encode_bytes: data is a {type(data).__name__}, expected bytes")
        return self._encode(bytes(data)).tolist()

    def model(self):
        """The model as tokenizer.json writes it."""
        return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": self.ignore_merges,
                "vocab": dict(sorted(self.vocab.items(), key=lambda item: item[1])), "merges": [list(merge) for merge in self.merges]}

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
        symbols = byte_ids[np.frombuffer(text, np.uint8)]
        merges = learn_merges(symbols, lengths, counts, tokens, vocab_size, min_frequency)
        added = [AddedToken(i, content) for i, content in enumerate(tokens[:specials])]
        return cls({token: i for i, token in enumerate(tokens)}, merges, added)


def learn_merges(symbols, lengths, counts, tokens, vocab_size, min_frequency, prefix=""):
    """symbols: (S,) int32 ids of N words, lengths, counts: (N,) int64; tokens: list of str by id, extended up to vocab_size
    -> list of merges (left, right) as tokens, best first; prefix: what tokens inside a word begin with."""
    trainer, merges = loops.Trainer(symbols, lengths, counts, tokens, min_frequency, prefix), []
    with Progress(vocab_size, "learn merges", unit="tok", start=len(tokens)) as bar:
        while new := trainer.step(vocab_size, 64):
            merges += new
            bar.update(len(tokens) - bar.n)
    return [(tokens[left], tokens[right]) for left, right, _ in merges]


def merge_rows(vocab, merges, prefix="", by_token=False):
    """merges: list of pairs of tokens, or (M, 3) int32 ids of left, right and merged token
    -> (M, 4) int32: these ids and the rank; by_token: merges into one token have one rank."""
    rows = np.empty((len(merges), 4), np.int32)
    if isinstance(merges, np.ndarray):
        rows[:, :3] = merges
    elif merges:
        left, right = zip(*merges)
        made = map(add, left, (token[len(prefix):] for token in right) if prefix else right)
        for column, tokens in enumerate((left, right, made)):
            rows[:, column] = list(map(vocab.get, tokens, repeat(-1)))
        if "" in left or "" in right or (rows[:, :3] < 0).any():
            at = next(i for i, (a, b) in enumerate(merges) if not a or not b or (rows[i, :3] < 0).any())
            left, right = merges[at]
            missing = [token for token in (left, right, left + right[len(prefix):]) if token not in vocab]
            raise FormatError(f"merges: number {at}, {left!r:.60} + {right!r:.60}, needs tokens that the vocabulary lacks: "
                              f"{str(missing or ['']):.90}")
    rows[:, 3] = np.arange(len(rows))
    if by_token:
        made, rank = rows[:, 2], np.zeros(rows[:, 2].max(initial=0) + 1, np.int32)
        rank[made[::-1]] = rows[::-1, 3]  # where each token is made first
        new = rank[made] == rows[:, 3]
        rank[made[new]] = np.arange(np.count_nonzero(new))
        rows[:, 3] = rank[made]
    return rows


def byte_level(prefix_space, use_regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": use_regex}


def write_pre_tokenizer(pattern, add_prefix_space, before=()):
    """-> the pre-tokenizer as tokenizer.json writes it."""
    steps, last = list(before), byte_level(add_prefix_space, pattern in (GPT2, DIGITS))
    if pattern == DIGITS:
        steps.append({"type": "Digits", "individual_digits": True})
    elif pattern not in (GPT2, None):
        steps.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    return {"type": "Sequence", "pretokenizers": [*steps, last]} if steps else last


def read_pre_tokenizer(spec):
    """A pre-tokenizer that ends in ByteLevel -> arguments of ByteLevelBPE."""
    steps = spec["pretokenizers"] if spec["type"] == "Sequence" else [spec]
    *before, last = steps
    for step in before:
        if not isinstance(step, dict) or step.get("type") == "ByteLevel":
            raise FormatError(f"pre_tokenizer is {short(spec)}; ByteLevel is supported at the end alone")
    prefix_space = flag(last, "add_prefix_space", True)
    pattern = GPT2 if flag(last, "use_regex", True) else None
    step = before[-1] if before and not prefix_space else {}  # a space would come before every piece of the step
    if step.get("type") == "Digits" and step.get("individual_digits") is True and pattern and len(before) == 1:
        pattern, before = DIGITS, []
    elif step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and not pattern:
        expression = step["pattern"].get("Regex") if isinstance(step.get("pattern"), dict) else None
        if isinstance(expression, str) and expression in PATTERNS and expression != DIGITS:
            pattern, before = expression, before[:-1]
    return {"pattern": pattern, "add_prefix_space": prefix_space, "before": before}
