"""pyllm generate: prints the continuation of a prompt, and nothing else, on standard output."""
import argparse
import sys
from pathlib import Path


NUMBERS = {  # option -> (type, metavar, what it does); without it generation_config.json decides, else pyllm.generate's default
    "top-k": (int, "K", "only the K likeliest tokens; 0 = all"),
    "top-p": (float, "P", "only the smallest set of this probability; 1 = all"),
    "min-p": (float, "P", "only tokens at least P times as likely as the likeliest"),
    "repetition-penalty": (float, "X", "makes tokens that stand in the text already less likely; 1 = not"),
    "presence-penalty": (float, "X", "taken from the logit of a token that was drawn before"),
    "frequency-penalty": (float, "X", "the same, times how often"),
    "no-repeat-ngram-size": (int, "N", "no N tokens in a row twice"),
    "min-tokens": (int, "N", "no end before so many tokens"),
    "num-beams": (int, "N", "the likeliest text that a search over N at a time finds; with --temp and the like, one drawn from as many"),
    "length-penalty": (float, "X", "of that search: above 0 prefers long texts, below 0 short ones"),
}


ADAPTER = dict(action="append", default=[], metavar="FOLDER",
               help="an adapter's folder, or a run folder that has one; several are stacked (default: the run folder's own)")


def add_arguments(parser):
    add = parser.add_argument
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help="a model folder, a run folder, or a .gguf file")
    one.add_argument("--model", metavar="MODEL", help="the same")
    add("--adapter", **ADAPTER)
    add("--prompt", metavar="TEXT", help="what to continue; - or a pipe: standard input, without its last line end")
    add("--max-tokens", "--max_tokens", type=int, metavar="N", help="tokens at most (default: as generation_config.json says, else 100)")
    add("--temp", "--temperature", dest="temperature", type=float, metavar="T",
        help="0 takes the likeliest token (default: as generation_config.json says, which without do_sample is 0; else 0.8)")
    for name, (kind, unit, words) in NUMBERS.items():
        add(f"--{name}", f"--{name.replace('-', '_')}", type=kind, metavar=unit, help=words)
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be given several times")
    add("--regex", metavar="EXPRESSION", help="a regular expression that the text will match as a whole")
    add("--json-schema", "--json_schema", metavar="FILE", help="a JSON schema that the text will be of")
    add("--draft", metavar="DIR", help="a smaller model of the same vocabulary that guesses ahead: the same text, sooner")
    add("--prompt-lookup", "--prompt_lookup", type=int, metavar="N",
        help="guess N tokens ahead from where the last ones stood before: the same text, sooner where it repeats itself")
    add("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text (default %(default)s)")
    add("--slide", action="store_true", help="where the model's context is full, forget its older half and go on")
    add("--stream", action=argparse.BooleanOptionalAction, help="print the text as it comes (default: on a terminal)")


def run(args):
    from pyllm.generation import generate, stream
    from pyllm.generation.settings import settings
    from pyllm.models.seq2seq import EncoderDecoder
    from pyllm.progress import Progress

    model, tokenizer = opened(args.model, args.adapter)
    prompt = args.prompt
    if prompt == "-" or prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n")
    prompt = prompt or ""
    names = ("temperature", "max_tokens", "stop", *(name.replace("-", "_") for name in NUMBERS))
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if model.generation is None and args.num_beams is None:
        given.setdefault("temperature", 0.8)
    _, beams, max_tokens, _ = settings(model, given)
    context, wanted = model.config.size("context"), max_tokens
    if not isinstance(model, EncoderDecoder):  # whose prompt has a side of its own
        wanted += len(tokenizer.encode(prompt))
    constraint = _constraint(args)
    options = dict(seed=args.seed, slide=args.slide, constraint=constraint, draft=_draft(args), **given)
    if beams.num_beams > 1:
        print(generate(model, tokenizer, prompt, **options, num_return_sequences=1).text)
        return 0
    pieces = stream(model, tokenizer, prompt, **options)
    if wanted > context + 1 and not args.slide:
        print(f"pyllm generate: prompt and --max-tokens make {wanted} tokens, the model's context is {context}: there the text ends. "
              "Hint: --slide goes on", file=sys.stderr)
    text = []
    if sys.stdout.isatty() if args.stream is None else args.stream:
        for piece in pieces:
            text.append(piece)
            print(piece, end="", flush=True)
        print()
    else:
        with Progress(None, "generate", unit="chars") as bar:
            for piece in pieces:
                text.append(piece)
                bar.update(len(piece))
        print("".join(text))
    if constraint is not None and not constraint.matches("".join(text)):
        print("pyllm generate: the text was cut before it was what it must be. Hint: a larger --max-tokens", file=sys.stderr)
    return 0


def _constraint(args):
    """-> the Constraint of --regex or --json-schema, or None."""
    from pyllm.errors import ConfigError
    from pyllm.generation import Constraint
    from pyllm.io.files import read_json

    if args.regex is not None and args.json_schema is not None:
        raise ConfigError("--regex and --json-schema; expected one of them")
    if args.regex is not None:
        return Constraint.regex(args.regex)
    return None if args.json_schema is None else Constraint.json(read_json(args.json_schema))


def _draft(args):
    """-> what guesses ahead, or None."""
    from pyllm.errors import ConfigError
    from pyllm.folders import load
    from pyllm.generation import DraftModel, PromptLookup

    if args.draft is not None and args.prompt_lookup is not None:
        raise ConfigError("--draft and --prompt-lookup; expected one of them")
    if args.draft is not None:
        return DraftModel(load(model_folder(args.draft))[0])
    return None if args.prompt_lookup is None else PromptLookup(args.prompt_lookup)


def opened(path, adapters=(), packed=False):
    """-> (model, tokenizer) as pyllm.cli.sft.open_model, with adapters in force; path: also a run that learned one, which is the first,
    unless it is merged into a model beside it."""
    from pyllm import peft
    from pyllm.cli.merge import adapted
    from pyllm.cli.sft import open_model
    from pyllm.errors import FormatError
    from pyllm.io.files import read_json

    learned = Path(path, "adapter", "adapter_config.json")
    if learned.is_file() and not Path(path, "model", "config.json").is_file():
        base = read_json(learned)["base_model_name_or_path"]
        if not base:
            raise FormatError(f"{learned}: no base_model_name_or_path. Hint: --model BASE --adapter {path}")
        path, adapters = base, [path, *adapters]
    model, tokenizer = open_model(path, packed)
    for number, folder in enumerate(adapters):
        model = adapted(model, folder, f"adapter{number}")
    return peft.activate(model, *peft.names(model)), tokenizer


def model_folder(path):
    """-> the model at `path`: itself (a folder or a GGUF file), or a run folder's best model, or else its newest checkpoint; where nothing
    of that name exists, the Hub's model."""
    from pyllm.errors import ConfigError
    from pyllm.io.hub import fetch, is_name

    folder = Path(path)
    if folder.is_file():
        return folder
    if not folder.exists() and is_name(path):
        return fetch(path)
    for found in (folder, folder / "model"):
        if (found / "config.json").is_file():
            return found
    from pyllm.training import newest

    found, learned = newest(folder / "checkpoints"), (folder / "adapter" / "adapter_config.json").is_file()
    if learned or found and not (found / "config.json").is_file():
        raise ConfigError(f"{folder}: learned an adapter; expected a model. Hint: pyllm merge makes one of its base and it" if learned
                          else f"{folder}: this run learns an adapter and stopped before its first evaluation. Hint: --resume goes on")
    if found is None:
        what = "" if folder.exists() else " no such file or folder;"
        raise FileNotFoundError(f"{folder}:{what} expected a model folder (config.json, model.safetensors), a .gguf file or a run folder "
                                "of pyllm pretrain")
    return found
