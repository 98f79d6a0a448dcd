"""Model families, one file each, imported when they are first used. FAMILIES: model_type of config.json -> (config, language model)."""
from collections.abc import Mapping
from importlib import import_module

_FILES = {  # model_type: its file, configuration, language model
    "gpt2": ("gpt2", "GPT2Config", "GPT2"),
    "llama": ("llama", "LlamaConfig", "Llama"),
    "mistral": ("mistral", "MistralConfig", "Mistral"),
    "qwen2": ("qwen2", "Qwen2Config", "Qwen2"),
    "qwen3": ("qwen3", "Qwen3Config", "Qwen3"),
    "gemma3_text": ("gemma3", "Gemma3Config", "Gemma3"),
    "bert": ("bert", "BertConfig", "BertLM"),
    "t5": ("t5", "T5Config", "T5"),
    "bart": ("bart", "BartConfig", "Bart"),
}
_PUBLIC = {name: file for file, *names in _FILES.values() for name in names} | {"HEADS": "heads"}


class _Families(Mapping):
    def __getitem__(self, model_type):
        return tuple(__getattr__(name) for name in _FILES[model_type][1:])

    def __iter__(self):
        return iter(_FILES)

    def __len__(self):
        return len(_FILES)


FAMILIES = _Families()

__all__ = ["FAMILIES", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pyllm.models' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    return value
