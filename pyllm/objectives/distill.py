"""Distillation: learn from a larger model's probabilities, beside the text itself."""
import numpy as np

from pyllm.autograd import Tensor, no_grad, ops
from pyllm.data.batch import IGNORED
from pyllm.objectives.base import Loss, hidden_at_targets


def distill(model, batch, rng=None, *, teacher, temperature=2.0, alpha=0.5, hidden=0.0):
    """batch: as of clm, mlm or seq2seq -> Loss: alpha * temperature^2 * KL(teacher || model) + (1 - alpha) * -log p(target), nats.

    The sum over targets >= 0. teacher: a model of the same vocabulary; it learns nothing and drops nothing. temperature: of both
    softmaxes in KL (Hinton et al. 2015). hidden: the weight of 1 - cosine between the last hidden states, for models of one width (Sanh et
    al. 2019). metrics: kl at that temperature, and ce. Neither model's (B * T, V) logits are held.
    """
    if not 0 <= alpha <= 1 or not temperature > 0 or hidden < 0:
        raise ValueError(f"distill: alpha={alpha}, temperature={temperature}, hidden={hidden}; expected alpha in 0 to 1, temperature > 0, "
                         "hidden >= 0")
    x, targets = hidden_at_targets(model, batch, rng)
    with no_grad():
        given, _ = hidden_at_targets(teacher, batch, None)
        head = [t.detach() if isinstance(t, Tensor) else t for t in (teacher.head_weight(), teacher.head_bias())]  # Packed, or no bias
    kl = ops.linear_kl(x, model.head_weight(), model.head_bias(), given.detach(), *head, targets, temperature=temperature)
    ce = ops.linear_cross_entropy(x, model.head_weight(), model.head_bias(), targets)
    total = kl * (alpha * temperature**2) + ce * (1 - alpha)
    if hidden:
        total = total + _distance(x, given, targets) * hidden
    return Loss(total, batch.count, {"kl": kl.item(), "ce": ce.item()})


def _distance(x, given, targets):
    """x, given:(..., C) -> the sum of 1 - cosine where a target counts."""
    if x.shape != given.shape:
        raise ValueError(f"distill: hidden states of {x.shape[-1]} channels, the teacher's have {given.shape[-1]}; expected one width, "
                         "or hidden=0")
    counts = (targets != IGNORED).astype(x.dtype)
    unit = given.data / np.maximum(np.linalg.norm(given.data, axis=-1, keepdims=True), 1e-12)
    cosine = (x * unit).sum(-1) / ((x * x).sum(-1) + 1e-24) ** 0.5
    return ((1 - cosine) * counts).sum()
