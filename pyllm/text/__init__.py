"""Tokenizers of every kind, read from and written to tokenizer.json. NumPy only."""
_HOME = {"ByteLevelBPE": "bpe", "SentencePieceBPE": "sentencepiece", "Unigram": "unigram", "WordPiece": "wordpiece",
         "WordLevel": "wordpiece", "CharTokenizer": "chars", "AddedToken": "added", "Tokenizer": "base", "read_tokenizer": "tokenizer_json",
         "has_tokenizer": "tokenizer_json", "from_gguf": "gguf_vocab", "to_gguf": "gguf_vocab"}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return __all__
