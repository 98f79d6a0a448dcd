"""Mistral: Llama with a window of keys in every layer (Jiang et al. 2023)."""
from dataclasses import dataclass

from pyllm.models.decoder import DecoderConfig, DecoderLM


@dataclass(frozen=True)
class MistralConfig(DecoderConfig):
    """Keys of the Hugging Face config.json; defaults are Mistral 7B v0.1's."""

    model_type, architecture, base_architecture = "mistral", "MistralForCausalLM", "MistralModel"
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    hidden_act: str = "silu"
    sliding_window: int | None = 4096  # keys a query sees, its own included; null: all

    def window(self, layer):
        return self.sliding_window or 0


class Mistral(DecoderLM):
    """tokens:(B, T) -> logits (B, T, V)."""
