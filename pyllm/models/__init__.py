"""Model families, one file each. FAMILIES: model_type of config.json -> (configuration, model)."""
from pyllm.models.gpt2 import GPT2, GPT2Config
from pyllm.models.llama import Llama, LlamaConfig

FAMILIES = {"gpt2": (GPT2Config, GPT2), "llama": (LlamaConfig, Llama)}

__all__ = ["FAMILIES", "GPT2", "GPT2Config", "Llama", "LlamaConfig"]
