"""Examples from files, as a stream: .jsonl, .json (a list), .csv, .tsv, .txt, two parallel files, each also as .gz; folders of them.

What an example is, and which keys make which kind: pyllm.data.formats. One file holds one format, one data set one kind. A folder's files
belong to the split whose word stands in their name: train; valid, validation, val or dev; test.
"""
import csv
import errno
import gzip
import hashlib
import json
import re
import zlib
from pathlib import Path

from pyllm.data.corpus import read_documents, utf16_hint
from pyllm.data.formats import convert, detect, rename
from pyllm.errors import FormatError
from pyllm.io.files import parse_json

SPLITS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
ASIDE = ("license", "licence", "readme", "source")  # files beside the data


def read_examples(path, split=None, *, columns=None, labels=None, skip_bad_lines=False):
    """path: a file, a folder, or a pair of parallel files (source, target) -> Examples, an iterable of dicts with its `kind`.

    split: None for all files of a folder, or "train", "valid", "test". columns: {key: the name that the files have for it}; of a folder
    of parallel files the endings of their names, {"source": "en", "target": "de"}. labels: the names that a label may have.
    skip_bad_lines: count lines that cannot be read (`skipped`) in place of raising.
    Raises FormatError naming file and line and what was expected; FileNotFoundError.
    """
    return Examples(find_splits(path, columns), split, columns, labels, skip_bad_lines)


def find_splits(path, columns=None):
    """-> {"train": [files], "valid": [files], "test": [files]}, only those there are; a file whose name holds no such word is "train"."""
    if isinstance(path, (tuple, list)):
        return {"train": [tuple(map(Path, path))]}
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder of examples", str(path))
    if not path.is_dir():
        if suffix(path) not in SUFFIXES:
            raise FormatError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)} (or these with .gz), or a folder of them")
        return {"train": [path]}
    names = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    names = [n for n in names if not any(part.startswith(".") for part in n.parts) and not n.name.lower().startswith(ASIDE)]
    found = _parallel(path, names, columns)
    if not found:
        found = [path / n for n in names if suffix(n) in SUFFIXES]
        found = [p for p in found if suffix(p) != ".txt"] or found
    if not found:
        endings = sorted({suffix(n) for n in names})
        raise FormatError(f"{path}: no file of examples among {', '.join(str(n) for n in names[:5]) or 'no files'}; expected names that "
                          f"end in {', '.join(SUFFIXES)}, or parallel files with columns source={_ending(endings, 0)},"
                          f"target={_ending(endings, 1)}")
    named = {part: [p for p in found if _split_of(p, path) == part] for part in (*SPLITS, None)}
    named["train"] = named["train"] or named[None]
    return {part: named[part] for part in SPLITS if named[part]}


def _ending(endings, i):
    return endings[i][1:] if len(endings) > i else ("en", "de")[i]


def suffix(path):
    """The ending of a name without .gz, in lower case."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def _split_of(path, folder):
    first = path[0] if isinstance(path, tuple) else path
    for part in reversed(first.relative_to(folder).parts):  # the file's own name counts more than its folder's
        words = re.split("[^a-z]+", part.lower())
        for split, known in SPLITS.items():
            if set(known) & set(words):
                return split
    return None


def _parallel(folder, names, columns):
    """-> [(source file, target file)] where `columns` are two endings of names."""
    keys = next((keys for keys in (("source", "target"), ("prompt", "completion")) if columns and set(keys) == set(columns)), None)
    if keys is None:
        return []
    one, two = ([n for n in names if suffix(n) == f".{columns[key].lower()}"] for key in keys)
    stem = {str(n).removesuffix(".gz").rpartition(".")[0]: n for n in two}
    return [(folder / n, folder / stem[s]) for n in one if (s := str(n).removesuffix(".gz").rpartition(".")[0]) in stem]


class Examples:
    """Examples of one kind, read anew from the files by every iteration: one is in memory at a time.

    kind: see pyllm.data.formats. files: what is read. skipped: bad lines that the last iteration left out, and first_skipped: the error
    of the first. labels: the names that a label may have, or None.
    """

    def __init__(self, splits, split=None, columns=None, labels=None, skip_bad_lines=False):
        if split not in (None, *SPLITS):
            raise ValueError(f"read_examples: split is {split!r}, expected None, {', '.join(map(repr, SPLITS))}")
        everything = [file for files in splits.values() for file in files]
        alone = len(everything) == 1 and split == "train"
        self.files = everything if split is None or alone else splits.get(split, [])
        if not self.files:
            raise FormatError(f"{_parent(everything[0])}: the split {split!r} is empty: no file for it among "
                              f"{', '.join(_name(f) for f in everything[:5])}. Hint: its name has to hold {' or '.join(SPLITS[split])}")
        self.columns, self.labels, self.skip_bad_lines = dict(columns or {}), labels, skip_bad_lines
        self.kind, self.skipped, self.first_skipped = None, 0, None
        next(iter(self))

    def __iter__(self):
        self.skipped, self.first_skipped, ids, count = 0, None, {}, 0
        for file in self.files:
            keys, before = None, count
            for where, read in _units(file):
                try:
                    record = read()
                    if not isinstance(file, tuple):
                        record = rename(record, self.columns, where)
                    found = detect(record, where)
                    if keys not in (None, found):
                        raise FormatError(f"{where}: {' + '.join(found)} in a file of {' + '.join(keys)}; expected one format a file")
                    kind, example = convert(record, found, where)
                    self._check(kind, example, ids)
                except FormatError as error:
                    if not self.skip_bad_lines:
                        raise
                    self.skipped, self.first_skipped = self.skipped + 1, self.first_skipped or str(error)
                    continue
                if self.kind not in (None, kind):  # a whole file of it is no bad line
                    raise FormatError(f"{where}: an example of kind {kind}, the ones before are {self.kind}; expected one kind a data set. "
                                      "Hint: name one file")
                keys, self.kind, count = found, kind, count + 1
                yield example
            if count == before:
                bad = f"; all {self.skipped} lines were bad, the first: {self.first_skipped}" if self.skipped else " (empty or blank)"
                raise FormatError(f"{_name(file, True)}: no example{bad}")

    def _check(self, kind, example, ids):
        where = example["where"]
        if "id" in example:
            known = ids.setdefault(hashlib.blake2b(repr(example["id"]).encode(), digest_size=8).digest(), where)
            if known != where:
                raise FormatError(f"{where}: the id {example['id']!r} stands at {known} already; expected each id once")
        if self.labels is not None and kind == "classification" and example["label"] not in self.labels:
            raise FormatError(f"{where}: label {example['label']!r} is not among the {len(self.labels)} labels "
                              f"{', '.join(map(repr, self.labels[:20]))}")


def label_names(examples):
    """The labels of classification examples, each once, sorted: numbers by value, then names."""
    return sorted({e["label"] for e in examples}, key=lambda s: (0, int(s), s) if re.fullmatch(r"-?\d+", s) else (1, 0, s))


def _name(file, whole=False):
    files = file if isinstance(file, tuple) else (file,)
    return " and ".join(str(f) if whole else f.name for f in files)


def _parent(file):
    return (file[0] if isinstance(file, tuple) else file).parent


# ---- one file -> (where, function that reads the record), so that one bad record does not end the file

def _units(file):
    if isinstance(file, tuple):
        return _pairs(*file)
    kind = suffix(file)
    return {".jsonl": _jsonl, ".json": _json, ".csv": _table, ".tsv": _table, ".txt": _txt}[kind](file)


def _lines(file):
    """(number, bytes) of each line of a file or a .gz."""
    try:
        with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{file}: not a whole .gz file: {error}") from None


def _text(line, where):
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: not UTF-8 at byte {error.start} of the line: {error.reason}{utf16_hint(line)}") from None


def _jsonl(file):
    for number, line in _lines(file):
        if line.strip():
            where = f"{file}:{number}"
            yield where, lambda: parse_json(_text(line, where).strip(), where)


def _json(file):
    """A list of objects, or SQuAD's {"data": [...]}; an element is parsed when its turn comes."""
    text = "".join(_text(line, f"{file}:{number}") for number, line in _lines(file))
    if text.lstrip()[:1] == "{":
        yield from _squad(parse_json(text, file), file)
        return
    if text.strip()[:1] != "[":
        raise FormatError(f"{file}: expected a list of objects" if text.strip() else f"{file}: no example (empty or blank)")
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
    line, done, after = 1, 0, text.index("[")
    while text[after] != "]" and not re.fullmatch(r"\[\s*\]\s*", text[after:after + 1000]):
        at = blank.match(text, after + 1).end()
        line, done = line + text.count("\n", done, at), at
        where = f"{file}:{line}"
        try:
            end = decode(text, at)[1]
            after = blank.match(text, end).end()
            if text[after] not in ",]":
                raise ValueError
        except (ValueError, IndexError, RecursionError):
            parse_json(text, file)  # names the line and the column
            raise FormatError(f"{where}: not JSON") from None
        yield where, lambda: parse_json(text[at:end], where)
    if text[after] == "]" and text[after + 1:].strip():
        parse_json(text, file)


def _squad(value, file):
    """{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}."""
    try:
        records = [{"context": p["context"], **qa} for article in value["data"] for p in article["paragraphs"] for qa in p["qas"]]
    except (KeyError, TypeError):
        raise FormatError(f'{file}: an object; expected a list of objects, or SQuAD\'s {{"data": [...]}}') from None
    for i, record in enumerate(records):
        yield f"{file}: question {i}", lambda: record


def _table(file):
    """.csv with quotes; .tsv without (a quote is a character as any other, as the format's registration says). Named columns, or without
    names two of which the second is a whole number: text and label."""
    plain = suffix(file) == ".tsv"
    lines = (_text(line, f"{file}:{number}") for number, line in _lines(file))
    reader = csv.reader(lines, delimiter="\t" if plain else ",", quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL, strict=not plain)
    header, begin = None, 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = "; such cells fit in .jsonl" if "limit" in str(error) else ""
            raise FormatError(f"{file}:{begin}: not a table: {error}{hint}") from None
        where, begin = f"{file}:{begin}", reader.line_num + 1
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        if header is None:
            bare = len(row) == 2 and re.fullmatch(r"\d+", row[1].strip())
            header = ["text", "label"] if bare else [name.strip() for name in row]
            if twice := {name for name in header if header.count(name) > 1}:
                raise FormatError(f"{where}: the column {min(twice)!r} stands twice among {', '.join(header)}")
            if not bare:
                continue
        yield where, lambda: _row(header, row, where)


def _row(header, row, where):
    if len(row) != len(header):
        raise FormatError(f"{where}: {len(row)} cells, expected {len(header)}: {', '.join(header)[:200]}")
    return dict(zip(header, row))


def _txt(file):
    """Lines of source||target, or a document."""
    first = next((line for _, line in _lines(file) if line.strip()), b"")
    if first.count(b"||") != 1:
        if file.suffix.lower() == ".gz":
            raise FormatError(f"{file}: expected a .txt without .gz")
        for text in read_documents(file):
            yield str(file), lambda: {"text": text}
        return
    for number, line in _lines(file):
        where = f"{file}:{number}"
        yield where, lambda: _row(["source", "target"], [part.strip() for part in _text(line, where).split("||")], where)


def _pairs(one, two):
    """Lines of two files side by side."""
    from itertools import zip_longest

    for (number, a), (other, b) in zip_longest(_lines(one), _lines(two), fillvalue=(None, None)):
        if number != other:
            short, long = (one, two) if number is None else (two, one)
            raise FormatError(f"{short}: ends before line {number or other}, which {long} still has; expected as many lines in both")
        where = f"{one}:{number}"
        yield where, lambda: {"source": _text(a, where).rstrip("\r\n"), "target": _text(b, f"{two}:{number}").rstrip("\r\n")}
