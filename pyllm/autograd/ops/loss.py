"""Softmax and cross-entropy. A loss is a sum over valid targets: whoever takes the step divides by their count."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd.tensor import needs, op, reduced


@op
def softmax(x):
    """x:(..., V) -> rows that sum to 1."""
    y = K.softmax(x)
    return y, lambda dy, need: K.softmax_vjp(dy, y)


@op
def log_softmax(x):
    """x:(..., V) -> x - logsumexp(x)."""
    y = K.log_softmax(x)
    return y, lambda dy, need: K.log_softmax_vjp(dy, y)


@op
def cross_entropy(logits, targets, *, label_smoothing=0.0, z_loss=0.0):
    """logits:(..., V) targets:(...) int32, negative = ignored -> (), the sum of -log p(target) in float64 (see linear_cross_entropy)."""
    loss, dlogits = K.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), label_smoothing, z_loss)
    return np.asarray(loss.sum(dtype=np.float64)), lambda dy, need: (_scaled(dlogits, dy).reshape(logits.shape), None)


@op
def linear_cross_entropy(x, w, b, targets, *, label_smoothing=0.0, z_loss=0.0):
    """Language-model head and loss in one     x:(..., C) w:(V, C), may be Packed, b:(V,) or None, targets:(...) int32 -> ()

    The sum over targets >= 0 of (1 - s) * -log p(target) + s * mean over V of -log p + z_loss * logsumexp^2, in float64.
    Never holds the (B * T, V) logits; the gradients are made in the same sweep.
    """
    loss, *grads = K.linear_cross_entropy(x.reshape(-1, x.shape[-1]), w, b, targets.reshape(-1), label_smoothing, z_loss, need=needs()[:3],
                                          reduced=reduced())

    def vjp(dy, need):
        dx, dw, db = (_scaled(g, dy) if n and g is not None else None for g, n in zip(grads, need))
        return None if dx is None else dx.reshape(x.shape), dw, db, None

    return np.asarray(loss.sum(dtype=np.float64)), vjp


def _scaled(g, dy):
    return g if dy == 1 else np.multiply(g, g.dtype.type(dy), out=g)
