"""Models in GGUF files: what llama.cpp calls a family's configuration and tensors, and how it lays them out. FAMILIES: one entry each."""
import re
import warnings
from dataclasses import dataclass

import numpy as np

from pyllm.errors import ConfigError, FormatError, suggest
from pyllm.io.ggml import KINDS, Blocks, float32, kind_of
from pyllm.io.gguf import Later
from pyllm.io.safetensors import to_bf16, to_f16
from pyllm.kernels.packed import Packed
from pyllm.nn.rotary import llama3, plain_frequencies

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # general.file_type, from the type of most weights
WHAT_LLAMA3_LEAVES_OUT = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # rope_freqs.weight holds what they lead to


@dataclass(frozen=True)
class Family:
    """model_type: of config.json; keys: {key of config.json: GGUF's behind the architecture's name}, those of `optional` may be missing.

    outside, block: {GGUF's name of a layer: the checkpoint's}, of the whole model and of block i, which is `path`.i there and `begins`.i
    in the file; behind both stands .weight or .bias. others: (begins, path, block) of further blocks.
    interleaved: rows of queries and keys lie so that the pairs which rotary positions turn are neighbours; offset: what
    its norms have more than the checkpoint's. fixed: keys of config.json that the format has no place for -> the value that it means.
    """

    model_type: str
    keys: dict
    outside: dict
    block: dict
    path: str = "model.layers"
    optional: tuple = ("num_key_value_heads", "rope_theta", "head_dim")
    interleaved: bool = False
    offset: int = 0
    fixed: dict = None
    begins: str = "blk"
    others: tuple = ()

    def names(self, layers):
        """-> {GGUF's name of a tensor: the checkpoint's}."""
        pairs, kinds = [*self.outside.items()], ((self.begins, self.path, self.block), *self.others)
        pairs += [(f"{begins}.{i}.{ours}", f"{path}.{i}.{theirs}") for begins, path, block in kinds for i in range(layers)
                  for ours, theirs in block.items()]
        return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in pairs for kind in ("weight", "bias")}


_KEYS = {"max_position_embeddings": "context_length", "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
         "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
         "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
         "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base"}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
          "ffn_down": "mlp.down_proj"}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_QWEN = {"hidden_act": "silu", "use_sliding_window": False, "layer_types": None}
FAMILIES = {
    "llama": Family("llama", _KEYS, _OUTSIDE, _BLOCK, interleaved=True, fixed={"hidden_act": "silu"}),
    "qwen2": Family("qwen2", _KEYS, _OUTSIDE, _BLOCK, fixed=_QWEN),
    "qwen3": Family("qwen3", _KEYS, _OUTSIDE, {**_BLOCK, **_QK_NORM}, fixed=_QWEN),
    "gemma3": Family("gemma3_text", {**_KEYS, "sliding_window": "attention.sliding_window",
                                     "sliding_window_pattern": "attention.sliding_window_pattern",
                                     "rope_local_base_freq": "rope.freq_base_swa"}, _OUTSIDE,
                     {**_BLOCK, **_QK_NORM, "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
                      "post_ffw_norm": "post_feedforward_layernorm"}, offset=1,
                     optional=("num_key_value_heads", "rope_theta", "head_dim", "sliding_window_pattern", "rope_local_base_freq"),
                     fixed={"hidden_activation": "gelu_pytorch_tanh", "layer_types": None}),
    "gpt2": Family("gpt2", {"n_positions": "context_length", "n_embd": "embedding_length", "n_layer": "block_count",
                            "n_inner": "feed_forward_length", "n_head": "attention.head_count",
                            "layer_norm_epsilon": "attention.layer_norm_epsilon"},
                   {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
                    "output": "lm_head"},
                   {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
                    "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, "transformer.h", ("n_inner",),
                   fixed={"activation_function": "gelu_new", "position": "learned", "bias": True, "scale_attn_weights": True,
                          "scale_attn_by_inverse_layer_idx": False}),
    "bert": Family("bert", {"max_position_embeddings": "context_length", "hidden_size": "embedding_length", "num_hidden_layers":
                            "block_count", "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
                            "layer_norm_eps": "attention.layer_norm_epsilon"},
                   {"token_embd": "embeddings.word_embeddings", "token_types": "embeddings.token_type_embeddings",
                    "position_embd": "embeddings.position_embeddings", "token_embd_norm": "embeddings.LayerNorm"},
                   {"attn_q": "attention.self.query", "attn_k": "attention.self.key", "attn_v": "attention.self.value", "attn_output":
                    "attention.output.dense", "attn_output_norm": "attention.output.LayerNorm", "ffn_up": "intermediate.dense",
                    "ffn_down": "output.dense", "layer_output_norm": "output.LayerNorm"}, "encoder.layer",
                   fixed={"hidden_act": "gelu", "position": "learned"}),
}
WRITTEN_AS = {"mistral": "llama", **{family.model_type: name for name, family in FAMILIES.items()}}  # model_type -> architecture


def _heads(name, path, ours=""):
    """-> the names of an attention's layers in T5's blocks, and of the norm before it."""
    return {f"{ours}attn_norm": f"{path}.layer_norm", **{f"{ours}attn_{x}": f"{path}.{name}.{x}" for x in "qkvo"}}


def _dense(path, gated):
    up = {"ffn_gate": "wi_0", "ffn_up": "wi_1"} if gated else {"ffn_up": "wi"}
    return {"ffn_norm": f"{path}.layer_norm", "ffn_down": f"{path}.DenseReluDense.wo",
            **{ours: f"{path}.DenseReluDense.{theirs}" for ours, theirs in up.items()}}


def _t5(gated):
    bias = {"attn_rel_b": "layer.0.SelfAttention.relative_attention_bias"}
    own, cross = _heads("SelfAttention", "layer.0"), _heads("EncDecAttention", "layer.1", "cross_")
    return Family("t5", {"n_positions": "context_length", "d_model": "embedding_length", "d_ff": "feed_forward_length", "num_layers":
                         "block_count", "num_decoder_layers": "decoder_block_count", "num_heads": "attention.head_count", "d_kv":
                         "attention.key_length", "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
                         "relative_attention_num_buckets": "attention.relative_buckets_count"},
                  {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm", "dec.output_norm": "decoder.final_layer_norm",
                   "output": "lm_head"}, {**own, **bias, **_dense("layer.1", gated)}, "encoder.block", ("num_decoder_layers",),
                  begins="enc.blk", others=(("dec.blk", "decoder.block", {**own, **bias, **cross, **_dense("layer.2", gated)}),))


READ = {**FAMILIES, "t5": _t5(False)}  # families that are read, T5 not written
POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # bert.pooling_type -> see pyllm.embed
# other keys -> the value that changes nothing; any other that is set is refused, since it would change numbers
NEUTRAL = {"attention.causal": True, "rope.scale_linear": 1.0, "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0}
SAYS_NOTHING = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
_YARN = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}


# ---- reading

def read_config(metadata, tensors, where):
    """metadata, tensors: of io.gguf.read -> (Family, what config.json would hold). FormatError names all keys that are wrong."""
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in READ:
        raise FormatError(f"{where}: general.architecture is {arch!r:.60}; expected one of {', '.join(READ)}.{suggest(arch, READ)}")
    family, wrong = READ[arch], []
    rest = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    config = {"model_type": family.model_type}
    for key, name in family.keys.items():
        value, kinds = _one(rest.pop(name, None)), (int, float) if name.endswith(("epsilon", "base", "base_swa")) else (int,)
        if type(value) in kinds and 0 < value < 1 << 31:
            config[key] = value
        elif value is not None:
            wrong.append(f"{arch}.{name} = {value!r:.60}, expected a{' whole' if kinds == (int,) else ''} number above 0")
        elif key not in family.optional:
            wrong.append(f"{arch}.{name} is missing")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or embedding.ndim != 2:
        wrong.append("tensor token_embd.weight is missing, or has not two dimensions")
    if wrong:
        raise FormatError(f"{where}: {'; '.join(wrong)}")
    if config[_key_of(family, "block_count")] > len(tensors):  # before a name is made for each
        raise FormatError(f"{where}: {arch}.block_count = {config[_key_of(family, 'block_count')]} with {len(tensors)} tensors")
    config |= {"vocab_size": embedding.shape[0], "tie_word_embeddings": "output.weight" not in tensors}
    if arch == "bert":
        config |= _read_bert(rest, tensors)
    elif arch == "t5":
        family = _t5("enc.blk.0.ffn_gate.weight" in tensors)
        config |= _read_t5(config, rest, tensors)
    elif arch != "gpt2":
        _read_rotary(arch, config, rest, tensors, where)
    window = rest.pop("attention.sliding_window", None) if arch == "llama" else None
    if window:
        config |= {"model_type": "mistral", "sliding_window": window}
    if arch in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama" and "blk.0.ffn_up.bias" in tensors:
        config["mlp_bias"] = True
    odd = [f"{arch}.{name} = {value!r:.40}" for name, value in rest.items() if name not in SAYS_NOTHING and _is_set(value)
           and not (type(value) is type(NEUTRAL.get(name)) and value == NEUTRAL[name])]
    if odd:
        raise FormatError(f"{where}: {len(odd)} keys that are not known, or of models that are not computed: {', '.join(odd)}")
    return family, {**config, **_token_ids(metadata)}


def _read_bert(rest, tensors):
    """-> what config.json would hold beside the keys; takes these from rest. The files leave the pooler out."""
    if rest.get("attention.causal") is False:
        del rest["attention.causal"]
    pooling, types = POOLINGS.get(rest.pop("pooling_type", None)), tensors.get("token_types.weight")
    return {"architectures": ["BertModel"], "add_pooling_layer": False, "type_vocab_size": 1 if types is None else types.shape[0],
            **({} if pooling is None else {"pooling": pooling})}


def _read_t5(config, rest, tensors):
    """-> what config.json would hold beside the keys, as the writers of these files have it; takes keys from rest."""
    start = rest.pop("decoder_start_token_id", 0)
    for name, same in (("attention.value_length", config["d_kv"]), ("attention.layer_norm_epsilon", config["layer_norm_epsilon"])):
        if rest.get(name) == same:
            del rest[name]
    config.setdefault("num_decoder_layers", config["num_layers"])
    return {"feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in tensors else "relu", "decoder_start_token_id": start}


def _key_of(family, name):
    """-> config.json's key for a key of GGUF."""
    return next(key for key, ours in family.keys.items() if ours == name)


def _one(value):
    """-> the value, or that of an array for each layer whose values are all the same."""
    if isinstance(value, np.ndarray):
        same = value.size and (value == value[0]).all()
        return value[0].item() if same else value.tolist()
    return value


def _is_set(value):
    return bool(value) if not isinstance(value, np.ndarray) else bool(value.any())


def _token_ids(metadata):
    """-> the ids that config.json names; what ends a turn or a message ends a text too."""
    found = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "eot", "eom", "padding")}
    found = {role: i for role, i in found.items() if type(i) is int}
    ends = list(dict.fromkeys(found[role] for role in ("eos", "eot", "eom") if role in found))
    values = {"bos_token_id": found.get("bos"), "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
              "pad_token_id": found.get("padding")}
    return {key: value for key, value in values.items() if value is not None}


def _read_rotary(arch, config, rest, tensors, where):
    """What a decoder with rotary positions may leave out, and the scaling of its positions, into config; takes the keys from rest."""
    def fail(text):
        raise FormatError(f"{where}: {text}")

    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config.setdefault("rope_theta", 10000.0)
    for name in ("attention.value_length", "rope.dimension_count"):
        if rest.pop(name, config["head_dim"]) != config["head_dim"]:
            fail(f"{arch}.{name} is not the size of a head, {config['head_dim']}: such models are not computed")
    if arch == "gemma3":
        config.setdefault("rope_local_base_freq", 10000.0)
        config.setdefault("sliding_window_pattern", 6)
        config["query_pre_attn_scalar"] = gemma_scalar(config)
    kind, factor = rest.pop("rope.scaling.type", "none"), rest.pop("rope.scaling.factor", None)
    trained = rest.pop("rope.scaling.original_context_length", None)
    betas = {key: rest.pop(name, None) for key, name in _YARN.items()}
    factors = tensors.get("rope_freqs.weight")
    if factors is not None:
        config["rope_scaling"] = _llama3_of(float32(factors), config, trained, fail)
    elif kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        config["rope_scaling"] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained, **betas}
        config["rope_scaling"] = {key: value for key, value in config["rope_scaling"].items() if value is not None}
    elif kind != "none":
        fail(f"{arch}.rope.scaling.type is {kind!r:.60}; expected none, linear or yarn")


def gemma_scalar(config):
    """config: dict -> query_pre_attn_scalar, which the format does not hold: the size of a head, but for the largest model."""
    heads = config["num_attention_heads"]
    return config["hidden_size"] // heads if config["num_hidden_layers"] == 62 else config["head_dim"]


def llama3_factors(theta, head_size, scaling):
    """scaling: rope_scaling of config.json -> (D/2,) float32: what each frequency of a head is divided by."""
    plain = plain_frequencies(head_size, theta)
    return (plain / llama3(plain.astype(np.float64), scaling, context=None)[0]).astype(np.float32)


def _llama3_of(factors, config, trained, fail):
    """factors: rope_freqs.weight -> the rope_scaling that gives them."""
    scaling = {"rope_type": "llama3", "factor": float(factors.max(initial=0)), **WHAT_LLAMA3_LEAVES_OUT,
               "original_max_position_embeddings": trained or 8192}
    sound = type(config["head_dim"]) is int and factors.shape == (config["head_dim"] // 2,) and 1 <= scaling["factor"] < np.inf
    usual = sound and all(type(n) in (int, float) and n > 0 for n in (config["rope_theta"], scaling["original_max_position_embeddings"]))
    if not usual or not np.allclose(factors, llama3_factors(config["rope_theta"], config["head_dim"], scaling), rtol=1e-4):
        fail(f"rope_freqs.weight is none of llama3's scalings with {WHAT_LLAMA3_LEAVES_OUT}, the only ones that are computed")
    return scaling


def restore(family, config, tensors):
    """config: of read_config; tensors: of io.gguf.read -> (tensors as a checkpoint holds them, {name in the file: the checkpoint's})."""
    def restored(name, tensor):
        if family.interleaved and (heads := _turned_heads(name, config)):
            return _turn(tensor, heads, (-1, 2))
        return float32(tensor) - np.float32(family.offset) if family.offset and name.endswith("norm.weight") else tensor

    layers = max(config[_key_of(family, "block_count")], config.get("num_decoder_layers", 0))
    names = {**family.names(layers), "rope_freqs.weight": "rotary_emb.inv_freq"}
    return {name: restored(name, tensor) for name, tensor in tensors.items()}, names


def _turned_heads(name, config):
    """-> how many heads lie in the rows of a tensor, 0 where it is none of queries or keys."""
    found = re.search(r"\.attn_([qk])\.(weight|bias)$", name)
    return 0 if found is None else config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]


def _turn(tensor, heads, split):
    """The rows of each head, (heads, *split), with the two parts of split exchanged; a view of the bytes where there are rows.

    (2, -1): all first members of the pairs that positions turn, then all second ones, become pairs; (-1, 2): the other way.
    """
    if tensor.shape[0] % (2 * heads) or kind_of(tensor) not in KINDS:
        return tensor  # what it is instead of a weight is told where it is loaded
    if tensor.ndim == 1:
        return float32(tensor).reshape(heads, *split).swapaxes(1, 2).reshape(-1)
    data = tensor.data if isinstance(tensor, Blocks) else np.ascontiguousarray(tensor).view(np.uint8)
    return Blocks(kind_of(tensor), tensor.shape, data.reshape(heads, *split, data.shape[-1]).swapaxes(1, 2))


# ---- writing

def write_config(config):
    """config: a model's -> (Family, {key of a GGUF file: value}). ConfigError names every value that the format has no place for."""
    name = WRITTEN_AS.get(config.model_type)
    if name is None:
        raise ConfigError(f"GGUF: no names are known for models of type {config.model_type}; expected one of {', '.join(WRITTEN_AS)}")
    family, values = FAMILIES[name], {}
    wrong = [f"{key}={getattr(config, key)!r}, where it means {value!r}" for key, value in family.fixed.items()
             if getattr(config, key) != value]
    for key, ours in family.keys.items():
        value = {"num_key_value_heads": lambda: config.kv_heads, "head_dim": lambda: config.head_size,
                 "n_inner": lambda: config.n_inner or 4 * config.n_embd}.get(key, lambda: getattr(config, key))()
        values[ours] = float(value) if ours.endswith(("epsilon", "base", "base_swa")) else value
    if config.model_type == "mistral" and config.sliding_window:
        values["attention.sliding_window"] = config.sliding_window
        if config.sliding_window < config.max_position_embeddings:
            warnings.warn(f"GGUF: llama.cpp computes no sliding window for this architecture: beyond {config.sliding_window} tokens its "
                          "numbers differ. pyllm keeps to the window", stacklevel=4)
    if name == "llama" and config.model_type == "llama" and config.mlp_bias and not config.attention_bias:
        wrong.append("mlp_bias without attention_bias")
    if name == "gemma3" and config.query_pre_attn_scalar != gemma_scalar(vars(config)):
        wrong.append(f"query_pre_attn_scalar={config.query_pre_attn_scalar}, where it means {gemma_scalar(vars(config))}")
    outside = {}
    if name == "bert":
        pooling = config.extra.get("pooling", "mean")
        values |= {"attention.causal": False, "pooling_type": next(i for i, known in POOLINGS.items() if known == pooling)}
        outside = {"tokenizer.ggml.token_type_count": config.type_vocab_size}
    elif name != "gpt2":
        values |= {"attention.value_length": config.head_size, "rope.dimension_count": config.head_size}
        _write_rotary(config, values, wrong)
    if wrong:
        raise ConfigError(f"GGUF: {config.model_type} with {'; '.join(wrong)}: the format has no place for that")
    values["vocab_size"] = config.vocab_size
    values = {f"{name}.{key}": value for key, value in values.items()}
    return family, {"general.architecture": name, "general.type": "model", **values, **outside}


def _write_rotary(config, values, wrong):
    """The keys of rope_scaling into values, what cannot be said into wrong."""
    scaling = config.rope_scaling or {"rope_type": "none"}
    kind = scaling["rope_type"]
    known = {"none": {}, "linear": {"factor": "rope.scaling.factor"},
             "yarn": {"factor": "rope.scaling.factor", "original_max_position_embeddings": "rope.scaling.original_context_length", **_YARN},
             "llama3": {"factor": None, "original_max_position_embeddings": "rope.scaling.original_context_length"}}.get(kind, {})
    left = {key: value for key, value in scaling.items() if key not in known and key != "rope_type" and value is not None}
    if kind == "llama3":
        left = {key: value for key, value in left.items() if WHAT_LLAMA3_LEAVES_OUT.get(key) != value}
    if kind == "dynamic" or left:
        wrong.append(f"rope_scaling={scaling}")
        return
    if kind in ("linear", "yarn"):
        values["rope.scaling.type"] = kind
    for key, ours in known.items():
        if ours and scaling.get(key) is not None:
            values[ours] = scaling[key] if ours.endswith("length") else float(scaling[key])


def write_tensors(model, family, floats="f32"):
    """-> {GGUF's name: array, Blocks or Later} of a language model; packed weights as they are, others of two dimensions in `floats`: f32,
    f16 or bf16; ConfigError for parameters without a name in the format."""
    config = model.config
    own = {**{path: p.data for path, p in model.named_parameters()}, **dict(model.named_packed())}
    names = {theirs: ours for ours, theirs in family.names(config.size("layers")).items()}
    if family.model_type == "bert" and own.pop("pooler.dense.weight", None) is not None:
        del own["pooler.dense.bias"]
        warnings.warn("GGUF: the pooler, which classifiers read and vectors of texts do not, has no place in the format: it is left out",
                      stacklevel=4)
    extra = [path for path in own if path not in names]
    if extra:
        raise ConfigError(f"GGUF: {len(extra)} parameters of {type(model).__name__} have no name in the format: {', '.join(extra[:5])}")
    found = {names[path]: _written(names[path], weight, family, config, floats) for path, weight in own.items()}
    found = {name: found[name] for name in family.names(config.size("layers")) if name in found}
    scaling = getattr(config, "rope_scaling", None)
    if scaling and scaling["rope_type"] == "llama3":
        found["rope_freqs.weight"] = llama3_factors(config.rope_theta, config.head_size, scaling)
    return found


def _written(name, weight, family, config, floats):
    """weight: array or Packed -> what the file holds."""
    if name == "token_types.weight":  # llama.cpp adds it as it is
        return weight.dequantize() if isinstance(weight, Packed) else weight
    if isinstance(weight, Packed):
        kind = weight.format.upper()
        return Later(kind, weight.shape, lambda: turned(name, Blocks(kind, weight.shape, weight.to_blocks()), family, config))
    if weight.ndim == 2 and floats != "f32":
        make = to_bf16 if floats == "bf16" else to_f16
        return Later(floats.upper(), weight.shape, lambda: turned(name, make(weight), family, config))
    moved = weight + np.float32(family.offset) if family.offset and name.endswith("norm.weight") else weight
    return turned(name, moved, family, config)


def turned(name, tensor, family, config):
    """-> a tensor of the GGUF name `name` with the rows of queries and keys in the order that the format has."""
    if not family.interleaved:
        return tensor
    heads = _turned_heads(name, {"num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.kv_heads})
    return _turn(tensor, heads, (2, -1)) if heads else tensor


def file_type(tensors):
    """tensors: of write_tensors -> general.file_type: the type that most weights of two dimensions have."""
    count = {}
    for tensor in tensors.values():
        if len(tensor.shape) == 2:
            kind = tensor.kind if isinstance(tensor, Later) else kind_of(tensor)
            count[kind] = count.get(kind, 0) + int(np.prod(tensor.shape))
    return FILE_TYPES[max(count, key=count.get)]
