"""Module: a tree of parameters whose paths are the names in the checkpoint."""
import numpy as np

from pyllm import kernels as K
from pyllm.autograd import Rng, Tensor


class Module:
    """Attributes that are Tensors are parameters, those that are Packed frozen weights; Modules, or lists of them, are children.

    A path joins attribute names and list indices with dots: `transformer.h.0.attn.c_attn.weight`.
    merged: what pyllm.peft.merge took out of the tree, and unmerge puts back. by_row: within pyllm.peft.rows, by_row(numbers) is a scope in
    which row i of a batch is computed as row numbers[i] is.
    """

    merged = by_row = None

    def children(self):
        """-> (name, Module) of the direct children, in order of definition."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix=""):
        """-> (path, Module) of this one and all below."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self):
        """-> (path, Tensor), a tied one once, under its first path."""
        return self._named(Tensor)

    def named_packed(self):
        """-> (path, Packed), a tied one once: frozen weights, which are no parameters: no optimizer moves them, no state() holds them."""
        return self._named(K.Packed)

    def _named(self, kind):
        seen = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def parameters(self):
        """-> the Tensors of named_parameters."""
        return [p for _, p in self.named_parameters()]

    def num_parameters(self):
        """-> how many numbers the parameters hold, tied ones counted once."""
        return sum(p.size for p in self.parameters())

    def get(self, path):
        """The Module, Tensor or Packed at `path`; KeyError names what is there instead."""
        found = self
        for i, part in enumerate(path.split(".") if path else ()):
            inside = vars(found) if isinstance(found, Module) else {}
            if isinstance(found, list):
                inside = {str(n): item for n, item in enumerate(found)}
            if part not in inside:
                here = ".".join(path.split(".")[:i]) or "the model"
                raise KeyError(f"{type(self).__name__}.get: no {path!r}: {here} has {', '.join(inside) or 'nothing below'}")
            found = inside[part]
        return found

    def set(self, path, value):
        """Puts a Module, Tensor or Packed at `path`, which must exist."""
        self.get(path)
        parent, _, name = path.rpartition(".")
        owner = self.get(parent)
        if isinstance(owner, list):
            owner[int(name)] = value
        else:
            setattr(owner, name, value)

    def state(self):
        """-> {path: array}, the arrays themselves."""
        return {path: p.data for path, p in self.named_parameters()}

    def load(self, state):
        """Copies {path: array} into the parameters; every name and shape must fit, and all that do not are named at once."""
        own = dict(self.named_parameters())
        wrong = [f"missing: {n} {p.shape}" for n, p in own.items() if n not in state]
        wrong += [f"unexpected: {n} {np.shape(a)}" for n, a in state.items() if n not in own]
        wrong += [f"{n}: shape {np.shape(state[n])}, expected {p.shape}" for n, p in own.items()
                  if n in state and np.shape(state[n]) != p.shape]
        if wrong:
            raise ValueError(f"{type(self).__name__}.load: {len(wrong)} mismatches:\n  " + "\n  ".join(wrong))
        for name, p in own.items():
            p.data = K.empty(p.shape, p.dtype)
            p.data[...] = state[name]

    def initialize(self, seed):
        """Draws every parameter anew; a parameter's values depend on the seed and its path alone."""
        for path, module in self.named_modules():
            module.reset(Rng(seed).fold("init", path))
        return self

    def reset(self, rng):
        """Draws this module's own parameters (not its children's); modules with parameters define it."""


def parameter(*shape):
    """A trainable Tensor of zeros."""
    return Tensor(np.zeros(shape, np.float32), requires_grad=True)


def normal(tensor, rng, std):
    """Fills a parameter from N(0, std^2)."""
    tensor.data = K.empty(tensor.shape)
    rng.generator().standard_normal(dtype=np.float32, out=tensor.data)
    tensor.data *= np.float32(std)
