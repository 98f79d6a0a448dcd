"""PYLLM_DEBUG: 1 time per operation, printed at exit; 2 stops at the first NaN or infinity, naming the operation; 3 the graph as dot."""
import atexit
import sys
import time
from functools import wraps

import numpy as np

from pyllm import env

_times = {}  # name -> [calls, forward seconds, backward seconds]
_edges = []


def watched(function):
    """function(*arrays) -> (y, vjp) with what PYLLM_DEBUG asks for around both."""
    name, level = function.__name__, env.debug()
    entry = _times.setdefault(name, [0, 0.0, 0.0])

    @wraps(function)
    def call(*args, **options):
        began = time.perf_counter()
        y, vjp = function(*args, **options)
        entry[0] += 1
        entry[1] += time.perf_counter() - began
        if level == 2:
            _finite(y, f"{name}: the output", args)
        if level == 3:
            _edges.append((name, id(y), [id(a) for a in args if isinstance(a, np.ndarray)], np.shape(y)))

        def watched_vjp(dy, need):
            start = time.perf_counter()
            grads = vjp(dy, need)
            entry[2] += time.perf_counter() - start
            grads = grads if isinstance(grads, tuple) else (grads,)
            return tuple(None if g is None else watched_gradient(i, g) for i, g in enumerate(grads))

        def watched_gradient(i, g):
            if callable(g):  # a gradient that adds itself
                def add_to(into):
                    start = time.perf_counter()
                    total = g(into)
                    entry[2] += time.perf_counter() - start
                    return watched_gradient(i, total)

                return add_to
            if level == 2:
                _finite(g, f"{name}: the gradient of argument {i}", args)
            return g

        return y, watched_vjp

    return call


def _finite(array, what, args):
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(np.asarray(array)))[0]
        shapes = [a.shape if isinstance(a, np.ndarray) else a for a in args]
        raise FloatingPointError(f"{what} is not finite, first at {tuple(bad.tolist())} of shape {np.shape(array)}; arguments {shapes}")


@atexit.register
def _report():
    if env.debug() == 1:
        total = sum(t[1] + t[2] for t in _times.values()) or 1
        print(f"{'operation':<24}{'calls':>8}{'forward ms':>12}{'backward ms':>12}{'share':>8}", file=sys.stderr)
        for name, (calls, forward, backward) in sorted(_times.items(), key=lambda t: -t[1][1] - t[1][2]):
            if calls:
                share = 100 * (forward + backward) / total
                print(f"{name:<24}{calls:>8}{1e3 * forward:>12.1f}{1e3 * backward:>12.1f}{share:>7.1f}%", file=sys.stderr)
    if env.debug() == 3:
        print("digraph pyllm {", file=sys.stderr)
        for name, out, parents, shape in _edges:
            print(f'  n{out} [label="{name} {shape}"];', *(f"n{p} -> n{out};" for p in parents), file=sys.stderr)
        print("}", file=sys.stderr)
