"""Arithmetic with NumPy's broadcasting, shapes, reductions."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd.tensor import Tensor, op, reduced


def _unbroadcast(g, shape):
    """Sums g over the axes along which an array of `shape` was repeated."""
    if g.shape == shape:
        return g
    g = g.sum(tuple(range(g.ndim - len(shape))))
    return g.sum(tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1), keepdims=True).reshape(shape)


def _binary(args, y, da, db):
    shapes = [np.shape(x) for x in args]

    def vjp(dy, need):
        return tuple(_unbroadcast(d(dy), s) if n else None for d, s, n in zip((da, db), shapes, need))

    return y, vjp


@op
def add(a, b):
    """a + b, broadcast."""
    if np.shape(a) == np.shape(b) and a.dtype == b.dtype:
        return K.add(a, b), lambda dy, need: (dy, dy)
    return _binary((a, b), a + b, lambda dy: dy, lambda dy: dy)


@op
def subtract(a, b):
    """a - b, broadcast."""
    return _binary((a, b), a - b, lambda dy: dy, lambda dy: -dy)


@op
def multiply(a, b):
    """a * b, broadcast."""
    return _binary((a, b), a * b, lambda dy: dy * b, lambda dy: dy * a)


@op
def divide(a, b):
    """a / b, broadcast."""
    return _binary((a, b), a / b, lambda dy: dy / b, lambda dy: -dy * a / (b * b))


@op
def maximum(a, b):
    """The larger of a and b, broadcast; where equal the gradient goes to a."""
    first = a >= b
    return _binary((a, b), np.where(first, a, b), lambda dy: dy * first, lambda dy: dy * ~first)


@op
def minimum(a, b):
    """The smaller of a and b, broadcast; where equal the gradient goes to a."""
    first = a <= b
    return _binary((a, b), np.where(first, a, b), lambda dy: dy * first, lambda dy: dy * ~first)


@op
def exp(x):
    y = np.exp(x)
    return y, lambda dy, need: dy * y


@op
def log(x):
    return np.log(x), lambda dy, need: dy / x


@op
def tanh(x):
    y = np.tanh(x)
    return y, lambda dy, need: dy * (1 - y * y)


@op
def sigmoid(x):
    y = np.exp(-np.logaddexp(0, -x))
    return y, lambda dy, need: dy * y * (1 - y)


@op
def log_sigmoid(x):
    """log(1 / (1 + e^-x)), without overflow."""
    return -np.logaddexp(0, -x), lambda dy, need: dy * np.exp(-np.logaddexp(0, x))


@op
def power(x, *, exponent):
    """x ** exponent, the exponent a number."""
    return x**exponent, lambda dy, need: dy * exponent * x ** (exponent - 1)


@op
def matmul(a, b):
    """a:(..., M, K) @ b:(..., K, N) -> (..., M, N), equal leading axes."""

    half = reduced()

    def vjp(dy, need):
        return (K.matmul(dy, b, tb=True, reduced=half) if need[0] else None,
                K.matmul(a, dy, ta=True, reduced=half) if need[1] else None)

    return K.matmul(a, b, reduced=half), vjp


@op
def sum(x, *, axis=None, keepdims=False):
    """Sum over axis (all by default)."""
    shape = x.shape

    def vjp(dy, need):
        if axis is not None and not keepdims:
            dy = np.expand_dims(dy, axis)
        return np.broadcast_to(dy, shape).copy()

    return np.asarray(x.sum(axis, keepdims=keepdims)), vjp


def mean(x, axis=None, keepdims=False):
    """Mean over axis (all by default)."""
    total = sum(x, axis=axis, keepdims=keepdims)
    return total * (total.size / x.size)


@op
def reshape(x, *, shape):
    return x.reshape(shape), lambda dy, need: dy.reshape(x.shape)


@op
def transpose(x, *, axes):
    """Axes in the order `axes`."""
    return np.ascontiguousarray(x.transpose(axes)), lambda dy, need: np.ascontiguousarray(dy.transpose(np.argsort(axes)))


@op
def take(x, *, index):
    """x[index]; index: what NumPy takes (numbers, slices, arrays)."""
    basic = all(isinstance(i, (int, slice)) for i in (index if isinstance(index, tuple) else (index,)))

    def vjp(dy, need):
        dx = np.zeros_like(x)
        if basic:
            dx[index] = dy
        else:  # arrays may name an element twice
            np.add.at(dx, index, dy)
        return dx

    return np.array(x[index]), vjp


@op
def concat(*xs, axis=0):
    """Joined along axis."""
    ends = np.cumsum([x.shape[axis] for x in xs])[:-1]
    return np.concatenate(xs, axis), lambda dy, need: tuple(np.ascontiguousarray(d) for d in np.split(dy, ends, axis))


@op
def where(a, b, *, condition):
    """a where condition, else b; broadcast."""
    return _binary((a, b), np.where(condition, a, b), lambda dy: np.where(condition, dy, 0), lambda dy: np.where(condition, 0, dy))


def _lift(x, like):
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x, like.dtype))


def _attach():
    """Python's operators for Tensor."""
    for name, f in {"add": add, "sub": subtract, "mul": multiply, "truediv": divide}.items():
        setattr(Tensor, f"__{name}__", lambda self, other, f=f: f(self, _lift(other, self)))
        setattr(Tensor, f"__r{name}__", lambda self, other, f=f: f(_lift(other, self), self))
    Tensor.__neg__ = lambda self: multiply(self, _lift(-1, self))
    Tensor.__pow__ = lambda self, exponent: power(self, exponent=exponent)
    Tensor.__matmul__ = matmul
    Tensor.__getitem__ = lambda self, index: take(self, index=index)
    Tensor.sum, Tensor.mean = (lambda self, axis=None, keepdims=False, f=f: f(self, axis=axis, keepdims=keepdims) for f in (sum, mean))
    Tensor.reshape = lambda self, *shape: reshape(self, shape=shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
    Tensor.transpose = lambda self, *axes: transpose(self, axes=axes)


_attach()
