"""A model folder <-> (model, tokenizer): config.json, model.safetensors (or shards), tokenizer.json."""
import re
from pathlib import Path

from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.io.files import atomic_folder, read_json, write_json
from pyllm.io.safetensors import read_shards, to_float32, write
from pyllm.models import FAMILIES
from pyllm.text import has_tokenizer, read_tokenizer


def build(config, seed=None):
    """config: a dict with model_type, or a family's Config -> the model, weights drawn from `seed` (None: zeros, to be loaded)."""
    if isinstance(config, dict):
        kind = config.get("model_type")
        if kind not in FAMILIES:
            raise ConfigError(f"config: model_type={kind!r}; expected one of {', '.join(FAMILIES)}.{suggest(kind, FAMILIES)}")
        config = FAMILIES[kind][0].from_dict(config)
    model = FAMILIES[config.model_type][1](config)
    return model if seed is None else model.initialize(seed)


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
    model = build(config)
    load_weights(model, read_shards(folder), str(folder))
    tokenizer = None
    if has_tokenizer(folder):
        tokenizer = read_tokenizer(folder)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise FormatError(f"load: {folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}")
    return model, tokenizer


def load_weights(model, tensors, where="the checkpoint"):
    """tensors: {checkpoint name: array}, names with or without the family's prefix."""
    prefix, names = model.PREFIX, {name for name, _ in model.named_parameters()}
    tied = model.lm_head is None
    state = {}
    for name, array in tensors.items():
        own = name if name in names or prefix + name not in names else prefix + name
        if own not in names and (any(re.search(p, name) for p in model.IGNORED) or tied and name == "lm_head.weight"):
            continue
        if own in state:
            raise FormatError(f"load: {where}: {name} stands there twice, with and without {prefix!r}")
        array = to_float32(array)
        state[own] = array.T if own.endswith(model.TRANSPOSED) and array.ndim == 2 else array
    try:
        model.load(state)
    except ValueError as error:
        raise FormatError(f"load: {where}: {error}") from None


def checkpoint_tensors(model):
    """-> {name: array} as the family's checkpoints hold them; ValueError for a model with packed weights, which those cannot hold."""
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
    write_json(folder / "config.json", model.config.to_dict())
    write(folder / "model.safetensors", checkpoint_tensors(model), {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
