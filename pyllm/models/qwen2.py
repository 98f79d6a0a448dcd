"""Qwen2: Llama with biases on queries, keys and values, and a window in the upper layers where asked for (Yang et al. 2024)."""
from dataclasses import dataclass

from pyllm.models.base import Count
from pyllm.models.decoder import DecoderConfig, DecoderLM


@dataclass(frozen=True)
class Qwen2Config(DecoderConfig):
    """Keys of the Hugging Face config.json; defaults are the library's."""

    model_type, architecture, base_architecture = "qwen2", "Qwen2ForCausalLM", "Qwen2Model"
    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    hidden_act: str = "silu"
    use_sliding_window: bool = False
    sliding_window: int | None = 4096  # keys a query sees, its own included
    max_window_layers: Count = 28  # layers below see all keys, where layer_types does not say which do
    layer_types: list | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_layer_types()

    qkv_bias = True

    def window(self, layer):
        sliding = layer >= self.max_window_layers if self.layer_types is None else self.layer_types[layer] == "sliding_attention"
        return self.sliding_window or 0 if self.use_sliding_window and sliding else 0


class Qwen2(DecoderLM):
    """tokens:(B, T) -> logits (B, T, V)."""
