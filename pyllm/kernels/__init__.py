"""The kernels as plain functions over arrays, from the C++ tables or from the NumPy reference.

`available()` names what runs here, `use(name)` chooses; every function of reference.py is an attribute of this module.
float64 arrays always go to the reference: gradient checks run there.
"""
from pyllm import env
from pyllm.kernels import reference
from pyllm.kernels.packed import Packed

_HELPERS = ("bf16", "erf", "attention_mask", "in_precision_of", "kept", "Packed")
KERNELS = tuple(name for name, f in vars(reference).items() if callable(f) and not name.startswith("_") and name not in _HELPERS)


def available():
    """-> names of what can run here, the best first: ISA tables such as 'avx512', and 'reference'."""
    return [*(_C.isas() if _C else ()), "reference"]


def active():
    """-> the name in use."""
    return _active


class use:
    """Chooses by name: use("avx2") for good, `with use("reference"):` for a while. ValueError names what is available."""

    def __init__(self, name):
        self.before = _active
        _choose(name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _choose(self.before)


def set_num_threads(n):
    """Threads a kernel may use, n >= 1; more than the CPUs at hand only costs time. Results do not depend on it."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n={n!r}; expected a whole number of at least 1")
    if _C:
        _C.set_threads(min(n, 512))


def num_threads():
    """-> threads a kernel may use: at first min(CPUs of this process, cgroup quota, PYLLM_THREADS)."""
    return _C.threads() if _C else 1


def _choose(name):
    global _active
    if name not in available():
        raise ValueError(f"kernels.use: {name!r} is not available on this CPU; available: {', '.join(available())}")
    if name != "reference":
        _C.use(name)
    source = reference if name == "reference" else native
    kernels = {kernel: getattr(source, kernel) for kernel in KERNELS}
    if env.debug() == 1:
        from pyllm.kernels import profile

        kernels = {kernel: f if kernel == "empty" else profile.watched(f) for kernel, f in kernels.items()}
    globals().update(kernels)
    _active = name


def _load():
    from pyllm import extension

    module = extension.load("pyllm._C")
    if module is None:
        import warnings

        warnings.warn("pyllm: the compiled kernels are missing, so the NumPy reference runs: right, but many times slower. "
                      "Hint: install a C++ compiler (on Debian: apt install g++ python3-dev) and run pip install again.", RuntimeWarning,
                      stacklevel=4)
    return module


_active = None
_C = _load()
if _C:
    from pyllm.kernels import native

    if env.isa() not in (None, *available()):
        raise ImportError(f"PYLLM_ISA={env.isa()!r} is not available on this CPU; available: {', '.join(available())}")
    set_num_threads(min(_C.default_threads(), env.threads() or 512))
_choose(env.isa() or available()[0])
