"""Adapters in other tools' formats: AdapterHub's folders of bottleneck adapters, mlx-lm's of LoRAs (read), llama.cpp's GGUF (written)."""
import re
from pathlib import Path

import numpy as np

from pyllm import gguf
from pyllm.autograd import Rng
from pyllm.errors import ConfigError, FormatError
from pyllm.io import gguf as container
from pyllm.io.files import atomic_folder, read_json, write_json
from pyllm.io.safetensors import read, to_float32, write
from pyllm.peft import base
from pyllm.peft.bottleneck import Houlsby, Parallel, Pfeiffer
from pyllm.peft.folder import give, only
from pyllm.peft.lora import LoRA, LoRALinear
from pyllm.peft.own import Saved

# ---- AdapterHub: adapter_config.json, adapter.safetensors with <place of the branch>.adapters.<name>.adapter_down.0.weight ...
# a site -> the place that has the adapter
_HUB = {
    "bert": [(r"\.(dense|LayerNorm)$", "")], "t5": [(r"\.(SelfAttention\.o|DenseReluDense\.wo)$", "")],
    "gpt2": [(r"\.attn\.c_proj$", ".attention_adapters"), (r"\.mlp\.c_proj$", ".output_adapters")],
    "bart": [(r"\.self_attn\.out_proj$", ".attention_adapters"), (r"\.(fc2|final_layer_norm)$", ".output_adapters")],
    **dict.fromkeys(("llama", "mistral"), [(r"\.self_attn\.o_proj$", ".attention_adapters"), (r"\.mlp\.down_proj$", ".output_adapters")]),
}
_HUB_FIXED = {"adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "inv_adapter": None, "leave_out": [],
              "ln_after": False, "ln_before": False, "original_ln_after": True, "residual_before_ln": True, "phm_layer": False,
              "use_gating": False, "stochastic_depth": 0.0}


def _hub_name(model, site, name):
    for pattern, place in _HUB.get(model.config.model_type, ()):
        if re.search(pattern, site):
            return f"{re.sub(pattern, place, site)}.adapters.{name}"
    raise ConfigError(f"AdapterHub has no bottleneck adapters for {model.config.model_type}; expected one of {', '.join(_HUB)}")


def save_hub(model, folder, name=None):
    """Writes a Houlsby, Pfeiffer or parallel adapter as AdapterHub has it; an older folder is replaced when all is written.

    ConfigError: another method, or a family that AdapterHub has no names for.
    """
    name = only(model, "save_hub") if name is None else name
    base._known(model, name, "save_hub")
    found = [a for a in base.adapters(model, name) if type(a) is not Saved]
    method = found[0].method
    if type(method) not in (Houlsby, Pfeiffer, Parallel):
        raise ConfigError(f"save_hub: {method.NAME}; expected houlsby, pfeiffer or parallel")
    config = {**_HUB_FIXED, **method.HUB, "non_linearity": method.activation, "reduction_factor": method.reduction,
              "scaling": float(method.scaling), "init_weights": method.init, "architecture": None}
    tensors = {f"{_hub_name(model, a.site, name)}.{key}": p.data for a in found for key, p in a.own().items()}
    about = {"config": config, "hidden_size": model.config.size("width"), "model_class": model.architecture, "model_name": "",
             "model_type": model.config.model_type, "name": name, "version": "adapters.1.0.0"}
    with atomic_folder(folder) as temporary:
        write_json(temporary / "adapter_config.json", about)
        write(temporary / "adapter.safetensors", tensors, {"format": "pt"})


def load_hub(model, folder, name="default"):
    """Puts a bottleneck adapter of AdapterHub's into the model and makes it the active one -> model. FormatError as pyllm.peft.load."""
    folder = Path(folder)
    about = read_json(folder / "adapter_config.json")
    config = about.get("config") if isinstance(about, dict) else None
    if not isinstance(config, dict):
        raise FormatError(f"load_hub: {folder}: no config in adapter_config.json; expected a folder of AdapterHub's")
    kinds = [m for m in (Houlsby, Pfeiffer, Parallel) if all(bool(config.get(k)) == v for k, v in m.HUB.items())]
    wrong = [f"{k}={config[k]!r}" for k, v in _HUB_FIXED.items() if config.get(k, v) != v]
    if not kinds or wrong or not isinstance(config.get("reduction_factor"), (int, float)):
        raise FormatError(f"load_hub: {folder}: {', '.join(wrong) or 'no Houlsby, Pfeiffer or parallel adapter'}: not supported")
    base.check_free(model, name, "load_hub")
    method = kinds[0](int(config["reduction_factor"]), config["non_linearity"], scaling=float(config.get("scaling", 1.0)))
    placed, theirs = method.place(model, None, Rng(0)), about.get("name") or ""
    tensors, given = dict(read(folder / "adapter.safetensors")), {}
    for adapter in placed:
        for key in adapter.own():
            if (full := f"{_hub_name(model, adapter.site, theirs)}.{key}") in tensors:
                given[f"base_model.model.{adapter.site}.{key}"] = tensors.pop(full)
    give(model, method, placed, {**given, **tensors}, str(folder))
    base.put(model, placed, method, name)
    return model


# ---- mlx-lm

def load_mlx(model, folder, name="default"):
    """Puts a LoRA or DoRA of mlx-lm's into the model and makes it the active one -> model. FormatError as pyllm.peft.load.

    There A and B lie transposed, and `scale` is what the product is multiplied by.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / "adapter_config.json"), read(folder / "adapters.safetensors")
    values = config.get("lora_parameters") if isinstance(config, dict) else None
    kind = config.get("fine_tune_type", "lora") if isinstance(config, dict) else None
    if not isinstance(values, dict) or kind not in ("lora", "dora") or not {"rank", "scale"} <= values.keys():
        raise FormatError(f"load_mlx: {folder}: no lora_parameters with rank and scale in adapter_config.json, or no LoRA; "
                          "expected an adapter of mlx-lm's")
    base.check_free(model, name, "load_mlx")
    sites = list(dict.fromkeys(key.rpartition(".")[0] for key in tensors))
    method = LoRA(rank=values["rank"], alpha=values["scale"] * values["rank"], dora=kind == "dora")
    placed = method.place(model, sites, Rng(0))
    names = {"lora_a": ("lora_A.weight", True), "lora_b": ("lora_B.weight", True), "m": ("lora_magnitude_vector", False)}
    given = {}
    for full, array in tensors.items():
        site, _, key = full.rpartition(".")
        key, turned = names.get(key, (key, False))
        given[f"base_model.model.{site}.{key}"] = to_float32(array).T if turned else array
    give(model, method, placed, given, str(folder))
    base.put(model, placed, method, name)
    return model


# ---- GGUF

def save_gguf(model, path, name=None):
    """Writes a LoRA over linear layers as a file that llama.cpp applies to the model's GGUF file (--lora).

    ConfigError: another method, DoRA, PiSSA, different scales, embeddings as targets, or a family without GGUF names.
    """
    name = only(model, "save_gguf") if name is None else name
    base._known(model, name, "save_gguf")
    found = base.adapters(model, name)
    method, arch = found[0].method, gguf.WRITTEN_AS.get(model.config.model_type)
    if arch is None:
        raise ConfigError(f"save_gguf: {model.config.model_type}: no GGUF names; expected one of {', '.join(gguf.WRITTEN_AS)}")
    if any(type(a) is not LoRALinear for a in found) or method.dora or method.init == "pissa":
        raise ConfigError(f"save_gguf: {method.NAME}; expected a LoRA over linear layers, without dora and pissa and trained whole layers")
    family, config, tensors = gguf.FAMILIES[arch], model.config, {}
    names = {theirs: ours for ours, theirs in family.names(config.size("layers")).items()}
    for adapter in found:
        ours = names.get(f"{adapter.site}.weight")
        if ours is None:
            raise ConfigError(f"save_gguf: {adapter.site} has no name in the format")
        rank = adapter.lora_A.shape[0]
        b = adapter.lora_B.data * np.float32(adapter.scale * rank / method.alpha)  # where they are not alpha / rank: rsLoRA, patterns
        tensors[f"{ours}.lora_a"] = adapter.lora_A.data
        tensors[f"{ours}.lora_b"] = gguf.turned(ours, b, family, config)
    metadata = {"general.architecture": arch, "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(method.alpha)}
    container.write(path, metadata, tensors)
