"""What losses over whole responses share: log-probabilities of responses, checks of pairs and of what comes in `extra`."""
import numpy as np

from pyllm.autograd import Tensor, no_grad, ops
from pyllm.objectives.base import inputs


def token_log_probs(model, batch, rng=None, temperature=1.0):
    """-> Tensor (B, T), log p of each target, nats; 0 where there is none."""
    args, options = inputs(batch)
    hidden = model.hidden(*args, rng=rng, **options)
    return ops.linear_log_probs(hidden, model.head_weight(), model.head_bias(), batch.targets, temperature)


def response_log_probs(model, batch, rng=None):
    """-> Tensor (B,), log p of each row's response: the sum over its targets, nats."""
    return token_log_probs(model, batch, rng).sum(axis=1)


def response_lengths(batch):
    """-> (B,) targets a row."""
    return np.count_nonzero(batch.targets >= 0, axis=1)


def reference_log_probs(name, reference, batch):
    """-> (B,) log p of each response under the reference: extra["ref_logp"], or computed by the model `reference`."""
    if "ref_logp" in batch.extra:
        return extra(name, batch, "ref_logp", (len(batch.tokens),))
    if reference is None:
        raise ValueError(f"{name}: no reference; expected extra['ref_logp'], (B,) log p of each response, or reference=MODEL. "
                         "Hint: pyllm.align.with_reference(batch, model) makes it once for all epochs")
    with no_grad():
        return response_log_probs(reference, batch).data


def extra(name, batch, key, *shapes):
    """-> the array batch.extra[key]; ValueError unless it has one of `shapes` and is finite."""
    if key not in batch.extra:
        raise ValueError(f"{name}: no extra[{key!r}]; expected an array of shape {' or '.join(map(str, shapes))}; "
                         f"there is {', '.join(batch.extra) or 'nothing'}")
    array = np.asarray(batch.extra[key])
    if array.shape not in shapes:
        raise ValueError(f"{name}: extra[{key!r}] of shape {array.shape}, expected {' or '.join(map(str, shapes))}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: extra[{key!r}] is {array[~np.isfinite(array)][0]} in row {np.argwhere(~np.isfinite(array))[0][0]}; "
                         "expected finite numbers")
    return array


def check_pairs(name, batch, k=2):
    """ValueError unless the rows are groups of k, none with an empty response, no two of a group equal."""
    b = len(batch.tokens)
    if b % k:
        raise ValueError(f"{name}: {b} rows; expected groups of {k}: row {k}i the best, then falling")
    if batch.targets.ndim == 2 and not (lengths := response_lengths(batch)).all():
        raise ValueError(f"{name}: row {lengths.argmin()} has an empty response: no target counts. Hint: was it cut off by max_length?")
    real = [row if batch.segments is None else row[batch.segments[i] > 0] for i, row in enumerate(batch.tokens)]
    for i in range(b):
        for j in range(i + 1, i - i % k + k):
            if np.array_equal(real[i], real[j]):
                raise ValueError(f"{name}: rows {i} and {j} are equal: a pair that is chosen and rejected at once teaches nothing. "
                                 "Hint: drop such pairs from the data")


def pair_metrics(chosen, rejected, chosen_logp, rejected_logp):
    """(B/2,) arrays each, rewards and log p -> TRL's names: sums over pairs."""
    return {"rewards/chosen": float(chosen.sum()), "rewards/rejected": float(rejected.sum()),
            "rewards/margins": float((chosen - rejected).sum()), "rewards/accuracies": float((chosen > rejected).sum()),
            "logps/chosen": float(chosen_logp.sum()), "logps/rejected": float(rejected_logp.sum())}


def constant(array, like):
    """-> a Tensor in the dtype of `like`, that no gradient flows into."""
    return Tensor(np.asarray(array, like.dtype))
