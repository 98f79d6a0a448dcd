"""Adapters of one batch: each row its own; and an adapter exchanged for another while the model is in use."""
from contextlib import contextmanager

import numpy as np

from pyllm.peft.base import _known, activate, adapters, check_at_hand, check_free, names, remove
from pyllm.peft.lora import LoRAEmbedding, LoRALinear


@contextmanager
def rows(model, chosen):
    """with rows(model, ["one", None, "two"]): row i of a batch of so many is computed with the LoRA chosen[i], or with none.

        with peft.rows(model, ["one", None, "two"]):
            pyllm.generate(model, tokenizer, three_prompts)

    The base's products are made once for all rows; each row has the bits that its adapter alone gives it. In generate row i is prompt i
    and what continues it. ValueError: an adapter that is no plain LoRA; a batch of another number of rows.
    """
    used = [name for name in dict.fromkeys(chosen) if name is not None]
    for name in used:
        _known(model, name, "rows")
    check_at_hand(model, "rows")
    if not chosen:
        raise ValueError("rows: no rows; expected the name of an adapter, or None, for each row of a batch")
    before = {a: a.active for a in adapters(model)}
    parts = [a for a in before if a.name in used]
    if odd := [a for a in parts if type(a) not in (LoRALinear, LoRAEmbedding) or a.method.dora or a.method.init == "pissa"]:
        raise ValueError(f"rows: {odd[0].name} at {odd[0].site}: {odd[0].method.NAME}; expected LoRAs without dora and pissa, and no "
                         "layers that are trained whole")
    try:
        for a in before:
            a.active = a in parts
        model.by_row = _ByRow(parts, chosen)
        yield model
    finally:
        model.by_row = None
        for a, active in before.items():
            a.active = active
        for a in parts:
            a.rows = None


class _ByRow:
    """Which rows of a batch an adapter works in. parts: the Adapters; chosen: of each row the name of its own."""

    def __init__(self, parts, chosen):
        self.parts, self.chosen = parts, np.array(chosen, object)
        self._place(slice(None))

    def __len__(self):
        return len(self.chosen)

    @contextmanager
    def __call__(self, numbers):
        """numbers:(B,) -> a scope in which row i of a batch is computed as row numbers[i] of `chosen`."""
        try:
            self._place(numbers)
            yield
        finally:
            self._place(slice(None))

    def _place(self, numbers):
        for a in self.parts:
            a.rows = (self.chosen[numbers] == a.name).astype(np.float32).reshape(-1, 1, 1)


def swap(model, name, folder):
    """Puts the adapter of a folder in the place of `name`, in force or not as that one was -> model. An error leaves it as it is."""
    from pyllm.peft.folder import load

    _known(model, name, "swap")
    active = [n for n in names(model) if any(a.active for a in adapters(model, n))]
    waiting = f"{name}.new"
    check_free(model, waiting, "swap")
    try:
        load(model, folder, waiting)
    finally:
        if waiting not in names(model):
            activate(model, *active)
    remove(model, name)
    for adapter in adapters(model, waiting):
        adapter.name = name
    return activate(model, *active)
