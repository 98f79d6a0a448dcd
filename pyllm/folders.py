"""A model folder or a GGUF file <-> (model, tokenizer). A folder has config.json, model.safetensors (or shards), tokenizer.json."""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyllm import kernels as K
from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.gguf import file_type, read_config, restore, write_config, write_tensors
from pyllm.io import gguf
from pyllm.io.files import atomic_folder, read_json, release, write_json
from pyllm.io.ggml import KINDS, Blocks, float32, kind_of
from pyllm.io.hub import fetch, is_name
from pyllm.io.safetensors import read_shards, to_bf16, to_f16, write_shards
from pyllm.kernels.packed import FORMATS, Packed, Room
from pyllm.models import FAMILIES, HEADS
from pyllm.models.base import Config
from pyllm.nn import Embedding, Layer, Linear
from pyllm.text import from_gguf, has_tokenizer, read_tokenizer, to_gguf

SHARD = 5_000_000_000  # bytes of a weights file at most


def build(config, seed=None):
    """config: a dict with model_type, or a family's Config -> the model, weights drawn from `seed` (None: zeros, to be loaded).

    `architectures` of the dict says which head the model has; without it, and for a Config, it is the family's language model.
    """
    config, name = _configured(config) if isinstance(config, dict) else (config, None)
    model = _compose(FAMILIES[config.model_type][1], config, name)
    return model if seed is None else model.initialize(seed)


def _configured(values):
    """values: a dict with model_type -> (the family's Config, the name in `architectures` or None)."""
    kind, named = values.get("model_type"), values.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(f"config: model_type={kind!r}; expected one of {', '.join(FAMILIES)}.{suggest(kind, FAMILIES)}")
    if named is not None and not (isinstance(named, list) and all(isinstance(n, str) for n in named)):
        raise ConfigError(f"config: architectures={named!r}; expected a list of names")
    return FAMILIES[kind][0].from_dict(values), named[0] if named else None


def _compose(family, config, name):
    """-> the model of the architecture `name` (None: the language model), with zeros."""
    base, trunk = config.base_architecture, family.TRUNK
    heads = {base.removesuffix("Model") + suffix: head for suffix, head in HEADS.items() if head.KIND in trunk.HEADS}
    if name in (None, config.architecture, *family.ALSO):
        return family(config)
    if name == base:
        return trunk.alone(config)
    if name in family.OTHERS:
        return family.OTHERS[name](config)
    if name not in heads:
        known = (config.architecture, *family.ALSO, base, *family.OTHERS, *heads)
        raise ConfigError(f"config: architectures={name!r}; expected for {config.model_type} one of {', '.join(known)}."
                          f"{suggest(name, known)}")
    return heads[name](family, config)


def load(path, packed=False):
    """path: a Hugging Face model folder, a run folder, whose model/ is then opened, a GGUF file, or where nothing of that name exists
    a model of the Hub, ORGANISATION/MODEL or ORGANISATION/MODEL/FILE.gguf (extra `hub`) -> (model, tokenizer or None where there is none).

    Every tensor of the model must be in the files exactly once and every tensor of the files must have a place; all mismatches come in
    one FormatError. float32 weights are mapped: they are read when they are first used, and a write copies the page it falls on. packed:
    weights of Linear and Embedding layers that the files hold as BF16, Q8_0, Q4_0 or Q4_1 stay so, frozen, see pyllm.quantize; without it,
    and all others, become float32.
    """
    files = read_files(path)
    return load_files(files, packed)[0], files.tokenizer


@dataclass(frozen=True)
class Files:
    """What lies at a path, the tensors mapped and not read. architecture: what config.json names, or None; names: see load_weights;
    generation: what generation_config.json holds, or None."""

    path: Path
    config: Config
    architecture: str | None
    tensors: dict
    names: dict | None
    generation: dict | None
    tokenizer: object


def read_files(path):
    """path: see load -> Files."""
    path = Path(path)
    if path.is_file():
        return _read_gguf(path)
    if not path.is_dir() and is_name(path):
        return read_files(fetch(path))
    if not path.is_dir():
        raise FileNotFoundError(f"load: {path}: no such folder or file; expected a folder with config.json and model.safetensors, or "
                                "a GGUF file")
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    config, pooling, generation = (path / name for name in ("config.json", "1_Pooling/config.json", "generation_config.json"))
    values = _read_object(config)
    if pooling.is_file():
        values = {**values, "pooling": _pooling(_read_object(pooling), pooling)}
    sentences = path / "sentence_bert_config.json"
    if sentences.is_file() and (longest := _longest(_read_object(sentences), sentences)):
        values = {**values, "max_seq_length": longest}
    return Files(path, *_configured(values), read_shards(path, private=True), None,
                 _read_object(generation) if generation.is_file() else None, read_tokenizer(path) if has_tokenizer(path) else None)


def _read_object(path):
    values = read_json(path)
    if not isinstance(values, dict):
        raise FormatError(f"load: {path}: a {type(values).__name__}; expected an object")
    return values


def _read_gguf(path):
    metadata, tensors = gguf.read(path, private=True)
    family, values = read_config(metadata, tensors, f"load: {path}")
    try:
        config = _configured(values)
    except ConfigError as error:
        raise FormatError(f"load: {path}: {error}") from None
    tensors, names = restore(family, values, tensors)
    without = metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab")
    return Files(path, *config, tensors, names, None, None if without else from_gguf(metadata))


def build_for(files):
    """files: Files -> their model, its weights zeros; FormatError where its sizes cannot be those of the files."""
    config = files.config
    layers = max(getattr(config, key) for key in config.SIZES["layers"])
    if layers > len(files.tensors):  # before anything is built of such a number
        raise FormatError(f"load: {files.path}: {layers} layers in the configuration, {len(files.tensors)} tensors in the files")
    if files.tokenizer is not None and files.tokenizer.vocab_size > config.vocab_size:
        raise FormatError(f"load: {files.path}: the tokenizer has {files.tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    try:
        model = _compose(FAMILIES[config.model_type][1], config, files.architecture)
    except (MemoryError, OverflowError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise FormatError(f"load: {files.path}: the configuration asks for more than fits: {error}") from None
    model.generation = files.generation
    return model


def _pooling(values, path):
    """values: what sentence-transformers writes -> mean, cls or last, see pyllm.embed."""
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in known:
        raise FormatError(f"load: {path}: {chosen}; expected one of {', '.join(known)} to be true")
    return known[chosen[0]]


def _longest(values, path):
    """values: what sentence-transformers writes -> tokens of a text that embed reads, or None."""
    longest = values.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise FormatError(f"load: {path}: max_seq_length is {longest!r}; expected a whole number of at least 1")
    return longest


def load_files(files, packed=False):
    """files: Files; packed: see load -> (model, the report of load_weights). Models of the same Files share its float32 arrays."""
    model = build_for(files)
    return model, load_weights(model, files.tensors, str(files.path), packed, files.names, adopt=True)


def load_weights(model, tensors, where="the checkpoint", packed=False, names=None, adopt=False):
    """tensors: {name in the files: array or ggml.Blocks} -> the report: a line for each tensor.

    names: {name in the files: the checkpoint's}, None: the same; with names, all weights lie as (out, in). A checkpoint's name stands with
    or without the family's prefix. The report's lines: (name in the files, type, shape, what became of it). Every parameter must come from
    exactly one tensor, every tensor must be a parameter, an equal copy of a tied one, or of a kind that the family names as ignored; else
    one FormatError. packed: see load. adopt: float32 arrays become the parameters as they are, without a copy.
    """
    own, aliases = dict(model.named_parameters()), model.aliases()
    turned = () if names else model.TRANSPOSED
    report, wrong, found, copies = {}, [], {}, {}
    for name, tensor in tensors.items():
        known = names.get(name, name) if names else name
        place, kind = _place(model, known, own, aliases), "loaded"
        if place is None:
            kind = "ignored" if any(re.search(p, known) for p in model.IGNORED) else "unexpected"
            if kind == "unexpected":
                wrong.append(f"unexpected: {name} {tensor.shape}")
        elif place in aliases:
            kind = f"a copy of {aliases[place]}"
            copies.setdefault(aliases[place], []).append(name)
        elif place in found:
            wrong.append(f"{name} and {found[place]} are the same weight: it stands there twice")
        else:
            found[place] = name
        report[name] = kind
    for place, same in copies.items():
        found.setdefault(place, same[0])
    for place, p in own.items():
        if place not in found:
            if place not in model.OPTIONAL:
                wrong.append(f"missing: {place} {p.shape}")
            continue
        tensor = tensors[found[place]]
        shape = tensor.shape[::-1] if _turned(turned, place, tensor) else tensor.shape
        if shape != p.shape:
            wrong.append(f"{found[place]}: shape {shape}, expected {p.shape}")
        elif kind_of(tensor) not in FLOATS:
            wrong.append(f"{found[place]}: dtype {kind_of(tensor)}, expected one of {', '.join(FLOATS)}")
        wrong += [f"{name} differs from {found[place]}, of which config.json makes it a copy. Hint: \"tie_word_embeddings\": false"
                  for name in copies.get(place, ()) if name != found[place] and not _equal(tensors[name], tensor)]
    if wrong:
        raise FormatError(f"load: {where}: {type(model).__name__}: {len(wrong)} mismatches:\n  " + "\n  ".join(wrong))
    layers = _layers(model) if packed else {}
    kinds = [(kind_of(tensors[name]).lower(), own[place].shape) for place, name in found.items() if id(own[place]) in layers]
    room = Room([kind for kind in kinds if kind[0] in FORMATS])
    for place, name in found.items():
        p, tensor = own[place], tensors[name]
        if id(p) in layers and (weight := _packed(tensor, _turned(turned, place, tensor), room)) is not None:
            for layer in layers[id(p)]:
                layer.weight = weight
            report[name] = f"packed as {weight.format}"
        elif _turned(turned, place, tensor):
            report[name], p.data = "transposed", _filled(float32(tensor).T)
        elif adopt and kind_of(tensor) == "F32" and not isinstance(tensor, Blocks):
            report[name], p.data = "mapped", tensor
            continue
        elif isinstance(tensor, Blocks):
            p.data = tensor.float32(K.empty(p.shape))
        else:
            p.data = _filled(float32(tensor))
        release(tensor.data if isinstance(tensor, Blocks) else tensor)  # what was copied is not held twice
    return [(name, kind_of(tensor), tuple(tensor.shape), report[name]) for name, tensor in tensors.items()]


def _filled(values):
    """-> a copy in the kernels' memory."""
    copy = K.empty(values.shape)
    copy[...] = values
    return copy


def _layers(model):
    """-> {id of a Tensor: the Linear and Embedding layers whose weight it is}."""
    layers = {}
    for _, module in model.named_modules():
        if type(module) in (Linear, Embedding):
            layers.setdefault(id(module.weight), []).append(module)
    return layers


def _packed(tensor, turned, room):
    """-> the Packed, in the Room, of a two-dimensional tensor's own bytes, or None where the kernels have no such format."""
    kind = kind_of(tensor).lower()
    if kind not in FORMATS or tensor.ndim != 2:
        return None
    if turned:
        return Packed.quantize(float32(tensor).T, kind, room)  # bf16: exact
    data = tensor.data if isinstance(tensor, Blocks) else tensor
    return Packed.from_blocks(kind, tensor.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8), room)


FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2", *(kind for kind in KINDS if KINDS[kind][0] > 1))


def _place(model, name, own, aliases):
    """-> the parameter or the alias that a tensor of a checkpoint is, or None."""
    for pattern, replacement in model.RENAMED:
        name = re.sub(pattern, replacement, name)
    return next((n for n in (name, model.PREFIX + name, name.removeprefix(model.PREFIX)) if n in own or n in aliases), None)


def _turned(endings, place, tensor):
    return tensor.ndim == 2 and place.endswith(endings)


def _equal(one, other):
    return one.shape == other.shape and np.array_equal(float32(one), float32(other))


def checkpoint_tensors(model, dtype="f32"):
    """-> {name: array} as the family's checkpoints hold them; ValueError for adapters and packed weights, which those cannot hold."""
    _refuse_adapters(model)
    packed = dict(model.named_packed())
    if packed:
        raise ValueError(f"save: {len(packed)} packed weights, among them {next(iter(packed.items()))}; a folder holds floats. "
                         "Hint: pyllm.quantize(model, 'f32') turns them back; a GGUF file holds them: save to a path that ends in .gguf")
    cast = {"f32": lambda a: a, "f16": to_f16, "bf16": to_bf16}[dtype]
    return {n: cast(a.T if n.endswith(model.TRANSPOSED) and a.ndim == 2 else a) for n, a in model.state().items()}


def _refuse_adapters(model):
    adapters = [path for path, m in model.named_modules() if isinstance(m, Layer) and m.adapter]
    if adapters:
        raise ValueError(f"save: {len(adapters)} adapters in the model, the first at {adapters[0]}; a model folder holds none. "
                         "Hint: pyllm.peft.save writes them, pyllm.peft.merge works them into the weights")


DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # what weights are written as -> its name in config.json


def save(model, tokenizer, path, dtype="f32"):
    """Writes a folder that `load` and the transformers library open, or where `path` ends in .gguf a file that llama.cpp opens too.

    What was there is replaced when all is written. tokenizer may be None. dtype: f32, f16 or bf16; in a GGUF file norms and biases stay
    float32 and packed weights are written as they are. ConfigError: a family, a configuration or a tokenizer that GGUF has no place for;
    ValueError: packed weights in a folder, adapters, weights beyond float16's range.
    """
    if dtype not in DTYPES:
        raise ValueError(f"save: dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    if Path(path).suffix == ".gguf":
        return _save_gguf(model, tokenizer, path, dtype)
    with atomic_folder(path) as folder:
        write_files(model, tokenizer, folder, dtype)


def write_files(model, tokenizer, folder, dtype="f32"):
    """Writes what `save` writes into a folder that exists; tokenizer may be None."""
    config = {**model.config.to_dict(), "architectures": [model.architecture]}
    if config.pop("torch_dtype", None) or "dtype" in config or dtype != "f32":  # float32 is what no word of it means
        config["dtype"] = DTYPES[dtype]
    write_json(folder / "config.json", config)
    if model.generation is not None:
        write_json(folder / "generation_config.json", model.generation)
    write_shards(folder, checkpoint_tensors(model, dtype), SHARD, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)


def _save_gguf(model, tokenizer, path, dtype):
    _refuse_adapters(model)
    family, metadata = write_config(model.config)
    tensors = write_tensors(model, family, dtype)
    metadata |= {"general.file_type": file_type(tensors), "general.quantization_version": 2}
    metadata |= {"tokenizer.ggml.model": "none"} if tokenizer is None else to_gguf(tokenizer, model.config.vocab_size)
    gguf.write(path, metadata, tensors)
