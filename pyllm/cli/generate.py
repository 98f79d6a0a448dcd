"""pyllm generate: prints the continuation of a prompt, and nothing else, on standard output."""
import sys
from pathlib import Path

HELP = "continue a text with a model"


def add_arguments(parser):
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, or a run folder of pyllm pretrain")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what to continue; - reads standard input (default: empty)")
    parser.add_argument("--max-tokens", "--max_tokens", type=int, default=100, metavar="N", help="tokens at most (default 100)")
    parser.add_argument("--temp", "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest token (default 0.8)")
    parser.add_argument("--top-p", "--top_p", type=float, default=1.0, metavar="P", help="the smallest set of tokens of this probability")
    parser.add_argument("--top-k", "--top_k", type=int, default=0, metavar="K", help="the K likeliest tokens; 0 = all")
    parser.add_argument("--min-p", "--min_p", type=float, default=0.0, metavar="P",
                        help="tokens at least P times as likely as the likeliest")
    parser.add_argument("--repetition-penalty", "--repetition_penalty", type=float, default=1.0, metavar="X", help="1 = none")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text (default 0)")
    parser.add_argument("--no-stream", "--no_stream", action="store_true", help="print all at once instead of as it comes")


def run(args):
    from pyllm.folders import load
    from pyllm.generation import stream

    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    model, tokenizer = load(model_folder(args.model))
    if tokenizer is None:
        from pyllm.errors import FormatError

        raise FormatError(f"load: {args.model}: the folder has no tokenizer.json, which text needs")
    pieces = stream(model, tokenizer, prompt, max_tokens=args.max_tokens, temperature=args.temp, top_k=args.top_k, top_p=args.top_p,
                    min_p=args.min_p, repetition_penalty=args.repetition_penalty, stop=args.stop, seed=args.seed)
    for piece in ["".join(pieces)] if args.no_stream else pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def model_folder(path):
    """-> the folder of the model at `path`: itself, or the best (else the newest) model of a run folder."""
    folder = Path(path)
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    from pyllm.training import newest

    found = newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if found is None:
        raise FileNotFoundError(f"load: {folder}: expected a model folder (config.json, model.safetensors) "
                                "or a run folder of pyllm pretrain")
    return found
