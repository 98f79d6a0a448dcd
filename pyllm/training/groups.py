"""Which parameters learn, and how fast: freezing and rates by patterns of paths, layer-wise decay."""
import re

from pyllm.nn import Embedding


def freeze(model, patterns):
    """Parameters whose path a pattern is found in learn no more -> their paths. patterns: regular expressions, or one.

    To be called before the optimizer is made, which takes what still learns. ValueError: a pattern that is found nowhere, or nothing left.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    own = dict(model.named_parameters())
    found = {pattern: [name for name in own if re.search(pattern, name)] for pattern in patterns}
    if missing := [pattern for pattern, names in found.items() if not names]:
        raise ValueError(f"freeze: {missing} is in no path. Hint: the model's paths are such as {', '.join([*own][:3])}, {[*own][-1]}")
    frozen = [name for name in own if any(name in names for names in found.values())]
    if all(name in frozen or not p.requires_grad for name, p in own.items()):
        raise ValueError(f"freeze: {patterns} leaves no parameter that learns")
    for name in frozen:
        own[name].requires_grad = False
    return frozen


def path_rates(parameters, rates):
    """parameters: {path: ...}; rates: {pattern: factor} -> {path: factor} of those that a pattern is found in, the first one counts.

    ValueError: a factor that is not above 0 (freeze is for 0), a pattern found nowhere, which would be an error that nobody sees.
    """
    if wrong := [f"{pattern!r}: {factor}" for pattern, factor in rates.items() if not 0 < factor < float("inf")]:
        raise ValueError(f"rates: {', '.join(wrong)}; expected factors above 0. Hint: pyllm.training.freeze for 0")
    if missing := [pattern for pattern in rates if not any(re.search(pattern, path) for path in parameters)]:
        raise ValueError(f"rates: {missing} is in no path of a parameter that learns, such as {', '.join([*parameters][:3])}")
    found = {path: [factor for pattern, factor in rates.items() if re.search(pattern, path)] for path in parameters}
    return {path: factors[0] for path, factors in found.items() if factors}


def layerwise(model, decay):
    """Layer-wise learning-rate decay (Howard & Ruder 2018) -> rates for AdamW: decay^k for the k-th block from the top, the last is k = 1.

    What stands above the blocks keeps the full rate; embeddings, and what comes before the first block, have decay^(blocks + 1). The
    blocks of an encoder and of a decoder are counted apart.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layerwise: decay={decay}; expected 0 < decay <= 1, for example 0.9")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    stacks = {}  # path of a list of blocks -> how many
    for path, _ in model.named_modules():
        if (m := re.fullmatch(r"(.*)\.(\d+)", path)) and not re.search(r"\.\d+\.", path):
            stacks[m[1]] = max(stacks.get(m[1], 0), int(m[2]) + 1)
    if not stacks:
        raise ValueError(f"layerwise: {type(model).__name__} has no list of blocks")
    tables = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Embedding)}
    deepest, rates, before = max(stacks.values()), {}, True
    for name in names:
        stack = next((s for s in stacks if name.startswith(f"{s}.")), None)
        before = before and stack is None
        if stack is not None:
            rates[f"^{re.escape(name)}$"] = decay ** (stacks[stack] - int(name[len(stack) + 1 :].split(".")[0]))
        elif before or name in tables:
            rates[f"^{re.escape(name)}$"] = decay ** (deepest + 1)
    return rates
