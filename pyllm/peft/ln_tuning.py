"""LN-tuning: the norms alone are trained (Zhao et al. 2023)."""
from dataclasses import dataclass

from pyllm.peft.base import NORMS, Method, condensed
from pyllm.peft.folder import unknown_keys
from pyllm.peft.own import Own


@dataclass(frozen=True)
class LNTuning(Method):
    """Gains and biases of the norms, in a copy of their own."""

    NAME, PEFT, LAYERS = "ln_tuning", "LN_TUNING", NORMS
    TARGETS = {"t5": ["layer_norm", "final_layer_norm"], "bart": ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"],
               "gpt2": ["ln_1", "ln_2", "ln_f"], "bert": ["LayerNorm"], "qwen2": ["post_attention_layernorm"],
               "qwen3": ["post_attention_layernorm"],
               **dict.fromkeys(("llama", "mistral"), ["input_layernorm", "post_attention_layernorm", "norm"]),
               "gemma3_text": ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
                               "norm"]}

    def adapter(self, layer, site, rng):
        return Own(layer, site, {a: f"ln_tuning_layers.{a}" for a in ("weight", "bias") if vars(layer).get(a) is not None})

    def to_peft(self, model, placed):
        sites = [a.site for a in placed]
        return {"target_modules": condensed(sites, model, self.LAYERS)}

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, (), {}, where)
        return cls()
