"""Several LoRAs made into one: weighted sums, concatenation, SVD, TIES (Yadav et al. 2023), DARE (Yu et al. 2024). As PEFT does it."""
from dataclasses import replace

import numpy as np

from pyllm.autograd import Rng, Tensor
from pyllm.errors import ConfigError, suggest
from pyllm.peft.base import _known, adapters, check_free, put
from pyllm.peft.lora import LoRA, LoRAEmbedding, LoRALinear

KINDS = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties")


def combine(model, weights, name, kind="linear", *, density=0.5, rank=None, seed=0):
    """Adds the LoRA `name`, made of those in weights, {name: weight}, and makes it the active one -> model.

    linear, ties, dare_linear, dare_ties: A and B are combined each for itself, all of one rank. cat: ranks add up, the sum of what the
    adapters do is exact. svd: the best approximation of that sum of the given rank (None: the largest there is). density: the share of the
    numbers that ties keeps, the largest, and dare, drawn from `seed`. ConfigError, ValueError: adapters that are no plain LoRAs, of
    different layers or ranks.
    """
    if kind not in KINDS:
        raise ConfigError(f"combine: kind={kind!r}; expected one of {', '.join(KINDS)}.{suggest(kind, KINDS)}")
    if not 0 < density <= 1 or not weights:
        raise ConfigError(f"combine: density={density}, weights={weights}; expected 0 < density <= 1, at least one adapter")
    check_free(model, name, "combine")
    parts = {}
    for each in weights:
        _known(model, each, "combine")
        parts[each] = {a.site: a for a in adapters(model, each)}
    found = [a for part in parts.values() for a in part.values()]
    if odd := [a for a in found if type(a) not in (LoRALinear, LoRAEmbedding) or a.method.dora or a.method.init == "pissa"]:
        raise ValueError(f"combine: {odd[0].name} at {odd[0].site} is no plain LoRA; expected LoRAs without dora and pissa, and no layers "
                         "that are trained whole")
    sites = list(dict.fromkeys(a.site for a in found))
    placed, pattern = [], {}
    for site in sites:
        here = {each: part[site] for each, part in parts.items() if site in part}
        ranks = {a.lora_B.shape[1] for a in here.values()}
        if kind not in ("cat", "svd") and len(ranks) > 1:
            raise ValueError(f"combine: {site}: ranks {sorted(ranks)}; {kind} takes one. Hint: cat or svd")
        a, b = _combined(here, weights, kind, density, rank or max(ranks), Rng(seed).fold("combine", site))
        one = next(iter(here.values()))
        method = LoRA(rank=a.shape[0], alpha=a.shape[0])
        made = method.adapter(one.bottom, site, Rng(0))
        made.lora_A = Tensor(np.ascontiguousarray(a.T if type(one) is LoRAEmbedding else a, np.float32), requires_grad=True)
        made.lora_B = Tensor(np.ascontiguousarray(b, np.float32), requires_grad=True)
        placed.append(made)
        pattern[site] = a.shape[0]
    most = max(pattern.values())
    others = {site: r for site, r in pattern.items() if r != most}
    put(model, placed, replace(LoRA(rank=most, alpha=most), rank_pattern=others, alpha_pattern=dict(others)), name)
    return model


def _combined(here, weights, kind, density, rank, rng):
    """here: {name: Adapter} of one site -> A:(R, I) and B:(O, R) of scale 1."""
    pairs = [(a.lora_A.data.T if type(a) is LoRAEmbedding else a.lora_A.data, a.lora_B.data) for a in here.values()]
    scales = [weights[each] * a.scale for each, a in here.items()]
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs]
    if kind == "cat":
        return np.concatenate([a * s for (a, _), s in zip(pairs, scales)]), np.concatenate([b for _, b in pairs], 1)
    if kind == "svd":
        u, s, vt = np.linalg.svd(sum(scale * b @ a for (a, b), scale in zip(pairs, scales)), full_matrices=False)
        return vt[:rank], u[:, :rank] * s[:rank]
    roots = [np.sqrt(abs(s)) for s in scales]
    signed = [root * (1 if s >= 0 else -1) for root, s in zip(roots, scales)]  # one side alone has the sign
    return tuple(_mixed([pair[side] for pair in pairs], factors, kind, density, rng.fold(side))
                 for side, factors in enumerate((signed, roots)))


def _mixed(arrays, factors, kind, density, rng):
    """-> the arrays' weighted sum, after what the kind drops of them."""
    if kind == "ties":
        arrays = [np.where(_largest(np.abs(x), density), x, 0) for x in arrays]
    elif kind.startswith("dare"):
        arrays = [np.where(rng.fold(i).generator().random(x.shape) < density, x / density, 0) for i, x in enumerate(arrays)]
    stack = np.stack(arrays)
    weighted = stack * np.array(factors).reshape(-1, *[1] * (stack.ndim - 1))
    if not kind.endswith("ties"):
        return weighted.sum(0)
    agrees = np.sign(stack) == np.where(stack.sum(0) >= 0, 1, -1)  # with the sign that has more mass
    return (weighted * agrees).sum(0) / np.maximum(agrees.sum(0), 1)


def _largest(x, density):
    """-> where the largest int(density * size) elements are."""
    mask = np.zeros(x.size, bool)
    mask[np.argsort(-x, axis=None, kind="stable")[: int(density * x.size)]] = True
    return mask.reshape(x.shape)
