"""Files that somebody broke: 10,000 mutated tokenizer.json and tokenizer_config.json end in a tokenizer that works or in one FormatError.

pytest tests/text/test_mutations.py
"""
import copy
import json
import random
import time
from pathlib import Path

import pytest

from pyllm.errors import ConfigError, FormatError
from pyllm.text import read_tokenizer
from pyllm.text.tokenizer_json import build, read_roles

HERE = Path(__file__).parent
KINDS = {name: entry["tokenizer"] for name, entry in json.loads((HERE / "kinds.json").read_text()).items()}
KINDS["ByteLevel"] = json.loads((HERE / "vectors.json").read_text())["tokenizer"]
CONFIG = {"eos_token": "</s>", "bos_token": {"content": "<s>", "special": True}, "unk_token": "[UNK]", "pad_token": None,
          "chat_template": "{{ messages }}", "model_max_length": 512}
ODD = [None, True, False, 0, -1, 1, 3, 10**9, 10**30, 1.5, float("inf"), "", "a", "<s>", "\u2581", "\ud800", "x" * 10_000, [], [[]],
       ["a", "b"], {}, {"type": "Sequence"}, {"type": "Split", "pattern": {"Regex": "("}},
       {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
       {"type": "TemplateProcessing"}, {"type": "NFKC"}, {"max_length": 0},
       {"max_length": 2, "strategy": "LongestFirst", "direction": "Left"}]


def places(value, path=()):
    """Yields the paths of all values."""
    yield path
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def mutated(data, rng, paths):
    """-> the same with a few values taken out, replaced, doubled, exchanged or renamed."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(paths)
        here = data
        try:
            for key in path[:-1]:
                here = here[key]
            key = path[-1]
            what = rng.randint(0, 5)
            if what == 0:
                del here[key]
            elif what == 1:
                here[key] = copy.deepcopy(rng.choice(ODD))
            elif what == 2 and isinstance(here, list):
                here.insert(rng.randint(0, len(here)), copy.deepcopy(here[key]))
            elif what == 3 and isinstance(here, dict):
                here[rng.choice(["type", "x", "vocab", "", "<s>", "content", key])] = here.pop(key)
            elif what == 4:
                other = rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
                here[key], here[other] = here[other], here[key]
            elif isinstance(here[key], str):
                at, put = rng.randint(0, len(here[key])), rng.choice(["", "\u2581", "#", "\0", "<", " ", "\ud800", "é"])
                here[key] = here[key][:at] + put + here[key][at + rng.randint(0, 2) :]
            elif isinstance(here[key], (int, float)):
                here[key] = rng.choice([-here[key], here[key] + 1, here[key] * 1000, str(here[key])])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            continue  # an earlier change took the place away
    return data


def weighted(data):
    """-> paths, those outside of the vocabulary and the merges often enough to be met."""
    paths = [path for path in places(data) if path]
    rare = [path for path in paths if path[:2] not in (("model", "vocab"), ("model", "merges")) or len(path) == 2]
    return paths + rare * max(1, len(paths) // len(rare))


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_values_are_format_errors_or_work(kind):
    data, rng, worked, slowest = KINDS[kind], random.Random(kind), 0, 0.0
    paths, config_paths = weighted(data), [path for path in places(CONFIG) if path]
    for i in range(1800):  # 9,000 in all, and 1,250 below
        broken = mutated(data, rng, paths)
        config = CONFIG if i % 4 else mutated(CONFIG, rng, config_paths)
        began = time.process_time()
        try:
            tokenizer = build(broken, read_roles(config), config)
        except (FormatError, ConfigError) as error:
            assert len(str(error)) < 2000
            continue
        finally:
            slowest = max(slowest, time.process_time() - began)
        worked += 1
        tokenizer.truncation = None
        try:
            ids = tokenizer.encode("Hello wörld  <s> 12\n\ud800", special=i % 2 == 0)
            tokenizer.encode_offsets("Hello wörld")
        except ValueError as error:  # a vocabulary without a character of the text
            assert str(error).startswith("encode: "), error
        else:
            tokenizer.decode(ids)
    assert 90 < worked < 1750 and slowest < 1


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_bytes_are_format_errors_or_work(kind, tmp_path):
    """Cut, overwritten and doubled bytes, in tokenizer.json and tokenizer_config.json."""
    rng = random.Random(kind)
    files = {"tokenizer.json": json.dumps(KINDS[kind]).encode(), "tokenizer_config.json": json.dumps(CONFIG).encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    failed, slowest = 0, 0.0
    for i in range(250):
        name = "tokenizer.json" if i % 5 else "tokenizer_config.json"
        data = bytearray(files[name])
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(max(1, len(data)))
            size = rng.choice([1, 1, 2, 8, 64])
            noise = bytes(rng.randrange(256) for _ in range(size))
            data[at : at + (size if rng.random() < 0.7 else 0)] = rng.choice(
                [b"", noise, b'"', b"{", b"]", b",", b"9", data[:size], b"\\ud800", b"\xff", b"1e999"])
        (tmp_path / name).write_bytes(data if rng.random() < 0.95 else data[: rng.randrange(len(data) + 1)])
        began = time.process_time()
        try:
            read_tokenizer(tmp_path)
        except (FormatError, ConfigError) as error:
            failed += 1
            assert name in str(error) or str(tmp_path) in str(error)
        slowest = max(slowest, time.process_time() - began)
        (tmp_path / name).write_bytes(files[name])
    assert failed > 100 and slowest < 1


@pytest.mark.parametrize("name, text", [("tokenizer.json", "tokenizer.json: not valid JSON in UTF-8"),
                                        ("tokenizer_config.json", "tokenizer_config.json: not valid JSON in UTF-8"),
                                        ("chat_template.jinja", "chat_template.jinja: not UTF-8")])
def test_files_that_are_not_utf8_are_named(name, text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(KINDS["Unigram"]))
    (tmp_path / name).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FormatError, match=text):
        read_tokenizer(tmp_path)


def test_the_models_unknown_token_is_not_the_configurations():
    for unk in (None, "b"):
        data = {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "b": 2}}}
        assert build(data, {"unk": unk}, {}).encode("z") == [0]
        data["model"]["type"] = "WordLevel"
        assert build(data, {"unk": unk}, {}).encode("z") == [0]


def test_vocabularies_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(FormatError, match="vocab.txt"):
        read_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}')
    (tmp_path / "merges.txt").write_bytes(b"a \xff\n")
    with pytest.raises(FormatError, match="merges.txt"):
        read_tokenizer(tmp_path)
