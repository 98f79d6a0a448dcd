"""What an objective returns."""
from dataclasses import dataclass, field

from pyllm.autograd import Tensor


@dataclass(frozen=True)
class Loss:
    """A sum and what it is a sum over, never a mean: so any split into micro-batches gives the same step.

    total: scalar Tensor, the sum over valid targets, nats. count: how many targets that were.
    metrics: {name: a further sum over the same targets}, for the record.
    """

    total: Tensor
    count: int
    metrics: dict = field(default_factory=dict)
