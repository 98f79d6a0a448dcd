"""From rewards to advantages."""
import numpy as np


def gae(rewards, values, mask, gamma=1.0, lam=0.95):
    """rewards, values:(B, T); mask:(B, T) bool, one unbroken run a row -> advantages, returns:(B, T), 0 outside of the mask.

    A_t = d_t + gamma lam A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t, nothing behind the last token; returns = A + V.
    Schulman et al. 2016, eq. 16. In float64, whatever comes in.
    """
    rewards, values, mask = np.asarray(rewards, np.float64), np.asarray(values, np.float64), np.asarray(mask, bool)
    if not rewards.shape == values.shape == mask.shape or mask.ndim != 2:
        raise ValueError(f"gae: rewards {rewards.shape}, values {values.shape}, mask {mask.shape}; expected three arrays (B, T)")
    if (np.diff(mask.astype(np.int8), axis=1, prepend=0) > 0).sum(1).max(initial=0) > 1:
        raise ValueError("gae: a row of the mask has a hole; expected one unbroken run, the response")
    advantages = np.zeros_like(rewards)
    after, value = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * value - values[:, t]
        after = np.where(mask[:, t], delta + gamma * lam * after, 0)
        value = np.where(mask[:, t], values[:, t], 0)
        advantages[:, t] = after
    return advantages, np.where(mask, advantages + values, 0)


def whiten(x, mask, shift_mean=True):
    """x, mask:(B, T) -> x scaled to variance 1 over the mask (of n - 1, as TRL has it), and to mean 0 unless not shift_mean; 0 outside."""
    inside = np.asarray(x, np.float64)[mask]
    if len(inside) < 2:
        raise ValueError(f"whiten: {len(inside)} tokens; expected at least 2 to have a variance")
    mean = inside.mean()
    y = np.zeros(np.shape(x))
    y[mask] = (inside - mean) / np.sqrt(inside.var(ddof=1) + 1e-8) + (0 if shift_mean else mean)
    return y


def group_advantages(scores, size, kind):
    """scores:(B,), rows of one prompt are `size` neighbours -> (B,) float64, by one of ESTIMATORS."""
    scores = np.asarray(scores, np.float64)
    if kind not in ESTIMATORS:
        raise ValueError(f"group_advantages: kind={kind!r}; expected one of {', '.join(ESTIMATORS)}")
    if scores.ndim != 1 or size < 2 or len(scores) % size:
        raise ValueError(f"group_advantages: scores {scores.shape} in groups of {size}; expected (B,), groups of at least 2 that divide B")
    return ESTIMATORS[kind](scores.reshape(-1, size)).reshape(-1)


ESTIMATORS = {  # of scores (prompts, responses)
    # Shao et al. 2024: z-scores within a prompt; the deviation of n - 1 and 1e-4 as TRL has them.
    "grpo": lambda r: (r - r.mean(1, keepdims=True)) / (r.std(1, keepdims=True, ddof=1) + 1e-4),
    # Liu et al. 2025: without the deviation, which favours questions that are all but solved.
    "dr_grpo": lambda r: r - r.mean(1, keepdims=True),
    # Ahmadian et al. 2024: the mean of the others is a baseline without bias.
    "rloo": lambda r: r - (r.sum(1, keepdims=True) - r) / (r.shape[1] - 1),
    # Hu et al. 2025: one mean and one deviation for the whole batch.
    "reinforce++": lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-8),
}
