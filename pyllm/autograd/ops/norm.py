"""Normalisations over the last axis."""
from pyllm import kernels as K
from pyllm.autograd.tensor import op


@op
def layer_norm(x, w, b=None, *, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) * w + b     x:(..., C) w, b:(C,). Ba et al. 2016."""
    y, mean, rstd = K.layer_norm(x, w, b, eps)

    def vjp(dy, need):
        return K.layer_norm_vjp(dy, x, w, mean, rstd, need_w=True in need[1:])[: len(need)]

    return y, vjp, lambda: K.layer_norm(x, w, b, eps)[0]


@op
def rms_norm(x, w, *, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * w     x:(..., C) w:(C,). Zhang & Sennrich 2019."""
    y, rstd = K.rms_norm(x, w, eps)
    return y, lambda dy, need: K.rms_norm_vjp(dy, x, w, rstd, need_w=need[1]), lambda: K.rms_norm(x, w, eps)[0]
