"""pyllm embed: texts -> vectors, in a .npy file; how near they are to each other, as a table."""
import sys

TABLE = 10  # texts at most, of which all cosines are printed


def add_arguments(parser):
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, a run folder of pyllm, or a .gguf file; of sentence embeddings or any other")
    add("texts", nargs="*", metavar="TEXT", help="the texts; without them and --file, the lines of standard input")
    add("--file", metavar="PATH", help="a file in UTF-8, a text a line")
    add("--out", metavar="PATH", help="a .npy file for the vectors: float32 (texts, width)")
    add("--pooling", choices=("mean", "cls", "last"), help="how a text's tokens become one vector (default: what the folder says, or mean)")
    add("--limit", type=int, metavar="N", help="tokens of a text that are read (default: what the folder says, or the model's context)")
    add("--raw", action="store_true", help="leave the vectors as long as they are, not of length 1")


def run(args):
    from pyllm.cli.generate import model_folder
    from pyllm.embedding import embed
    from pyllm.errors import ConfigError, FormatError
    from pyllm.folders import load
    from pyllm.progress import Progress

    if args.texts and args.file:
        raise ConfigError("embed: both texts and --file; expected one of them")
    if args.out and not args.out.endswith(".npy"):
        raise ConfigError(f"embed: --out {args.out}; expected a name that ends in .npy")
    texts = args.texts or _lines(args.file)
    if not texts:
        raise ConfigError("embed: no texts")
    model, tokenizer = load(model_folder(args.model))
    if tokenizer is None:
        raise FormatError(f"{args.model}: the folder has no tokenizer file, such as tokenizer.json, which text needs")
    with Progress(len(texts), "embed", unit="texts") as bar:
        vectors = embed(model, tokenizer, texts, pooling=args.pooling, normalize=not args.raw, limit=args.limit, done=bar.update)
    if args.out:
        save(args.out, vectors)
        print(f"{args.out}: {len(vectors)} vectors of {vectors.shape[1]} numbers")
    cosines(texts, vectors)
    return 0


def _lines(path):
    """-> the lines of a file, or of standard input, that are not blank."""
    from pathlib import Path

    from pyllm.errors import ConfigError

    data = Path(path).read_bytes() if path else sys.stdin.buffer.read()
    try:
        return [line for line in data.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"embed: {path or 'standard input'}: line {line} is not UTF-8: {error.reason}") from None


def save(path, vectors):
    """Writes a .npy file; what was there stays until it is complete."""
    import io

    import numpy as np

    from pyllm.io.files import write_atomic

    file = io.BytesIO()
    np.save(file, vectors)
    write_atomic(path, file.getvalue())


def cosines(texts, vectors):
    """Prints all cosines of a few texts; of more, each text's nearest other one."""
    import numpy as np

    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    width = len(str(len(texts)))
    if len(texts) <= TABLE:
        for i, (text, row) in enumerate(zip(texts, vectors @ vectors.T), 1):
            print(f"{i:>{width}}  {'  '.join(f'{value:6.3f}' for value in row)}  {_short(text)}")
        return
    for first in range(0, len(texts), 256):  # a few rows of the table at a time
        table = vectors[first : first + 256] @ vectors.T
        table[np.arange(len(table)), first + np.arange(len(table))] = -2
        for i, (near, row) in enumerate(zip(table.argmax(1), table), first):
            print(f"{i + 1:>{width}}  {row[near]:6.3f}  {near + 1:>{width}}  {_short(texts[i], 36):<36}  {_short(texts[near], 36)}")


def _short(text, most=72):
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "\u2026"
