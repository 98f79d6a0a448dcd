"""The training loop, a generator that belongs to its caller, and evaluation."""
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from pyllm.autograd import Rng, no_grad
from pyllm.autograd import precision as precision_of
from pyllm.measure import peak_rss_mb
from pyllm.objectives.base import means


@dataclass(frozen=True)
class Record:
    """What one optimizer step was.

    step: steps taken so far, this one included. loss: nats a target, before the step. lr: of this step. grad_norm: before clipping, of the
    mean loss. tokens: targets the loss counted. seconds: wall time, waiting for data included. peak_memory_mb: of the process so far, at
    most 0.1 s old. metrics: the objective's own, per target.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: float | None
    metrics: dict = field(default_factory=dict)


def train(model, objective, batches, optimizer, *, steps, lr, start=0, accumulate=1, clip=1.0, seed=0, precision=None):
    """Train, one optimizer step for each turn of the caller's loop -> iterator of Record.

        optimizer = AdamW(model)
        for record in train(model, clm, Loader(shards, 12, 64, seed=1), optimizer, steps=2000, lr=cosine(1e-3, 2000, warmup=100)):
            print(record.step, record.loss)

    model        what objective and optimizer were made for; its weights change in place
    objective    (model, batch, rng) -> Loss, see pyllm.objectives
    batches      iterable of Batch; each is one micro-batch. Nothing is read ahead: between two records its cursor is exact
    optimizer    AdamW, or anything with its grad_norm, step and zero_grad
    steps        train until this many steps are taken in all
    lr           learning rate: a number, or a function of the step counted from 0 (see pyllm.training.schedule)
    start        steps taken before (on resume): the learning rate and the dropout go on from there
    accumulate   micro-batches a step. Their losses are summed and divided once by the count of the whole step, so the split does not matter
    clip         the largest norm of the gradient, a larger one is scaled down to it; None = no clipping (Pascanu et al. 2013)
    seed         of the dropout masks: those of (seed, step, micro-batch) are the same in every run, resumed or not
    precision    f32, or bf16: products take bfloat16 operands, weights and optimizer stay float32; None = that of the scope of each step,
                 see pyllm.precision

    Raises FloatingPointError naming the step for a loss or gradient that is not finite (PYLLM_DEBUG=2 names the operation), ValueError for
    a step without any target or when the batches end early; the weights are then those after the last record.
    """
    for name, value, least in (("steps", steps, 0), ("start", start, 0), ("accumulate", accumulate, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"train: {name}={value!r}; expected a whole number of at least {least}")
    if clip is not None and not clip > 0:
        raise ValueError(f"train: clip={clip!r}; expected a number above 0, or None for no clipping")
    scope = nullcontext() if precision is None else precision_of(precision)
    rate = lr if callable(lr) else lambda step: lr
    return _steps(model, objective, iter(batches), optimizer, steps, rate, start, accumulate, clip, seed, scope)


def _steps(model, objective, batches, optimizer, steps, lr, start, accumulate, clip, seed, scope):
    keys = Rng(seed)
    optimizer.zero_grad()
    memory, read_at = None, -math.inf
    for step in range(start, steps):
        began = time.perf_counter()
        total, count, metrics = 0.0, 0, {}
        for micro in range(accumulate):
            where = f"train: step {step + 1}" + (f", micro-batch {micro + 1} of {accumulate}" if accumulate > 1 else "")
            batch = next(batches, None)
            if batch is None:
                raise ValueError(f"{where}: the batches ended after {step} of {steps} steps. "
                                 "Hint: Loader has no end; so has itertools.cycle")
            try:
                with scope:  # left before the caller's turn
                    loss = objective(model, batch, keys.fold("dropout", step, micro))
                    if not math.isfinite(loss.total.item()):
                        raise FloatingPointError(f"the loss is {loss.total.item()}")
                    if loss.count:
                        loss.total.backward()
            except FloatingPointError as error:
                raise FloatingPointError(f"{where}: {error}. {_HINT}") from None
            total, count = total + loss.total.item(), count + loss.count
            loss.add_to(metrics)
            del loss  # its tape would hold the activations through the optimizer's step
        if not count:
            raise ValueError(f"train: step {step + 1}: every target of its {accumulate} micro-batches is ignored, "
                             "there is nothing to learn from")
        norm = optimizer.grad_norm() / count
        if not math.isfinite(norm):
            raise FloatingPointError(f"train: step {step + 1}: the norm of the gradient is {norm}. {_HINT}")
        rate = lr(step)
        # The mean and the clipping are one factor, applied where the optimizer reads the gradient anyway.
        optimizer.step(rate, (min(1.0, clip / norm) if clip and norm else 1.0) / count)
        optimizer.zero_grad()
        if began > read_at + 0.1:  # the system takes 0.07 ms to tell
            memory, read_at = peak_rss_mb(), began
        seconds = time.perf_counter() - began
        yield Record(step + 1, total / count, rate, norm, count, seconds, count / seconds, memory, means(metrics))


_HINT = "The weights are those before this step. Hint: a lower lr or a longer warm-up; PYLLM_DEBUG=2 names the operation"


@dataclass(frozen=True)
class Evaluation:
    """loss: nats a target. perplexity: e^loss. bits_per_byte: comparable between tokenizers, None where the bytes are not known.

    tokens: targets the loss counted. metrics: the objective's own, per target.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int
    metrics: dict = field(default_factory=dict)


def evaluate(model, objective, batches, *, bytes_per_token=None):
    """Mean loss over batches, without dropout and without a tape -> Evaluation.

    bytes_per_token: of the text behind the tokens (shards.text_bytes / len(shards)), for bits per byte. ValueError where no target counts,
    FloatingPointError for a loss that is not finite.
    """
    total, count, metrics = 0.0, 0, {}
    with no_grad():
        for batch in batches:
            loss = objective(model, batch)
            total, count = total + loss.total.item(), count + loss.count
            loss.add_to(metrics)
    if not count:
        raise ValueError("evaluate: no target in any batch")
    loss = total / count
    if not math.isfinite(loss):
        raise FloatingPointError(f"evaluate: the loss is {loss}: training has diverged. "
                                 "Hint: a lower lr or a longer warm-up; PYLLM_DEBUG=2 names the operation")
    perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = loss / math.log(2) / bytes_per_token if bytes_per_token else None
    return Evaluation(loss, perplexity, bits, count, means(metrics))
