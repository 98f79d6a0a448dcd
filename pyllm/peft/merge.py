"""Adapters worked into the weights, checked, and taken out again to the byte."""
import copy
import math
from dataclasses import dataclass

import numpy as np

from pyllm import kernels as K
from pyllm.autograd import Tensor, no_grad
from pyllm.models.base import Headed
from pyllm.peft.base import adapters, check_at_hand


@dataclass(frozen=True)
class Merged:
    """What the model lost by merging. tops: {site: the outermost Adapter}. config: the model's, before."""

    tops: dict
    config: object


@dataclass(frozen=True)
class MergeReport:
    """layers: how many were merged. max_diff: the largest difference of a logit; kl: nats a position, merged from unmerged; both None
    without `verify`. logits: the largest logit's size, for comparison. untied: the head now has weights of its own."""

    layers: int
    max_diff: float | None
    kl: float | None
    logits: float | None
    untied: bool


def merge(model, verify=None, threshold=1e-3):
    """Works the active adapters into the weights, in float64 -> MergeReport. `unmerge` restores the model to the byte.

    verify: a Batch on which the logits before and after are compared. Where they differ by more than `threshold` times the largest logit,
    or the distributions by more than that many nats, the model stays unmerged and ValueError says by how much. Packed weights become
    float32.
    An adapted embedding that was tied to the head leaves the head as it was: the configuration then says that they are not tied.
    ValueError: nothing active, already merged, or a method that is more than weights (prefixes, prompts, bottlenecks).
    """
    if model.merged is not None:
        raise ValueError("merge: the model's adapters are merged already. Hint: pyllm.peft.unmerge(model)")
    check_at_hand(model, "merge")
    active = [a for a in adapters(model) if a.active]
    if not active:
        raise ValueError("merge: no adapter is active. Hint: pyllm.peft.activate(model, name)")
    if unable := sorted({a.method.NAME for a in active if not a.MERGES}):
        raise ValueError(f"merge: {', '.join(unable)} cannot be written as weights of the layers there are. "
                         "Hint: pyllm.peft.save keeps the adapter beside the model")
    before = None if verify is None else _logits(model, verify)
    tops = {a.site: model.get(a.site) for a in adapters(model)}
    merged = {site: _merged(top) for site, top in tops.items()}
    for site, layer in merged.items():
        model.set(site, layer)
    model.merged = Merged(tops, model.config)
    untied = bool(model.HEAD and model.get(model.HEAD) is not None and model.config.tie_word_embeddings)
    if untied:
        _configure(model, model.config.untied())
    if verify is None:
        return MergeReport(len(merged), None, None, None, untied)
    after = _logits(model, verify)
    size, diff, kl = float(np.abs(before).max()), float(np.abs(after - before).max()), _divergence(before, after)
    if not (diff <= threshold * max(size, 1.0) and kl <= threshold):
        unmerge(model)
        raise ValueError(f"merge: the merged model's logits differ by up to {diff:.3g} (they are up to {size:.3g}), its distributions by "
                         f"{kl:.3g} nats; expected at most {threshold:g} of the largest logit and {threshold:g} nats. The model is "
                         "unmerged. Hint: packed weights round what goes into them, float weights do not; threshold= allows more")
    return MergeReport(len(merged), diff, kl, size, untied)


def unmerge(model):
    """Puts the adapters back, and the layers they adapt, to the byte -> model."""
    if model.merged is None:
        raise ValueError("unmerge: nothing is merged")
    record, model.merged = model.merged, None
    for site, top in record.tops.items():
        model.set(site, top)
    _configure(model, record.config)
    return model


def _merged(top):
    """-> a layer of the bottom's class that computes what the adapters above it and itself compute, made in float64."""
    if top.bottom is None:
        return None
    kept = [(p, p.data) for p in top.parameters()]
    try:
        for p, data in kept:
            p.data = data.astype(np.float64)
        with no_grad():
            changed = dict(zip(("weight", "bias"), top.effective()))
            arrays = {name: np.asarray(t.dequantize() if isinstance(t, K.Packed) else t.data, np.float32) for name, t in changed.items()
                      if t is not None}
    finally:
        for p, data in kept:
            p.data = data
    layer = copy.copy(top.bottom)
    for name, array in arrays.items():
        data = K.empty(array.shape)
        data[...] = array
        setattr(layer, name, Tensor(data))
    return layer


def _configure(model, config):
    model.config = config
    if isinstance(model, Headed):
        model.trunk.config = config


def _logits(model, batch):
    """-> (B, ..., V) float32."""
    with no_grad():
        if batch.decoder_tokens is None:
            return model(batch.tokens, batch.segments).data
        return model(batch.tokens, batch.decoder_tokens, batch.segments, batch.decoder_segments).data


def _divergence(p, q):
    """p, q:(..., V) logits -> the mean over rows of KL(p || q), nats."""
    p, q = (K.log_softmax(np.ascontiguousarray(x.reshape(-1, x.shape[-1]))).astype(np.float64) for x in (p, q))
    return max(0.0, math.fsum((np.exp(p) * (p - q)).sum(1)) / len(p))


