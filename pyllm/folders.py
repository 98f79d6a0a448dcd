"""A model folder <-> (model, tokenizer): config.json, model.safetensors (or shards), tokenizer.json."""
import re
from pathlib import Path

import numpy as np

from pyllm import kernels as K
from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.io.files import atomic_folder, read_json, write_json
from pyllm.io.safetensors import dtype_name, read_shards, to_float32, write_shards
from pyllm.models import FAMILIES, HEADS
from pyllm.nn import Layer
from pyllm.text import has_tokenizer, read_tokenizer

SHARD = 5_000_000_000  # bytes of a weights file at most


def build(config, seed=None):
    """config: a dict with model_type, or a family's Config -> the model, weights drawn from `seed` (None: zeros, to be loaded).

    `architectures` of the dict says which head the model has; without it, and for a Config, it is the family's language model.
    """
    name = None
    if isinstance(config, dict):
        kind, named = config.get("model_type"), config.get("architectures")
        if kind not in FAMILIES:
            raise ConfigError(f"config: model_type={kind!r}; expected one of {', '.join(FAMILIES)}.{suggest(kind, FAMILIES)}")
        if named is not None and not (isinstance(named, list) and all(isinstance(n, str) for n in named)):
            raise ConfigError(f"config: architectures={named!r}; expected a list of names")
        config, name = FAMILIES[kind][0].from_dict(config), named[0] if named else None
    model = _compose(FAMILIES[config.model_type][1], config, name)
    return model if seed is None else model.initialize(seed)


def _compose(family, config, name):
    """-> the model of the architecture `name` (None: the language model), with zeros."""
    base, trunk = config.base_architecture, family.TRUNK
    heads = {base.removesuffix("Model") + suffix: head for suffix, head in HEADS.items() if trunk and head.KIND in trunk.HEADS}
    if name in (None, config.architecture, *family.ALSO):
        return family(config)
    if name == base and trunk:
        return trunk.alone(config)
    if name not in heads:
        known = (config.architecture, *family.ALSO, *([base] if trunk else []), *heads)
        raise ConfigError(f"config: architectures={name!r}; expected for {config.model_type} one of {', '.join(known)}."
                          f"{suggest(name, known)}")
    return heads[name](family, config)


def load(path):
    """path: a Hugging Face model folder, or a run folder, whose model/ is then opened -> (model, tokenizer or None where there is none).

    Every tensor of the model must be in the files exactly once and every tensor of the files must have a place; all mismatches come in
    one FormatError.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"load: {folder}: no such folder; expected one with config.json and model.safetensors")
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise FormatError(f"load: {folder / 'config.json'}: a {type(config).__name__}; expected an object with model_type")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        config = {**config, "pooling": _pooling(read_json(pooling), pooling)}
    model = build(config)
    load_weights(model, read_shards(folder), str(folder))
    tokenizer = None
    if has_tokenizer(folder):
        tokenizer = read_tokenizer(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise FormatError(f"load: {folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    return model, tokenizer


def _pooling(values, path):
    """values: what sentence-transformers writes -> mean, cls or last, see pyllm.embed."""
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value] if isinstance(values, dict) else []
    if len(chosen) != 1 or chosen[0] not in known:
        raise FormatError(f"load: {path}: {chosen}; expected one of {', '.join(known)} to be true")
    return known[chosen[0]]


def load_weights(model, tensors, where="the checkpoint"):
    """tensors: {checkpoint name: array}, names with or without the family's prefix -> the report: a line for each tensor.

    The report's lines: (name in the file, dtype, shape, what became of it). Every parameter must come from exactly one tensor, every
    tensor must be a parameter, an equal copy of a tied one, or of a kind that the family names as ignored; else one FormatError.
    """
    own, aliases = dict(model.named_parameters()), model.aliases()
    report, wrong, found, copies = [], [], {}, {}
    for name, array in tensors.items():
        place, kind = _place(model, name, own, aliases), "loaded"
        if place is None:
            kind = "ignored" if any(re.search(p, name) for p in model.IGNORED) else "unexpected"
            if kind == "unexpected":
                wrong.append(f"unexpected: {name} {array.shape}")
        elif place in aliases:
            kind = f"a copy of {aliases[place]}"
            copies.setdefault(aliases[place], []).append(name)
        elif place in found:
            wrong.append(f"{name} and {found[place]} are the same weight: it stands there twice")
        else:
            found[place] = name
            kind = "transposed" if _turned(model, place, array) else kind
        report.append((name, dtype_name(array.dtype), tuple(array.shape), kind))
    for place, names in copies.items():
        found.setdefault(place, names[0])
    for place, p in own.items():
        if place not in found:
            if place not in model.OPTIONAL:
                wrong.append(f"missing: {place} {p.shape}")
            continue
        array = tensors[found[place]]
        shape = array.shape[::-1] if _turned(model, place, array) else array.shape
        if shape != p.shape:
            wrong.append(f"{found[place]}: shape {shape}, expected {p.shape}")
        elif dtype_name(array.dtype) not in FLOATS:
            wrong.append(f"{found[place]}: dtype {dtype_name(array.dtype)}, expected one of {', '.join(FLOATS)}")
        wrong += [f"{name} differs from {found[place]}, of which config.json makes it a copy. Hint: \"tie_word_embeddings\": false"
                  for name in copies.get(place, ()) if name != found[place] and not _equal(tensors[name], array)]
    if wrong:
        raise FormatError(f"load: {where}: {type(model).__name__}: {len(wrong)} mismatches:\n  " + "\n  ".join(wrong))
    for place, name in found.items():
        p, array = own[place], tensors[name]
        turned, p.data = _turned(model, place, array), K.empty(p.shape)
        p.data[...] = to_float32(array).T if turned else to_float32(array)
    return report


FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")


def _place(model, name, own, aliases):
    """-> the parameter or the alias that a tensor of a checkpoint is, or None."""
    for pattern, replacement in model.RENAMED:
        name = re.sub(pattern, replacement, name)
    return next((n for n in (name, model.PREFIX + name, name.removeprefix(model.PREFIX)) if n in own or n in aliases), None)


def _turned(model, place, array):
    return place.endswith(model.TRANSPOSED) and array.ndim == 2


def _equal(one, other):
    return one.shape == other.shape and np.array_equal(to_float32(one), to_float32(other))


def checkpoint_tensors(model):
    """-> {name: array} as the family's checkpoints hold them; ValueError for adapters and packed weights, which those cannot hold."""
    adapters = [path for path, m in model.named_modules() if isinstance(m, Layer) and m.adapter]
    if adapters:
        raise ValueError(f"save: {len(adapters)} adapters in the model, the first at {adapters[0]}; a model folder holds none. "
                         "Hint: pyllm.peft.save writes them, pyllm.peft.merge works them into the weights")
    packed = dict(model.named_packed())
    if packed:
        raise ValueError(f"save: {len(packed)} packed weights, among them {next(iter(packed.items()))}; a folder holds floats. "
                         "Hint: pyllm.quantize(model, 'f32') turns them back")
    return {n: a.T if n.endswith(model.TRANSPOSED) and a.ndim == 2 else a for n, a in model.state().items()}


def save(model, tokenizer, path):
    """Writes a folder that `load` and the transformers library open; an older one of that name is replaced when all is written."""
    with atomic_folder(path) as folder:
        write_files(model, tokenizer, folder)


def write_files(model, tokenizer, folder):
    """Writes what `save` writes into a folder that exists; tokenizer may be None."""
    write_json(folder / "config.json", {**model.config.to_dict(), "architectures": [model.architecture]})
    write_shards(folder, checkpoint_tensors(model), SHARD, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
