"""Prompt tuning (Lester et al. 2021) and P-tuning (Liu et al. 2021): learned vectors before the embedded text."""
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor, no_grad, ops
from pyllm.errors import ConfigError, FormatError
from pyllm.models.base import trunk_of
from pyllm.nn import virtual
from pyllm.peft.base import Adapter, Method
from pyllm.peft.folder import PREFIX, unknown_keys


def home(model):
    """-> the module that has the prompt, and its path: a trunk, or the encoder of an encoder-decoder."""
    module = trunk_of(model).begins()
    return module, next(path for path, m in model.named_modules() if m is module)


@dataclass(frozen=True)
class Prompts(Method):
    """What the two methods share. tokens: vectors before every text, before the encoder's in an encoder-decoder."""

    tokens: int = 20

    EXACT = False

    def __post_init__(self):
        if type(self.tokens) is not int or self.tokens < 1:
            raise ConfigError(f"{self.NAME}: tokens={self.tokens!r}; expected a whole number of at least 1")

    def vectors(self, model, rng):
        """-> (P, C) of the start, and the weights and biases of the MLP behind them, or None."""
        raise NotImplementedError

    def place(self, model, targets, rng):
        if targets is not None:
            raise ConfigError(f"inject: {self.NAME}: targets={targets!r}; it stands before the embedded text. Hint: targets=None")
        path = home(model)[1]
        return [Prompt(f"{path}.prompt" if path else "prompt", *self.vectors(model, rng))]

    def to_peft(self, model, placed):
        return {"num_virtual_tokens": self.tokens, "token_dim": model.config.size("width"), "num_transformer_submodules": 1,
                "num_attention_heads": model.config.size("heads"), "num_layers": model.config.size("layers")}

    def to_files(self, tensors, adapters):
        kept, prompts = {}, [a for a in adapters if type(a) is Prompt]
        with no_grad():
            kept["prompt_embeddings"] = np.ascontiguousarray(prompts[0].held().data)
        return kept | {name: array for name, array in tensors.items() if not name.startswith(PREFIX + prompts[0].site)}

    def from_files(self, tensors, placed):
        given, site = dict(tensors), next(a.site for a in placed if type(a) is Prompt)
        array = given.pop("prompt_embeddings", None)
        if array is None or array.ndim != 2 or array.shape[0] not in (self.tokens, 2 * self.tokens):
            raise FormatError(f"load: {self.NAME}: prompt_embeddings: {None if array is None else array.shape}; expected {self.tokens} "
                              "rows")
        return given | {f"{PREFIX}{site}.prompt": array[: self.tokens]}  # PEFT writes a second half for a decoder, and reads it nowhere


@dataclass(frozen=True)
class PromptTuning(Prompts):
    """init: random (deviation 1), sample_vocab (embeddings of tokens that are drawn), or a tuple of ids, whose embeddings they are."""

    init: str | tuple = "random"

    NAME, PEFT, RATE = "prompt", "PROMPT_TUNING", 2e-2

    def __post_init__(self):
        super().__post_init__()
        if self.init not in ("random", "sample_vocab") and not (isinstance(self.init, tuple) and self.init):
            raise ConfigError(f"PromptTuning: init={self.init!r}; expected random, sample_vocab, or a tuple of token ids")

    def vectors(self, model, rng):
        draw, weight = rng.generator(), trunk_of(model).embedding().weight
        if self.init == "random":
            return draw.standard_normal((self.tokens, model.config.size("width")), np.float32), None
        ids = draw.integers(0, model.config.vocab_size, self.tokens) if self.init == "sample_vocab" else np.resize(self.init, self.tokens)
        with no_grad():
            return ops.embedding(weight, ids.astype(np.int32)).data.copy(), None

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                              "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"), {}, where)
        return cls(config["num_virtual_tokens"])


@dataclass(frozen=True)
class PTuning(Prompts):
    """The vectors go through an MLP of three layers, which is trained and then left behind. hidden: its width, None for the model's."""

    hidden: int | None = None
    encoder: bool = True

    NAME, PEFT = "p_tuning", "P_TUNING"

    def vectors(self, model, rng):
        width, draw = model.config.size("width"), rng.generator()
        vectors = draw.standard_normal((self.tokens, width), np.float32)
        if not self.encoder:
            return vectors, None
        inner, layers = self.hidden or width, []
        for inputs, outputs in ((width, inner), (inner, inner), (inner, width)):
            edge = inputs**-0.5
            layers += [draw.uniform(-edge, edge, shape).astype(np.float32) for shape in ((outputs, inputs), outputs)]
        return vectors, layers

    def to_peft(self, model, placed):
        return super().to_peft(model, placed) | {"encoder_hidden_size": self.hidden or model.config.size("width"),
                                                 "encoder_reparameterization_type": "MLP"}

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
                              "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"), {}, where)
        return cls(config["num_virtual_tokens"], encoder=False)


class Prompt(Adapter):
    """At `prompt` of a trunk: called for vectors (P, C), its own before those of the prompt below it."""

    KEYS = {name: name for name in ("prompt", "w1", "b1", "w2", "b2", "w3", "b3")}
    MERGES = False

    def __init__(self, site, vectors, layers):
        super().__init__(None, site)
        self.prompt = Tensor(vectors, requires_grad=True)
        self.w1, self.b1, self.w2, self.b2, self.w3, self.b3 = (Tensor(a, requires_grad=True) for a in layers) if layers else [None] * 6

    @property
    def size(self):
        """How many vectors there are in all."""
        return virtual.size(self.base_layer) + (len(self.prompt) if self.active else 0)

    def held(self):
        """-> its own vectors."""
        if self.w1 is None:
            return self.prompt
        x = ops.linear(ops.linear(self.prompt, self.w1, self.b1, activation="relu"), self.w2, self.b2, activation="relu")
        return ops.linear(x, self.w3, self.b3)

    def __call__(self):
        if not self.active:
            return self.base_layer()
        return ops.concat(self.held(), self.base_layer(), axis=0) if virtual.size(self.base_layer) else self.held()
