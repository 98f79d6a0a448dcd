"""A model's weights packed in place: for decoding at the bandwidth of fewer bytes, or as the frozen base of an adapter."""
from fnmatch import fnmatchcase

from pyllm.autograd import Tensor
from pyllm.kernels.packed import BLOCK, FORMATS, Packed, Room
from pyllm.nn.layers import Embedding, Linear


def quantize(model, format, skip=(), embeddings=None):
    """Packs the weights of every Linear and Embedding as bf16, q8_0, q4_0 or q4_1, in place -> model; "f32" unpacks them.

    Norms and biases stay float32. embeddings: the format of Embedding weights and so of a tied head, by default q8_0 under q4_0 and q4_1.
    skip: patterns of paths that stay as they are, such as "lm_head" or "*.mlp.*" (* and ? as in a shell). ValueError: an unknown format, a
    pattern that nothing matches, rows that are no multiple of 32 weights (bf16 takes any): all of them at once, and nothing is changed.
    """
    formats = {Linear: format, Embedding: embeddings or ("q8_0" if format in ("q4_0", "q4_1") else format)}
    for name in formats.values():
        if name not in (*FORMATS, "f32"):
            raise ValueError(f"quantize: format={name!r}; expected one of {', '.join(FORMATS)}, or f32")
    skip, used, chosen = (skip,) if isinstance(skip, str) else tuple(skip), set(), {}
    for path, module in model.named_modules():
        if type(module) in formats:
            matching = {p for p in skip if fnmatchcase(path, p) or fnmatchcase(f"{path}.weight", p)}
            used |= matching
            if not matching:
                chosen[path] = module, formats[type(module)]
    wrong = [f"skip={p!r} matches no Linear or Embedding" for p in skip if p not in used]
    wrong += [f"{path}: rows of {m.weight.shape[1]} weights, {f} takes a multiple of {BLOCK}" for path, (m, f) in chosen.items()
              if f in FORMATS and f != "bf16" and m.weight.shape[1] % BLOCK]
    if wrong:
        raise ValueError("quantize: " + "\n  ".join([*wrong, "Hint: skip names what stays as it is; bf16 takes any rows"]))
    weights = {}  # a tied weight stays tied: what it was (kept, so that its id stays its own) and what it will be
    for module, name in chosen.values():
        weights.setdefault(id(module.weight), (module.weight, name))
    room = Room([(name, old.shape) for old, name in weights.values() if name in FORMATS])
    done = {key: _packed(old, name, room) for key, (old, name) in weights.items()}
    for module, _ in chosen.values():
        module.weight = done[id(module.weight)]
    return model


def _packed(weight, format, room):
    """weight: a Tensor or Packed -> the same in `format`, in the Room."""
    if isinstance(weight, Packed):
        if weight.format == format:
            return weight
        weight = Tensor(weight.dequantize(), requires_grad=True)
    return weight if format == "f32" else Packed.quantize(weight.data, format, room)
