"""Configuration of a run: defaults, a preset, a TOML file, flags and --set, each over the one before; every key is checked.

Imports nothing heavy: the flags of `pyllm pretrain --help` are made from the dataclasses below.
"""
import argparse
import re
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace

from pyllm.errors import ConfigError, suggest


def key(default, about, least=None, most=None, choices=None, flags=()):
    """A field with its documentation (units included), its range, and the names of its flag where they are not its own."""
    return field(default=default, metadata={"about": about, "least": least, "most": most, "choices": choices, "flags": flags})


@dataclass(frozen=True)
class Data:
    path: str = key("", "text: a .txt or .jsonl file, a folder of them (with train* and val* files, or split by fraction), or token shards",
                    flags=("data",))
    fraction: float = key(0.9, "share of the tokens to train on where the data has no val* files; the rest is for validation", 0.0, 1.0,
                          flags=("train-fraction",))
    length: int = key(0, "tokens a row; 0 = the model's context", 0)


@dataclass(frozen=True)
class Tokenizer:
    kind: str = key("bpe", "bpe, wordpiece, unigram or chars, trained on the data, or a folder with a tokenizer.json", flags=("tokenizer",))
    vocab_size: int = key(4096, "tokens of a tokenizer that is trained, but for chars", 257)


@dataclass(frozen=True)
class Steps:
    """What every training run has. ALL: where lr=0 stands for a rate that is known later, the one where all weights learn."""

    ALL = None
    accumulate: int = key(1, "micro-batches a step", 1)
    lr: float = key(1e-3, "learning rate at its highest", 0.0, flags=("lr", "learning-rate"))
    min_lr: float = key(1e-4, "learning rate at the end of the schedule", 0.0)
    schedule: str = key("cosine", "how the learning rate falls", choices=("constant", "linear", "cosine", "wsd"))
    beta1: float = key(0.9, "AdamW's decay of the first moment, a step", 0.0, 1.0)
    beta2: float = key(0.95, "AdamW's decay of the second moment, a step", 0.0, 1.0)
    eps: float = key(1e-8, "AdamW's addend in the denominator", 0.0)
    weight_decay: float = key(0.1, "AdamW's decay of matrices, times the learning rate", 0.0)
    precision: str = key("f32", "of the products' operands; weights, sums and optimizer are float32", choices=("f32", "bf16"))
    clip: float = key(1.0, "largest norm of the gradient; 0 = no clipping", 0.0)
    label_smoothing: float = key(0.0, "share of the target's probability given to all tokens", 0.0, 1.0)
    ema: float = key(0.0, "decay a step, such as 0.999, of the average of the weights that is evaluated and exported; 0 = none", 0.0, 1.0)
    seed: int = key(0, "of the weights, the order of the data, the dropout and the samples", 0)
    eval_every: int = key(250, "steps between evaluations", 1)
    eval_batches: int = key(0, "batches of an evaluation; 0 = the whole validation data", 0)
    patience: int = key(0, "evaluations in a row without a new best before the run stops; 0 = never", 0)
    save_every: int = key(0, "steps between checkpoints; 0 = at every evaluation", 0)
    keep: int = key(2, "newest checkpoints that are kept, beside the best", 1)
    sample_tokens: int = key(64, "tokens of the sample at every evaluation; 0 = none", 0)

    def __post_init__(self):
        if self.min_lr > self.lr and (self.lr or self.ALL is None):
            raise ConfigError(f"train: min_lr={self.min_lr}, lr={self.lr}; expected min_lr <= lr")


@dataclass(frozen=True)
class Taught(Steps):
    """What runs have in which a model learns to write."""

    teacher: str = key("", "a model with the same tokenizer, whose probabilities are learned beside the text (distillation)")
    teacher_share: float = key(0.5, "share of the teacher in the loss", 0.0, 1.0)
    teacher_temperature: float = key(2.0, "of both models' probabilities where they are compared", 0.01)

    def __post_init__(self):
        super().__post_init__()
        if self.teacher and self.label_smoothing:
            raise ConfigError(f"train: label_smoothing={self.label_smoothing} with a teacher; expected 0")


@dataclass(frozen=True)
class Train(Taught):
    objective: str = key("clm", "clm: the next token; mlm, wwm: masked tokens, whole words (bert); span, ul2, infill, prefix: T5's, UL2's, "
                         "BART's corrupted text and the rest of a text (t5, bart); suffix, fim: the rest, a middle (decoders)",
                         choices=("clm", "mlm", "wwm", "span", "ul2", "infill", "prefix", "suffix", "fim"))
    corruption: float = key(0.0, "share of the tokens (of the rows for fim) that is corrupted; 0 = the objective's own", 0.0, 1.0)
    steps: int = key(2000, "optimizer steps in all", 1)
    batch: int = key(16, "rows of a micro-batch", 1)
    warmup: int = key(100, "steps in which the learning rate rises", 0)
    z_loss: float = key(0.0, "weight of the squared log of the softmax's denominator", 0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.warmup > self.steps:
            raise ConfigError(f"train: warmup={self.warmup}, steps={self.steps}; expected warmup <= steps")
        if self.teacher and self.z_loss:
            raise ConfigError(f"train: z_loss={self.z_loss} with a teacher; expected 0")


MODEL = {  # what every family has; the other keys of [model] are the family's own
    "family": ("gpt2", "model family", str), "layers": (4, "blocks", int), "heads": (4, "attention heads", int),
    "width": (256, "channels of the residual stream", int), "context": (256, "longest row, tokens", int),
    "dropout": (0.0, "probability", float),
}
SECTIONS = {"model": MODEL, "data": Data, "tokenizer": Tokenizer, "train": Train}  # of pretrain; other verbs have their own
PRESETS = {
    "nanogpt-cpu": {  # nanoGPT's CPU configuration for tinyshakespeare, but its learning rate of 1e-3: LOG.md says why
        "model": {"family": "gpt2", "layers": 4, "heads": 4, "width": 128, "context": 64, "bias": False},
        "tokenizer": {"kind": "chars"},
        "train": {"steps": 2000, "batch": 12, "lr": 3e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99},
    },
}


class Config(SimpleNamespace):
    """A section an attribute: a dataclass of the verb's sections, or the dict of a free one, such as [model]."""

    def table(self):
        """-> nested dicts, what config.resolved.toml holds."""
        return {name: section if isinstance(section, dict) else asdict(section) for name, section in vars(self).items()}


# ---- reading and checking

def read_toml(path):
    """-> (table, {(section, key): 'file:line'}); ConfigError names file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+), column (\d+)", str(error))
        line, column = found.groups() if found else (text.count("\n") + 1, 1)
        raise ConfigError(f"{path}:{line}: not TOML at column {column}: {re.sub(r' *.at (line|end).*', '', str(error))}") from None
    places, section = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            section = header[1]
            places[section, ""] = f"{path}:{number}"
        elif entry := re.match(r"\s*([\w-]+)\s*=", line):
            places[section, entry[1]] = f"{path}:{number}"
    return table, places


def resolve(*layers, sections=SECTIONS):
    """layers: (table, places) from the weakest to the strongest; places: {(section, key): where it stands} or its one name -> Config.

    sections: {name: dataclass with a `key` a field, or {key: (default, about, type)} of a section that may hold other keys too}.
    ConfigError names where a key is unknown (and the nearest known one), of a wrong type or out of range.
    """
    merged = {name: {k: values[0] for k, values in kind.items()} if isinstance(kind, dict) else {} for name, kind in sections.items()}
    for table, places in layers:
        for section, values in table.items():
            where = places if isinstance(places, str) else places.get((section, ""), places.get(("", section), "config"))
            if section not in merged or not isinstance(values, dict):
                known = [*merged] if section not in merged else []
                raise ConfigError(f"{where}: {section!r} is not a section.{suggest(section, known)} Sections: {', '.join(merged)}")
            for name, value in values.items():
                at = places if isinstance(places, str) else places.get((section, name), where)
                merged[section][name] = _checked(f"{at}: {section}.{name}", section, sections[section], name, value)
    return Config(**{name: merged[name] if isinstance(kind, dict) else kind(**merged[name]) for name, kind in sections.items()})


def _checked(where, section, keys, name, value):
    """-> the value, a whole number for a float field as a float."""
    if isinstance(keys, dict):
        kind, limits = keys[name][2] if name in keys else None, {}
    else:
        known = {f.name: f for f in fields(keys)}
        if name not in known:
            raise ConfigError(f"{where}: not a key.{suggest(name, known)} Keys of [{section}]: {', '.join(known)}")
        kind, limits = known[name].type, known[name].metadata
    if kind is float and type(value) is int:
        value = float(value)
    if kind is not None and type(value) is not kind:
        expected = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[kind]
        raise ConfigError(f"{where}={value!r}; expected {expected}")
    least, most, choices = (limits.get(k) for k in ("least", "most", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{where}={value!r}; expected one of {', '.join(choices)}.{suggest(value, choices)}")
    if least is not None and not least <= value <= (most if most is not None else float("inf")):
        raise ConfigError(f"{where}={value!r}; expected {f'{least} to {most}' if most is not None else f'at least {least}'}")
    return value


# ---- flags

def add_flags(parser, sections=SECTIONS):
    """A flag for each key, also spelled with underscores, and --set SECTION.KEY=VALUE for those without."""
    for section, kind in sections.items():
        group = parser.add_argument_group(f"[{section}]")
        if isinstance(kind, dict):
            for name, (default, about, type_) in kind.items():
                _flag(group, section, name, (name,), type_, f"{about} (default {default})")
        else:
            for f in fields(kind):
                about = f"{f.metadata['about']} (default {f.default})" if f.default != "" else f.metadata["about"]
                _flag(group, section, f.name, f.metadata["flags"] or (f.name,), f.type, about, f.metadata["choices"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="any key of the configuration, such as train.lr=1e-4 or model.bias=false")


def _flag(group, section, name, flags, kind, about, choices=None):
    options = {"dest": f"{section}.{name}", "default": None}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options.update(type=kind, metavar="|".join(choices) if choices else kind.__name__.upper())
    dashed = [f"--{flag.replace('_', '-')}" for flag in flags]
    group.add_argument(*dashed, help=about.replace("%", "%%"), **options)
    if underscored := [f"--{flag.replace('-', '_')}" for flag in flags if {"-", "_"} & set(flag)]:
        group.add_argument(*underscored, help=argparse.SUPPRESS, **options)


def from_flags(args):
    """-> the tables of the flags that were given and of --set, as layers for `resolve`."""
    flags, sets = {}, {}
    for dest, value in vars(args).items():
        section, dot, name = dest.partition(".")
        if dot and value is not None:
            flags.setdefault(section, {})[name] = value
    for text in args.set:
        found = re.fullmatch(r"\s*([\w-]+)\.([\w-]+)\s*=(.*)", text, re.S)
        if not found:
            raise ConfigError(f"--set {text!r}; expected SECTION.KEY=VALUE, for example train.lr=3e-4")
        section, name, value = found.groups()
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            value = value.strip()  # a string without its quotes
        sets.setdefault(section.replace("-", "_"), {})[name.replace("-", "_")] = value
    return (flags, "flag"), (sets, "--set")


def load_config(args, *below, sections=SECTIONS):
    """args: the parsed flags, with `config`, and `preset` where there are such -> Config; below: layers under them."""
    layers = list(below)
    if getattr(args, "preset", None):
        if args.preset not in PRESETS:
            raise ConfigError(f"--preset {args.preset!r}; expected one of {', '.join(PRESETS)}.{suggest(args.preset, PRESETS)}")
        layers.append((PRESETS[args.preset], f"preset {args.preset}"))
    if args.config:
        layers.append(read_toml(args.config))
    return resolve(*layers, *from_flags(args), sections=sections)
