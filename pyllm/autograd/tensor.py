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
    need = again = ()
    precision = "f32"


_state = _State()


class Tensor:
    """An array with a gradient. data: float32 (float64 for gradient checks), any shape; grad: the same shape or None."""

    __slots__ = ("data", "grad", "requires_grad", "_node", "_again")

    def __init__(self, data, requires_grad=False):
        data = data if type(data) is np.ndarray else np.asarray(data)
        if data.dtype is not _F32 and data.dtype not in (np.float32, np.float64):
            if data.dtype.kind not in "fiub":
                raise TypeError(f"Tensor: data of dtype {data.dtype}; expected real numbers")
            data = data.astype(np.float32)
        self.data, self.grad, self.requires_grad, self._node, self._again = data, None, requires_grad, None, None

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
        _send(self._node, np.asarray(grad, self.dtype), None)
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
                if type(parent) is Node and parent not in queued:
                    queued.add(parent)
                    heapq.heappush(queue, (-parent.serial, parent))
            node.vjp = node.parents = None  # frees what the vjp kept

    # ---- arithmetic: ops.math attaches +, -, *, /, @, [] and the like ----


class Node:
    """One recorded call, its result of this shape and dtype: how a gradient flows back through it, and to whom.

    parents: for each argument the Node that made it, the Tensor itself where it is a leaf, None where it needs no gradient. Results are not
    among them, so an array lives on only where a vjp wants it.
    """

    __slots__ = ("vjp", "parents", "need", "shape", "dtype", "serial", "dy", "owned")

    def __init__(self, vjp, parents, need, y):
        self.vjp, self.parents, self.need, self.shape, self.dtype = vjp, parents, need, y.shape, y.dtype
        self.serial, self.dy, self.owned = next(_serial), None, False


def _send(to, g, dy):
    """Adds g to what a Node or a leaf has received; g may be dy itself or a view of it, then it is not ours to write into.

    A function in place of an array is a gradient that adds itself: g(into) -> into + gradient, written into `into`; of None: the
    gradient, an array of its own.
    """
    leaf = type(to) is Tensor
    made = callable(g)
    if made:
        into = to.grad if leaf else to.dy if to.owned else None
        if into is not None and into.dtype == np.float32 and into.flags.c_contiguous and into.flags.writeable:
            g(into)
            return
        g = g(None)
    if g.shape != to.shape:
        raise ValueError(f"backward: a gradient of shape {g.shape} for a tensor of shape {to.shape}")
    if g.dtype != to.dtype:  # losses are float64, what is below them is not
        g = g.astype(to.dtype)
    ours = made or (dy is not None and not np.may_share_memory(g, dy))
    if leaf:
        if to.grad is None:
            to.grad = g if ours else g.copy()
        else:
            to.grad = _add(to.grad, g, True)
    elif to.vjp is None:
        raise ValueError("backward: the tape below was used up by an earlier backward. Hint: run the forward again")
    elif to.dy is None:
        to.dy, to.owned = g, ours
    elif to.owned:
        to.dy = _add(to.dy, g, True)
    else:
        to.dy, to.owned = _add(to.dy, g, False), True


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


class _Again:
    """Makes a result of an operation once more, for all vjps that want it; kept from the first to the last of them."""

    __slots__ = ("make", "users", "array")

    def __init__(self, make):
        self.make, self.users, self.array = make, 0, None

    def __call__(self):
        array = self.make() if self.array is None else self.array
        self.users -= 1
        self.array = array if self.users else None
        return array


AGAIN = 2**21  # bytes from which on a result is made again rather than kept: smaller ones lie in the caches, where keeping costs nothing


def kept(i, x):
    """-> a function that gives x, the argument i of the operation being called, to its vjp, once; without keeping x where it can be made
    again at less than the cost of its memory."""
    again = _state.again[i] if i < len(_state.again) else None
    if again is None or x.nbytes < AGAIN:
        return lambda: x
    again.users += 1
    return again


def op(function):
    """function(*arrays, **options) -> (y, vjp) or (y, vjp, again) becomes an operation over Tensors.

    vjp(dy, need) -> one gradient for each positional argument (a tuple, or the array alone), None where there is none;
    need[i] is False for an argument that is frozen: the place to skip work. A gradient may be a function, see _send. again() -> y once
    more, where that is cheap: see kept. Options are passed
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
        arrays, parents, need, again = [], [], [], []  # one pass: a small model's step is made of these microseconds
        for a in args:
            tensor = type(a) is Tensor
            needed = tensor and a.requires_grad
            arrays.append(a.data if tensor else a)
            parents.append((a._node or a) if needed else None)
            need.append(needed)
            again.append(a._again if tensor else None)
        _state.need = need = tuple(need)
        _state.again = again
        y, vjp, *more = function(*arrays, **options)
        result = Tensor(y)
        if more:
            result._again = _Again(*more)
        if True in need:
            result.requires_grad = True
            result._node = Node(vjp, parents, need, result.data)
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
    need = tuple([t.requires_grad for t in inputs])
    result._node = Node(vjp, [(t._node or t) if n else None for t, n in zip(inputs, need)], need, result.data)
    return result
