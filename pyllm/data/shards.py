"""Token shards: a corpus as ids on the disk, mapped on reading, so that it may be larger than memory.

    tokens-00000.bin ...   ids one behind the other, uint16 up to 65,536 ids, else uint32, little-endian
    documents.bin          (D + 1) uint64: at which token each document begins, and the end
    bytes.bin              (D + 1) uint64: at which byte of the text each document begins, and the end
    index.json             format, dtype, vocab_size, eos_id, tokens, documents, bytes of text, tokenizer, sha256 of each file
"""
import contextlib
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pyllm.data.corpus import read_pieces, total_bytes
from pyllm.errors import FormatError
from pyllm.io.files import atomic_folder, explain, read_json, write_json
from pyllm.progress import Progress

FORMAT = "pyllm token shards 1"
TABLES = {"documents.bin": "documents_sha256", "bytes.bin": "bytes_sha256"}
SHARD_TOKENS = 1 << 27


# ---- reading

@dataclass(frozen=True, eq=False)
class TokenShards:
    """(N,) tokens: the part [start, stop) of a token stream that lies in several arrays.

    parts: mapped or plain arrays of one dtype. bounds (P + 1,): where each begins. offsets, text_offsets (D + 1,) int64: at which
    token and byte of text each document begins. digest: names the content, with start and stop it gives `fingerprint`.
    """

    parts: tuple
    bounds: np.ndarray
    offsets: np.ndarray
    text_offsets: np.ndarray
    vocab_size: int
    eos_id: int | None
    tokenizer: str | None
    digest: str
    start: int
    stop: int

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, part):
        """(stop - start,) tokens of a slice without step; a view where it lies in one part, else a copy."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(f"TokenShards: {part!r}, expected a slice without step")
        begin, end, _ = part.indices(len(self))
        begin, end = begin + self.start, end + self.start
        p = int(np.searchsorted(self.bounds, begin, "right")) - 1
        pieces = []
        while begin < end:
            low, high = self.bounds[p:p + 2]
            stop = min(end, high)
            pieces.append(self.parts[p][begin - low:stop - low])
            begin, p = stop, p + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])

    def documents(self, begin, end):
        """(end - begin,) int64: the document, counted in the whole corpus from 0, of the tokens begin..end of this part."""
        steps = np.zeros(end - begin, np.int64)
        steps[self.borders(begin, end)] = 1
        return int(np.searchsorted(self.offsets, begin + self.start, "right")) - 1 + np.cumsum(steps)

    def borders(self, begin, end):
        """int64: where between begin and end, counted from begin, a document begins; not the one at begin itself."""
        first, last = np.searchsorted(self.offsets, begin + self.start, "right"), np.searchsorted(self.offsets, end + self.start)
        return self.offsets[first:last] - (begin + self.start)

    @property
    def document_count(self):
        """How many documents this part touches."""
        return int(self.documents(len(self) - 1, len(self))[0] - self.documents(0, 1)[0]) + 1

    @property
    def text_bytes(self):
        """Bytes of the text behind this part; exact where it ends with a document, else in proportion to the document's tokens."""
        return self._bytes_before(self.stop) - self._bytes_before(self.start)

    def _bytes_before(self, token):
        d = min(int(np.searchsorted(self.offsets, token, "right")) - 1, len(self.offsets) - 2)
        (t0, t1), (b0, b1) = self.offsets[d:d + 2].tolist(), self.text_offsets[d:d + 2].tolist()
        return b0 + round((b1 - b0) * (token - t0) / (t1 - t0))

    @property
    def fingerprint(self):
        return f"{self.digest}:{self.start}-{self.stop}"

    def part(self, begin, end):
        """The tokens begin..end as TokenShards of their own (a view)."""
        if not 0 <= begin < end <= len(self):
            raise ValueError(f"TokenShards.part: {begin}..{end} of {len(self)} tokens; expected 0 <= begin < end <= {len(self)}")
        return replace(self, start=self.start + begin, stop=self.start + end)


def split(shards, fraction):
    """(head, tail): the first `fraction` of the tokens (0.9 in nanoGPT) and the rest, as views."""
    if not 0 < fraction < 1:
        raise ValueError(f"split: fraction is {fraction}, expected a number between 0 and 1, for example 0.9")
    cut = int(len(shards) * fraction)
    if min(cut, len(shards) - cut) < 2:
        raise ValueError(f"split: {len(shards)} tokens cut at {cut}; both parts need at least 2 tokens")
    return shards.part(0, cut), shards.part(cut, len(shards))


def open_shards(folder, verify=False):
    """The TokenShards of a folder, mapped read-only. verify=True also reads every file and compares sha256 and the range of the ids.

    Raises FormatError naming file and key when something is missing, of another size or not what the index says.
    """
    folder = Path(folder)
    index = folder / "index.json"
    if not index.exists():
        raise FileNotFoundError(f"{folder}: no index.json; expected a folder of token shards (written by `pyllm tokenize`)")
    info = _check_index(read_json(index), index)
    parts = []
    for shard in info["shards"]:
        parts.append(_map(folder / shard["file"], info["dtype"], shard["tokens"], verify and shard["sha256"]))
        if verify and int(parts[-1].max()) >= info["vocab_size"]:
            raise FormatError(f"{folder / shard['file']}: holds id {parts[-1].max()}, vocab_size is {info['vocab_size']}")
    bounds = np.cumsum([0, *(len(p) for p in parts)])
    offsets, text_offsets = tables = [
        # As int64: searching uint64 for an int64 would turn the whole table into float64.
        _map(folder / file, "uint64", info["documents"] + 1, verify and info[key]).view(np.int64) for file, key in TABLES.items()]
    ends = [[0, info["tokens"]], [0, info["bytes"]]]
    if [[t[0], t[-1]] for t in tables] != ends or bounds[-1] != info["tokens"]:
        raise FormatError(f"{folder}: {', '.join(TABLES)}, the shards and index.json disagree on the number of tokens or bytes")
    if verify and (np.diff(offsets).min() < 1 or np.diff(text_offsets).min() < 0):
        raise FormatError(f"{folder}: {', '.join(TABLES)}: the offsets do not rise")
    return TokenShards(tuple(parts), bounds, offsets, text_offsets, info["vocab_size"], info["eos_id"], info["tokenizer"],
                       _digest(info), 0, info["tokens"])


def _check_index(info, where):
    count = (int, lambda v: v >= 1)
    expected = {
        "format": (str, lambda v: v == FORMAT), "dtype": (str, lambda v: v in ("uint16", "uint32")), "vocab_size": count,
        "eos_id": (int | None, lambda v: v is None or v >= 0), "tokens": count, "documents": count, "bytes": (int, lambda v: v >= 0),
        "tokenizer": (str | None, lambda v: True), "documents_sha256": (str, lambda v: True),
        "bytes_sha256": (str, lambda v: True), "shards": (list, lambda v: len(v) > 0),
    }
    if not isinstance(info, dict):
        raise FormatError(f"{where}: expected an object, got {type(info).__name__}")
    for key, (kind, valid) in expected.items():
        if key not in info or isinstance(info[key], bool) or not isinstance(info[key], kind) or not valid(info[key]):
            raise FormatError(f"{where}: key {key!r} is {info.get(key)!r}" + (f", expected {FORMAT!r}" if key == "format" else ""))
    for i, shard in enumerate(info["shards"]):
        # Names are fixed by their place, so that no index can name a file outside the folder.
        if not (isinstance(shard, dict) and shard.get("file") == _shard_name(i) and type(shard.get("tokens")) is int
                and shard["tokens"] >= 1 and isinstance(shard.get("sha256"), str)):
            raise FormatError(f"{where}: shards[{i}] is {shard!r}, expected file {_shard_name(i)!r}, tokens and sha256")
    return info


def _map(path, dtype, count, sha256):
    dtype = np.dtype(dtype).newbyteorder("<")
    if not path.is_file():
        raise FormatError(f"{path}: missing")
    if os.path.getsize(path) != count * dtype.itemsize:
        raise FormatError(f"{path}: {os.path.getsize(path)} bytes, index.json says {count} x {dtype.itemsize}")
    array = np.memmap(path, dtype, "r").view(np.ndarray)
    if sha256 and hashlib.sha256(array).hexdigest() != sha256:
        raise FormatError(f"{path}: the content differs from its sha256 in index.json")
    return array


def _shard_name(i):
    return f"tokens-{i:05d}.bin"


def _digest(info):
    parts = [info["dtype"], info["documents_sha256"], *(s["sha256"] for s in info["shards"])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


# ---- writing

def write_shards(documents, folder, vocab_size, *, eos_id=None, tokenizer=None, shard_tokens=SHARD_TOKENS):
    """Write documents (an iterable of 1-D id arrays, or of (ids, bytes of its text) pairs) as token shards -> TokenShards.

    Nothing is appended: a document holds its own end token. Empty ones are skipped. tokenizer: a hash that names the tokenizer.
    The folder appears whole or not at all. Raises ValueError naming the document for an id outside 0..vocab_size - 1, or for no token.
    """
    with shard_writer(folder, vocab_size, eos_id=eos_id, tokenizer=tokenizer, shard_tokens=shard_tokens) as add:
        for document in documents:
            ids, text_bytes = document if isinstance(document, tuple) else (document, 0)
            add(ids, text_bytes)
    return open_shards(folder)


@contextlib.contextmanager
def shard_writer(folder, vocab_size, *, eos_id=None, tokenizer=None, shard_tokens=SHARD_TOKENS):
    """with shard_writer(...) as add: add(ids, text_bytes=0, ends=True); a document may come in pieces, `ends` with the last."""
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, vocab_size, shard_tokens)
        try:
            yield writer.add
            writer.finish(eos_id, tokenizer)
        except BaseException:
            writer.abandon()
            raise


def in_memory(documents, vocab_size, *, eos_id=None):
    """TokenShards of documents (1-D id arrays) that stay in memory; for small corpora and experiments."""
    dtype = _dtype(vocab_size)
    arrays = [_ids(ids, vocab_size, d) for d, ids in enumerate(documents)]
    arrays = [a.astype(dtype) for a in arrays if len(a)]
    if not arrays:
        raise ValueError("in_memory: no token in any document")
    tokens = np.concatenate(arrays)
    begins = np.cumsum([0, *(len(a) for a in arrays)])
    digest = hashlib.sha256(tokens)
    digest.update(begins)
    return TokenShards((tokens,), begins[[0, -1]], begins, np.zeros_like(begins), vocab_size, eos_id, None, digest.hexdigest()[:16],
                       0, len(tokens))


def tokenize(path, folder, tokenizer, split=None, *, tokenizer_hash=None, shard_tokens=SHARD_TOKENS):
    """Tokenise a corpus (see `pyllm.data.corpus`) into token shards, with progress -> TokenShards.

    tokenizer: has `vocab_size`, `eos_id` (appended to each document where it is not None) and `encode_array(text)` -> 1-D integer
    array, or `encode(text)` -> list. tokenizer_hash: kept in the index, so that shards are not used with another tokenizer.
    """
    encode, eos = getattr(tokenizer, "encode_array", None) or tokenizer.encode, tokenizer.eos_id
    with (shard_writer(folder, tokenizer.vocab_size, eos_id=eos, tokenizer=tokenizer_hash, shard_tokens=shard_tokens) as add,
          Progress(total_bytes(path, split), "tokenize", unit="B") as bar):
        for text, ends in read_pieces(path, split):
            size = len(text.encode())
            add(encode(text), size, ends=ends and eos is None)
            if ends and eos is not None:
                add([eos])
            bar.update(size)
    return open_shards(folder)


class _File:
    """A file that is written once, from the start, with its sha256; OSError names it and what it needed."""

    def __init__(self, path):
        self.path, self.file, self.hash, self.size = path, open(path, "wb"), hashlib.sha256(), 0

    def write(self, array):
        self.size += array.nbytes
        self.hash.update(array)
        self._guard(self.file.write, array)

    def close(self):
        self._guard(self.file.close)
        return self.hash.hexdigest()

    def _guard(self, call, *args):
        try:
            call(*args)
        except OSError as error:
            raise explain(error, self.path, f"at least {self.size} bytes needed") from None


class _Writer:
    """Streams ids into shard files of at most `limit` tokens."""

    def __init__(self, folder, vocab_size, limit):
        if limit < 1:
            raise ValueError(f"write_shards: shard_tokens is {limit}, expected at least 1")
        self.folder, self.vocab_size, self.limit = folder, vocab_size, limit
        self.dtype = _dtype(vocab_size).newbyteorder("<")
        self.shards, self.file = [], None
        self.tokens = self.bytes = self.documents = self.begin = 0
        self.tables = [_File(folder / name) for name in TABLES]
        self._mark()

    def add(self, ids, text_bytes=0, ends=True):
        ids = _ids(ids, self.vocab_size, self.documents).astype(self.dtype)
        self.tokens, self.bytes = self.tokens + len(ids), self.bytes + text_bytes
        while len(ids):
            if self.file is None:
                self.shards.append({"file": _shard_name(len(self.shards)), "tokens": 0, "sha256": ""})
                self.file = _File(self.folder / self.shards[-1]["file"])
            shard = self.shards[-1]
            now, ids = np.split(ids, [self.limit - shard["tokens"]])
            self.file.write(now)
            shard["tokens"] += len(now)
            if shard["tokens"] == self.limit:
                self._close_shard()
        if ends and self.tokens > self.begin:
            self.documents, self.begin = self.documents + 1, self.tokens
            self._mark()

    def finish(self, eos_id, tokenizer):
        if not self.tokens:
            raise ValueError("write_shards: no token in any document")
        if self.tokens > self.begin:
            raise ValueError("write_shards: the last document was never ended")
        self._close_shard()
        hashes = {key: table.close() for key, table in zip(TABLES.values(), self.tables)}
        write_json(self.folder / "index.json", {
            "format": FORMAT, "dtype": self.dtype.name, "vocab_size": self.vocab_size, "eos_id": eos_id, "tokens": self.tokens,
            "documents": self.documents, "bytes": self.bytes, "tokenizer": tokenizer, **hashes, "shards": self.shards})

    def abandon(self):
        for file in (self.file, *self.tables):
            if file is not None:
                with contextlib.suppress(OSError):  # what is still buffered has no place on a full disk
                    file.close()

    def _mark(self):
        for table, value in zip(self.tables, (self.tokens, self.bytes)):
            table.write(np.array([value], "<u8"))

    def _close_shard(self):
        if self.file is not None:
            self.shards[-1]["sha256"] = self.file.close()
            self.file = None


def _dtype(vocab_size):
    if type(vocab_size) is not int or not 1 <= vocab_size <= 1 << 31:
        raise ValueError(f"token shards: vocab_size is {vocab_size!r}, expected a whole number from 1 to 2^31")
    return np.dtype("uint16" if vocab_size <= 1 << 16 else "uint32")


def _ids(ids, vocab_size, document):
    """A 1-D integer array whose values lie in the vocabulary."""
    ids = np.asarray(ids)
    if not ids.size:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"token shards: document {document} is {ids.dtype} {ids.shape}, expected a 1-D array of whole numbers")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        at = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        raise ValueError(f"token shards: document {document} has id {ids[at]} at position {at}, expected 0 to {vocab_size - 1}")
    return ids
