"""Llama: rotary positions, RMS norm, SwiGLU, grouped heads (Touvron et al. 2023)."""
from dataclasses import dataclass

from pyllm.models.decoder import DecoderConfig, DecoderLM


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """Keys of the Hugging Face config.json; defaults are Llama 2 7B's."""

    model_type, architecture, base_architecture = "llama", "LlamaForCausalLM", "LlamaModel"
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    qkv_bias = out_bias = property(lambda self: self.attention_bias)


class Llama(DecoderLM):
    """tokens:(B, T) -> logits (B, T, V)."""
