"""Learning-rate schedules: pure functions of the step, counted from 0. SCHEDULES: name -> what makes one.

Each rises over the first `warmup` steps from lr / (warmup + 1), holds or falls, and is min_lr from `steps` on (constant: lr).
"""
import math


def constant(lr, steps, warmup=0, min_lr=0.0):
    """-> step -> lr after the warm-up."""
    return _with_warmup(lr, steps, warmup, min_lr, lambda done: 1.0, floor=lr)


def linear(lr, steps, warmup=0, min_lr=0.0):
    """-> step -> from lr straight down to min_lr."""
    return _with_warmup(lr, steps, warmup, min_lr, lambda done: 1 - done)


def cosine(lr, steps, warmup=0, min_lr=0.0):
    """-> step -> from lr to min_lr along half a cosine (Loshchilov & Hutter 2017)."""
    return _with_warmup(lr, steps, warmup, min_lr, lambda done: 0.5 * (1 + math.cos(math.pi * done)))


def wsd(lr, steps, warmup=0, min_lr=0.0, decay=0.2):
    """-> step -> warm-up, stable, decay: lr, then over the last `decay` of the steps down with 1 - sqrt (Haegele et al. 2024)."""
    if not 0 < decay <= 1:
        raise ValueError(f"wsd: decay={decay}; expected a share of the steps, 0 < decay <= 1")
    return _with_warmup(lr, steps, warmup, min_lr, lambda done: 1 - math.sqrt(max(0.0, (done - 1 + decay) / decay)))


def _with_warmup(lr, steps, warmup, min_lr, shape, floor=None):
    """shape: share of the steps after the warm-up that are done -> share of lr - min_lr."""
    if not (steps >= 1 and 0 <= warmup <= steps and 0 <= min_lr <= lr):
        raise ValueError(f"schedule: lr={lr}, min_lr={min_lr}, warmup={warmup}, steps={steps}; "
                         "expected 0 <= min_lr <= lr, 0 <= warmup <= steps, steps >= 1")

    def at(step):
        if step < warmup:
            return lr * (step + 1) / (warmup + 1)
        if step >= steps:
            return min_lr if floor is None else floor
        return min_lr + (lr - min_lr) * shape((step - warmup) / (steps - warmup))

    return at


SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine, "wsd": wsd}
