"""Trained tokens: some rows of the embedding alone, for tokens that are new or get a new sense; a tied head has them too."""
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.errors import ConfigError
from pyllm.models.base import Headed
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.nn import Embedding
from pyllm.peft.base import Adapter, Method, condensed
from pyllm.peft.folder import PREFIX, unknown_keys


@dataclass(frozen=True)
class TrainedTokens(Method):
    """ids: the tokens whose rows are trained."""

    ids: tuple = (0,)

    NAME, PEFT, LAYERS = "tokens", "TRAINABLE_TOKENS", (Embedding,)

    def __post_init__(self):
        if not self.ids or any(type(i) is not int or i < 0 for i in self.ids) or len(set(self.ids)) < len(self.ids):
            raise ConfigError(f"TrainedTokens: ids={self.ids}; expected different ids of at least 0")

    def default_targets(self, model):
        """-> the path of the embedding of the tokens."""
        trunk = model.trunk if isinstance(model, Headed) and not isinstance(model, EncoderDecoder) else model
        return [next(path for path, m in model.named_modules() if m is trunk.embedding())]

    def adapter(self, layer, site, rng):
        if max(self.ids) >= layer.weight.shape[0]:
            raise ValueError(f"token {max(self.ids)}; there are {layer.weight.shape[0]}")
        return TokenRows(layer, site, self.ids)

    def to_peft(self, model, placed):
        return {"target_modules": condensed([a.site for a in placed], model, self.LAYERS), "token_indices": list(self.ids)}

    @classmethod
    def from_peft(cls, config, where):
        unknown_keys(config, ("token_indices", "init_weights"), {}, where)
        return cls(tuple(config["token_indices"]))

    def from_files(self, tensors, placed):
        """A tied head's rows are written by PEFT a second time."""
        own = f"{PREFIX}{placed[0].site}.trainable_tokens_delta"
        return {name: array for name, array in tensors.items() if name == own or own not in tensors
                or not (name.endswith(".trainable_tokens_delta") and np.array_equal(array, tensors[own]))}


class TokenRows(Adapter):
    """delta:(N, C): the new rows themselves, as PEFT has them under this name."""

    KEYS, TIED = {"delta": "trainable_tokens_delta"}, True

    def __init__(self, layer, site, ids):
        super().__init__(layer, site)
        rows, ids = layer.weight.shape[0], np.array(ids, np.int32)
        self.places = np.zeros(rows, np.int32)  # of a token among the trained ones
        self.places[ids] = np.arange(len(ids))
        self.trained = np.zeros(rows, bool)
        self.trained[ids] = True
        self.delta = Tensor(ops.embedding(layer.weight, ids).data.copy(), requires_grad=True)

    def adapted(self, ids, rng=None):
        own = ops.embedding(self.delta, self.places[ids])
        return ops.where(own, self.base_layer(ids, rng), condition=self.trained[ids][..., None])

    def change(self, weight, bias):
        return ops.where(ops.embedding(self.delta, self.places), weight, condition=self.trained[:, None]), bias
