"""PYLLM_DEBUG: 1 a profile, printed at exit; 2 stops at the first NaN or infinity, naming the operation; 3 the graph as dot."""
import atexit
import sys
from contextlib import nullcontext
from functools import wraps

import numpy as np

from pyllm import env

_edges = []


def watched(function):
    """function(*arrays) -> (y, vjp) with what PYLLM_DEBUG asks for around both."""
    name, level = function.__name__, env.debug()
    if level == 1:
        from pyllm.kernels import profile

    @wraps(function)
    def call(*args, **options):
        row = profile.row(name, args) if level == 1 else None
        with profile.inside(row) if row else nullcontext():
            y, vjp, *again = function(*args, **options)
        shapes = [a.shape if isinstance(a, np.ndarray) else a for a in args]  # the arrays themselves would live as long as the tape
        if level == 2:
            _finite(y, f"{name}: the output", shapes)
        if level == 3:
            _edges.append((name, id(y), [id(a) for a in args if isinstance(a, np.ndarray)], np.shape(y)))

        def backward():
            return profile.inside(row, backward=True) if row else nullcontext()

        def watched_vjp(dy, need):
            with backward():
                grads = vjp(dy, need)
            grads = grads if isinstance(grads, tuple) else (grads,)
            return tuple(None if g is None else watched_gradient(i, g) for i, g in enumerate(grads))

        def watched_gradient(i, g):
            if callable(g):  # a gradient that adds itself
                def add_to(into):
                    with backward():
                        total = g(into)
                    return watched_gradient(i, total)

                return add_to
            if level == 2:
                _finite(g, f"{name}: the gradient of argument {i}", shapes)
            return g

        return y, watched_vjp, *again

    return call


def _finite(array, what, shapes):
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(np.asarray(array)))[0]
        raise FloatingPointError(f"{what} is not finite, first at {tuple(bad.tolist())} of shape {np.shape(array)}; arguments {shapes}")


# ---- the profile -----------------------------------------------------------------------------------------------------

SHAPES, WORTH = 4, 0.02  # the shapes of an operation that take longest, where it takes at least that share of the time


def report(rows, wall, peaks, bandwidth):
    """-> lines: what each operation took and how near the machine's limit that is; then kernels outside of operations; then the rest.

    rows: as of kernels.profile. wall: seconds. peaks: {precision: GFLOP/s}. bandwidth: GB/s. % of limit: the time that the row's FLOP or
    its bytes, whichever are longer, take at the limit, of the time it took; more than 100 % = from the caches.
    """
    groups = {}
    for (name, shapes, outside), row in rows.items():
        groups.setdefault((outside, name), []).append((shapes, row))
    spent = {key: sum(row.forward + row.backward for _, row in found) for key, found in groups.items()}
    limits = ", ".join(f"{peak:.0f} GFLOP/s {precision}" for precision, peak in peaks.items())
    lines = [f"PYLLM_DEBUG=1: {wall:.3f} s from the first operation to the end of the last; the limits now: {limits}, {bandwidth:.1f} GB/s",
             f"{'operation':<44}{'calls':>8}{'forward ms':>12}{'backward ms':>12}{'rate':>17}{'of limit':>10}{'share':>8}"]
    for outside in (False, True):
        chosen = sorted((key for key in groups if key[0] == outside), key=spent.get, reverse=True)
        if outside and chosen:
            lines.append("kernels outside of operations (optimizer, sampling, sums of gradients)")
        for key in chosen:
            found = sorted(groups[key], key=lambda item: -item[1].forward - item[1].backward)
            one = len(found) == 1
            lines.append(_line(key[1] + (f"  {found[0][0]}" if one else ""), [row for _, row in found], wall, peaks, bandwidth))
            if not one and spent[key] >= WORTH * wall:
                lines += [_line(f"  {shapes}", [row], wall, peaks, bandwidth) for shapes, row in found[:SHAPES]]
    rest = wall - sum(spent.values())
    lines.append(f"{'between: Python, NumPy, files':<44}{'':>8}{1e3 * rest:>12.1f}{'':>12}{'':>17}{'':>10}{_share(rest, wall):>8}")
    lines.append(f"{'all':<44}{'':>8}{1e3 * wall:>12.1f}{'':>12}{'':>17}{'':>10}{_share(wall, wall):>8}")
    return lines


def _line(label, rows, wall, peaks, bandwidth):
    """One line of the report for several Rows together."""
    forward, backward = sum(row.forward for row in rows), sum(row.backward for row in rows)
    work = [(*size, count) for row in rows for size, count in row.work.items()]
    took, rate, share = forward + backward, "", ""
    at_peak = [flops * count / peaks[precision] / 1e9 if peaks.get(precision) else 0.0 for flops, _, precision, count in work]
    at_bandwidth = [moved * count / bandwidth / 1e9 for _, moved, _, count in work]
    if work and took > 0:
        flops, moved = sum(w[0] * w[3] for w in work), sum(w[1] * w[3] for w in work)
        rate = f"{flops / took / 1e9:.1f} GFLOP/s" if flops and sum(at_peak) >= sum(at_bandwidth) else f"{moved / took / 1e9:.1f} GB/s"
        if not flops or sum(at_peak):
            share = f"{100 * sum(map(max, at_peak, at_bandwidth)) / took:.0f} %"
    label = label[:38] + "".join(sorted({f" {precision}" for flops, _, precision, _ in work if flops and precision != "f32"}))
    back = f"{1e3 * backward:.1f}" if backward else ""
    return (f"{label[:43]:<44}{sum(row.calls for row in rows):>8}{1e3 * forward:>12.1f}{back:>12}{rate:>17}{share:>10}"
            f"{_share(took, wall):>8}")


def _share(seconds, wall):
    return f"{100 * seconds / max(wall, 1e-9):.1f} %"


def _profile():
    from pyllm import measure
    from pyllm.kernels import profile

    if profile.rows:
        used = sorted({key[2] for row in profile.rows.values() for key in row.work if key[0]}, reverse=True) or ["f32"]
        found, wall = dict(profile.rows), profile.span[1] - profile.span[0]  # before the probes, which are kernels too
        peaks = {precision: measure.peak_gflops(0.1, precision) for precision in used}
        print("\n".join(report(found, wall, peaks, measure.read_gbs())), file=sys.stderr)


@atexit.register
def _at_exit():
    if env.debug() == 1:
        _profile()
    if env.debug() == 3:
        print("digraph pyllm {", file=sys.stderr)
        for name, out, parents, shape in _edges:
            print(f'  n{out} [label="{name} {shape}"];', *(f"n{p} -> n{out};" for p in parents), file=sys.stderr)
        print("}", file=sys.stderr)
