"""pyllm generate: prints the continuation of a prompt, and nothing else, on standard output."""
import argparse
import sys
from pathlib import Path


def add_arguments(parser):
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a model folder, or a run folder of pyllm pretrain")
    add("--prompt", metavar="TEXT", help="what to continue; - or a pipe: standard input, without its last line end")
    add("--max-tokens", "--max_tokens", type=int, default=100, metavar="N", help="tokens at most (default %(default)s)")
    add("--temp", "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default %(default)s)")
    add("--top-k", "--top_k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0 = all (default)")
    add("--top-p", "--top_p", type=float, default=1.0, metavar="P", help="only the smallest set of this probability (default 1)")
    add("--min-p", "--min_p", type=float, default=0.0, metavar="P",
        help="only tokens at least P times as likely as the likeliest (default 0)")
    add("--repetition-penalty", "--repetition_penalty", type=float, default=1.0, metavar="X",
        help="makes tokens that stand in the text already less likely; 1 = not (default)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    add("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text (default %(default)s)")
    add("--slide", action="store_true", help="where the model's context is full, forget its older half and go on")
    add("--stream", action=argparse.BooleanOptionalAction, help="print the text as it comes (default: on a terminal)")


def run(args):
    from pyllm.errors import FormatError
    from pyllm.folders import load
    from pyllm.generation import stream
    from pyllm.progress import Progress

    model, tokenizer = load(model_folder(args.model))
    if tokenizer is None:
        raise FormatError(f"{args.model}: the folder has no tokenizer file, such as tokenizer.json, which text needs")
    prompt = args.prompt
    if prompt == "-" or prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n")
    prompt = prompt or ""
    context, wanted = model.config.size("context"), len(tokenizer.encode(prompt)) + args.max_tokens
    pieces = stream(model, tokenizer, prompt, max_tokens=args.max_tokens, temperature=args.temp, top_k=args.top_k, top_p=args.top_p,
                    min_p=args.min_p, repetition_penalty=args.repetition_penalty, stop=args.stop, seed=args.seed, slide=args.slide)
    if wanted > context + 1 and not args.slide:
        print(f"pyllm generate: prompt and --max-tokens make {wanted} tokens, the model's context is {context}: there the text ends. "
              "Hint: --slide goes on", file=sys.stderr)
    if sys.stdout.isatty() if args.stream is None else args.stream:
        for piece in pieces:
            print(piece, end="", flush=True)
        print()
        return 0
    text = []
    with Progress(None, "generate", unit="chars") as bar:
        for piece in pieces:
            text.append(piece)
            bar.update(len(piece))
    print("".join(text))
    return 0


def model_folder(path):
    """-> the model at `path`: itself (a folder or a GGUF file), or a run folder's best model, or else its newest checkpoint."""
    folder = Path(path)
    if folder.is_file():
        return folder
    for found in (folder, folder / "model"):
        if (found / "config.json").is_file():
            return found
    from pyllm.training import newest

    found = newest(folder / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"{folder}: expected a model folder (config.json, model.safetensors) or a run folder of pyllm pretrain")
    return found
