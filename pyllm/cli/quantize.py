"""pyllm quantize: what fewer bits a weight cost in perplexity and give in speed, as a table; and the file that one of them makes."""

FORMATS = ("bf16", "q8_0", "q4_0", "q4_1")
ROWS = 4  # windows of the text in a batch


def add_arguments(parser):
    add = parser.add_argument
    add("source", metavar="SRC", help="a model folder, a run folder of pyllm, or a .gguf file")
    add("target", nargs="?", metavar="DST", help="a name that ends in .gguf: the model in the one --type is written there")
    add("--type", action="append", choices=FORMATS, help=f"may be given several times (default: {', '.join(FORMATS)})")
    add("--data", metavar="TEXT", help="a text, on which perplexity is measured")
    add("--tokens", type=int, default=32768, metavar="N", help="so much of it (default %(default)s; 0 = all)")
    add("--length", type=int, default=1024, metavar="T", help="tokens of a window, each read on its own (default %(default)s)")
    add("--skip", action="append", default=[], metavar="PATTERN", help="layers that stay float32, such as lm_head or *.mlp.*")


def run(args):
    from pyllm.cli.convert import write
    from pyllm.cli.generate import model_folder
    from pyllm.errors import ConfigError, FormatError
    from pyllm.folders import load_files, read_files
    from pyllm.nn import quantize

    formats = args.type or FORMATS
    if args.target and (len(formats) != 1 or not args.target.endswith(".gguf")):
        raise ConfigError(f"quantize: {args.target} with {len(formats)} types; expected a name that ends in .gguf, and one --type")
    files, rows = read_files(model_folder(args.source)), None
    if args.data:
        if files.tokenizer is None:
            raise FormatError(f"{args.source}: no tokenizer, which perplexity on a text needs")
        rows = windows(files.tokenizer, args.data, args.length, args.tokens)
    print(f"{'type':<6} {'MB':>8} {'perplexity':>11} {'more':>8} {'tokens/s':>9}", flush=True)
    base = None
    for name in ("f32", *formats):  # each from the source, so that no rounding comes upon another
        model, _ = load_files(files)
        if name != "f32":
            quantize(model, name, args.skip)
        size = 4 * model.num_parameters() + sum(weight.nbytes for _, weight in model.named_packed())
        cost = perplexity(model, rows, name) if rows else None
        base = cost if base is None else base
        words = f"{cost:>11.4f} {100 * (cost / base - 1):>7.2f}%" if rows else f"{'-':>11} {'-':>8}"
        print(f"{name:<6} {size / 1e6:>8.1f} {words} {speed(model):>9.1f}", flush=True)
    if args.target:
        write(model, files.tokenizer, args.target, formats[0])
    return 0


def windows(tokenizer, path, length, tokens):
    """-> Batches of rows of `length` ids of the text, beside one another, each begun by the BOS if the tokenizer puts one."""
    from pathlib import Path

    import numpy as np

    from pyllm.data.batch import Batch
    from pyllm.errors import ConfigError

    ids = tokenizer.encode_array(Path(path).read_text(encoding="utf-8"), special=False).astype(np.int32)
    ids = ids[: tokens or None]
    step = length - 1 if tokenizer.puts_bos else length
    rows = len(ids) // step
    if length < 2 or not rows:
        raise ConfigError(f"quantize: {path}: {len(ids)} tokens make no window of {length}. Hint: --length")
    ids = ids[: rows * step].reshape(rows, step)
    if tokenizer.puts_bos:
        ids = np.concatenate([np.full((rows, 1), tokenizer.bos_id, np.int32), ids], 1)
    return [Batch(ids[i : i + ROWS, :-1], ids[i : i + ROWS, 1:]) for i in range(0, rows, ROWS)]


def perplexity(model, batches, name):
    """-> e^(mean loss a token)."""
    from pyllm.objectives import clm
    from pyllm.progress import Progress
    from pyllm.training import evaluate

    with Progress(len(batches), name, unit="batches") as bar:
        def counted():
            for batch in batches:
                yield batch
                bar.update()

        return evaluate(model, clm, counted()).perplexity


def speed(model, tokens=32):
    """-> tokens a second of one text, without the prompt: the better of two turns."""
    import time

    from pyllm.generation import generate

    best = 0.0
    for _ in range(2):
        marks = []
        for count in (1, tokens + 1):
            began = time.perf_counter()
            found, = generate(model, None, [[1]], max_tokens=count, temperature=0)
            marks.append((len(found.ids), time.perf_counter() - began))
        (first, start), (last, end) = marks
        best = max(best, (last - first) / (end - start))
    return best
