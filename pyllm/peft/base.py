"""Adapters, which stand in a model in place of a layer, and what puts them there, switches them and takes them out."""
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from pyllm import kernels as K
from pyllm.autograd import Rng, Tensor, ops
from pyllm.errors import ConfigError, suggest
from pyllm.models.heads import Head
from pyllm.nn import Embedding, Layer, LayerNorm, Linear, OffsetRMSNorm, RMSNorm

NORMS = (LayerNorm, RMSNorm, OffsetRMSNorm)
ANY = (Linear, Embedding, *NORMS)


class Adapter(Layer):
    """What stands at `site`, a path of a model, in place of `base_layer`: the layer that was there, or a further adapter.

    KEYS: attribute of each parameter -> its name in PEFT's files, below the site. TRANSPOSED: those that lie there transposed. DEPTH:
    adapters of a smaller one stand below: 0 computes in place of its base layer, 1 changes a layer, 2 takes what a layer gives. MERGES:
    `effective` says what it does in weights. TIED: of an embedding it adapts the tied head too.
    """

    adapter = True
    KEYS, TRANSPOSED, DEPTH, MERGES, TIED = {}, (), 1, True, False

    def __init__(self, base_layer, site):
        self.base_layer, self.site = base_layer, site
        self.name, self.method, self.active = "default", None, False

    def own(self):
        """-> {name in PEFT's files, below the site: Tensor} of what it brings along."""
        return {key: vars(self)[attribute] for attribute, key in self.KEYS.items() if vars(self)[attribute] is not None}

    def adapted(self, *args, **options):
        """What the layer gives while the adapter is active."""
        raise NotImplementedError

    def __call__(self, *args, **options):
        return self.adapted(*args, **options) if self.active else self.base_layer(*args, **options)

    def onto(self, x, residual, p=0.0, rng=None):
        if not self.active:
            return self.base_layer.onto(x, residual, p, rng)
        return self(x, residual=residual) if rng is None or p == 0 else super().onto(x, residual, p, rng)

    def plain(self):
        return self if self.active else self.base_layer.plain()

    @property
    def bottom(self):
        """The layer below all adapters of this site."""
        return self.base_layer.bottom if isinstance(self.base_layer, Adapter) else self.base_layer

    def change(self, weight, bias):
        """weight, bias: Tensors (or None) that the base layer computes with -> those that adapter and base layer compute with together."""
        raise NotImplementedError

    def effective(self):
        """-> the Tensors weight and bias (or None) of one layer that computes the same."""
        weight, bias = _tensors(self.base_layer)
        return self.change(_floats(weight), bias) if self.active else (weight, bias)

    weight = property(lambda self: self.effective()[0])
    bias = property(lambda self: self.effective()[1])


class LinearAdapter(Adapter):
    """In place of a Linear; `adapted` need not know activations."""

    def __call__(self, x, activation=None, residual=None):
        if not self.active:
            return self.base_layer(x, activation=activation, residual=residual)
        if activation is None:
            return self.adapted(x, residual)
        y = ops.activation(self.adapted(x, None), kind=activation)
        return y if residual is None else y + residual


def _tensors(layer):
    return layer.effective() if isinstance(layer, Adapter) else (layer.weight, vars(layer).get("bias"))


def _floats(weight):
    return Tensor(weight.dequantize()) if isinstance(weight, K.Packed) else weight


class Method:
    """A frozen dataclass of settings. NAME: in METHODS; PEFT: its peft_type, None where PEFT has no such method; LAYERS: what it adapts.

    EXACT: at the start the model computes the same bits as without it. TARGETS: model_type -> the layers adapted by default.
    RATE: a learning rate to begin with, larger than that of all weights.
    """

    NAME, PEFT, LAYERS, EXACT, TARGETS, RATE = "", None, (Linear,), True, {}, 1e-3

    def adapter(self, layer, site, rng):
        """-> the Adapter for a layer, its parameters drawn from rng; ValueError says what does not fit."""
        raise NotImplementedError

    def default_targets(self, model):
        """-> endings of paths, or an expression; ConfigError where the family has no default."""
        kind = model.config.model_type
        if kind not in self.TARGETS:
            raise ConfigError(f"inject: {self.NAME} has no default targets for {kind}. Hint: targets=[...], endings of "
                              f"{', '.join(_endings(candidates(model, self.LAYERS)))}")
        return self.TARGETS[kind]

    def rates(self):
        """-> {pattern of parameters' paths: factor of the learning rate}, for AdamW(rates=...)."""
        return {}

    def to_peft(self, model, placed):
        """placed: the method's Adapters in the model -> the keys of adapter_config.json that are its own."""
        raise NotImplementedError

    @classmethod
    def from_peft(cls, config, where):
        """config: what adapter_config.json holds -> the method; FormatError for what is not computed here."""
        raise NotImplementedError

    def to_files(self, tensors, adapters):
        """tensors: {name: array} of its Adapters by site -> those of the file, where they are not the same."""
        return tensors

    def from_files(self, tensors, placed):
        """The other way round."""
        return tensors

    def place(self, model, targets, rng):
        """-> the Adapters for a model, nothing put in yet; all that does not fit is one ValueError."""
        placed, wrong = [], []
        for site, layer in matching(model, targets, self.LAYERS, self).items():
            try:
                placed.append(self.adapter(layer, site, rng.fold(site)))
            except ValueError as error:
                wrong.append(f"{site}: {error}")
        if wrong:
            raise ValueError(f"inject: {self.NAME}: " + "\n  ".join(wrong))
        return placed


# ---- targets ----------------------------------------------------------------------------------------------------------


def layers(model):
    """-> {path: the layer below all adapters} of the model's Layers; a tied head has none of its own."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Layer) and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = module.bottom if isinstance(module, Adapter) else module
    return {path: layer for path, layer in found.items() if layer is not None}


def candidates(model, kinds):
    """-> {path: layer} that a method for these kinds of layers can adapt; a tied head counts as a Linear."""
    found = {path: layer for path, layer in layers(model).items() if type(layer) in kinds}
    if Linear in kinds and _tied(model):
        found[model.HEAD] = _tied_head(model)
    return found


def matching(model, targets, kinds, method):
    """-> {path: layer} of the candidates that targets name; ConfigError lists the candidates where a target names none.

    targets: None for the method's own, an expression that a whole path matches, "all-linear" for every Linear but the head, or a list of
    whole paths or of their endings.
    """
    known = candidates(model, kinds)
    targets = method.default_targets(model) if targets is None else targets
    if targets == "all-linear":
        return {path: layer for path, layer in known.items() if type(layer) is Linear and path not in (model.HEAD, *score_layers(model))}
    if isinstance(targets, str):
        found, missed = [p for p in known if re.fullmatch(targets, p)], [targets]
    else:
        found = [p for p in known if any(_ends(p, t) for t in targets)]
        missed = [t for t in targets if not any(_ends(p, t) for p in known)]
    if not found or missed and not isinstance(targets, str):
        names = _endings(known)
        raise ConfigError(f"inject: {method.NAME}: targets={', '.join(map(repr, missed))} names no layer that it adapts."
                          f"{suggest(missed[0], names) if missed else ''} There are: {', '.join(names)}")
    return {path: known[path] for path in found}


def _ends(path, target):
    return path == target or path.endswith(f".{target}")


def _endings(paths):
    """-> the different endings of paths behind the number of their layer, in order."""
    return list(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", path) for path in paths))


def condensed(sites, model, kinds):
    """-> the shortest endings that name exactly these sites among what the model has, or the sites themselves."""
    known = candidates(model, kinds)
    for parts in (1, 2, 3):
        endings = list(dict.fromkeys(".".join(site.split(".")[-parts:]) for site in sites))
        if {p for p in known if any(_ends(p, e) for e in endings)} == set(sites):
            return endings
    return list(sites)


def score_layers(model):
    """-> [path] of a classifier's new layer, or of the two that it is made of, [] in other models."""
    new = [(path, m) for path, m in model.children() if isinstance(model, Head) and m is model.score_layer]
    return [place for path, m in new for place in ([path] if isinstance(m, Layer) else [f"{path}.{name}" for name, _ in m.children()])]


def _tied(model):
    return model.HEAD is not None and model.get(model.HEAD) is None


def _tied_head(model):
    """-> a layer that holds the tied head's weights."""
    head = Linear(1, 1, False)
    head.weight = model.head_weight()
    return head


# ---- putting in and taking out ----------------------------------------------------------------------------------------


def inject(model, method, targets=None, seed=0, name="default", modules_to_save=None):
    """Puts the adapter `name` into the model, freezes everything else, makes it the only active one -> model.

        peft.inject(model, peft.LoRA(rank=8), targets=["q_proj", "v_proj"], seed=0)

    method: one of METHODS with its settings. targets: see `matching`; None for the family's own. seed: of the new weights, which depend
    on it and their place alone. modules_to_save: endings of layers that are trained whole and kept with the adapter; None: the new layer
    of a classifier. Raises ConfigError or ValueError for names, targets and settings that do not fit; the model is then as it was.
    """
    from pyllm.peft.own import saved_layers  # it is made of what stands above

    check_free(model, name, "inject")
    placed = method.place(model, targets, Rng(seed).fold("peft"))
    if modules_to_save is None:
        modules_to_save = score_layers(model)
    saved = saved_layers(model, modules_to_save, method)
    if both := {a.site for a in saved} & {a.site for a in placed}:
        raise ConfigError(f"inject: {', '.join(sorted(both))}: a target and one of modules_to_save; expected one of both")
    put(model, placed + saved, method, name)
    return model


def check_free(model, name, what):
    """ConfigError or ValueError unless an adapter of that name can be put in."""
    check_at_hand(model, what)
    there = names(model)
    if not re.fullmatch(r"\w[\w.-]*", name) or name in there:
        raise ConfigError(f"{what}: name={name!r}; expected letters, digits, '_', '-' and '.', no path"
                          + (f", and none of {', '.join(there)}, which are there" if there else ""))


def put(model, placed, method, name):
    """placed: Adapters of one method -> into the model as its active adapter `name`."""
    if not names(model):
        for p in model.parameters():
            p.requires_grad = False
    ends = {model.HEAD, *(path for path, m in layers(model).items() if m.weight is model.head_weight())} if _tied(model) else set()
    if ends & {a.site for a in placed if not a.TIED}:
        model.set(model.HEAD, _tied_head(model))  # what adapts the one of the two layers leaves the other one as it is
    for adapter in placed:
        adapter.name, adapter.method = name, method
        above, below = None, model.get(adapter.site)
        while isinstance(below, Adapter) and below.DEPTH > adapter.DEPTH:
            above, below = below, below.base_layer
        adapter.base_layer = below
        if above is None:
            model.set(adapter.site, adapter)
        else:
            above.base_layer = adapter
    activate(model, name)


def adapters(model, name=None):
    """-> the Adapters in the model's tree, in its order: of one name, or all."""
    return [m for _, m in model.named_modules() if isinstance(m, Adapter) and name in (None, m.name)]


def names(model):
    """-> the names of the model's adapters, merged ones too, in the order of the tree."""
    found = adapters(model) if model.merged is None else [a for top in model.merged.tops.values() for a in _chain(top)]
    return list(dict.fromkeys(a.name for a in found))


def _chain(top):
    while isinstance(top, Adapter):
        yield top
        top = top.base_layer


def _known(model, name, what):
    if name not in names(model):
        there = names(model)
        raise ConfigError(f"{what}: no adapter {name!r}.{suggest(name, there)} There are: {', '.join(there) or 'none'}")
    check_at_hand(model, what)


def check_at_hand(model, what):
    """ValueError where adapters are merged, or each in force in some rows alone."""
    if model.merged is not None:
        raise ValueError(f"{what}: the model's adapters are merged. Hint: pyllm.peft.unmerge(model) first")
    if model.by_row:
        raise ValueError(f"{what}: rows have adapters of their own here. Hint: outside of pyllm.peft.rows")


def activate(model, *chosen):
    """These adapters are in force and trained, the others wait; several are stacked. ConfigError for a name that is not there."""
    for name in chosen:
        _known(model, name, "activate")
    replaced = Counter(a.site for a in adapters(model) if a.DEPTH == 0 and a.name in chosen)
    if twice := [site for site, n in replaced.items() if n > 1]:
        raise ConfigError(f"activate: {', '.join(chosen)}: more than one of them replaces {', '.join(twice)}; expected one")
    for adapter in adapters(model):
        adapter.active = adapter.name in chosen
        for p in adapter.own().values():
            p.requires_grad = adapter.active
    return model


def remove(model, name):
    """Takes an adapter out of the model for good; the others stay as they are, a base without adapters stays frozen."""
    _known(model, name, "remove")
    for site in dict.fromkeys(a.site for a in adapters(model, name)):
        chain = list(_chain(model.get(site)))
        kept = [a for a in chain if a.name != name]
        for above, below in zip(kept, [*kept[1:], chain[-1].base_layer]):
            above.base_layer = below
        model.set(site, kept[0] if kept else chain[-1].base_layer)
    if not names(model) and model.HEAD and model.config.tie_word_embeddings:
        model.set(model.HEAD, None)
    return model


@contextmanager
def disabled(model):
    """with disabled(model): it computes what it did before any adapter."""
    check_at_hand(model, "disabled")
    active = [a for a in adapters(model) if a.active]
    try:
        for adapter in active:
            adapter.active = False
        yield model
    finally:
        for adapter in active:
            adapter.active = True


@dataclass(frozen=True)
class Report:
    """trainable, total: how many numbers a step trains, and there are, packed ones too. adapters: {name: (method, numbers, active)}."""

    trainable: int
    total: int
    adapters: dict = field(default_factory=dict)

    share = property(lambda self: self.trainable / self.total if self.total else 0.0)

    def __str__(self):
        lines = [f"trainable {self.trainable:,} of {self.total:,} parameters ({100 * self.share:.3g} %)"]
        return "\n".join(lines + [f"  {name}: {method}, {count:,} parameters{'' if active else ', not active'}"
                                  for name, (method, count, active) in self.adapters.items()])


def rates(model):
    """-> {pattern of parameters' paths: factor of the learning rate} that the active adapters ask for: AdamW(model, rates=rates(model))."""
    return {pattern: factor for a in adapters(model) if a.active for pattern, factor in a.method.rates().items()}


def report(model):
    """-> a Report; print it."""
    parameters, listed = model.parameters(), {}
    for name in names(model) if model.merged is None else ():
        found = adapters(model, name)
        own = {id(p): p.size for a in found for p in a.own().values()}
        listed[name] = found[0].method.NAME, sum(own.values()), any(a.active for a in found)
    total = sum(p.size for p in parameters) + sum(p.shape[0] * p.shape[1] for _, p in model.named_packed())
    return Report(sum(p.size for p in parameters if p.requires_grad), total, listed)
