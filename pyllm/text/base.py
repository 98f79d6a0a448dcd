"""What every tokenizer shares: ids and tokens, added tokens, templates, offsets, truncation, padding, decoding, streaming."""
import codecs
import copy
import warnings

import numpy as np

from ..errors import ConfigError, FormatError, suggest
from .added import Finder
from .chat import encode as encode_chat
from .chat import named_templates, render
from .normalize import normalizer
from .template import TEXT_A, read_template

ROLES = {  # role -> contents that have it when no tokenizer_config.json says otherwise, best first
    "eos": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "pad": ("<pad>", "<|pad|>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}


class Tokenizer:
    """Abstract. A subclass gives `_encode_text(text, src, start) -> (ids, spans)` for normalized text without added tokens: src None, or
    the place of each character in the original, start that of the first; ids (T,) uint32; spans None, or (T, 2) places in the original.

    tokens: list of str by id; contents: list or dict of bytes by id, what each token stands for in the decoded text, `first` the same at
    its beginning; added: list of AddedToken; roles: {"eos": content, "bos": ..., "pad": ...}, what is missing is taken from ROLES, None
    for no such token; config: the rest of tokenizer_config.json, written back by save; parts: normalizer, pre_tokenizer, post_processor,
    decoder, truncation and padding as tokenizer.json writes them.

    truncation: None or {"max_length": n, "strategy": "LongestFirst", "direction": "Right"}; padding: None or {"strategy": "BatchLongest"
    or {"Fixed": n}, "direction": "Right", "pad_to_multiple_of": None}. What the file says holds until it is set to something else.

    chat_template: None, the name of a built-in template (see chat.BUILT_IN), Jinja text, or {name: text} of several with "default".
    """

    def __init__(self, tokens, contents, added=(), roles=None, config=None, parts=None, first=None):
        self._tokens, self._contents, self.added, self.config = tokens, contents, list(added), dict(config or {})
        self._first = contents if first is None else first
        self.parts = dict(parts or {})
        self._ids = dict(zip(tokens, range(len(tokens))))
        self._special = {t.id for t in self.added if t.special}
        spec = self.parts.get("normalizer")
        self._normalize = None if spec is None else normalizer(spec)
        self._template = read_template(self.parts.get("post_processor"), self._ids.get)
        plain, normalized = ([t for t in self.added if t.normalized == flag] for flag in (False, True))
        self._finder = Finder(plain) if plain else None
        self._normalized_finder = Finder(normalized, self._normalize and self.normalized) if normalized else None
        self.truncation, self.padding = _truncation(self.parts.get("truncation")), _padding(self.parts.get("padding"))
        self._from_file = self.truncation
        self.chat_template = named_templates(self.config.pop("chat_template", None))
        found = {role: next((c for c in names if c in {t.content for t in self.added}), None) for role, names in ROLES.items()}
        for role, content in {**found, **(roles or {})}.items():
            setattr(self, f"{role}_id", None if content is None else self.id(content))

    eos_id = bos_id = pad_id = unk_id = mask_id = cls_id = sep_id = None

    @property
    def vocab_size(self):
        """Number of ids: 0 .. vocab_size - 1."""
        return len(self._tokens)

    @property
    def puts_bos(self):
        """Whether the tokens around a text begin with the BOS."""
        return self.bos_id is not None and self._template.single[0][0] == self.bos_id

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

    @property
    def contents(self):
        """Two lists of the bytes that each id stands for: at the beginning of a text, and behind other tokens."""
        return tuple([found[i] for i in range(self.vocab_size)] for found in (self._first, self._contents))

    def encode(self, text, special=True, template=None):
        """text -> list of ids. special: special tokens written in the text become their id; otherwise they are ordinary text. template:
        whether the tokens that the model wants around a text (BOS; [CLS] and [SEP]) are put there, by default where `special` is true;
        a BOS that the text already starts with is not put there again.

        Cut to `truncation` where that is set. A lone surrogate is encoded as its three bytes, which decode to U+FFFD.
        """
        return self.encode_array(text, special, template).tolist()

    def untruncated(self):
        """-> the same tokenizer, or a copy that cuts nothing: for callers who say themselves how long a text may be."""
        if self.truncation is None:
            return self
        other = copy.copy(self)
        other.truncation = None
        return other

    def encode_batch(self, texts, special=True, template=None):
        """(B,) texts -> list of B lists of ids."""
        if isinstance(texts, str):
            raise TypeError("encode_batch: texts is one str; expected a list of them: encode_batch([text])")
        return [self.encode_array(text, special, template).tolist() for text in texts]

    def encode_array(self, text, special=True, template=None):
        """text -> (T,) uint32: the same ids without a list, for corpora."""
        ids, _ = self._pieces(text, special, False)
        template = special if template is None else template
        if self.truncation is None and (not template or len(self._template.single) == 1):
            return ids
        return self._assemble([(ids, None)], template)[0]

    def encode_offsets(self, text, special=True, template=None):
        """text -> (list of ids, (T, 2) int64: where in the text each token begins and ends, in characters; (0, 0) for the template's)."""
        pieces = self._pieces(text, special, True)
        ids, _, spans = self._assemble([pieces], special if template is None else template)
        return ids.tolist(), spans

    def encode_pair(self, first, second, special=True, template=None):
        """Two texts -> (list of ids, list of type ids, (T, 2) int64 offsets, each in its own text), with the template's tokens around them.

        Cut as `truncation` says: the longer text first, or "OnlyFirst", "OnlySecond".
        """
        pieces = [self._pieces(text, special, True) for text in (first, second)]
        ids, types, spans = self._assemble(pieces, special if template is None else template)
        return ids.tolist(), types.tolist(), spans

    def encode_padded(self, texts, special=True, template=None):
        """(B,) texts -> tokens (B, T) uint32 and segments (B, T) int32, 1 where a token is and 0 at padding: as long as the longest text,
        or as `padding` says."""
        rows, spec = self.encode_batch(texts, special, template), self.padding or {}
        length = max(map(len, rows), default=0)
        if isinstance(spec.get("strategy"), dict):
            length = max(length, spec["strategy"]["Fixed"])
        multiple = spec.get("pad_to_multiple_of") or 1
        length = -(-length // multiple) * multiple
        pad = spec.get("pad_id", self.pad_id if self.pad_id is not None else 0)
        tokens, segments = np.full((len(rows), length), pad, np.uint32), np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            at = slice(length - len(row), length) if spec.get("direction") == "Left" else slice(0, len(row))
            tokens[i, at], segments[i, at] = row, 1
        return tokens, segments

    def chat(self, messages, add_generation_prompt=True, **variables):
        """messages: a list of {"role": "user", "content": text} -> list of ids, as chat_template writes them; nothing is cut.

        add_generation_prompt: the beginning of the assistant's turn follows. variables: of the template, such as tools. Special tokens
        in the messages are ordinary text. ConfigError: there is no template; FormatError: it is broken, or writes the BOS twice.
        """
        return encode_chat(self, messages, add_generation_prompt, **variables)

    def chat_declared(self, messages, **variables):
        """messages -> list of bool: which of the ids of chat(messages, False) the template declares as said by the assistant, in its
        {% generation %} blocks; None where it has no such block."""
        from .chat import declared

        return declared(self, messages, **variables)

    def chat_text(self, messages, add_generation_prompt=True, **variables):
        """-> the text that `chat` encodes, to look at: encoded again, special tokens in the messages would be special."""
        return render(self, messages, add_generation_prompt, variables)[0]

    def normalized(self, text):
        """-> the text as the tokenizer's normalizer writes it."""
        return self._normalize(text, None, True)[0] if self._normalize else text

    def _pieces(self, text, special, offsets, closed=()):
        """text -> (ids (T,) uint32, None or spans (T, 2)), without the template. closed: parts of the text without special tokens."""
        if not isinstance(text, str):
            hint = "; decode it first, or use encode_bytes" if isinstance(text, bytes) else ""
            raise TypeError(f"encode: text is a {type(text).__name__}, expected a str{hint}")
        track = offsets or closed and self._normalized_finder
        pieces = [(text, np.arange(len(text)) if track else None, 0)] if text else []
        if self._finder:
            pieces = [found for piece in pieces for found in self._finder.split(*piece, special, closed)]
        if self._normalize:
            pieces = [piece if piece[2] is None else (*self._normalize(piece[0], piece[1], piece[2] == 0), piece[2]) for piece in pieces]
        if self._normalized_finder:
            pieces = [found for piece in pieces
                      for found in ([piece] if piece[2] is None else self._normalized_finder.split(*piece, special, closed))]
        parts, spans = [], []
        for piece, src, start in pieces:
            if start is None:
                part, span = np.array([piece], np.uint32), np.array([src])
            elif piece:
                part, span = self._encode_text(piece, src, start)
            else:
                continue
            parts.append(part)
            spans.append(span)
        if not parts:
            return np.empty(0, np.uint32), np.empty((0, 2), np.int64)
        if len(parts) == 1:
            return parts[0], spans[0]
        return np.concatenate(parts), np.concatenate(spans) if track else None

    def _encode_text(self, text, src, start):
        """One piece of normalized text, not empty -> (ids, spans)."""
        raise NotImplementedError

    def _assemble(self, pieces, add):
        """pieces: one or two (ids, spans) -> ids, type ids, spans with the template around them, cut to `truncation`."""
        layout = self._template.pair if len(pieces) == 2 else self._template.single
        if self._template.trim is not None:
            pieces = [(ids, spans if spans is None else self._trimmed(ids, spans)) for ids, spans in pieces]
        around = self._template.around(len(pieces) == 2) if add else 0
        pieces = self._truncated(pieces, around)
        ids, types, spans = [], [], []
        for i, (what, kind) in enumerate(layout):
            if isinstance(what, int):
                written = i == 0 and what == self.bos_id and len(pieces[0][0]) and pieces[0][0][0] == what
                part = (np.array([what], np.uint32), np.zeros((1, 2), np.int64)) if add and not written else None
            else:
                part = pieces[what != TEXT_A]
            if part is not None:
                ids.append(part[0])
                types.append(np.full(len(part[0]), kind, np.int64))
                spans.append(part[1])
        return np.concatenate(ids), np.concatenate(types), None if spans[0] is None or pieces[0][1] is None else np.concatenate(spans)

    def _trimmed(self, ids, spans):
        """Offsets without the spaces at both ends of byte-level tokens; a space that was put before the text is none."""
        spans = spans.copy()
        for i, id in enumerate(ids.tolist()):
            token, (start, stop) = self._tokens[id], spans[i].tolist()
            left = len(token) - len(token.lstrip("\u0120 "))
            right = len(token) - len(token.rstrip("\u0120 "))
            if left == 1 and self._template.trim and (i == 0 or start == 0):
                left = 0
            start = min(start + left, stop)
            spans[i] = start, max(stop - right, start) if right and stop >= right else stop
        return spans

    def _truncated(self, pieces, around):
        if self.truncation is None:
            return pieces
        sizes = [len(ids) for ids, _ in pieces]
        room = max(self.truncation["max_length"] - around, 0)
        if sum(sizes) <= room:
            return pieces
        if self.truncation is self._from_file:
            self._from_file = None
            warnings.warn(f"encode: {sum(sizes) + around} tokens are cut to {room + around}, as the tokenizer's file says; set "
                          "tokenizer.truncation to None to keep all", stacklevel=5)
        strategy, cut = self.truncation["strategy"], slice
        if len(sizes) == 1 or not room:
            kept = [room] * len(sizes)
        elif strategy == "OnlyFirst":
            kept = [max(room - sizes[1], 0), sizes[1]]
        elif strategy == "OnlySecond":
            kept = [sizes[0], max(room - sizes[0], 0)]
        else:
            low, high = sorted(sizes)
            high = low if low > room else max(low, room - low)
            if low + high > room:
                low, high = room // 2, room - room // 2
            kept = [low, high] if sizes[0] <= sizes[1] else [high, low]
        if self.truncation["direction"] == "Left":
            cuts = [cut(max(n - k, 0), n) for n, k in zip(sizes, kept)]
        else:
            cuts = [cut(0, k) for k in kept]
        return [(ids[c], None if spans is None else spans[c]) for (ids, spans), c in zip(pieces, cuts)]

    def decode(self, ids, skip_special=False):
        """(T,) ids -> str. Bytes that are not UTF-8, such as half a character, become U+FFFD. skip_special: special tokens are left out."""
        return self.decode_bytes(ids, skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids, skip_special=False):
        """(T,) ids -> the exact bytes."""
        contents, ids = self._contents, self._checked(ids)
        if skip_special:
            ids = [i for i in ids if i not in self._special]
        if not ids:
            return b""
        return self._first[ids[0]] + b"".join([contents[i] for i in ids[1:]])

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
        from .write_json import write_tokenizer

        write_tokenizer(self, path)


class Stream:
    """Text as it comes: push(id) gives what is complete, finish() the rest. Together they equal decode(ids)."""

    def __init__(self, tokenizer):
        self._tokenizer, self._decoder, self._begun = tokenizer, codecs.getincrementaldecoder("utf-8")("replace"), False

    def push(self, id):
        data = self._tokenizer.token_bytes(id) if self._begun else self._tokenizer.decode_bytes([id])
        self._begun = True
        return self._decoder.decode(data)

    def finish(self):
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        self._begun = False
        return text


def _truncation(spec):
    if spec is None:
        return None
    found = {"max_length": None, "strategy": "LongestFirst", "direction": "Right", "stride": 0, **(spec if isinstance(spec, dict) else {})}
    if (type(found["max_length"]) is not int or found["max_length"] < 0 or found["direction"] not in ("Right", "Left")
            or found["strategy"] not in ("LongestFirst", "OnlyFirst", "OnlySecond")):
        raise FormatError(f"truncation is {str(spec)[:120]}; expected max_length, strategy LongestFirst, OnlyFirst or OnlySecond, and "
                          "direction Right or Left")
    return found


def _padding(spec):
    if spec is None:
        return None
    found = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, **(spec if isinstance(spec, dict) else {})}
    fixed = found["strategy"].get("Fixed") if isinstance(found["strategy"], dict) else 0 if found["strategy"] == "BatchLongest" else None
    if any(type(n) is not int or not 0 <= n < 1 << 31 for n in (fixed, found["pad_to_multiple_of"] or 0, found.get("pad_id", 0))) or (
            found["direction"] not in ("Right", "Left") or not isinstance(spec, dict)):
        raise FormatError(f"padding is {str(spec)[:120]}; expected strategy BatchLongest or Fixed, direction Right or Left, pad_id")
    return found


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


def by_id(vocab, added):
    """{token: id} and AddedTokens -> list of tokens by id; FormatError where the ids are not 0 .. V-1, each once."""
    size = len({*vocab, *(t.content for t in added)})
    tokens, ids = [None] * size, list(vocab.values())
    in_order = set(map(type, ids)) <= {int} and ids == list(range(len(ids)))
    if in_order:
        tokens[: len(ids)] = vocab
    for token, i in () if in_order else vocab.items():
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
