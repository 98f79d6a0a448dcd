"""LoRA: a product of two thin matrices beside a weight (Hu et al. 2021), with rsLoRA, DoRA, PiSSA and LoRA+ as its options."""
import re
import warnings
from dataclasses import dataclass, field

import numpy as np

from pyllm.autograd import Tensor, drawn_from, ops
from pyllm.errors import ConfigError, FormatError
from pyllm.nn import Embedding, Linear
from pyllm.peft.base import ANY, Adapter, LinearAdapter, Method, _floats, candidates, condensed, score_layers
from pyllm.peft.own import Own

QV = {"t5": ["q", "v"], "bart": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"],
      **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text"), ["q_proj", "v_proj"])}
INITS = ("default", "gaussian", "pissa")


@dataclass(frozen=True)
class LoRA(Method):
    """W x + scale * B A x, A:(R, I) B:(O, R), scale = alpha / rank.

    dropout: of x on its way into A. rslora: scale = alpha / rank^0.5 (Kalajdzievski 2023). dora: the rows of W + scale B A brought to a
    trained length (Liu et al. 2024). init: default (A uniform within I^-0.5, B zero), gaussian (A of deviation 1/rank) or pissa: the
    largest singular parts of W, which are taken off what W gives, W itself staying as it is (Meng et al. 2024). lr_ratio: learning rate of
    B over that of A, LoRA+ (Hayou et al. 2024), see pyllm.peft.rates. bias: which biases are trained too: none, lora_only (of the adapted
    layers) or all. rank_pattern, alpha_pattern: {expression that the end of a path matches: its own value}.
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: str = "default"
    lr_ratio: float = 1.0
    bias: str = "none"
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)

    NAME, PEFT, LAYERS, TARGETS, RATE = "lora", "LORA", (Linear, Embedding), QV, 5e-4

    def __post_init__(self):
        ranks = [self.rank, *self.rank_pattern.values()]
        if any(type(r) is not int or r < 1 for r in ranks) or not 0 <= self.dropout < 1 or self.init not in INITS or self.lr_ratio <= 0 \
                or self.bias not in ("none", "lora_only", "all"):
            raise ConfigError(f"LoRA: rank={self.rank}, rank_pattern={self.rank_pattern}, dropout={self.dropout}, init={self.init!r}, "
                              f"lr_ratio={self.lr_ratio}, bias={self.bias!r}; expected whole ranks of at least 1, 0 <= dropout < 1, init "
                              f"one of {', '.join(INITS)}, lr_ratio above 0, bias none, lora_only or all")

    def sizes(self, site):
        """-> rank, scale of the adapter at a site."""
        rank = next((v for k, v in self.rank_pattern.items() if re.match(rf"(.*\.)?({k})$", site)), self.rank)
        alpha = next((v for k, v in self.alpha_pattern.items() if re.match(rf"(.*\.)?({k})$", site)), self.alpha)
        return rank, alpha / rank**0.5 if self.rslora else alpha / rank

    def rates(self):
        return {} if self.lr_ratio == 1 else {r"\.lora_B$": self.lr_ratio}

    def place(self, model, targets, rng):
        placed = super().place(model, targets, rng)
        return placed if self.bias == "none" else placed + biases(model, [a.site for a in placed], self.bias == "all")

    def to_peft(self, model, placed):
        sites = [a.site for a in placed if type(a) is not Own]
        turned = any(f"{site}.weight".endswith(model.TRANSPOSED) for site in sites)
        return {"target_modules": condensed(sites, model, self.LAYERS), "r": self.rank, "lora_alpha": self.alpha,
                "lora_dropout": self.dropout, "bias": self.bias, "fan_in_fan_out": turned,
                "use_rslora": self.rslora, "use_dora": self.dora, "init_lora_weights": True if self.init == "default" else self.init,
                "rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}

    @classmethod
    def from_peft(cls, config, where):
        from pyllm.peft.folder import unknown_keys

        unknown_keys(config, (*_READ.values(), "init_lora_weights", "lora_bias", *_TRAINING), _FIXED, where)
        init = config.get("init_lora_weights")
        if str(init).startswith(_OFF_THE_BASE):
            raise FormatError(f"load: {where}: init_lora_weights={init!r}: PEFT takes what it began with off the base's weights. Hint: its "
                              "save_pretrained(folder, path_initial_model_for_weight_conversion=...) writes a LoRA for the base as it is")
        if str(init).startswith("pissa_niter"):
            warnings.warn(f"load: {where}: init_lora_weights={init!r}: PEFT took an estimate of the singular parts off the base's weights, "
                          "drawn anew each time; here they are exact", stacklevel=3)
        return cls(init="pissa" if str(init).startswith("pissa") else "default",
                   **{own: config[key] for own, key in _READ.items() if config.get(key) is not None})

    def adapter(self, layer, site, rng):
        rank, scale = self.sizes(site)
        if rank > min(layer.weight.shape):
            raise ValueError(f"rank {rank} is above the smaller side of the weight {layer.weight.shape}")
        if type(layer) is Embedding:
            if self.dora or self.init == "pissa":
                raise ValueError("dora and pissa take linear layers, this is an embedding")
            return LoRAEmbedding(layer, site, rank, scale, rng)
        return LoRALinear(layer, site, rank, scale, rng, self)


_READ = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora", "bias": "bias",
         "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern"}
_TRAINING = ("megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "velora_config",
             "monteclora_config", "ensure_weight_tying")  # of how an adapter was made
_OFF_THE_BASE = ("olora", "corda", "loftq", "lora_ga")
_FIXED = {"use_qalora": False, "layer_replication": None, "lora_bias": False, "target_parameters": None,
          "alora_invocation_tokens": None, "arrow_config": None, "kasa_config": None, "use_bdlora": None, "trainable_token_indices": None}


def biases(model, sites, every):
    """-> what trains the biases of the layers at `sites`, or every bias of the model; PEFT names those below its own layers otherwise."""
    layers = candidates(model, ANY)
    return [Own(layer, site, {"bias": "base_layer.bias" if site in sites else "bias"}) for site, layer in layers.items()
            if vars(layer).get("bias") is not None and site not in score_layers(model) and (every or site in sites)]


def _product(b, a, scale):
    """scale * B @ A as a Tensor."""
    return ops.matmul(b, a) * scale


class LoRALinear(LinearAdapter):
    """lora_A:(R, I) lora_B:(O, R); magnitude:(O,) with DoRA; the first A and B, frozen, with PiSSA."""

    KEYS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}

    def __init__(self, layer, site, rank, scale, rng, c):
        super().__init__(layer, site)
        outputs, inputs = layer.weight.shape
        draw, self.scale, self.dropout, self.magnitude, self.first = rng.generator(), scale, c.dropout, None, None
        self.rows = None  # (B, 1, 1), a factor for each row of a batch, see rows.py
        a = draw.standard_normal((rank, inputs), np.float32) / np.float32(rank) if c.init == "gaussian" else \
            draw.uniform(-(inputs**-0.5), inputs**-0.5, (rank, inputs)).astype(np.float32)
        b = np.zeros((outputs, rank), np.float32)
        if c.init == "pissa":
            u, s, vt = np.linalg.svd(_floats(layer.weight).data.astype(np.float64), full_matrices=False)
            root = np.sqrt(s[:rank] / scale)
            a, b = (root[:, None] * vt[:rank]).astype(np.float32), (u[:, :rank] * root).astype(np.float32)
            self.first = Tensor(a.copy()), Tensor(b.copy())  # a pair, no parameters
        self.lora_A, self.lora_B = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        if c.dora:
            self.magnitude = Tensor(np.ones(outputs, np.float32), requires_grad=True)
            self.magnitude.data = self._lengths(_floats(layer.weight)).data

    def adapted(self, x, residual):
        if self.magnitude is None:
            return self.base_layer(x, residual=self._delta(x, residual))
        y = self.base_layer(x, residual=self._delta(x, None))
        g = self.magnitude / self._lengths(_floats(self.bottom.weight))
        bias = self.bottom.bias
        y = y * g if bias is None else y * g + bias * (1 - g)  # the bias keeps its length
        return y if residual is None else y + residual

    def _delta(self, x, residual):
        """scale * B A x + residual."""
        x = ops.dropout(x, self.dropout, _key(self.site))
        if self.first is None:
            return ops.linear(_scaled(ops.linear(x, self.lora_A), self), self.lora_B, None, residual)
        delta, first = (ops.linear(ops.linear(x, a) * self.scale, b) for a, b in ((self.lora_A, self.lora_B), self.first))
        return delta - first if residual is None else (delta - first) + residual

    def _lengths(self, weight):
        """-> (O,) Tensor: the length of each row of W + scale B A, a constant to the gradient."""
        return Tensor(np.sqrt((self._sum(weight).data ** 2).sum(1)))

    def _sum(self, weight):
        delta = _product(self.lora_B, self.lora_A, self.scale)
        return weight + (delta if self.first is None else delta - _product(self.first[1], self.first[0], self.scale))

    def change(self, weight, bias):
        if self.magnitude is None:
            return self._sum(weight), bias
        g = self.magnitude / self._lengths(_floats(self.bottom.weight))
        own = self.bottom.bias
        return self._sum(weight) * g.reshape(-1, 1), bias if bias is None else bias * g + own * (1 - g)


class LoRAEmbedding(Adapter):
    """lora_A:(V, R), zero at the start, lora_B:(C, R); files hold A as (R, V)."""

    KEYS, TRANSPOSED = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}, ("lora_A",)

    def __init__(self, layer, site, rank, scale, rng):
        super().__init__(layer, site)
        rows, channels = layer.weight.shape
        self.scale, self.rows = scale, None
        self.lora_A = Tensor(np.zeros((rows, rank), np.float32), requires_grad=True)
        self.lora_B = Tensor(rng.generator().standard_normal((channels, rank), np.float32), requires_grad=True)

    def adapted(self, ids, rng=None):
        return ops.linear(_scaled(ops.embedding(self.lora_A, ids), self), self.lora_B, None, self.base_layer(ids, rng))

    def change(self, weight, bias):
        return weight + _product(self.lora_A, self.lora_B.transpose(1, 0), self.scale), bias


def _scaled(x, adapter):
    """x:(B, T, R) times the adapter's scale, and the row's factor where rows have their own."""
    if adapter.rows is None:
        return x if adapter.scale == 1 else x * adapter.scale
    if len(adapter.rows) != len(x.data):
        raise ValueError(f"peft.rows: adapters for {len(adapter.rows)} rows, a batch of {len(x.data)}; expected as many")
    return x * (adapter.rows * np.float32(adapter.scale))


def _key(site):
    rng = drawn_from()
    return rng and rng.fold("adapter", site)
