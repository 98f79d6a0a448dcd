"""AdaLoRA: each layer's change as an SVD, whose triplets are given where they matter most (Zhang et al. 2023). As PEFT has it.

    peft.inject(model, peft.AdaLoRA(init_r=12, target_r=8), seed=0)
    optimizer = peft.allocate(model, AdamW(model), steps)        # ranks the triplets after each step
    train(model, peft.orthogonal(clm), batches, optimizer, ...)  # adds what keeps the singular vectors orthogonal

Both are what they are given where no AdaLoRA is active.
"""
from dataclasses import dataclass, field, replace

import numpy as np

from pyllm.autograd import Tensor, ops
from pyllm.errors import ConfigError, FormatError
from pyllm.peft.base import LinearAdapter, Method, adapters, condensed
from pyllm.peft.folder import PREFIX, unknown_keys
from pyllm.peft.lora import _FIXED, _TRAINING, QV, _key


@dataclass(frozen=True)
class AdaLoRA(Method):
    """W x + scale * B (E * (A x)), A:(R, I) E:(R,) B:(O, R), R = init_r, scale = alpha / (init_r + 1e-5); E zeros, A, B of deviation 0.02.

    target_r: triplets that stay at the end, a layer on average. Up to step tinit all stay; then their number falls with the cube of the
    time left to step total_step - tfinal, every deltaT steps all are ranked anew and the E of the least important ones becomes 0; from
    then on it stays so. beta1, beta2: decay of the sensitivity |w * g| and of its uncertainty, a step. orth_reg_weight: nats for each unit
    of ||A A' - 1|| and ||B' B - 1||, Frobenius, on average. dropout: of x on its way into A. total_step: 0 for the training's own.
    rank_pattern: {site.lora_E: which of its triplets stay}, [bool], as adapter_config.json has it.
    """

    init_r: int = 12
    target_r: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int = 0
    rank_pattern: dict = field(default_factory=dict)

    NAME, PEFT, TARGETS = "adalora", "ADALORA", {**QV, "t5": "all-linear", "bart": "all-linear"}

    def __post_init__(self):
        least = {"init_r": 1, "target_r": 1, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 0}
        wrong = [f"{name}={getattr(self, name)!r}, expected a whole number of at least {low}" for name, low in least.items()
                 if type(getattr(self, name)) is not int or getattr(self, name) < low]
        wrong += [f"{name}={b}, expected 0 < {name} < 1" for name, b in (("beta1", self.beta1), ("beta2", self.beta2)) if not 0 < b < 1]
        if self.alpha <= 0 or self.orth_reg_weight < 0 or not 0 <= self.dropout < 1:
            wrong.append(f"alpha={self.alpha}, orth_reg_weight={self.orth_reg_weight}, dropout={self.dropout}, expected alpha above 0, "
                         "orth_reg_weight of at least 0, 0 <= dropout < 1")
        if not wrong and self.target_r > self.init_r:
            wrong.append(f"target_r={self.target_r}, expected at most init_r, {self.init_r}")
        if wrong:
            raise ConfigError("AdaLoRA: " + "; ".join(wrong))

    def budget(self, step, layers):
        """-> how many triplets of so many layers stay after a step, of those from tinit to total_step - tfinal (eq. 12)."""
        left = 1 - (step - self.tinit) / (self.total_step - self.tfinal - self.tinit)
        return int((self.init_r - self.target_r) * layers * left**3 + self.target_r * layers)

    def place(self, model, targets, rng):
        placed = super().place(model, targets, rng)
        patterns = {name.partition(".lora_E")[0]: pattern for name, pattern in self.rank_pattern.items()}
        for a in placed:
            pattern = patterns.pop(a.site, a.kept)
            if len(pattern) != self.init_r:
                raise ConfigError(f"AdaLoRA: rank_pattern: {a.site} has {len(pattern)} entries; expected init_r, {self.init_r}")
            a.kept[:] = pattern
        if patterns:
            raise ConfigError(f"AdaLoRA: rank_pattern: {', '.join(patterns)}: not among the layers that are adapted")
        return placed

    def adapter(self, layer, site, rng):
        if self.init_r > min(layer.weight.shape):
            raise ValueError(f"init_r {self.init_r} is above the smaller side of the weight {layer.weight.shape}")
        return SVDLinear(layer, site, self, rng)

    def to_peft(self, model, placed):
        turned = any(f"{a.site}.weight".endswith(model.TRANSPOSED) for a in placed)
        pattern = {} if all(a.used().all() for a in placed) else {f"{a.site}.lora_E": a.used().tolist() for a in placed}
        # PEFT opens no folder without total_step; it matters to training alone.
        return {"target_modules": condensed([a.site for a in placed], model, self.LAYERS), "fan_in_fan_out": turned, "bias": "none",
                "total_step": self.total_step or self.tinit + self.tfinal + 1, "rank_pattern": pattern or None,
                **{key: getattr(self, own) for own, key in _READ.items() if own not in ("total_step", "rank_pattern")}}

    @classmethod
    def from_peft(cls, config, where):
        known = (*_READ.values(), *_TRAINING, "r", "init_lora_weights", "use_rslora", "alpha_pattern", "lora_bias")  # PEFT's reads none
        unknown_keys(config, known, {**_FIXED, "bias": "none", "use_dora": False}, where)
        try:
            return cls(**{own: config[key] for own, key in _READ.items() if config.get(key) is not None})
        except ConfigError as error:
            raise FormatError(f"load: {where}: {error}") from None

    def to_files(self, tensors, adapters):
        """Without the triplets that do nothing."""
        cut = dict(tensors)
        for name, a, axis in _places(adapters):
            cut[name] = np.ascontiguousarray(np.compress(a.used(), tensors[name], axis))
        return cut

    def from_files(self, tensors, placed):
        """Triplets that are left out come back as zeros: what the layer computes has the same bits."""
        given = dict(tensors)
        for name, a, axis in _places(placed):
            if name in given and given[name].ndim == 2 and given[name].shape[axis] == a.kept.sum():
                given[name] = np.insert(given[name], np.flatnonzero(~a.kept) - np.arange((~a.kept).sum()), 0, axis)
        return given


_READ = {"alpha": "lora_alpha", "dropout": "lora_dropout", **{name: name for name in (
    "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "rank_pattern")}}


def _places(found):
    """-> (name in the file, adapter, axis of the triplets) of each matrix."""
    return [(f"{PREFIX}{a.site}.{key}", a, int(key == "lora_B")) for a in found if type(a) is SVDLinear for key in a.KEYS]


class SVDLinear(LinearAdapter):
    """lora_A:(R, I) lora_E:(R, 1) lora_B:(O, R). kept:(R,) bool, the triplets that the last allocation left."""

    KEYS = {"lora_A": "lora_A", "lora_E": "lora_E", "lora_B": "lora_B"}

    def __init__(self, layer, site, c, rng):
        super().__init__(layer, site)
        (outputs, inputs), draw = layer.weight.shape, rng.generator()
        self.scale, self.dropout, self.kept = c.alpha / (c.init_r + 1e-5), c.dropout, np.ones(c.init_r, bool)
        self.lora_A, self.lora_B = (Tensor(np.float32(0.02) * draw.standard_normal(shape, np.float32), requires_grad=True)
                                    for shape in ((c.init_r, inputs), (outputs, c.init_r)))
        self.lora_E = Tensor(np.zeros((c.init_r, 1), np.float32), requires_grad=True)

    def used(self):
        """-> (R,) bool: those kept, and those that have a value again: between allocations, or as an average over steps."""
        return self.kept | (self.lora_E.data[:, 0] != 0)

    def adapted(self, x, residual):
        inner = ops.linear(ops.dropout(x, self.dropout, _key(self.site)), self.lora_A) * (self.lora_E.reshape(-1) * self.scale)
        return self.base_layer(x, residual=ops.linear(inner, self.lora_B, None, residual))

    def change(self, weight, bias):
        return weight + ops.matmul(self.lora_B, self.lora_A * (self.lora_E * self.scale)), bias


# ---- what training adds ------------------------------------------------------------------------------------------------


def _active(model):
    """-> the SVDLinears that learn; ConfigError where they are of several adapters, whose budgets would mix."""
    found = [a for a in adapters(model) if type(a) is SVDLinear and a.active]
    if len(names := {a.name for a in found}) > 1:
        raise ConfigError(f"AdaLoRA: {', '.join(sorted(names))} are active; expected one to learn. Hint: pyllm.peft.activate(model, name)")
    return found


def orthogonal(objective):
    """-> objective, to whose loss a target orth_reg_weight times the mean of ||A A' - 1|| and ||B' B - 1|| is added (eq. 4).

    The metric `orthogonality` is that mean. A model without an active AdaLoRA has the objective's own loss.
    """
    def regularised(model, batch, rng=None, **options):
        loss, found = objective(model, batch, rng, **options), _active(model)
        if not found or not loss.count:
            return loss
        mean = sum(_off(a.lora_A) + _off(a.lora_B.transpose(1, 0)) for a in found) * (loss.count / (2 * len(found)))
        return replace(loss, total=loss.total + mean * found[0].method.orth_reg_weight,
                       metrics={**loss.metrics, "orthogonality": mean.item()})
    return regularised


def _off(vectors):
    """(R, C) -> scalar Tensor: how far the rows are from orthonormal; the addend keeps the root's gradient finite where they are."""
    off = ops.matmul(vectors, vectors.transpose(1, 0)) - np.eye(len(vectors.data), dtype=vectors.data.dtype)
    return ((off * off).sum() + 1e-12) ** 0.5


def allocate(model, optimizer, total_step):
    """-> Allocator around an optimizer, or where no AdaLoRA is active the optimizer itself. total_step: how many steps will be taken."""
    return Allocator(model, optimizer, total_step) if _active(model) else optimizer


class Allocator:
    """An optimizer around another one: after each step it follows how much each weight matters and hands out the ranks (algorithm 1).

    The number of the step is the optimizer's own `steps`. ConfigError: no step is left between tinit and total_step - tfinal.
    """

    def __init__(self, model, optimizer, total_step):
        self.optimizer, self.adapters = optimizer, _active(model)
        c = self.adapters[0].method
        self.method = replace(c, total_step=c.total_step or total_step)
        if self.method.total_step - c.tfinal < max(2, c.tinit + 1):
            raise ConfigError(f"AdaLoRA: total_step={self.method.total_step}, tinit={c.tinit}, tfinal={c.tfinal}: no steps to rank the "
                              "triplets in; expected total_step - tfinal above tinit and of at least 2")
        for a in adapters(model, self.adapters[0].name):
            a.method = self.method
        self.parameters = {f"{a.site}.{key}": p for a in self.adapters for key, p in a.own().items()}
        self.sensitivity, self.uncertainty = ({name: np.zeros_like(p.data) for name, p in self.parameters.items()} for _ in range(2))

    def grad_norm(self):
        return self.optimizer.grad_norm()

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self, lr, scale=1.0):
        """The optimizer's step, then the ranks'."""
        self.optimizer.step(lr, scale)
        c, step = self.method, self.optimizer.steps
        end = c.total_step - c.tfinal
        if step < end:
            self._observe(scale)
        due = step == end or c.tinit < step < end and step % c.deltaT == 0
        if due:
            self._rank(c.budget(step, len(self.adapters)))
        if due or step > end:
            for a in self.adapters:
                a.lora_E.data[~a.kept] = 0

    def _observe(self, scale):
        """The weights are those after the step, as PEFT has it (eq. 8 to 10)."""
        for name, p in self.parameters.items():
            if p.grad is None:
                continue
            smooth, unsure, now = self.sensitivity[name], self.uncertainty[name], np.abs(p.data * (p.grad * np.float32(scale)))
            smooth[...] = self.method.beta1 * smooth + (1 - self.method.beta1) * now
            unsure[...] = self.method.beta2 * unsure + (1 - self.method.beta2) * np.abs(now - smooth)

    def _rank(self, budget):
        """Keeps the most important triplets of all layers together; of equal ones those that come first."""
        scores = np.concatenate([self._scores(a) for a in self.adapters])
        kept = np.zeros(len(scores), bool)
        kept[np.argsort(-scores, kind="stable")[:budget]] = True
        for a, own in zip(self.adapters, np.split(kept, len(self.adapters))):
            a.kept[:] = own

    def _scores(self, a):
        """-> (R,): of a singular value, and the mean over each of its vectors (eq. 7)."""
        e, rows, columns = (self.sensitivity[n] * self.uncertainty[n] for n in (f"{a.site}.{k}" for k in ("lora_E", "lora_A", "lora_B")))
        return e[:, 0] + rows.mean(1) + columns.mean(0)

    def _own(self):
        return {**{f"sensitivity.{name}": s for name, s in self.sensitivity.items()},
                **{f"uncertainty.{name}": u for name, u in self.uncertainty.items()}, **{f"kept.{a.site}": a.kept for a in self.adapters}}

    def state(self):
        """-> {name: array}: the optimizer's, how much each weight matters, and the triplets that are kept."""
        return {**self.optimizer.state(), **self._own()}

    def load_state(self, tensors):
        """Takes what `state` gave; ValueError names what does not fit."""
        own = self._own()
        if wrong := [name for name, a in own.items() if name not in tensors or tensors[name].shape != a.shape]:
            raise ValueError(f"AdaLoRA: {len(wrong)} tensors of the ranks are missing or of another shape: {', '.join(wrong[:5])}")
        self.optimizer.load_state({name: a for name, a in tensors.items() if name not in own})
        for name, a in own.items():
            a[...] = tensors[name]
