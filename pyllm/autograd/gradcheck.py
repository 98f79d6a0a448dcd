"""Is a vjp the derivative? One scalar comparison for any shape."""
import numpy as np

from pyllm.autograd.tensor import Tensor


def check_vjp(function, *inputs, seed=0, eps=1e-6, rtol=1e-5, atol=1e-7):
    """Raises AssertionError unless the vjp of `function` is the transpose of its derivative at `inputs`.

    function(*Tensors) -> Tensor; inputs: arrays, taken to float64. Along random directions v and for a random cotangent g,
    <g, J v> by central differences of step eps must equal <vjp(g), v>: the check of HIPS/autograd's check_vjp.
    """
    draw = np.random.default_rng(seed)
    points = [np.array(x, np.float64) for x in inputs]
    tensors = [Tensor(x, requires_grad=True) for x in points]
    y = function(*tensors)
    g = draw.standard_normal(y.shape)
    if y._node is not None:
        y.backward(g)
    for i, (x, t) in enumerate(zip(points, tensors)):
        v = draw.standard_normal(x.shape)

        def along(step):
            return function(*[Tensor(p + step * v if j == i else p) for j, p in enumerate(points)]).data

        numeric = float(np.sum(g * (along(eps) - along(-eps)))) / (2 * eps)
        exact = 0.0 if t.grad is None else float(np.sum(t.grad * v))
        if not abs(numeric - exact) <= atol + rtol * max(abs(numeric), abs(exact)):
            raise AssertionError(f"check_vjp: argument {i}: <vjp(g), v> = {exact:.10g}, central differences give {numeric:.10g}")
