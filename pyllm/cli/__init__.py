"""The command `pyllm`: one file a verb, imported when it is called, so that --help is instant.

A verb's file has add_arguments(parser) and run(args) -> exit code. Exit codes: 0 done, 1 a fault of ours, 2 wrong usage, 3 bad data or
configuration, a missing file or a full disk, 4 a bad model or tokenizer file, 130 interrupted, 141 nobody reads the output any more.
"""
import argparse
import sys
import warnings

VERBS = {  # name: one line; the module of that name in this folder does it
    "demo": "a small model's whole life in a few minutes: tokenizer, training, resuming, text, fine-tuning",
    "pretrain": "train a language model from scratch on text",
    "data": "look at a data set before a model does: count what is wrong, show what is learned; drop duplicates",
    "sft": "fine-tune a model on examples: answers, labels, spans",
    "merge": "an adapter into its model's weights, checked",
    "adapters": "list, combine and export adapters",
    "reward": "train a reward model on preferences",
    "dpo": "train a model on preferences directly: DPO and its relatives",
    "kto": "train a model on answers that are good or bad",
    "ppo": "train a model on a reward of what it writes: PPO",
    "grpo": "the same without a value model: GRPO, DAPO, RLOO and others",
    "constitution": "constitutional AI: a model criticises, revises and compares its own answers by principles",
    "eval": "metrics of a model on a task's examples, with confidence intervals",
    "tune": "search the settings of a training run",
    "generate": "continue a text with a model",
    "chat": "talk with a model",
    "embed": "turn texts into vectors, and say how near they are to each other",
    "convert": "a model between a Hugging Face folder and a GGUF file, and between types of weights",
    "quantize": "what fewer bits a weight cost and give, as a table; the model in one of these types",
    "tokenize": "train a tokenizer; turn text into tokens and back",
    "info": "what runs here: version, kernels, threads; or what a model folder holds",
    "bench": "measure this machine: its limits, the kernels' share of them, hours for a training run",
}


def main(argv=None):
    """argv: without the program's name -> exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    called = next((a for a in argv if not a.startswith("-")), None)
    name = f"pyllm {called}" if called in VERBS else "pyllm"
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)
            code = _run(argv, called)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("pyllm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError):
            _drop_output()
        if isinstance(error, BrokenPipeError):  # the reader, such as head, has seen enough
            return 141
        code = _code(error)
        if code is None or _debugging():
            raise
        print(f"{name}: {_words(error)}", file=sys.stderr)
        return code


def _run(argv, called):
    from pyllm import __version__

    parser = argparse.ArgumentParser(prog="pyllm", description="The whole life of a language model on any CPU.",
                                     epilog="pyllm VERB --help tells a verb's options.")
    parser.add_argument("--version", action="version", version=f"pyllm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    module = None
    for name, line in VERBS.items():
        verb = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == called:
            from importlib import import_module

            module = import_module(f"{__name__}.{name}")
            module.add_arguments(verb)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code or 0
    return module.run(args)


def _code(error):
    """-> the exit code of an error that is the caller's to mend, None for a fault of ours."""
    from pyllm.errors import FormatError

    if isinstance(error, FormatError):
        return 4
    ours = type(error) is not ImportError  # a variable that asks for what is not there; a missing module is a subclass
    return None if ours and not isinstance(error, (OSError, ValueError, FloatingPointError, MemoryError)) else 3


def _words(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) or type(error).__name__


def _debugging():
    from pyllm import env

    try:
        return env.debug() > 0
    except ImportError:  # the variable itself is wrong
        return False


def _drop_output():
    """What waits for standard output and cannot be written is dropped, so that the interpreter does not fail over it at its end."""
    import os

    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
