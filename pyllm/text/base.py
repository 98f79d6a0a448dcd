"""What every tokenizer shares: ids and tokens, special tokens written in the text, decoding, streaming."""
import codecs
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError, suggest
from .split import BLANKS

BLANK = "".join(chr(c) for first, last in BLANKS for c in range(first, last + 1))
ROLES = {  # role -> contents that have it when no tokenizer_config.json says otherwise, best first
    "eos": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "pad": ("<pad>", "<|pad|>", "[PAD]"),
}


@dataclass(frozen=True)
class AddedToken:
    """A token found in the text before any splitting. Fields as in tokenizer.json: lstrip and rstrip take the blanks beside it,
    single_word: not inside a word, special: a control token, normalized: looked for after all tokens that are not."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True


class Tokenizer:
    """Abstract. A subclass gives `_encode_text(text, start) -> (T,) uint32` for text without added tokens, start its place in the whole.

    tokens: list of str by id; contents: list of bytes by id, what each token stands for in the decoded text;
    added: list of AddedToken; roles: {"eos": content, "bos": ..., "pad": ...}, what is missing is taken from ROLES, None for no such token;
    config: the rest of tokenizer_config.json, written back by save.
    """

    def __init__(self, tokens, contents, added=(), roles=None, config=None):
        self._tokens, self._contents, self.added, self.config = tokens, contents, list(added), dict(config or {})
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._finders = [_Finder(group) for flag in (False, True) if (group := [t for t in self.added if t.normalized == flag])]
        found = {role: next((c for c in names if c in {t.content for t in self.added}), None) for role, names in ROLES.items()}
        for role, content in {**found, **(roles or {})}.items():
            setattr(self, f"{role}_id", None if content is None else self.id(content))

    eos_id = bos_id = pad_id = None

    @property
    def vocab_size(self):
        """Number of ids: 0 .. vocab_size - 1."""
        return len(self._tokens)

    def id(self, token):
        """The id of a token as the vocabulary spells it (byte-level: a leading space is written U+0120). ValueError if there is none."""
        if token not in self._ids:
            raise ValueError(f"id: no token {token!r:.60} among {self.vocab_size}.{suggest(token, (t.content for t in self.added))}")
        return self._ids[token]

    def token(self, id):
        """The token of an id as the vocabulary spells it."""
        return self._tokens[self._checked([id])[0]]

    def token_bytes(self, id):
        """The bytes an id stands for: its length is what bits per byte are counted in."""
        return self._contents[self._checked([id])[0]]

    def encode(self, text, special=True):
        """text -> list of ids. special: special tokens written in the text become their id; otherwise they are ordinary text.

        A lone surrogate is encoded as its three bytes, which decode to U+FFFD.
        """
        return self.encode_array(text, special).tolist()

    def encode_batch(self, texts, special=True):
        """(B,) texts -> list of B lists of ids."""
        if isinstance(texts, str):
            raise TypeError("encode_batch: texts is one str; expected a list of them: encode_batch([text])")
        return [self.encode_array(text, special).tolist() for text in texts]

    def encode_array(self, text, special=True):
        """text -> (T,) uint32: the same ids without a list, for corpora."""
        if not isinstance(text, str):
            hint = "; decode it first, or use encode_bytes" if isinstance(text, bytes) else ""
            raise TypeError(f"encode: text is a {type(text).__name__}, expected a str{hint}")
        pieces = [(0, text)]
        for finder in self._finders:
            pieces = [found for piece in pieces for found in (finder.split(*piece, special) if isinstance(piece[1], str) else [piece])]
        parts = [self._encode_text(piece, start) if isinstance(piece, str) else np.array([piece], np.uint32) for start, piece in pieces]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.uint32)

    def decode(self, ids):
        """(T,) ids -> str. Bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        """(T,) ids -> the exact bytes."""
        contents = self._contents
        return b"".join([contents[i] for i in self._checked(ids)])

    def _checked(self, ids):
        ids = np.asarray(ids)
        if ids.size == 0:
            return []
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"decode: ids have shape {ids.shape} and dtype {ids.dtype}, expected one row of integers")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(f"decode: id {low if low < 0 else high} is outside 0 .. {self.vocab_size - 1}")
        return ids.tolist()

    def stream(self):
        """-> Stream, which turns ids into text one at a time."""
        return Stream(self)

    def save(self, path):
        """Writes tokenizer.json (`path` ends in .json) or a folder with tokenizer.json and tokenizer_config.json, each atomically."""
        from .tokenizer_json import write_tokenizer

        write_tokenizer(self, path)


class Stream:
    """Text as it comes: push(id) gives what is complete, finish() the rest. Together they equal decode(ids)."""

    def __init__(self, tokenizer):
        self._tokenizer, self._decoder = tokenizer, codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id):
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self):
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text


class _Finder:
    """Finds added tokens: leftmost, and of those that start there the longest."""

    def __init__(self, tokens):
        self.tokens = {token.content: token for token in tokens}
        self.plain = not any(t.single_word or t.lstrip or t.rstrip for t in tokens)
        self.find = re.compile("|".join(re.escape(c) for c in sorted(self.tokens, key=len, reverse=True))).finditer

    def split(self, offset, text, special):
        """-> list of (start, piece of text without tokens) and (start, id)."""
        pieces, done = [], 0
        for match in self.find(text):
            token, (start, stop) = self.tokens[match.group()], match.span()
            if token.special and not special:
                continue
            if not self.plain:
                if token.single_word and (start and _in_word(text[start - 1]) or stop < len(text) and _in_word(text[stop])):
                    continue
                if token.lstrip:
                    start = max(done, len(text[done:start].rstrip(BLANK)) + done)
                if token.rstrip:
                    stop = len(text) - len(text[stop:].lstrip(BLANK))
            if done < start:
                pieces.append((offset + done, text[done:start]))
            if start < stop:  # not if a neighbour's rstrip took all of it
                pieces.append((offset + start, token.id))
            done = stop
        if done < len(text):
            pieces.append((offset + done, text[done:]))
        return pieces


def checked_texts(texts):
    """Yields the texts to train on; TypeError for anything that is not a str."""
    if isinstance(texts, str):
        raise TypeError("train: texts is one str; expected an iterable of them: train([text], ...)")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"train: text {i} is a {type(text).__name__}, expected a str")
        yield text


def checked_specials(special_tokens):
    """-> the special tokens, each once."""
    if isinstance(special_tokens, str):
        raise TypeError(f"train: special_tokens is one str; expected a sequence of them: ({special_tokens!r},)")
    if "" in special_tokens:
        raise ConfigError("train: special_tokens holds an empty string")
    return list(dict.fromkeys(special_tokens))


def _in_word(c):
    """\\w of the field's engines: letters, marks, decimal digits, letter numbers, connectors, joiners, circled letters."""
    return (unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc") or c in "\u200c\u200d"
            or "\u24b6" <= c <= "\u24e9" or "\U0001f130" <= c <= "\U0001f149" or "\U0001f150" <= c <= "\U0001f169"
            or "\U0001f170" <= c <= "\U0001f189")
