"""Layers' products: linear, embedding, dropout, activations."""
from pyllm import kernels as K
from pyllm.autograd.tensor import kept, needs, op, reduced


@op
def linear(x, w, b=None, residual=None, *, activation=None):
    """y = activation(x @ w.T + b) + residual     x:(..., I) w:(O, I) b:(O,) residual:(..., O) -> (..., O)

    activation: None, gelu_tanh, gelu, silu or relu. All of it is one kernel; only what goes into the activation is kept.
    w may be Packed: x is then taken in its precision (the gradient counts that rounding as the identity), and w itself is frozen.
    """
    if x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x {x.shape} has {x.shape[-1]} channels, w {w.shape} expects {w.shape[1]}")
    rows, x_shape, shape = x.reshape(-1, x.shape[-1]), x.shape, (*x.shape[:-1], w.shape[0])
    half, saved = reduced(), kept(0, x) if needs()[1] else None
    y = K.linear(rows, w, bias=b, act=activation, residual=None if residual is None else residual.reshape(-1, w.shape[0]), reduced=half)
    y, z = y if activation else (y, None)

    def vjp(dy, need):
        dz = dy.reshape(-1, w.shape[0])
        if activation:
            dz = K.activation_vjp(dz, z, activation)
        dx = _product(K.linear_vjp, dz, w, x_shape, reduced=half) if need[0] else None
        dw = _product(K.matmul, dz, saved().reshape(-1, x_shape[-1]), w.shape, ta=True, reduced=half) if need[1] else None
        db = K.column_sum(dz) if len(need) > 2 and need[2] else None
        return (dx, dw, db, dy)[: len(need)]

    if activation and residual is None:
        return y.reshape(shape), vjp, lambda: K.activation(z, activation)
    return y.reshape(shape), vjp


def _product(kernel, a, b, shape, **options):
    """-> a gradient of `shape` that adds itself (see autograd.tensor._send): the product kernel(a, b), made where its sum stands."""
    def add_to(into):
        out = None if into is None else into.reshape(-1, shape[-1])
        return kernel(a, b, out=out, accumulate=into is not None, **options).reshape(shape)

    return add_to


@op
def embedding(w, ids):
    """w:(V, C), may be Packed, ids:(...) integers in 0..V-1 -> (..., C)."""
    return K.embedding(w, ids), lambda dy, need: (lambda into: K.embedding_vjp(dy, ids, len(w), out=into), None)


@op
def activation(x, *, kind):
    """kind(x), one of gelu_tanh, gelu, silu, relu."""
    return K.activation(x, kind), lambda dy, need: K.activation_vjp(dy, x, kind)


@op
def glu(gate, up, *, kind="silu"):
    """kind(gate) * up: SwiGLU with silu. Shazeer 2020."""
    return K.glu(gate, up, kind), lambda dy, need: K.glu_vjp(dy, gate, up, kind), lambda: K.glu(gate, up, kind)


@op
def _dropout(x, *, p, key):
    return K.dropout(x, p, key), lambda dy, need: K.dropout(dy, p, key)


def dropout(x, p, rng):
    """x with each element 0 with probability p, the others times 1 / (1 - p); rng None or p 0: x itself. Srivastava et al. 2014.

    The mask is drawn from the rng's key again in the backward, never stored.
    """
    return _dropout(x, p=p, key=rng.key) if drawn("dropout", p, rng) else x


def drawn(name, p, rng):
    """-> whether anything is dropped: not without an rng or at p = 0. ValueError in the name of an operation for another p than [0, 1)."""
    if not 0 <= p < 1:
        raise ValueError(f"{name}: p={p}; expected 0 <= p < 1")
    return rng is not None and p > 0
