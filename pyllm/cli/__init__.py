"""The command `pyllm`: one file a verb, imported when it is called, so that --help is instant.

A verb's file has HELP (one line), add_arguments(parser) and run(args) -> exit code. Exit codes: 0 done, 1 a fault of ours, 2 wrong usage,
3 bad data or configuration, 4 a bad model, 130 interrupted.
"""
import argparse
import sys

VERBS = {  # name: one line; the module of that name in this folder does it
    "demo": "a small model's whole life in a few minutes: tokenizer, training, resuming, generated text",
    "pretrain": "train a language model from scratch on text",
    "generate": "continue a text with a model",
    "tokenize": "train a tokenizer; turn text into tokens and back",
    "info": "what runs here: version, kernels, threads; or what a model folder holds",
    "bench": "measure this machine: its limits, the kernels' share of them, hours for a training run",
}


def main(argv=None):
    """argv: without the program's name -> exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("pyllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv):
    parser = argparse.ArgumentParser(prog="pyllm", description="The whole life of a language model on any CPU.",
                                     epilog="pyllm VERB --help tells a verb's options.")
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    called = next((a for a in argv if not a.startswith("-")), None)
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
    from pyllm import env

    if env.debug():
        return module.run(args)
    try:
        return module.run(args)
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        print(f"pyllm {called}: {error}", file=sys.stderr)
        return code


def _code(error):
    """-> the exit code of an error that is the caller's to mend, None for a fault of ours."""
    from pyllm.errors import ConfigError, FormatError

    if isinstance(error, FormatError):
        return 4 if "safetensors" in str(error) or str(error).startswith("load:") else 3
    return 3 if isinstance(error, (ConfigError, OSError, ValueError, FloatingPointError, MemoryError)) else None


def _version():
    from pyllm import __version__

    return f"pyllm {__version__}"
