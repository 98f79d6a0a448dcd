"""Prefix-tuning: learned keys and values before those of every attention (Li & Liang 2021)."""
import re
from dataclasses import dataclass

import numpy as np

from pyllm.autograd import Tensor, no_grad, ops
from pyllm.errors import ConfigError, FormatError
from pyllm.models.base import trunk_of
from pyllm.models.seq2seq import Pair
from pyllm.nn import Cache, virtual
from pyllm.peft.base import Adapter, Method, disabled
from pyllm.peft.folder import PREFIX, unknown_keys

PLACES = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class PrefixTuning(Method):
    """tokens: keys and values before each attention's own. projection: they come from an MLP over vectors of the model's width, which is
    trained and then left behind; hidden: its inner width, None for the model's. init: what they begin as: random, of deviation std (None: 1
    as in PEFT, 0: zeros); or, in a decoder, sample_vocab or a tuple of ids: the keys and values of these tokens, drawn or given, as Li &
    Liang advise (PEFT: initialize_kv_prefix_from_text). None: sample_vocab in a decoder, which behind random ones begins far worse than
    it was; random elsewhere, with a projection, or where std is given. places: in encoder-decoders, the attentions that get one: of the
    encoder, of the decoder, of the decoder over the encoder (cross); PEFT knows the decoder alone.

    In a decoder the prefix stands before the text: positions go on behind it. In an encoder, and over one, it has no positions; relative
    ones (T5) count it. dealt: files are read as PEFT's are for encoder-decoders.
    """

    tokens: int = 20
    projection: bool = False
    hidden: int | None = None
    std: float | None = None
    init: str | tuple | None = None
    places: tuple = PLACES
    dealt: bool = False

    NAME, PEFT, EXACT, RATE = "prefix", "PREFIX_TUNING", False, 1e-2

    def __post_init__(self):
        if type(self.tokens) is not int or self.tokens < 1 or (self.std or 0) < 0 or not self.places or set(self.places) - set(PLACES):
            raise ConfigError(f"PrefixTuning: tokens={self.tokens!r}, std={self.std}, places={self.places}; expected a whole number of at "
                              f"least 1, a deviation of at least 0, some of {', '.join(PLACES)}")
        if self.init not in (None, "random", "sample_vocab") and not (isinstance(self.init, tuple) and self.init):
            raise ConfigError(f"PrefixTuning: init={self.init!r}; expected random, sample_vocab, or a tuple of token ids")
        if self.init not in (None, "random") and (self.projection or self.std is not None):
            raise ConfigError(f"PrefixTuning: init={self.init!r}, projection={self.projection}, std={self.std}; what begins as keys and "
                              "values of tokens has neither a projection nor a deviation")

    def place(self, model, targets, rng):
        if targets is not None:
            raise ConfigError(f"inject: prefix: targets={targets!r}; it stands before every attention. Hint: targets=None, "
                              "PrefixTuning(places=...)")
        placed, width, shared = [], model.config.size("width"), {}
        for place, site, attention in attentions(model):
            if place not in (None, *self.places):
                continue
            if self.projection and place not in shared:
                shared[place] = _first_layer(self.tokens, width, self.hidden or width, rng.fold(place or "text"))
            placed.append(Prefix(site, place, self, attention, shared.get(place), rng.fold(site)))
        plain = self.projection or self.std is not None or not _reads(model)
        init = self.init or ("random" if plain else "sample_vocab")
        if init != "random":
            ids = rng.generator().integers(0, model.config.vocab_size, self.tokens) if init == "sample_vocab" else init
            for prefix, (keys, values) in zip(placed, _read(model, np.resize(ids, self.tokens)), strict=True):
                prefix.key.data[:], prefix.value.data[:] = keys, values
        return placed

    def to_peft(self, model, placed):
        first, both = placed[0], isinstance(trunk_of(model), Pair)
        foreign = {"peft_type": "PYLLM_PREFIX"} if both else {}  # PEFT has fewer prefixes than layers there, see from_files
        return {"num_virtual_tokens": self.tokens, "token_dim": first.heads * first.head_size, "num_attention_heads": first.heads,
                "num_transformer_submodules": 2 if both else 1, "num_layers": sum(a.place == first.place for a in placed),
                "prefix_projection": self.projection, "encoder_hidden_size": self.hidden or model.config.size("width"),
                "places": list(self.places)} | foreign

    @classmethod
    def from_peft(cls, config, where):
        known = ("token_dim", "num_attention_heads", "num_transformer_submodules", "num_layers", "encoder_hidden_size", "prefix_projection",
                 "num_virtual_tokens", "init_weights", "places")
        unknown_keys(config, known, {}, where)
        return cls(tokens=config["num_virtual_tokens"], init="random", places=tuple(config.get("places") or ("decoder",)),
                   dealt=config["peft_type"] == "PREFIX_TUNING" and config.get("num_transformer_submodules") == 2)

    def to_files(self, tensors, adapters):
        """prompt_embeddings (P, 2 L H D): for each token each layer's key and value; the encoder's under names of their own."""
        kept, prefixes = {}, [a for a in adapters if type(a) is Prefix]
        for name in dict.fromkeys(map(_file_name, prefixes)):
            with no_grad():
                pairs = [t.data.reshape(self.tokens, -1) for a in prefixes if _file_name(a) == name for t in a.held()]
            kept[name] = np.concatenate(pairs, 1)
        own = {PREFIX + f"{a.site}.{key}" for a in prefixes for key in a.own()}
        return kept | {name: array for name, array in tensors.items() if name not in own}

    def from_files(self, tensors, placed):
        given, prefixes = dict(tensors), [a for a in placed if type(a) is Prefix]
        for name in dict.fromkeys(map(_file_name, prefixes)):
            of = [a for a in prefixes if _file_name(a) == name]
            array, width = given.pop(name, None), 2 * sum(a.heads * a.head_size for a in of)
            if array is None or array.shape != (self.tokens, width):
                raise FormatError(f"load: prefix: {name}: {None if array is None else array.shape}, expected {(self.tokens, width)}. "
                                  "Hint: is it an adapter for this base?")
            pairs = np.split(array, 2 * len(of), 1)
            for i, adapter in enumerate(of):
                # PEFT deals what it holds twice, four to a layer of a decoder over an encoder: the second pair of each is thrown away.
                at = 4 * i % len(pairs) if self.dealt else 2 * i
                keys, values = pairs[at : at + 2]
                given |= {PREFIX + f"{adapter.site}.key": keys, PREFIX + f"{adapter.site}.value": values}
        return given


def attentions(model):
    """-> [(place, or None outside of encoder-decoders, path of the prefix, attention)] in the order of the layers."""
    found = [(f"{path}.prefix", m) for path, m in model.named_modules() if "prefix" in vars(m)]
    body = trunk_of(model)
    if not isinstance(body, Pair):
        return [(None, site, m) for site, m in found]
    reading = {id(m) for _, m in body.sides()[0].named_modules()}
    return [("encoder" if id(m) in reading else "cross" if re.search(r"EncDec|encoder_attn", site) else "decoder", site, m)
            for site, m in found]


def _reads(model):
    """-> whether the model is a decoder, whose cache has the keys and values of what it read."""
    return not isinstance(trunk_of(model), Pair) and trunk_of(model).CAUSAL and model.config.extra.get("is_causal") is not False


def _read(model, ids):
    """ids:(P,) -> [(keys, values)], (P, H D) each, of every layer of a decoder, without its adapters, that has read them."""
    if not _reads(model):
        raise ConfigError(f"inject: prefix: init of tokens in {model.config.model_type}; expected a decoder. Hint: init=\"random\"")
    cache = Cache(1, len(ids))
    with disabled(model), no_grad():
        trunk_of(model)(ids[None], cache=cache)
    return [layer[:, 0, :, : len(ids)].swapaxes(1, 2).reshape(2, len(ids), -1) for layer in cache.layers.values()]


def _file_name(prefix):
    return "prompt_embeddings" if prefix.place in (None, "decoder") else f"prompt_embeddings.{prefix.place}"


def _first_layer(tokens, width, hidden, rng):
    """-> what the prefixes of one place share: vectors (P, C), the weight (hidden, C) and bias of the MLP's first layer."""
    draw, edge = rng.generator(), width**-0.5
    arrays = draw.standard_normal((tokens, width)), draw.uniform(-edge, edge, (hidden, width)), draw.uniform(-edge, edge, hidden)
    return [Tensor(a.astype(np.float32), requires_grad=True) for a in arrays]


class Prefix(Adapter):
    """At `prefix` of an attention: called for keys and values (P, H, D), its own before those of the prefix below it.

    key, value:(P, H D); or, with a projection, the second layer of the MLP, weight:(2 H D, hidden) and bias, over the shared first one.
    """

    KEYS = {name: name for name in ("key", "value", "vectors", "first", "first_bias", "second", "second_bias")}
    MERGES = False

    def __init__(self, site, place, method, attention, shared, rng):
        super().__init__(None, site)
        self.place, self.tokens, self.heads, self.head_size = place, method.tokens, attention.kv_heads, attention.head_size
        draw, width = rng.generator(), self.heads * self.head_size
        self.key = self.value = self.second = self.second_bias = None
        self.vectors, self.first, self.first_bias = shared or (None, None, None)
        if shared:
            edge = self.first.shape[0] ** -0.5 if method.std != 0 else 0.0
            self.second, self.second_bias = (Tensor(draw.uniform(-edge, edge, shape).astype(np.float32), requires_grad=True)
                                             for shape in ((2 * width, self.first.shape[0]), 2 * width))
        else:
            std = np.float32(1 if method.std is None else method.std)
            self.key, self.value = (Tensor(draw.standard_normal((self.tokens, width), np.float32) * std, requires_grad=True)
                                    for _ in range(2))

    @property
    def size(self):
        """How many keys there are in all."""
        return virtual.size(self.base_layer) + (self.tokens if self.active else 0)

    def held(self):
        """-> its own keys and values, (P, H D) each."""
        if self.vectors is None:
            return self.key, self.value
        both = ops.linear(ops.tanh(ops.linear(self.vectors, self.first, self.first_bias)), self.second, self.second_bias)
        return both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]

    def __call__(self):
        if not self.active:
            return self.base_layer()
        own = [t.reshape(self.tokens, self.heads, self.head_size) for t in self.held()]
        if not virtual.size(self.base_layer):
            return own
        return [ops.concat(mine, below, axis=0) for mine, below in zip(own, self.base_layer())]
