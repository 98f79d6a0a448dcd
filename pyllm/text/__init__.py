"""Tokenizers: byte-level BPE and characters, both read from and written to tokenizer.json. NumPy only."""
_HOME = {"ByteLevelBPE": "bpe", "CharTokenizer": "chars", "AddedToken": "base", "Tokenizer": "base", "read_tokenizer": "tokenizer_json"}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return __all__
