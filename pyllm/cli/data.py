"""pyllm data: look at a data set before a model does.

check: read, render and compare every example, count what is wrong, show one with what is learned of it; exit code 3 where training should
not begin. dedup: write the examples without those that stand there already.
"""
import sys
from functools import partial


def add_arguments(parser):
    verbs = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    check, dedup = (verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".") for name, line in (
        ("check", "count what is wrong, show one example with its loss mask; refuse what would spoil a run (exit code 3)"),
        ("dedup", "write the examples without those that stand there already")))
    for verb in (check, dedup):
        verb.add_argument("path", help="a file of examples, or a folder with train, valid and test files")
        verb.add_argument("--columns", default="", metavar="KEY=NAME,...",
                          help="the names that the files have for keys, such as prompt=question,completion=answer")
    dedup.add_argument("out", help="the .jsonl file to write")
    dedup.add_argument("--near", type=float, default=0.0, metavar="SHARE",
                       help="also without those that share so many of their runs of three words with an earlier one, such as 0.8")
    check.add_argument("--tokenizer", metavar="MODEL", help="a model folder, a run folder, a .gguf file or a tokenizer.json")
    check.add_argument("--architecture", choices=("decoder", "encoder", "encoder-decoder"),
                       help="what the rows are for (default: the model's)")
    check.add_argument("--length", type=int, metavar="TOKENS", help="tokens of a row at most")
    check.add_argument("--truncation", choices=("keep_start", "keep_end"), default="keep_start", help="which part of a longer row is kept")
    check.add_argument("--prompt-format", default="{prompt}", metavar="TEXT",
                       help="what stands around a prompt, such as 'Translate to German: {prompt}'")
    check.add_argument("--chat-template", metavar="NAME", help="a built-in template, such as alpaca, or a file, in place of the "
                       "tokenizer's own")
    check.add_argument("--near", type=float, default=0.8, metavar="SHARE", help="from which share of common runs of three words on two "
                       "examples are nearly the same (default 0.8); 0: do not look")
    check.add_argument("--allow", action="append", default=[], metavar="NAME=SHARE",
                       help="refuse only beyond this share of a split's examples, such as leaks=0.01; may be repeated")
    check.add_argument("--show", type=int, default=1, metavar="N", help="which example is shown (default 1); 0: none")


def run(args):
    return {"check": check, "dedup": dedup}[args.what](args)


def check(args):
    from pyllm.data import lint
    from pyllm.errors import ConfigError, FormatError

    allow = dict(pairs_of("allow", args.allow, float, "NAME=SHARE, such as leaks=0.01"))
    lint.refusals({}, allow)
    splits = _splits(args)
    tokenizer, architecture = (None, None) if args.tokenizer is None else open_tokenizer(args.tokenizer)
    if args.chat_template and tokenizer is not None:
        from pyllm.cli.chat import template

        tokenizer.chat_template = template(args.chat_template)
    try:
        reports = lint.check(splits, tokenizer, near=args.near, show=max(args.show, 1), max_length=args.length, truncation=args.truncation,
                             architecture=args.architecture or architecture or "decoder", prompt_format=args.prompt_format)
    except FormatError as error:
        raise ConfigError(str(error)) from None
    refused = lint.refusals(reports, allow)
    colour = sys.stdout.isatty()
    for part, report in reports.items():
        for line in described(part, report, args.length, refused, allow, colour):
            say(line)
    first = next(iter(reports.values()))
    if args.show and first.row is not None:
        for line in shown(first.row, tokenizer, colour):
            say(line)
    if tokenizer is None:
        say("tokens     not looked at. Hint: --tokenizer MODEL")
    if refused:
        names = dict.fromkeys(name for _, name in refused)
        worst = {name: max(report.share(name) for report in reports.values()) for name in names}
        what = "; ".join(f"{part}: {lint.CHECKS[name][0]}" for part, name in refused)
        mend = "pyllm data dedup" if set(names) <= {"duplicates"} else "mend the data"
        if {"cut", "target"} & names.keys() and args.length and args.truncation == "keep_start":
            mend = f"a larger --length, --truncation keep_end, {mend}"
        shares = " ".join(f"--allow {name}={-(-worst[name] * 1000 // 1) / 1000:g}" for name in names)
        raise ConfigError(f"{args.path}: refused: {what}. Hint: {mend}, or {shares}")
    say("passed")
    return 0


def dedup(args):
    import json

    from pyllm.data import read_examples
    from pyllm.data.dedup import deduplicate
    from pyllm.io.files import write_atomic

    examples = read_examples(args.path, columns=columns_of(args))
    kept, dropped = deduplicate(list(examples), examples.kind, args.near or None)
    write_atomic(args.out, (json.dumps(record(e), ensure_ascii=False).encode() + b"\n" for e in kept))
    say(f"wrote      {args.out}: {len(kept):,} examples of kind {examples.kind}; {dropped:,} stood there already")
    return 0


def record(example):
    """What a .jsonl line of an example holds, so that it is read as the same."""
    kept = {key: value for key, value in example.items() if key != "where"}
    if "answers" in kept:
        kept["answers"] = {"text": [text for text, _ in kept["answers"]], "answer_start": [start for _, start in kept["answers"]]}
    return kept


# ---- what is opened

def pairs_of(flag, items, kind, expected):
    """-> (name, kind(value)) of each NAME=VALUE; ConfigError for anything else."""
    from pyllm.errors import ConfigError

    for item in filter(None, items):
        name, equals, value = (part.strip() for part in item.partition("="))
        try:
            if not (name and equals and value):
                raise ValueError
            yield name, kind(value)
        except ValueError:
            raise ConfigError(f"--{flag} {item}; expected {expected}") from None


def columns_of(args):
    """-> {key: the name that the files have for it} of --columns, or None."""
    return dict(pairs_of("columns", args.columns.split(","), str, "KEY=NAME,..., such as prompt=question,completion=answer")) or None


def _splits(args):
    """-> {split: Examples that skip bad lines}; each split by itself, so that one that is broken is named."""
    from pyllm.data import find_splits, read_examples
    from pyllm.errors import ConfigError, FormatError

    try:
        columns = columns_of(args)
        return {part: read_examples(args.path, part, columns=columns, skip_bad_lines=True) for part in find_splits(args.path, columns)}
    except FormatError as error:
        raise ConfigError(str(error)) from None


def open_tokenizer(path):
    """-> (the tokenizer of a model folder, a run folder, a .gguf file or a tokenizer's own file; its model's architecture or None)."""
    from pathlib import Path

    from pyllm.cli.generate import model_folder
    from pyllm.io import gguf
    from pyllm.io.files import read_json
    from pyllm.models import FAMILIES
    from pyllm.models.seq2seq import EncoderDecoder
    from pyllm.text import from_gguf, has_tokenizer, read_tokenizer

    path = Path(path)
    if path.suffix == ".gguf":
        return from_gguf(gguf.read(path)[0]), "decoder"
    if path.is_file() or has_tokenizer(path) and not (path / "config.json").is_file():
        return read_tokenizer(path), None
    folder = model_folder(path)
    family = FAMILIES.get(read_json(folder / "config.json").get("model_type"), (None, None))[1]
    if family is None:
        return read_tokenizer(folder), None
    if issubclass(family, EncoderDecoder):
        return read_tokenizer(folder), "encoder-decoder"
    return read_tokenizer(folder), "decoder" if family.TRUNK.CAUSAL else "encoder"


# ---- what is said

def say(line):
    """Prints; what the terminal's encoding does not have is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def described(part, report, length, refused, allow, colour):
    """The lines on one split."""
    import numpy as np

    from pyllm.data.lint import CHECKS

    paint = partial(_paint, colour)
    yield f"{part:<10} {report.examples:,} examples of kind {report.kind}" + (
        f", {sum(report.lengths):,} tokens, " + f"{report.cut:,} of them cut, " * bool(report.cut)
        + (f"{report.learned:,} labels" if report.labels else f"{report.learned:,} learned") if report.lengths else "")
    if report.labels:
        yield "labels     " + ", ".join(f"{name} {count:,}" for name, count in sorted(report.labels.items())[:20])
    if report.lengths:
        middle, most, longest = (int(np.percentile(report.lengths, q)) for q in (50, 95, 100))
        room = length or max(512, 1 << (longest - 1).bit_length())
        packed = report.kind in ("text", "completion", "messages") and f"; packed in rows of {room:,}: {report.packed(room):.1%} useful"
        yield f"lengths    half up to {middle:,} tokens, 95 % up to {most:,}, the longest {longest:,}{packed or ''}"
    for name, (what, share) in CHECKS.items():
        if places := report.found[name]:
            stop, most = (part, name) in refused, allow.get(name, share)
            few = ", ".join(dict.fromkeys(places[:3])) + (", ..." if len(places) > 3 else "")
            limit = f", {'more than' if stop else 'within'} {name}={most:g}" if most < 1 else ""
            yield (f"{paint('31;1', 'REFUSED') if stop else paint('33', 'found  ')}    {what}: {len(places):,} of {report.examples:,} "
                   f"({report.share(name):.2g}{limit}): {few}")


def shown(item, tokenizer, colour):
    """The lines of a row, or of a pair, token by token: what is learned is green, or stands in [[ ]]."""
    import numpy as np

    for i, row in enumerate(item if isinstance(item, tuple) else (item,)):
        name = ("chosen" if i == 0 else "rejected") if isinstance(item, tuple) else "example"
        answer = "" if row.decoder is None else f", answer {len(row.decoder)}"
        span = isinstance(row.label, tuple) and row.label != (0, 0)
        learns = (f"{row.targets} learned" if row.label is None else "the answer's place is learned" if span else
                  "learned is that there is no answer" if isinstance(row.label, tuple) else f"label number {row.label} is learned")
        mark = "" if row.label is not None and not span else "green is learned, " if colour else "[[learned]], "
        yield f"{name:<10} {row.where}: {len(row)} tokens{answer}, {learns}; {mark}tokens are set apart by \u00b7"
        learned = row.learned
        if span:
            learned = np.zeros(len(row), bool)
            learned[row.label[0]:row.label[1] + 1] = True
        yield from _tokens(row.tokens, learned, tokenizer, colour)
        if row.decoder is not None:
            yield from _tokens(row.decoder, np.ones(len(row.decoder), bool), tokenizer, colour)


def _tokens(ids, learned, tokenizer, colour, most=300):
    """The middle of more than `most` tokens is left out."""
    left_out = len(ids) - most if len(ids) > most + 20 else 0
    text, inside = "", False
    for i, (id, now) in enumerate(zip(ids.tolist(), learned.tolist())):
        if most // 2 <= i < most // 2 + left_out:
            text += f"{']]' * (inside and not colour)} ... {left_out:,} tokens ... " * (i == most // 2)
            inside = False
            continue
        piece = _visible(tokenizer.token_bytes(id) if i else tokenizer.decode_bytes([id]), colour)  # no blank before the first word
        mark = "" if colour or now == inside else "[[" if now else "]]"
        between = "\u00b7" if text and not text.endswith(("\n", " ... ")) else ""
        text += (mark + between if mark == "]]" else between + mark) + "\n".join(
            _paint(colour, "32" if now else "2", part) for part in piece.split("\n"))
        inside = now
    text += "]]" * (inside and not colour)
    yield from ("           " + line for line in text.removesuffix("\n").split("\n"))


def _visible(data, colour):
    """Bytes of a token as text: line ends are shown and kept; escaped is what would move the cursor or look like a mark of ours."""
    text = data.decode("utf-8", "backslashreplace")
    text = "".join("\u23ce\n" if c == "\n" else c if c.isprintable() and c not in "\u00b7\u23ce" else ascii(c)[1:-1] for c in text)
    return text if colour else text.replace("[[", r"\x5b\x5b").replace("]]", r"\x5d\x5d")


def _paint(colour, code, text):
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text
