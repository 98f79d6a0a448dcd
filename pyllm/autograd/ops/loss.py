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


LOGITS = 4_000_000  # elements of the (N, V) logits that linear_log_probs holds at a time: 16 MB
KEPT = 2 * LOGITS  # and as many as that it keeps for its vjp


@op
def _linear_log_probs(x, w, b, targets, *, temperature, entropy):
    """x:(..., C) w:(V, C), may be Packed, b:(V,) or None, targets:(...) int32 -> (...), or (2, ...) with the entropies behind.

    Rows that are ignored cost nothing; where the others have many logits, the backward makes them again.
    """
    half, v = reduced(), w.shape[0]
    rows = np.flatnonzero(targets.reshape(-1) >= 0)
    wanted, t = targets.reshape(-1)[rows], x.dtype.type(temperature)
    if wanted.size and wanted.max() >= v:
        raise IndexError(f"linear_log_probs: target {wanted.max()}, expected 0..{v - 1}, or a negative one to ignore")
    flat = x.reshape(-1, x.shape[-1])
    step = max(64, LOGITS // max(v, 1))
    chunks, kept = [slice(i, i + step) for i in range(0, len(rows), step)], {}
    keep = any(needs()[:3]) and len(rows) * v <= KEPT

    def log_probs(part):
        logits = K.linear(flat[rows[part]], w, bias=b, reduced=half)
        return K.log_softmax(logits if temperature == 1 else np.divide(logits, t, out=logits))

    y = np.zeros((1 + entropy, len(flat)), x.dtype)
    for i, part in enumerate(chunks):
        logp = log_probs(part)
        y[0, rows[part]] = logp[np.arange(len(logp)), wanted[part]]
        if entropy:
            y[1, rows[part]] = _entropy(logp)
        if keep:
            kept[i] = logp

    def vjp(dy, need):
        dy = dy.reshape(1 + entropy, -1)[:, rows] / t
        dx, db = (np.zeros_like(a) if n else None for a, n in ((flat, need[0]), (b, need[2])))
        dw = np.zeros_like(w) if need[1] and not chunks else None
        for i, part in enumerate(chunks):
            logp = kept.pop(i) if keep else log_probs(part)  # forward: y[0] = logp[target], y[1] = -sum(p * logp)
            dlogp = np.zeros_like(logp)
            if entropy and dy[1, part].any():
                dlogp = -dy[1, part, None] * np.exp(logp) * (logp + 1)
            dlogp[np.arange(len(logp)), wanted[part]] += dy[0, part]
            dz = K.log_softmax_vjp(dlogp, logp)
            if need[0]:
                dx[rows[part]] = K.linear_vjp(dz, w, reduced=half)
            if need[1]:
                dw = K.matmul(dz, flat[rows[part]], ta=True, out=dw, accumulate=i > 0, reduced=half)
            if need[2]:
                db += K.column_sum(dz)
        return None if dx is None else dx.reshape(x.shape), dw, db, None

    return y.reshape(((2,) if entropy else ()) + targets.shape), vjp


def _entropy(logp):
    """logp:(N, V) -> (N,), nats; rounding takes none below 0."""
    return np.maximum(-np.einsum("nv,nv->n", K.softmax(logp), logp), 0)


def linear_log_probs(x, w, b, targets, temperature=1.0):
    """Language-model head and log-probabilities in one     x:(..., C) w:(V, C), may be Packed, b:(V,) or None, targets:(...) int32 -> (...)

    log p(target) under softmax((x @ w.T + b) / temperature), nats; 0 where the target is negative. Never holds the (B * T, V) logits.
    """
    return _linear_log_probs(x, w, b, targets, temperature=temperature, entropy=False)


def linear_log_probs_entropy(x, w, b, targets, temperature=1.0):
    """As linear_log_probs -> log p(target):(...) and the entropy of the whole distribution:(...), nats, 0 where the target is negative."""
    both = _linear_log_probs(x, w, b, targets, temperature=temperature, entropy=True)
    return both[0], both[1]


@op
def linear_kl(x, w, b, x_teacher, w_teacher, b_teacher, targets, *, temperature=1.0):
    """Two language-model heads and how far apart they are     x:(..., C) w:(V, C) b:(V,) or None, the same of a teacher -> ()

    The sum over targets:(...) >= 0 of KL(teacher || student) in float64, nats, both softmax(logits / temperature). Hinton et al. 2015.
    Never holds (B * T, V); the student's gradients are made in the same sweep, the teacher gets none.
    """
    if w.shape[0] != w_teacher.shape[0]:
        raise ValueError(f"linear_kl: a vocabulary of {w.shape[0]} tokens, the teacher's has {w_teacher.shape[0]}; expected the same")
    need, half, t = needs()[:3], reduced(), x.dtype.type(temperature)
    rows, total = np.flatnonzero(targets.reshape(-1) >= 0), 0.0
    flat, flat_teacher = x.reshape(-1, x.shape[-1]), x_teacher.reshape(-1, x_teacher.shape[-1])
    dx, dw, db = (np.zeros_like(a) if n else None for a, n in zip((flat, w, b), need))
    for begin in range(0, len(rows), step := max(64, LOGITS // max(w.shape[0], 1))):
        part = rows[begin : begin + step]
        log_q = K.log_softmax(K.linear(flat[part], w, bias=b, reduced=half) / t)
        log_p = K.log_softmax(K.linear(flat_teacher[part], w_teacher, bias=b_teacher, reduced=half) / t)
        p = np.exp(log_p)
        total += np.einsum("nv,nv->", p, log_p - log_q, dtype=np.float64)
        if any(need):
            dz = (np.exp(log_q) - p) / t
        if need[0]:
            dx[part] = K.linear_vjp(dz, w, reduced=half)
        if need[1]:
            K.matmul(dz, flat[part], ta=True, out=dw, accumulate=True, reduced=half)
        if need[2]:
            db += K.column_sum(dz)

    def vjp(dy, need):
        grads = [None if g is None else _scaled(g, dy) for g in (dx, dw, db)]
        return None if dx is None else grads[0].reshape(x.shape), *grads[1:], None, None, None, None

    return np.asarray(total), vjp
