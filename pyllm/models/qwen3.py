"""Qwen3: norms of every query's and key's head, a head size of its own, Qwen2's windows (Yang et al. 2025)."""
from dataclasses import dataclass

from pyllm.models.decoder import DecoderLM
from pyllm.models.qwen2 import Qwen2Config


@dataclass(frozen=True)
class Qwen3Config(Qwen2Config):
    """Keys of the Hugging Face config.json; defaults are the library's."""

    model_type, architecture, base_architecture = "qwen3", "Qwen3ForCausalLM", "Qwen3Model"
    head_dim: int | None = 128
    attention_bias: bool = False

    qkv_bias = out_bias = property(lambda self: self.attention_bias)
    qk_norm = True


class Qwen3(DecoderLM):
    """tokens:(B, T) -> logits (B, T, V)."""
