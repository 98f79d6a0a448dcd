"""An exponential moving average of the weights (Polyak & Juditsky 1992), and when to stop."""
import contextlib

import numpy as np


class EMA:
    """average += (1 - d) * (weight - average) after each step, d = min(decay, (1 + n) / (10 + n)) after n updates.

    The young average forgets fast, so that the first random weights do not stay in it. ema.update() follows each step;
    `with ema.weights():` the model holds the average.
    """

    def __init__(self, model, decay):
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay={decay}; expected 0 < decay < 1, for example 0.999")
        self.decay, self.updates = decay, 0
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}  # a frozen one is its own average
        self.average = {name: p.data.copy() for name, p in self.parameters.items()}

    def update(self):
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, p in self.parameters.items():
            average = self.average[name]
            average += average.dtype.type(share) * (p.data - average)

    @contextlib.contextmanager
    def weights(self):
        """The model computes with the average inside the block, with its own weights again after it."""
        own = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = self.average[name]
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = own[name]

    def state(self):
        """-> {name: array}: the averages themselves and the number of updates."""
        return {"updates": np.array([self.updates], np.int64), **self.average}

    def load_state(self, tensors):
        """Takes what `state` gave; ValueError names all that does not fit."""
        own = self.state()
        wrong = sorted(own.keys() ^ tensors.keys()) or [n for n, a in own.items() if tensors[n].shape != a.shape]
        if wrong:
            raise ValueError(f"EMA.load_state: {len(wrong)} tensors are missing, unexpected or of another shape: {', '.join(wrong[:5])}")
        for name, a in own.items():
            a[...] = tensors[name]
        self.updates = int(tensors["updates"][0])


class EarlyStopping:
    """stop = stopping.update(step, loss): True once `patience` evaluations in a row brought no new best; 0 = never."""

    def __init__(self, patience=0):
        self.patience, self.best_loss, self.best_step, self.waited = patience, None, None, 0

    def update(self, step, loss):
        better = self.best_loss is None or loss < self.best_loss
        if better:
            self.best_loss, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        return 0 < self.patience <= self.waited

    def state(self):
        """-> a dict for JSON; `patience` is the caller's."""
        return {"best_loss": self.best_loss, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state):
        self.best_loss, self.best_step, self.waited = state["best_loss"], state["best_step"], state["waited"]
