"""pyllm: the whole life of a language model on any CPU."""

__version__ = "0.1.0"
