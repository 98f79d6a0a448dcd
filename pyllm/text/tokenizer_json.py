"""tokenizer.json, the format of the `tokenizers` package: read_tokenizer(path), and build(data), through which every other format goes too.

Read: models BPE (byte-level, SentencePiece's, with </w>, of single characters), WordPiece, Unigram and WordLevel; normalizers,
pre-tokenizers, post-processors and decoders as the modules of those names list them. Everything else is a FormatError that names the key.
"""
import json
from dataclasses import fields
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from ..errors import FormatError
from .added import AddedToken
from .base import ROLES
from .bpe import ByteLevelBPE, read_pre_tokenizer
from .chars import CharTokenizer
from .pattern import short
from .sentencepiece import SentencePieceBPE
from .unigram import Unigram
from .wordpiece import WordLevel, WordPiece

LARGEST = 1 << 30  # bytes of a file
NAMES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "encoder.json", "vocab.txt")
MODELS = {"WordPiece": WordPiece, "Unigram": Unigram, "WordLevel": WordLevel}


def read_tokenizer(path):
    """path: tokenizer.json, a SentencePiece .model or a vocab.txt, or a folder that holds one (or vocab.json and merges.txt) and perhaps
    tokenizer_config.json -> a Tokenizer.

    FileNotFoundError if there is none, FormatError if it is broken or needs something that is not supported.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path / "tokenizer.json")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected tokenizer.json or a folder that holds it")
    config = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    config = with_templates(config, folder)
    try:
        if path.suffix == ".json" and path.name not in ("vocab.json", "encoder.json"):
            return build(read_object(path), read_roles(config), config)
        from .vocab_files import read_other

        return read_other(path, config)
    except FormatError as error:
        raise FormatError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def with_templates(config, folder):
    """config with the chat templates that newer folders keep in files of their own: chat_template.jinja, others in chat_templates/."""
    files = {"default": folder / "chat_template.jinja", **{p.stem: p for p in sorted(folder.glob("chat_templates/*.jinja"))}}
    texts = {}
    for name, path in files.items():
        if path.is_file():
            try:
                texts[name] = read_file(path).decode("utf-8")
            except UnicodeDecodeError as error:
                raise FormatError(f"{path}: not UTF-8: {error}") from None
    if not texts:
        return config
    return {**config, "chat_template": texts["default"] if texts.keys() == {"default"} else
            [{"name": name, "template": text} for name, text in texts.items()]}


def has_tokenizer(folder):
    """Whether a folder holds one of the files that read_tokenizer opens."""
    return any((Path(folder) / name).is_file() for name in NAMES)


def read_file(path):
    """-> bytes of a file that is not too large."""
    if path.stat().st_size > LARGEST:
        raise FormatError(f"{path}: {path.stat().st_size} bytes; a tokenizer file of more than {LARGEST} is not read")
    return path.read_bytes()


def read_object(path):
    """-> the object in a JSON file."""
    try:
        data = json.loads(read_file(path).decode("utf-8"))
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8 or an endless number
        raise FormatError(f"{path}: not valid JSON in UTF-8: {str(error)[:200] or type(error).__name__}") from None
    if not isinstance(data, dict):
        raise FormatError(f"{path}: holds a {type(data).__name__}, expected an object")
    return data


def read_roles(config):
    """tokenizer_config.json -> {"eos": content ...}; a token is a string or an object with `content`."""
    roles = {}
    for role in ROLES:
        token = config.get(f"{role}_token", roles)
        token = token.get("content", roles) if isinstance(token, dict) and token is not roles else token
        if token is None or isinstance(token, str):
            roles[role] = token
    return roles


def get(data, where, key, kind, default=None):
    """data[key] of the given kind, or FormatError."""
    value = data.get(key, default)
    if not isinstance(value, kind) or kind is int and isinstance(value, bool):
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise FormatError(f"{where}{key} is {short(value)}, expected {expected}")
    return value


def build(data, roles, config):
    """data: what tokenizer.json holds; roles, config: see Tokenizer -> the tokenizer."""
    try:
        return _build(data, roles, config)
    except UnicodeEncodeError as error:
        raise FormatError(f"a token holds a lone surrogate: {error}") from None
    except RecursionError:
        raise FormatError("normalizers or pre-tokenizers are nested too deep") from None


def _build(data, roles, config):
    model = get(data, "", "model", dict)
    kind = model.get("type", "BPE")
    if kind != "BPE" and (not isinstance(kind, str) or kind not in MODELS):
        raise FormatError(f"model.type is {short(kind)}; supported: BPE, {', '.join(MODELS)}")
    parts = {key: data.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")}
    added = [_read_added(i, token) for i, token in enumerate(get(data, "", "added_tokens", (list, type(None))) or [])]
    user = get(model, "model.", "user_defined", list, [])
    added = [token for token in added if token.id not in user]
    vocab = get(model, "model.", "vocab", list if kind == "Unigram" else dict)
    contents = {token.content for token in added}
    names = vocab if isinstance(vocab, dict) else {piece[0] for piece in vocab if isinstance(piece, list) and piece
                                                   and isinstance(piece[0], str)}
    roles = {role: content for role, content in roles.items() if content is None or content in names or content in contents}
    if kind == "BPE":
        return _bpe(model, added, roles, config, parts)
    return MODELS[kind].from_json(model, added, roles, config, parts, partial(get, model, "model."))


def _bpe(model, added, roles, config, parts):
    if model.get("dropout"):
        raise FormatError(f"model.dropout is {short(model['dropout'])}; supported: null")
    vocab, merges = model["vocab"], get(model, "model.", "merges", (list, np.ndarray))
    merges = _read_merges(merges) if isinstance(merges, list) else merges
    spec, decoder = parts["pre_tokenizer"], parts["decoder"]
    if _ends_in_bytes(spec):
        if (decoder["type"] if isinstance(decoder, dict) and "type" in decoder else decoder) not in (None, "ByteLevel"):
            raise FormatError(f"decoder is {short(decoder)}; supported behind the pre_tokenizer ByteLevel: ByteLevel or null")
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise FormatError(f"model.{key} is {short(model[key])}; supported behind the pre_tokenizer ByteLevel: null")
        whole = get(model, "model.", "ignore_merges", bool, False)
        return ByteLevelBPE(vocab, merges, added, ignore_merges=whole, roles=roles, config=config, parts=parts, **read_pre_tokenizer(spec))
    contents = {token.content for token in added}
    if (spec is None and parts["normalizer"] is None and not merges and model.get("unk_token") is None and not model.get("byte_fallback")
            and (decoder is None or decoder == {"type": "Fuse"}) and all(len(token) == 1 or token in contents for token in vocab)):
        return CharTokenizer(vocab, added, roles=roles, config=config, parts=parts)
    return SentencePieceBPE.from_json(model, added, roles, config, parts, partial(get, model, "model."), merges)


def _ends_in_bytes(spec):
    """Whether a pre-tokenizer is ByteLevel or a Sequence that holds it."""
    if not isinstance(spec, dict):
        return False
    steps = spec.get("pretokenizers") if spec.get("type") == "Sequence" else [spec]
    if isinstance(steps, list) and any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps):
        if steps[-1] is None or not isinstance(steps[-1], dict) or steps[-1].get("type") != "ByteLevel" or len(steps) > 64:
            raise FormatError(f"pre_tokenizer is {short(spec)}; ByteLevel is supported at the end alone")
        return True
    return False


def _read_merges(merges):
    """-> list of pairs; FormatError names the first that is none."""
    merges = [merge for merge in merges if not (isinstance(merge, str) and merge.startswith("#version"))]
    kinds = set(map(type, merges))
    if kinds <= {str} or kinds == {list}:  # no loop in Python over half a million
        pairs = list(map(tuple, map(str.split, merges, repeat(" ")) if kinds == {str} else merges))
        if set(map(len, pairs)) <= {2} and set(map(type, chain.from_iterable(pairs))) <= {str}:
            return pairs
    return [_read_merge(i, merge) for i, merge in enumerate(merges)]


def _read_merge(i, merge):
    """"a b" or ["a", "b"] -> (a, b)."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise FormatError(f"model.merges[{i}] is {short(merge)}, expected \"a b\" or [\"a\", \"b\"]")
    return tuple(parts)


def _read_added(i, token):
    if not isinstance(token, dict):
        raise FormatError(f"added_tokens[{i}] is {short(token)}, expected an object")
    where = f"added_tokens[{i}]."
    flags = {field.name: get(token, where, field.name, bool, False) for field in fields(AddedToken) if field.type is bool}
    return AddedToken(get(token, where, "id", int), get(token, where, "content", str), **flags)
