"""pyllm: the whole life of a language model on any CPU.

    model, tokenizer = pyllm.load("folder")
    print(pyllm.generate(model, tokenizer, "Once upon a time").text)

The names below are imported when they are first used.
"""
__version__ = "0.1.0"

_PUBLIC = {  # name -> where it lives: a module, or module:attribute
    "load": "pyllm.folders:load", "save": "pyllm.folders:save", "build": "pyllm.folders:build",
    "generate": "pyllm.generation:generate", "stream": "pyllm.generation:stream",
    "embed": "pyllm.embedding:embed", "train": "pyllm.training:train", "quantize": "pyllm.nn:quantize",
    "Tensor": "pyllm.autograd:Tensor", "no_grad": "pyllm.autograd:no_grad", "precision": "pyllm.autograd:precision",
    "check_vjp": "pyllm.autograd:check_vjp",
    "checkpoint": "pyllm.autograd:checkpoint", "Rng": "pyllm.autograd:Rng",
    "set_num_threads": "pyllm.kernels:set_num_threads",
    "ops": "pyllm.autograd.ops", "nn": "pyllm.nn", "models": "pyllm.models", "kernels": "pyllm.kernels", "data": "pyllm.data",
    "text": "pyllm.text", "generation": "pyllm.generation", "peft": "pyllm.peft",
    "objectives": "pyllm.objectives", "training": "pyllm.training", "evaluate": "pyllm.evaluate",
    "align": "pyllm.align",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pyllm' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    from importlib import import_module

    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(import_module(module), attribute) if attribute else import_module(module)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_PUBLIC})
