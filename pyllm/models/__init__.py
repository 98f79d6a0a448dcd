"""Model families, one file each. FAMILIES: model_type of config.json -> (configuration, language model)."""
from pyllm.models.bart import Bart, BartConfig
from pyllm.models.bert import BertConfig, BertLM
from pyllm.models.gemma3 import Gemma3, Gemma3Config
from pyllm.models.gpt2 import GPT2, GPT2Config
from pyllm.models.heads import HEADS
from pyllm.models.llama import Llama, LlamaConfig
from pyllm.models.mistral import Mistral, MistralConfig
from pyllm.models.qwen2 import Qwen2, Qwen2Config
from pyllm.models.qwen3 import Qwen3, Qwen3Config
from pyllm.models.t5 import T5, T5Config

FAMILIES = {config.model_type: (config, model) for config, model in (
    (GPT2Config, GPT2), (LlamaConfig, Llama), (MistralConfig, Mistral), (Qwen2Config, Qwen2), (Qwen3Config, Qwen3), (Gemma3Config, Gemma3),
    (BertConfig, BertLM), (T5Config, T5), (BartConfig, Bart))}

__all__ = ["FAMILIES", "HEADS", *(kind.__name__ for pair in FAMILIES.values() for kind in pair)]
