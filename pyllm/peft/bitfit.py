"""BitFit: the biases alone are trained (Ben Zaken et al. 2021)."""
from dataclasses import dataclass

from pyllm.errors import ConfigError
from pyllm.nn import LayerNorm, Linear
from pyllm.peft.base import Method, _ends, candidates, condensed, matching, score_layers
from pyllm.peft.folder import unknown_keys
from pyllm.peft.own import Own

# Queries, and the first layer of the MLP: the biases that moved most there. GPT-2's queries share a layer with keys and values.
_QUERY_MIDDLE = {"bert": ["query", "intermediate.dense"], "gpt2": ["c_attn", "c_fc"], "bart": ["q_proj", "fc1"],
                 "t5": ["q", "wi", "wi_0", "wi_1"],
                 **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text"), ["q_proj", "gate_proj", "up_proj"])}


@dataclass(frozen=True)
class BitFit(Method):
    """The biases of linear layers and layer norms, in copies of their own; not the head's.

    parts: all, or query_middle: of queries and of the MLP's first layer. add: linear layers without a bias get one, zero at the start.
    """

    parts: str = "all"
    add: bool = False

    NAME, LAYERS = "bitfit", (Linear, LayerNorm)

    def __post_init__(self):
        if self.parts not in ("all", "query_middle"):
            raise ConfigError(f"BitFit: parts={self.parts!r}; expected all or query_middle")

    def place(self, model, targets, rng):
        if targets is None and self.parts == "query_middle":
            known = candidates(model, self.LAYERS)
            targets = [t for t in _QUERY_MIDDLE.get(model.config.model_type, ()) if any(_ends(p, t) for p in known)] or None
        found = candidates(model, self.LAYERS) if targets is None else matching(model, targets, self.LAYERS, self)
        heads = (model.HEAD, *score_layers(model))
        placed = [Own(layer, site, {"bias": "bias"}) for site, layer in found.items() if site not in heads and
                  (layer.bias is not None or self.add and type(layer) is Linear)]
        if not placed:
            raise ConfigError(f"inject: bitfit: {type(model).__name__} has no bias there. Hint: BitFit(add=True) gives its linear layers "
                              "biases that begin as zeros")
        return placed

    def to_peft(self, model, placed):
        sites = [a.site for a in placed]
        return {"target_modules": condensed(sites, model, self.LAYERS), "add": self.add, "parts": self.parts}

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, ("add", "parts"), {}, where)
        return cls(add=config.get("add", False), parts=config.get("parts", "all"))
