"""tokenizer.json, the format of the `tokenizers` package: read_tokenizer(path) and what Tokenizer.save writes.

Read: model BPE, byte-level (pre-tokenizer ByteLevel, alone or after Digits or a Split whose expression is in split.PATTERNS) or of
single characters without merges; no normalizer; post-processor ByteLevel (it moves offsets only) or none. Everything else is a
FormatError that names the key.
"""
import json
import os
import warnings
from dataclasses import asdict, fields
from pathlib import Path

from ..errors import FormatError
from .base import ROLES, AddedToken
from .bpe import ByteLevelBPE
from .chars import CharTokenizer
from .split import DIGITS, GPT2, PATTERNS

LARGEST = 1 << 30  # bytes of a file


def read_tokenizer(path):
    """path: tokenizer.json or a folder that holds it (and perhaps tokenizer_config.json) -> ByteLevelBPE or CharTokenizer.

    FileNotFoundError if there is none, FormatError if it is broken or needs something that is not supported.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = path / "tokenizer.json"
    data = _json(path)
    config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    try:
        return _build(data, _roles(config), config)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _json(path):
    if path.stat().st_size > LARGEST:
        raise FormatError(f"{path}: {path.stat().st_size} bytes; a tokenizer file of more than {LARGEST} is not read")
    try:
        data = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8 or an endless number
        raise FormatError(f"{path}: not valid JSON in UTF-8: {str(error)[:200] or type(error).__name__}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: holds a {type(data).__name__}, expected an object")
    return data


def _roles(config):
    """tokenizer_config.json -> {"eos": content ...}; a token is a string or an object with `content`."""
    roles = {}
    for role in ROLES:
        token = config.get(f"{role}_token", roles)
        token = token.get("content", roles) if isinstance(token, dict) and token is not roles else token
        if token is None or isinstance(token, str):
            roles[role] = token
    return roles


def _short(value):
    large = isinstance(value, (dict, list)) and len(value) >= 10
    return f"a {type(value).__name__} of {len(value)}" if large else json.dumps(value)[:120]


def _get(data, where, key, kind, default=None):
    """data[key] of the given kind, or FormatError."""
    value = data.get(key, default)
    if not isinstance(value, kind):
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise FormatError(f"{where}{key} is {_short(value)}, expected {expected}")
    return value


def _build(data, roles, config):
    model = _get(data, "", "model", dict)
    problems = []

    def refuse(key, value, supported):
        problems.append(f"{key} is {_short(value)}; supported: {supported}")

    if model.get("type", "BPE") != "BPE":
        refuse("model.type", model["type"], "BPE")
    if data.get("normalizer") is not None:
        refuse("normalizer", data["normalizer"], "null")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            refuse(f"model.{key}", model[key], "null")
    splitting = _read_pre_tokenizer(data.get("pre_tokenizer"))
    if splitting is None:
        refuse("pre_tokenizer", data["pre_tokenizer"], "ByteLevel; Digits(individual_digits) or Split(a known expression, Isolated), "
               "then ByteLevel; null for single characters")
    if _kind(data.get("post_processor")) not in (None, "ByteLevel"):
        refuse("post_processor", data["post_processor"], "ByteLevel or null")
    decoder = "Fuse" if splitting == {} else "ByteLevel"
    if _kind(data.get("decoder")) not in (None, decoder):
        refuse("decoder", data["decoder"], f"{decoder} or null")
    if problems:
        raise FormatError("; ".join(problems))

    vocab, merges = _get(model, "model.", "vocab", dict), _get(model, "model.", "merges", list)
    merges = [_read_merge(i, merge) for i, merge in enumerate(merges) if not (isinstance(merge, str) and merge.startswith("#version"))]
    added = [_read_added(i, token) for i, token in enumerate(_get(data, "", "added_tokens", (list, type(None))) or [])]
    contents = {token.content for token in added}
    roles = {role: content for role, content in roles.items() if content is None or content in vocab or content in contents}
    for key in ("truncation", "padding"):
        if data.get(key) is not None:
            warnings.warn(f"tokenizer.json sets {key}; it is not applied: lengths are the caller's business", stacklevel=4)
    try:
        if splitting == {}:
            if merges or model.get("unk_token") is not None:
                raise FormatError(f"model has {len(merges)} merges and unk_token {_short(model.get('unk_token'))} without a pre_tokenizer; "
                                  "supported: ByteLevel, or single characters without merges and unk_token")
            return CharTokenizer(vocab, added, roles=roles, config=config)
        whole = _get(model, "model.", "ignore_merges", bool, False)
        return ByteLevelBPE(vocab, merges, added, ignore_merges=whole, roles=roles, config=config, **splitting)
    except UnicodeEncodeError as error:
        raise FormatError(f"a token holds a lone surrogate: {error}") from None


def _kind(part):
    return part.get("type") if isinstance(part, dict) else part


def _read_pre_tokenizer(part):
    """-> arguments of ByteLevelBPE, {} for no pre-tokenizer, None if it is not supported."""
    if part is None:
        return {}
    steps = part.get("pretokenizers") if _kind(part) == "Sequence" else [part]
    if not isinstance(steps, list) or not 1 <= len(steps) <= 2 or _kind(steps[-1]) != "ByteLevel":
        return None
    prefix_space, use_regex = steps[-1].get("add_prefix_space", True), steps[-1].get("use_regex", True)
    pattern = GPT2 if use_regex else None
    if len(steps) == 2:
        if prefix_space:  # it would put a space before every piece of the first step
            return None
        if _kind(steps[0]) == "Digits" and steps[0].get("individual_digits") is True and use_regex:
            pattern = DIGITS
        elif _kind(steps[0]) == "Split" and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert") and not use_regex:
            expression = steps[0].get("pattern")
            pattern = expression.get("Regex") if isinstance(expression, dict) else None
            if pattern not in PATTERNS or pattern == DIGITS:
                return None
        else:
            return None
    return {"pattern": pattern, "add_prefix_space": bool(prefix_space)}


def _read_merge(i, merge):
    """"a b" or ["a", "b"] -> (a, b)."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise FormatError(f"model.merges[{i}] is {_short(merge)}, expected \"a b\" or [\"a\", \"b\"]")
    return tuple(parts)


def _read_added(i, token):
    if not isinstance(token, dict):
        raise FormatError(f"added_tokens[{i}] is {_short(token)}, expected an object")
    where = f"added_tokens[{i}]."
    flags = {field.name: _get(token, where, field.name, bool, False) for field in fields(AddedToken) if field.type is bool}
    return AddedToken(_get(token, where, "id", int), _get(token, where, "content", str), **flags)


def write_tokenizer(tokenizer, path):
    """tokenizer -> path, a .json file, or a folder with tokenizer.json and tokenizer_config.json.

    What was there stays until the new file is complete.
    """
    path = Path(path)
    data = _as_json(tokenizer)
    if path.suffix == ".json":
        _write(path, data)
        return
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "tokenizer.json", data)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokenizer.config}
    for role in ROLES:
        i = getattr(tokenizer, f"{role}_id")
        config[f"{role}_token"] = None if i is None else tokenizer.token(i)
    _write(path / "tokenizer_config.json", config)


def _write(path, data):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, **({"separators": (",", ":")} if "model" in data else {"indent": 2}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_json(tokenizer):
    chars = isinstance(tokenizer, CharTokenizer)
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": not chars and tokenizer.ignore_merges,
             "vocab": dict(sorted(tokenizer.vocab.items(), key=lambda item: item[1])),
             "merges": [] if chars else [list(merge) for merge in tokenizer.merges]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [asdict(token) for token in tokenizer.added],
            "normalizer": None, "pre_tokenizer": None if chars else _write_pre_tokenizer(tokenizer), "post_processor": None,
            "decoder": {"type": "Fuse"} if chars else _byte_level(True, True), "model": model}


def _byte_level(prefix_space, use_regex):
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True, "use_regex": use_regex}


def _write_pre_tokenizer(tokenizer):
    if tokenizer.pattern in (GPT2, None):
        return _byte_level(tokenizer.add_prefix_space, tokenizer.pattern is not None)
    if tokenizer.pattern == DIGITS:
        first = {"type": "Digits", "individual_digits": True}
    else:
        first = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(False, tokenizer.pattern == DIGITS)]}
