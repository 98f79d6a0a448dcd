"""The errors a caller may want to catch. Each is a ValueError whose text names what came, what was expected and a hint."""


class FormatError(ValueError):
    """A file (checkpoint, tokenizer, data) is not what its format says."""


class ConfigError(ValueError):
    """A configuration value is unknown, out of range or contradicts another."""


def suggest(name, known):
    """' Did you mean ...?' for the nearest of `known`, or ''."""
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
