"""An adapter's folder, as PEFT has it: adapter_config.json and adapter_model.safetensors."""
import re
import warnings
from pathlib import Path

import numpy as np

from pyllm.autograd import Rng
from pyllm.errors import ConfigError, FormatError
from pyllm.io.files import atomic_folder, read_json, write_json
from pyllm.io.safetensors import read, to_float32, write
from pyllm.models.base import CausalLM, Trunk
from pyllm.models.heads import Head, SequenceClassifier, SpanFinder, TokenClassifier
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.peft import base
from pyllm.peft.own import Saved, saved_layers

PREFIX = "base_model.model."
TASKS = {CausalLM: "CAUSAL_LM", EncoderDecoder: "SEQ_2_SEQ_LM", SequenceClassifier: "SEQ_CLS", TokenClassifier: "TOKEN_CLS",
         SpanFinder: "QUESTION_ANS", Trunk: "FEATURE_EXTRACTION"}
# Keys of adapter_config.json that change nothing here, or are read where the targets are.
NEUTRAL = ("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "task_type",
           "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
           "megatron_core")


def save(model, folder, name=None, base_model=""):
    """Writes the adapter `name` (None: the only one) as a folder that `load` and PEFT open; an older one is replaced when all is written.

    base_model: what adapter_config.json gives as base_model_name_or_path. ConfigError for a name that is not there, or none where there are
    several; ValueError for a method without a format.
    """
    name = only(model, "save") if name is None else name
    base._known(model, name, "save")
    with atomic_folder(folder) as temporary:
        write_files(model, name, temporary, base_model)


def only(model, what):
    """-> the name of the model's only adapter."""
    there = base.names(model)
    if len(there) != 1:
        raise ConfigError(f"{what}: which adapter? There are: {', '.join(there) or 'none'}")
    return there[0]


def write_files(model, name, folder, base_model=""):
    """Writes what `save` writes into a folder that exists."""
    write_json(Path(folder, "adapter_config.json"), config_of(model, name, base_model))
    write(Path(folder, "adapter_model.safetensors"), tensors_of(model, name), {"format": "pt"})
    if isinstance(model, Head):  # which head the adapter's own weights are of, and the names of its labels
        write_json(Path(folder, "config.json"), {**model.config.to_dict(), "architectures": [model.architecture]})


def config_of(model, name, base_model=""):
    """-> what adapter_config.json holds."""
    found = base.adapters(model, name)
    method, saved = found[0].method, [a.site for a in found if type(a) is Saved]
    task = next((task for kind, task in TASKS.items() if isinstance(model, kind)), None)
    shared = {"peft_type": method.PEFT or f"PYLLM_{method.NAME.upper()}", "task_type": task, "base_model_name_or_path": base_model,
              "inference_mode": True, "modules_to_save": base.condensed(saved, model, base.ANY) if saved else None}
    return shared | method.to_peft(model, [a for a in found if type(a) is not Saved])


def tensors_of(model, name):
    """-> {name in the file: array}."""
    found = base.adapters(model, name)
    return found[0].method.to_files({PREFIX + f"{a.site}.{key}": array for a in found for key, array in stored(a).items()}, found)


def stored(adapter):
    """-> {name below the site: array} as files hold an adapter's tensors."""
    turned = {adapter.KEYS[attribute] for attribute in adapter.TRANSPOSED}
    return {key: p.data.T if key in turned else p.data for key, p in adapter.own().items()}


def load(model, folder, name="default"):
    """Puts the adapter of a folder, ours or PEFT's, into the model and makes it the active one -> model.

    Every tensor of the file must have a place and every place a tensor, of its shape; all that does not fit is one FormatError, and the
    model is then as it was. Keys of adapter_config.json that are not known give a warning, those that change numbers in ways that are not
    computed here an error.
    """
    from pyllm.peft import METHODS

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"load: {folder}: no adapter_config.json; expected an adapter's folder")
    config = read_json(folder / "adapter_config.json")
    kinds = {kind: m for m in METHODS.values() for kind in (m.PEFT, f"PYLLM_{m.NAME.upper()}") if kind}
    if not isinstance(config, dict) or config.get("peft_type") not in kinds:
        kind = config.get("peft_type") if isinstance(config, dict) else config
        others = {"adapters.safetensors": "mlx-lm: pyllm.peft.load_mlx", "adapter.safetensors": "AdapterHub: pyllm.peft.load_hub"}
        hint = next((f". Hint: a folder of {how} reads it" for file, how in others.items() if (folder / file).exists()), "")
        raise FormatError(f"load: {folder}: peft_type={kind!r}; expected one of {', '.join(kinds)}{hint}")
    base.check_free(model, name, "load")
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"load: {folder}: no adapter_model.safetensors" + (
            "; adapter_model.bin is a pickle, which can run code and is not read. Hint: PEFT's save_pretrained writes safetensors"
            if (folder / "adapter_model.bin").exists() else "; expected the adapter's tensors"))
    try:
        method = kinds[config["peft_type"]].from_peft(config, str(folder))
        placed = placed_by(model, method, config)
    except (AttributeError, KeyError, TypeError, re.error) as error:
        raise FormatError(f"load: {folder}: adapter_config.json: {type(error).__name__}: {error}; expected the keys and types that PEFT "
                          "writes") from error
    give(model, method, placed, method.from_files(read(file), placed), str(file))
    base.put(model, placed, method, name)
    return model


def placed_by(model, method, config):
    """-> the Adapters that an adapter_config.json describes, with tensors yet to come."""
    targets, saved = config.get("target_modules"), config.get("modules_to_save") or []
    placed = method.place(model, targets, Rng(0))
    layers = config.get("layers_to_transform")
    if layers is not None:
        layers = [layers] if isinstance(layers, int) else layers
        placed = [a for a in placed if any(f".{i}." in a.site for i in layers)]
    for pattern in _listed(config.get("exclude_modules")):
        placed = [a for a in placed if not (re.fullmatch(pattern, a.site) or a.site.endswith(f".{pattern}"))]
    # PEFT lists "classifier" and "score" for every family.
    present = [m for m in saved if any(base._ends(p, m) for p in base.layers(model))]
    return placed + saved_layers(model, present, method)


def _listed(value):
    return [value] if isinstance(value, str) else value or []


def unknown_keys(config, known, fixed, where):
    """Warns of keys that are in none of `known`; FormatError for those of fixed: {key: the value that is computed} with another value."""
    wrong = [f"{key}={config[key]!r}" for key, value in fixed.items() if key in config and config[key] != value and config[key]]
    if wrong:
        raise FormatError(f"load: {where}: {', '.join(wrong)}: not supported")
    strange = [key for key in config if key not in {*known, *fixed, *NEUTRAL}]
    if strange:
        warnings.warn(f"load: {where}: adapter_config.json has keys that pyllm does not know: {', '.join(strange)}", stacklevel=3)


def give(model, method, placed, tensors, where):
    """tensors: {name in the file: array} -> into the Adapters `placed`; FormatError names all that does not fit, none is changed then."""
    places, wrong, layers = {}, [], base.layers(model) | base.candidates(model, base.ANY)
    for adapter in placed:
        turned = {adapter.KEYS[attribute] for attribute in adapter.TRANSPOSED}
        for key, p in adapter.own().items():
            places[PREFIX + f"{adapter.site}.{key}"] = p, key in turned
    for name, array in tensors.items():
        if name in places:
            shape = places[name][0].shape[::-1] if places[name][1] else places[name][0].shape
            if array.shape != shape:
                wrong.append(f"{name}: shape {array.shape}, expected {shape}")
        elif not _copy_of_base(name, array, layers):
            wrong.append(f"unexpected: {name} {array.shape}")
    wrong += [f"missing: {name} {p.shape}" for name, (p, _) in places.items() if name not in tensors]
    if wrong:
        raise FormatError(f"load: {where}: {method.NAME}: {len(wrong)} mismatches:\n  " + "\n  ".join(wrong[:20])
                          + ("\n  ..." if len(wrong) > 20 else "") + "\n  Hint: is it an adapter for this base?")
    for name, (p, turned) in places.items():
        array = to_float32(tensors[name])
        p.data = np.array(array.T if turned else array, np.float32, order="C")


def _copy_of_base(name, array, layers):
    """Whether a tensor is the base's own weight, which PEFT writes beside an adapted embedding."""
    site, _, attribute = name.removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")
    weight = vars(layers[site]).get(attribute) if site in layers else None
    return weight is not None and weight.shape == array.shape and np.array_equal(to_float32(array), np.asarray(weight.data))
