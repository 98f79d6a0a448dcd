"""What must hold at run time. A run that breaks one of these learns from wrong numbers without a sign of it: it stops and says which."""
import numpy as np

TOLERANCE = 1e-5  # of log-probabilities, nats; the kernels' aim is the same bits


class InvariantError(RuntimeError):
    """Something that holds by construction does not: a fault of the library, or of a model that breaks its rules."""


def require(right, invariant, found):
    """InvariantError naming the invariant and what was found, unless `right`."""
    if not right:
        raise InvariantError(f"{invariant}: {found}")


def masks(rollout):
    """The masks of a Rollout partition its tokens, and each row has a response."""
    mask = rollout.mask
    require((mask.sum(1) == rollout.lengths).all() and (rollout.lengths > 0).all(), "the response mask sums to the response tokens",
            f"{mask.sum(1).tolist()} for lengths {rollout.lengths.tolist()}")
    real = (rollout.segments > 0).sum(1)
    require((real == rollout.prompt_lengths + rollout.lengths).all(), "prompt and response tokens sum to the row's",
            f"{real.tolist()} for prompts {rollout.prompt_lengths.tolist()} and responses {rollout.lengths.tolist()}")
    for name in ("logp", "ref_logp", "values"):
        array = getattr(rollout, name)
        require(array is None or not array[~mask].any(), "statistics run over response tokens only", f"{name} is not 0 beside the response")


def same_policy(rollout):
    """Before its first update the policy is its reference: the divergence is 0."""
    apart = np.abs(rollout.logp - rollout.ref_logp).max()
    require(apart <= TOLERANCE, "KL to the reference is 0 before the first update",
            f"log-probabilities differ by up to {apart:.3g} nats. Hint: does the policy start from the reference? If it is meant not to, "
            "starts_at_reference=False")


def ratio_is_one(metrics):
    """In the first minibatch after a rollout the policy is the one that drew it."""
    for name, expected in (("val/ratio", 1.0), ("policy/approxkl_avg", 0.0)):
        if name in metrics:
            require(abs(metrics[name] - expected) <= TOLERANCE, "the ratio is 1 before the first step of an iteration",
                    f"{name} is {metrics[name]!r}, expected {expected}")


def entropy_is_not_negative(entropy):
    """entropy: nats a token."""
    require(entropy >= 0, "entropy is never negative", entropy)


def score_on_last_token(rewards, penalties, scores, rollout):
    """rewards = penalties + the score, which stands on each response's last token and nowhere else."""
    b = np.arange(len(scores))
    placed = rewards - penalties
    elsewhere = placed.copy()
    elsewhere[b, rollout.last] = 0
    require(np.allclose(placed[b, rollout.last], scores, rtol=1e-5, atol=1e-5) and not elsewhere.any(),
            "the score is on the last response token", f"rows {np.flatnonzero(elsewhere.any(1)).tolist()} have it elsewhere")
    require((rollout.targets[b, rollout.last] >= 0).all(), "the score is on the last response token", "it is on a prompt or on padding")
