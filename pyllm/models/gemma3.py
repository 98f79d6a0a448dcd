"""Gemma 3, text: norms before and behind each branch, norms of queries and keys, local and global layers (Gemma Team 2025)."""
from dataclasses import dataclass

from pyllm.errors import ConfigError
from pyllm.models.decoder import DecoderConfig, DecoderLM
from pyllm.nn import OffsetRMSNorm


@dataclass(frozen=True)
class Gemma3Config(DecoderConfig):
    """Keys of the Hugging Face config.json; defaults are the library's. rope_theta and rope_scaling are the global layers'."""

    model_type, architecture, base_architecture = "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextModel"
    FIXED = {**DecoderConfig.FIXED, "final_logit_softcapping": None, "attn_logit_softcapping": None}
    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    head_dim: int | None = 256
    max_position_embeddings: int = 131072
    rope_theta: float = 1000000.0
    rope_local_base_freq: float = 10000.0  # theta of the local layers
    tie_word_embeddings: bool = True
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096  # keys a query of a local layer sees, its own included
    sliding_window_pattern: int = 6  # every 6th layer is global, where layer_types does not say which are
    layer_types: list | None = None

    @classmethod
    def read_rope(cls, values, rope):
        """Each type of layer has its own theta; the scaling of local layers is refused, since no checkpoint has one."""
        one, local = (rope.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
        values.setdefault("rope_theta", one.get("rope_theta", cls.rope_theta))
        values.setdefault("rope_local_base_freq", local.get("rope_theta", cls.rope_local_base_freq))
        cls.read_scaling(values, one)
        if local.get("rope_type", "default") != "default":
            values["local rope_type"] = local["rope_type"]

    def __post_init__(self):
        super().__post_init__()
        self.check_layer_types()
        if not self.query_pre_attn_scalar:
            raise ConfigError(f"gemma3_text config: query_pre_attn_scalar={self.query_pre_attn_scalar}; expected a number above 0")

    activation_key = "hidden_activation"
    qkv_bias = out_bias = property(lambda self: self.attention_bias)
    qk_norm = sandwich = True
    norm = OffsetRMSNorm
    scale = property(lambda self: self.query_pre_attn_scalar**-0.5)
    embed_scale = property(lambda self: self.hidden_size**0.5)

    def local(self, layer):
        """-> whether the layer sees a window."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % self.sliding_window_pattern != 0

    @property
    def causal(self):
        return not self.extra.get("use_bidirectional_attention")

    def window(self, layer):
        """With both sides, half as many on each."""
        return (self.sliding_window if self.causal else self.sliding_window // 2 + 1) if self.local(layer) else 0

    def rope(self, layer):
        return (self.rope_local_base_freq, None) if self.local(layer) else (self.rope_theta, self.rope_scaling)


class Gemma3(DecoderLM):
    """tokens:(B, T) -> logits (B, T, V)."""
