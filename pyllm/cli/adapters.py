"""pyllm adapters: what adapter folders hold (list), several made into one (combine), the formats of other tools (export).

Also the section [peft] of the verbs that train, and what puts an adapter into their model.
"""
from dataclasses import dataclass

from pyllm.cli.config import key

METHODS = ("lora", "adalora", "vera", "ia3", "ln_tuning", "bitfit", "houlsby", "pfeiffer", "parallel", "prefix", "prompt", "p_tuning",
           "tokens")
BASES = ("f32", "bf16", "q8_0", "q4_0", "q4_1")


@dataclass(frozen=True)
class Peft:
    method: str = key("none", "an adapter learns, the model is frozen; none: the model learns", choices=("none", *METHODS), flags=("peft",))
    rank: int = key(0, "of the adapter's matrices; 0 = the method's own", 0)
    alpha: float = key(0.0, "times 1 / rank it scales what they add; 0 = the method's own", 0.0)
    targets: str = key("", "endings of layers with commas between, an expression of whole paths, or all-linear; empty = the family's own")
    options: str = key("", "further settings of the method, such as init=pissa,dropout=0.05,dora=true")
    base: str = key("f32", "the frozen weights in memory; of fewer bits: QLoRA", choices=BASES)


def add_arguments(parser):
    add = parser.add_argument
    add("action", choices=("list", "combine", "export"))
    add("folders", nargs="+", metavar="FOLDER", help="adapter folders, or run folders that have one; for combine each may end in :WEIGHT")
    add("--model", metavar="BASE", help="the model they are for (combine, export)")
    add("--out", metavar="OUT", help="the new adapter's folder, or for export a file")
    add("--type", default="linear", help="of combine: linear, cat, svd, ties, dare_linear, dare_ties (default %(default)s)")
    add("--density", type=float, default=0.5, metavar="D", help="share of the numbers that ties and dare keep (default %(default)s)")
    add("--rank", type=int, default=0, metavar="R", help="of what svd makes (default: the largest of the adapters)")
    add("--format", default="gguf", choices=("gguf", "adapterhub"), help="of export (default %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of what dare drops")


def run(args):
    from pyllm.errors import ConfigError

    if args.action == "list":
        for folder in args.folders:
            print(described(folder))
        return 0
    if not args.model or not args.out:
        raise ConfigError(f"adapters {args.action}: expected --model BASE and --out OUT")
    (combine if args.action == "combine" else export)(args)
    print(f"{'adapter' if args.action == 'combine' else 'exported':<10} {args.out}")
    return 0


def combine(args):
    """Writes the one adapter that several make together, each FOLDER or FOLDER:WEIGHT."""
    from pyllm import peft
    from pyllm.cli.merge import adapted
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError

    model, weights = open_model(args.model)[0], {}
    for number, word in enumerate(args.folders):
        folder, _, weight = word.rpartition(":")
        try:
            folder, weight = (folder, float(weight)) if folder else (word, 1.0)
        except ValueError:
            raise ConfigError(f"adapters combine: {word}: {weight!r} is no weight; expected FOLDER or FOLDER:WEIGHT") from None
        model = adapted(model, folder, f"part{number}")
        weights[f"part{number}"] = weight
    peft.combine(model, weights, "combined", args.type, density=args.density, rank=args.rank or None, seed=args.seed)
    peft.save(model, args.out, "combined", args.model)


def export(args):
    """Writes an adapter in another tool's format."""
    from pyllm import peft
    from pyllm.cli.merge import adapted
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError

    if len(args.folders) != 1:
        raise ConfigError(f"adapters export: {len(args.folders)} folders; expected one")
    model = adapted(open_model(args.model)[0], args.folders[0])
    {"gguf": peft.save_gguf, "adapterhub": peft.save_hub}[args.format](model, args.out)


def described(folder):
    """-> lines about an adapter's folder."""
    from pyllm.cli.merge import adapter_folder
    from pyllm.io.files import read_json
    from pyllm.io.safetensors import read

    folder = adapter_folder(folder)
    config, tensors = read_json(folder / "adapter_config.json"), read(folder / "adapter_model.safetensors")
    about = [f"{key} {config[key]}" for key in ("r", "lora_alpha", "num_virtual_tokens", "target_modules", "modules_to_save",
                                                "base_model_name_or_path") if config.get(key)]
    return "\n  ".join([f"{folder}: {config.get('peft_type')}, {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} numbers",
                        *about])


def rated(t, p):
    """-> the Finetune t with a learning rate: where none was given t.ALL, times as much as the method of a Peft takes more in sft."""
    from dataclasses import replace

    from pyllm import peft
    from pyllm.cli.sft import Finetune

    factor = 1.0 if p.method == "none" else peft.METHODS[p.method].RATE / Finetune.ALL
    return replace(t, lr=t.lr or float(f"{t.ALL * factor:g}"))


def adapt(model, p, seed):
    """Puts the adapter that a Peft describes into the model; what learns is printed. ConfigError for settings that do not fit."""
    from pyllm import peft
    from pyllm.nn import quantize

    if p.method == "none":
        return
    method = method_of(p)
    if p.base != "f32":
        quantize(model, p.base, skip=[path for path in peft.score_layers(model)])
    targets = p.targets or None
    if targets and targets != "all-linear" and not set(targets) & set("*+?()[]\\|^$"):
        targets = [t.strip() for t in targets.split(",")]
    peft.inject(model, method, targets, seed)
    packed = "" if p.base == "f32" else f" over {p.base}"
    print(f"adapter    {p.method}{packed}, {len(peft.adapters(model))} layers; {str(peft.report(model)).splitlines()[0]}", flush=True)


def method_of(p):
    """-> the method of a Peft with its settings."""
    import dataclasses

    from pyllm import peft
    from pyllm.errors import ConfigError, suggest

    kind, settings = peft.METHODS[p.method], {}
    known = {f.name for f in dataclasses.fields(kind)}
    pairs = [pair.partition("=") for pair in p.options.split(",") if pair.strip()]
    given = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    given |= {name: getattr(p, name) for name in ("rank", "alpha") if getattr(p, name)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"peft.{name}: not a setting of {p.method}.{suggest(name, known)} Known: {', '.join(sorted(known))}")
        settings[name] = value
    try:
        return kind(**settings)
    except TypeError as error:
        raise ConfigError(f"peft.options={p.options!r}: {error}") from None


def _value(text):
    """'true' -> True, '0.05' -> 0.05, 'a+b' -> ('a', 'b'), other words themselves."""
    import json

    if "+" in text:
        return tuple(map(_value, text.split("+")))
    try:
        return json.loads(text)
    except ValueError:
        return text
