"""pyllm eval: a model and examples -> a task's metrics with their intervals, as a table and as JSON, a record for each example."""
import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path


def add_arguments(parser):
    from pyllm.cli.generate import ADAPTER
    from pyllm.evaluate.tasks import TASKS

    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, a .gguf file, or a run folder")
    add("--adapter", **ADAPTER)
    add("--data", required=True, metavar="PATH", help="a file of examples, or a folder of them")
    add("--task", required=True, metavar="TASK", help="; ".join(f"{name}: {task.about}" for name, task in TASKS.items()))
    add("--split", choices=("train", "valid", "test"), help="of a folder; default: test where there is one, else all")
    add("--columns", default="", metavar="KEY=NAME,...", help="the names that the files have for keys, such as source=en,target=de")
    add("--limit", type=int, metavar="N", help="only the first N examples")
    add("--batch", type=int, default=16, metavar="N", help="rows at a time (default %(default)s); no result depends on it")
    add("--max-tokens", "--max_tokens", type=int, default=64, metavar="N", help="of an answer that is written (default %(default)s)")
    add("--beams", type=int, default=1, metavar="N", help="of a beam search; 1 takes the likeliest token each time (default)")
    add("--stop", action="append", default=[], metavar="TEXT", help="an answer ends before this text; may be given several times")
    add("--prompt-format", "--prompt_format", default="{prompt}", metavar="TEXT",
        help="what stands around a prompt, such as 'Translate to German: {prompt}'")
    add("--shots", type=int, default=0, metavar="N",
        help="answered examples before each one, drawn with --seed from the train files where there are any, never the example itself")
    add("--chat", action="store_true", help="prompts as a user's turn, as the tokenizer's chat template writes them")
    add("--no-answer-threshold", "--no_answer_threshold", type=float, default=0.0, metavar="X",
        help="of qa: by how much no answer may score above a span which is the answer all the same")
    add("--length", type=int, default=0, metavar="N", help="tokens of context at most; 0 = the model's (default)")
    add("--stride", type=int, default=0, metavar="N", help="of clm: tokens told in a window; fewer see more of the text before; 0 = all. "
        "Of qa: tokens from one window of a long text to the next; 0 = 128")
    add("--skip-bad-lines", "--skip_bad_lines", action="store_true", help="count lines that cannot be read, and go on")
    add("--seed", type=int, default=0, metavar="S", help="of the intervals' resampling and of the choice of shots (default %(default)s)")
    add("--out", metavar="FOLDER", help="write scores.json and predictions.jsonl there")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="print JSON in place of the table")


def run(args):
    from pyllm import __version__
    from pyllm.cli.data import columns_of
    from pyllm.cli.generate import opened
    from pyllm.data import find_splits
    from pyllm.errors import ConfigError, FormatError, suggest
    from pyllm.evaluate.spans import best_threshold
    from pyllm.evaluate.tasks import TASKS, Options, Task, evaluate
    from pyllm.io.files import write_atomic, write_json

    if args.task not in TASKS:
        raise ConfigError(f"--task {args.task!r}; expected one of {', '.join(TASKS)}.{suggest(args.task, TASKS)}")
    for name in ("batch", "max_tokens", "beams", "limit"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}; expected a whole number of at least 1")
    for name in ("length", "stride", "shots"):
        if (value := getattr(args, name)) < 0:
            raise ConfigError(f"--{name} {value}; expected a whole number of at least 0")
    if args.skip_bad_lines and TASKS[args.task].read is not Task.read:
        raise ConfigError(f"--skip-bad-lines: the task {args.task} reads a published set, all of it")
    columns = columns_of(args)
    options = Options(args.batch, args.max_tokens, args.beams, tuple(args.stop), args.prompt_format, args.length, args.stride,
                      args.no_answer_threshold, args.seed, args.shots, args.chat)
    model, tokenizer = opened(args.model, args.adapter)
    try:
        skip = {"skip_bad_lines": True} if args.skip_bad_lines else {}
        splits, read = find_splits(args.data, columns), partial(TASKS[args.task].read, args.data, columns=columns, **skip)
        split = args.split or ("test" if "test" in splits else None)
        examples, pool = read(split), read("train") if args.shots and split not in (None, "train") and "train" in splits else None
        scores, records = evaluate(args.task, model, tokenizer, examples, options, limit=args.limit, pool=pool)
    except (FormatError, FileNotFoundError) as error:
        raise ConfigError(f"data: {error}") from None
    settings = {name: value for name, value in asdict(options).items() if name != "batch"}  # which changes nothing
    result = {"task": args.task, "model": str(args.model), "data": str(args.data), "split": split, "examples": len(records),
              "pyllm": __version__, "options": settings, "scores": {name: asdict(score) for name, score in scores.items()}}
    if args.out:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "scores.json", result)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomic(out / "predictions.jsonl", lines.encode())
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
        return 0
    print(f"{args.task}, {len(records):,} examples" + (f" of {split}" if split else "") + f": {args.model}")
    width = max(map(len, scores))
    for name, score in scores.items():
        print(f"{name:<{width}}  {score!s:<28}  {score.signature}")
    if "n_best" in records[0] and len({any(record["references"]) for record in records}) > 1:  # questions with and without an answer
        print(f"on these examples --no-answer-threshold {best_threshold(records):.2f} has the largest F1; use it on others")
    if args.skip_bad_lines and getattr(examples, "skipped", 0):
        print(f"{examples.skipped} bad lines skipped, the first: {examples.first_skipped}")
    if cut := sum(bool(record.get("cut")) for record in records):
        print(f"{cut} prompts were longer than the context: their beginning was cut")
    return 0
