"""Documents from files, as a stream: .txt (a file is a document), .jsonl with "text" (a line is one), folders of them.

Text is UTF-8; a byte order mark is dropped; line ends become "\\n" in .txt. Documents without any text are skipped.
"""
import errno
import os
import re
from pathlib import Path

from pyllm.errors import FormatError
from pyllm.io.files import parse_json

PIECE = 1 << 24  # characters of a long .txt that are in memory at a time
SUFFIXES = (".txt", ".jsonl")
_CUT = re.compile(r"[^\W_](?=[ \n])")


def find_files(path, split=None):
    """The files of a corpus, sorted: the file `path` itself, or the .txt and .jsonl files in the folder `path` and below it.

    split: None for all; "train" or "valid" for those whose name begins with train, or with val (for a file in a folder below:
    the topmost folder's name).
    Where nothing is named train*, "train" is everything that is not val* or test*. Hidden files are left out.
    Raises FileNotFoundError, or FormatError when the folder holds no such file.
    """
    if split not in (None, "train", "valid"):
        raise ValueError(f"find_files: split is {split!r}, expected None, 'train' or 'valid'")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder of text", str(path))
    if not path.is_dir():
        if path.suffix.lower() not in SUFFIXES:
            raise FormatError(f"{path}: expected a .txt or .jsonl file, or a folder of them")
        found = [(path.name.lower(), path)]
    else:
        names = [p.relative_to(path) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        found = [(n.parts[0].lower(), path / n) for n in sorted(names) if not any(part.startswith(".") for part in n.parts)]
    if split == "valid":
        chosen = [p for first, p in found if first.startswith("val")]
    elif split == "train" and path.is_dir():
        chosen = [p for first, p in found if first.startswith("train")]
        chosen = chosen or [p for first, p in found if not first.startswith(("val", "test"))]
    else:
        chosen = [p for _, p in found]
    if not chosen:
        what = f"{split} file" if split else "file"
        raise FormatError(f"{path}: no .txt or .jsonl {what} found{_listing(found)}")
    return chosen


def read_documents(path, split=None):
    """Iterate over the documents (str) of a file or folder; see `find_files` for `split`.

    One document is in memory at a time. Raises FormatError naming file and line for bad UTF-8, a bad .jsonl line or a corpus
    without any text; OSError naming the file when it cannot be read.
    """
    parts = []
    for text, ends in read_pieces(path, split):
        parts.append(text)
        if ends:
            yield "".join(parts)
            parts.clear()


def read_pieces(path, split=None):
    """Like read_documents, but (text, ends) where a long .txt comes in pieces of about 16 M characters, `ends` with the last.

    A piece is cut between a word and the blank behind it, where every tokenizer that first splits words also cuts.
    """
    files, empty = find_files(path, split), True
    for file in files:
        for piece in (_lines(file) if file.suffix.lower() == ".jsonl" else _text(file)):
            empty = False
            yield piece
    if empty:
        raise FormatError(f"{path}: no text in {len(files)} file{'s' * (len(files) > 1)} (all empty or blank)")


def _text(file):
    """(text, ends) pieces of one .txt file."""
    rest, blank = "", True
    try:
        with open(file, encoding="utf-8-sig", newline=None) as stream:
            while text := stream.read(PIECE):
                # Leading blanks wait in `rest` until a word comes: a blank file is no document.
                rest += text
                blank = blank and not rest.strip()
                if not blank and len(rest) > PIECE:
                    cut = _last_cut(rest)
                    yield rest[:cut], False
                    rest = rest[cut:]
    except UnicodeDecodeError as error:
        raise FormatError(_bad_utf8(file) or f"{file}: not UTF-8: {error.reason}") from None
    if not blank:
        yield rest, True


def _last_cut(text):
    """The last place in the final 64 K characters where a word meets a blank or a line end; without one, near the end."""
    last, start = None, max(len(text) - (1 << 16), 1)
    for last in _CUT.finditer(text, start):
        pass
    return last.end() if last else len(text) - 1


def _lines(file):
    """(text, True) for each line of one .jsonl file."""
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{file}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"{where}: not UTF-8 at byte {error.start} of the line: {error.reason}{utf16_hint(line)}") from None
            value = parse_json(text.strip(), where)
            if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                came = f"an object with the keys {sorted(value)[:8]}" if isinstance(value, dict) else type(value).__name__
                if isinstance(value, dict) and "text" in value:
                    came = f'"text" of type {type(value["text"]).__name__}'
                raise FormatError(f'{where}: expected {{"text": "..."}}, got {came}')
            try:
                value["text"].encode()
            except UnicodeEncodeError as error:
                raise FormatError(f"{where}: a lone surrogate at character {error.start} of the text is not valid Unicode") from None
            if value["text"].strip():
                yield value["text"], True


def _bad_utf8(file):
    """Where the first line that is not UTF-8 stands; the text decoder itself only knows its own buffer."""
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                hint = utf16_hint(line) or "; convert it first, for example: iconv -f LATIN1 -t UTF-8"
                return f"{file}:{number}: not UTF-8 at byte {error.start} of the line: {error.reason}{hint}"


def utf16_hint(line):
    return "; it looks like UTF-16, convert it first: iconv -f UTF-16 -t UTF-8" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""


def _listing(found):
    names = ", ".join(p.name for _, p in found[:5])
    return f" among {names}" if names else f" (expected names that end in {' or '.join(SUFFIXES)})"


def total_bytes(path, split=None):
    """The size in bytes of all files of a corpus."""
    return sum(os.path.getsize(file) for file in find_files(path, split))
