"""Writes tokenizer.json of every kind, so that the `tokenizers` package opens it, and tokenizer_config.json beside it."""
import json
import os
from dataclasses import asdict
from pathlib import Path

from .added import AddedToken
from .base import ROLES
from .chat import as_file


def write_tokenizer(tokenizer, path):
    """tokenizer -> path, a .json file, or a folder with tokenizer.json and tokenizer_config.json.

    What was there stays until the new file is complete.
    """
    path = Path(path)
    data = as_json(tokenizer)
    if path.suffix == ".json":
        _write(path, data)
        return
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "tokenizer.json", data)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokenizer.config}
    if tokenizer.chat_template is not None:
        config["chat_template"] = as_file(tokenizer)
    for older in (path / "chat_template.jinja", *path.glob("chat_templates/*.jinja")):  # would win over this one
        older.unlink(missing_ok=True)
    for role in ROLES:
        i = getattr(tokenizer, f"{role}_id")
        if i is not None or role in ("eos", "bos", "pad"):
            config[f"{role}_token"] = None if i is None else tokenizer.token(i)
    _write(path / "tokenizer_config.json", config)


def as_json(tokenizer):
    """tokenizer -> what tokenizer.json holds; `truncation` and `padding` as they are set now."""
    parts = tokenizer.parts
    padding = tokenizer.padding
    # others find these in the text itself
    user = [AddedToken(i, tokenizer.token(i), special=False) for i in getattr(tokenizer, "user_defined", ())]
    if padding is not None:  # the peer wants every key
        pad = tokenizer.pad_id or 0
        padding = {"pad_id": pad, "pad_type_id": 0, "pad_token": tokenizer.token(padding.get("pad_id", pad)), **padding}
    return {"version": "1.0", "truncation": tokenizer.truncation, "padding": padding,
            "added_tokens": [asdict(token) for token in sorted([*tokenizer.added, *user], key=lambda token: token.id)],
            **{key: parts.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}, "model": tokenizer.model()}


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
