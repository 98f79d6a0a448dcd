"""Tensor, the tape, and what turns a function over arrays into a differentiable operation."""
import heapq
import threading
from functools import wraps
from itertools import count

import numpy as np

from pyllm import env
from pyllm import kernels as K

REGISTRY = {}  # name -> operation: the tests go through it
_serial = count()
_F32 = np.dtype(np.float32)


class _State(threading.local):  # a thread that generates under no_grad does not stop another one from training
    recording = True
    need = ()
    precision = "f32"


_state = _State()


class Tensor:
    """An array with a gradient. data: float32 (float64 for gradient checks), any shape; grad: the same shape or None."""

    __slots__ = ("data", "grad", "requires_grad", "_node")

    def __init__(self, data, requires_grad=False):
        data = data if type(data) is np.ndarray else np.asarray(data)
        if data.dtype is not _F32 and data.dtype not in (np.float32, np.float64):
            if data.dtype.kind not in "fiub":
                raise TypeError(f"Tensor: data of dtype {data.dtype}; expected real numbers")
            data = data.astype(np.float32)
        self.data, self.grad, self.requires_grad, self._node = data, None, requires_grad, None

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def __repr__(self):
        return f"Tensor({self.data!r}{', requires_grad=True' if self.requires_grad else ''})"

    def __len__(self):
        return len(self.data)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.data, dtype=dtype, copy=copy)

    def item(self):
        """-> the only element as a Python float."""
        return self.data.item()

    def detach(self):
        """-> a Tensor over the same array that no gradient flows through."""
        return Tensor(self.data)

    def backward(self, grad=None):
        """Adds d(self)/d(leaf) * grad to the .grad of every leaf below; grad defaults to 1 and then self must be a scalar.

        The tape is freed on the way: a second backward through it is an error.
        """
        if grad is None:
            if self.size != 1:
                raise ValueError(f"backward: a gradient is needed for shape {self.shape}; only a scalar has a default. Hint: take the sum")
            grad = np.ones_like(self.data)
        if self._node is None:
            raise ValueError("backward: nothing below requires a gradient, or the tape was used up or switched off by no_grad")
        _send(self, np.asarray(grad, self.dtype), None)
        queue = [(-self._node.serial, self._node)]
        queued = {self._node}
        while queue:
            node = heapq.heappop(queue)[1]
            dy, node.dy = node.dy, None
            grads = node.vjp(dy, node.need)
            for parent, g in zip(node.parents, grads if isinstance(grads, tuple) else (grads,), strict=True):
                if g is None or parent is None:
                    continue
                _send(parent, g, dy)
                if parent._node is not None and parent._node not in queued:
                    queued.add(parent._node)
                    heapq.heappush(queue, (-parent._node.serial, parent._node))
            node.vjp = node.parents = None  # frees what the vjp kept

    # ---- arithmetic: ops.math attaches +, -, *, /, @, [] and the like ----


class Node:
    """One recorded call: what it was made from and how a gradient flows back through it."""

    __slots__ = ("vjp", "parents", "need", "serial", "dy", "owned")

    def __init__(self, vjp, parents, need):
        self.vjp, self.parents, self.need, self.serial, self.dy, self.owned = vjp, parents, need, next(_serial), None, False


def _send(tensor, g, dy):
    """Adds g to what tensor has received; g may be dy itself or a view of it, then it is not ours to write into.

    A function in place of an array is a gradient that adds itself: g(into) -> into + gradient, written into `into`; of None: the
    gradient.
    """
    node = tensor._node
    if callable(g):
        into = tensor.grad if node is None else node.dy if node.owned else None
        if into is not None and into.dtype == np.float32 and into.flags.c_contiguous and into.flags.writeable:
            g(into)
            return
        g = g(None)
    if g.shape != tensor.data.shape:
        raise ValueError(f"backward: a gradient of shape {g.shape} for a tensor of shape {tensor.data.shape}")
    if g.dtype != tensor.data.dtype:  # losses are float64, what is below them is not
        g = g.astype(tensor.data.dtype)
    ours = dy is not None and not np.may_share_memory(g, dy)
    if node is None:
        if tensor.grad is None:
            tensor.grad = g if ours else g.copy()
        else:
            tensor.grad = _add(tensor.grad, g, True)
    elif node.vjp is None:
        raise ValueError("backward: the tape below was used up by an earlier backward. Hint: run the forward again")
    elif node.dy is None:
        node.dy, node.owned = g, ours
    elif node.owned:
        node.dy = _add(node.dy, g, True)
    else:
        node.dy, node.owned = _add(node.dy, g, False), True


def _add(a, b, into):
    """a + b, into a where it is ours."""
    if not (a.dtype == b.dtype == np.float32):
        return np.add(a, b, out=a if into else None)
    return K.add(a, b, out=a if into and a.flags.c_contiguous and a.flags.writeable else None)


class no_grad:
    """with no_grad(): nothing is recorded, in this thread."""

    during = False

    def __enter__(self):
        self.before, _state.recording = _state.recording, self.during
        return self

    def __exit__(self, *_):
        _state.recording = self.before


class _grad(no_grad):
    during = True


class precision:
    """with precision("bf16"): products take their operands rounded to bfloat16 and add in float32, in this thread; forward and backward.

    Tensors, weights, optimizer and everything between the products stay float32. "f32" is the default. ValueError for another name.
    """

    def __init__(self, name):
        if name not in PRECISIONS:
            raise ValueError(f"precision: {name!r}; expected one of {', '.join(PRECISIONS)}")
        self.name = name

    def __enter__(self):
        self.before, _state.precision = _state.precision, self.name
        return self

    def __exit__(self, *_):
        _state.precision = self.before


PRECISIONS = ("f32", "bf16")


def reduced():
    """Whether the products of an operation called now take bfloat16 operands. Its vjp keeps to what its forward was told."""
    return _state.precision == "bf16"


def recording():
    """Whether operations are recorded now."""
    return _state.recording


def needs():
    """-> for each positional argument of the operation that is being called, whether a gradient will be asked for it."""
    return _state.need if _state.recording else (False,) * 8


def op(function):
    """function(*arrays, **options) -> (y, vjp) becomes an operation over Tensors.

    vjp(dy, need) -> one gradient for each positional argument (a tuple, or the array alone), None where there is none;
    need[i] is False for an argument that is frozen: the place to skip work. A gradient may be a function, see _send. Options are passed
    by keyword and never differentiated.
    """
    name = function.__name__
    if env.debug():
        from pyllm.autograd import debug

        function = debug.watched(function)

    @wraps(function)
    def call(*args, **options):
        if not _state.recording:
            return Tensor(function(*[a.data if type(a) is Tensor else a for a in args], **options)[0])
        _state.need = need = tuple([type(a) is Tensor and a.requires_grad for a in args])
        y, vjp = function(*[a.data if type(a) is Tensor else a for a in args], **options)
        result = Tensor(y)
        if True in need:
            result.requires_grad = True
            result._node = Node(vjp, [a if n else None for a, n in zip(args, need)], need)
        return result

    REGISTRY[name] = call
    return call


def checkpoint(function, *inputs):
    """function(*inputs) -> Tensor, keeping no activation: the backward runs it again. Chen et al. 2016.

    function must give the same bits both times: randomness comes from keys (see rng.py), which it does here by construction.
    """
    if not _state.recording:
        return function(*inputs)
    with no_grad():
        result = Tensor(function(*inputs).data)
    same_precision = precision(_state.precision)

    def vjp(dy, need):
        with _grad(), same_precision:
            again = [Tensor(t.data, requires_grad=n) for t, n in zip(inputs, need)]
            y = function(*again)
        if y._node is not None:
            y.backward(dy)
        return tuple(t.grad for t in again)

    result.requires_grad = True
    result._node = Node(vjp, list(inputs), tuple(t.requires_grad for t in inputs))
    return result
