"""tokenizer.json: what is read comes back, what is broken or unsupported is a FormatError. pytest tests/text/test_tokenizer_json.py"""
import copy
import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.errors import FormatError
from pyllm.text import ByteLevelBPE, read_tokenizer, split

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
EOS = "<|endoftext|>"
BYTE_LEVEL = VECTORS["tokenizer"]["pre_tokenizer"]
SPECIAL = {"id": 0, "content": EOS, "special": True}


def changed(*path, value):
    """The frozen tokenizer.json with one value replaced."""
    data = copy.deepcopy(VECTORS["tokenizer"])
    here = data
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return data


def read(folder, data):
    path = folder / "tokenizer.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return read_tokenizer(path)


def test_file_and_folder_come_back(tmp_path):
    first = read(tmp_path, VECTORS["tokenizer"])
    first.save(tmp_path / "one.json")
    first.save(tmp_path / "folder")
    for path in (tmp_path / "one.json", tmp_path / "folder", tmp_path / "folder/tokenizer.json"):
        again = read_tokenizer(path)
        assert (again.vocab, again.merges, again.added, again.eos_id) == (first.vocab, first.merges, first.added, 0)
        for text, ids in VECTORS["cases"]:
            assert again.encode(text) == ids
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "one.json", "tokenizer.json"]


def test_merges_as_strings_and_a_model_without_type(tmp_path):
    data = changed("model", "merges", value=["#version: 0.2", *map(" ".join, VECTORS["tokenizer"]["model"]["merges"])])
    del data["model"]["type"]
    tokenizer = read(tmp_path, data)
    assert all(tokenizer.encode(text) == ids for text, ids in VECTORS["cases"])


@pytest.mark.parametrize("pattern, prefix", [*((p, False) for p in (*split.PATTERNS, None)), (split.GPT2, True), (None, True)])
def test_pre_tokenizers_come_back(tmp_path, pattern, prefix):
    model = VECTORS["tokenizer"]["model"]
    first = ByteLevelBPE(model["vocab"], model["merges"], pattern=pattern, add_prefix_space=prefix, ignore_merges=prefix)
    first.save(tmp_path)
    again = read_tokenizer(tmp_path)
    assert (again.pattern, again.add_prefix_space, again.ignore_merges) == (pattern, prefix, prefix)
    assert again.encode("It's 12  lower\n\n x") == first.encode("It's 12  lower\n\n x")


def test_roles_come_from_the_config_and_the_rest_of_it_stays(tmp_path):
    config = {"eos_token": {"content": "lo", "lstrip": False}, "bos_token": EOS, "pad_token": None, "chat_template": "{{ x }}",
              "model_max_length": 1024}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = read(tmp_path, VECTORS["tokenizer"])
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (tokenizer.id("lo"), 0, None)
    tokenizer.save(tmp_path / "new")
    saved = json.loads((tmp_path / "new/tokenizer_config.json").read_text())
    assert (saved["eos_token"], saved["bos_token"], saved["pad_token"]) == ("lo", EOS, None)
    assert (saved["chat_template"], saved["model_max_length"]) == ("{{ x }}", 1024)


def test_truncation_in_the_file_holds_until_it_is_set_and_is_not_silent(tmp_path):
    text = "the lower river ran low"
    whole = read(tmp_path, VECTORS["tokenizer"]).encode(text)
    for direction, cut in (("Right", whole[:5]), ("Left", whole[-5:])):
        tokenizer = read(tmp_path, changed("truncation", value={"max_length": 5, "direction": direction}))
        with pytest.warns(UserWarning, match=f"{len(whole)} tokens are cut to 5"):
            assert tokenizer.encode(text) == cut
        assert tokenizer.encode_offsets(text)[0] == cut
        tokenizer.truncation = None
        assert tokenizer.encode(text) == whole


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    tokenizer = read(tmp_path, VECTORS["tokenizer"])
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        tokenizer.save(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("tokenizer.json", before)]


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


@pytest.mark.parametrize("path, value, words", [
    (["model", "type"], "WordPieces", "model.type is \"WordPieces\"; supported: BPE, WordPiece, Unigram"),
    (["model", "type"], "Unigram", "model.vocab is a dict of 340, expected list"),
    (["model", "type"], "WordPiece", "model.unk_token is null, expected str"),
    (["normalizer"], {"type": "NFX"}, "normalizer is .*NFX.*; supported: .*NFC"),
    (["normalizer"], {"type": "Sequence", "normalizers": [{"type": "Strip", "strip_left": 3}]}, "Strip.strip_left is 3"),
    (["normalizer"], {"type": "Replace", "pattern": {"String": ""}, "content": ""}, "normalizer.pattern is .*not empty"),
    (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "!"}, "not base64"),
    (["normalizer"], {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "3 bytes name a trie of 0"),
    (["pre_tokenizer"], sequence({"type": "Splat"}, BYTE_LEVEL), "pre_tokenizer is .*Splat.*; supported"),
    (["pre_tokenizer"], sequence(BYTE_LEVEL, {"type": "Digits"}), "ByteLevel is supported at the end alone"),
    (["pre_tokenizer"], sequence({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "X"}, BYTE_LEVEL), "Split.behavior is"),
    (["pre_tokenizer"], {"type": "Sequence", "pretokenizers": 3}, "pretokenizers is 3, expected a list"),
    (["pre_tokenizer"], [], "pre_tokenizer is"),
    (["pre_tokenizer"], None, "decoder is .*ByteLevel"),
    (["post_processor"], {"type": "TemplateProcessing"}, "TemplateProcessing.single is null"),
    (["post_processor"], {"type": "BertProcessing", "cls": ["[CLS]", 3]}, "BertProcessing.cls is"),
    (["truncation"], {"max_length": -1}, "truncation is"),
    (["padding"], {"strategy": {"Fixed": "x"}}, "padding is"),
    (["decoder"], {"type": "Metaspace"}, "decoder is"),
    (["model", "dropout"], 0.1, "model.dropout is 0.1"),
    (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
    (["model"], None, "model is null, expected dict"),
    (["model"], [], "model is"),
    (["model", "vocab"], [["a", 0]], "model.vocab is .* expected dict"),
    (["model", "vocab", "a"], 2**40, "'a' has id 1099511627776"),
    (["model", "vocab", "a"], -1, "'a' has id -1"),
    (["model", "vocab", "a"], 3, "id 3 belongs to both"),
    (["model", "vocab", "a"], 1.0, "'a' has id 1.0"),
    (["model", "vocab", "a"], True, "'a' has id True"),
    (["model", "vocab", "a"], 340, "without gaps"),
    (["model", "vocab", "new"], 341, "without gaps"),
    (["model", "vocab", "\ud800"], 340, "surrogate"),
    (["model", "merges"], {}, "model.merges is"),
    (["model", "merges", 3], "a b c", r"model.merges\[3\] is \"a b c\""),
    (["model", "merges", 3], ["a"], r"model.merges\[3\]"),
    (["model", "merges", 3], ["a", 5], r"model.merges\[3\]"),
    (["model", "merges", 3], ["", "a"], "number 3"),
    (["model", "merges", 3], "zz qq", "lacks"),
    (["model", "merges", 3], ["a" * 100_000, "b" * 100_000], "lacks"),
    (["added_tokens"], "x", "added_tokens is"),
    (["added_tokens"], [5], r"added_tokens\[0\] is 5"),
    (["added_tokens"], [{"content": "x"}], r"added_tokens\[0\].id is null"),
    (["added_tokens"], [{**SPECIAL, "content": ""}], "has id 0"),
    (["added_tokens"], [{**SPECIAL, "id": 1}], "has id 1"),
    (["added_tokens"], [{**SPECIAL, "id": 2**40}], "has id 1099511627776"),
    (["added_tokens"], [{**SPECIAL, "id": -1}], "has id -1"),
    (["added_tokens"], [SPECIAL, {"id": 400, "content": "<x>"}], "without gaps"),
    (["added_tokens"], [SPECIAL, {"id": 340, "content": "<x>"}, {"id": 340, "content": "<y>"}], "<y>"),
    (["added_tokens"], [{**SPECIAL, "lstrip": 3}], r"added_tokens\[0\].lstrip is 3"),
])
def test_what_is_broken_or_unsupported_is_named(tmp_path, path, value, words):
    with pytest.raises(FormatError, match=words) as caught:
        read(tmp_path, changed(*path, value=value))
    assert len(str(caught.value)) < 1000


def test_an_unknown_expression_without_the_package_is_named(tmp_path, monkeypatch):
    data = changed("pre_tokenizer", value=sequence({"type": "Split", "pattern": {"Regex": r"\p{Lu}+"}, "behavior": "Isolated"}, BYTE_LEVEL))
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(FormatError, match=r"Split.pattern: the expression .*Lu.* needs the package `regex`"):
        read(tmp_path, data)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{\"model\": " + b"[" * 100_000, b"{\"a\":" * 100_000,
                                  b"{\"model\": " + b"9" * 100_000 + b"}", json.dumps(VECTORS["tokenizer"]).encode()[:-5], b"\x00" * 1000],
                         ids=lambda d: repr(d[:12]))
def test_bytes_that_are_no_tokenizer(tmp_path, data):
    start = time.process_time()
    with pytest.raises(FormatError, match="tokenizer.json"):
        read(tmp_path, data)
    assert time.process_time() - start < 2


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pyllm.text.tokenizer_json.LARGEST", 100)
    with pytest.raises(FormatError, match="more than 100"):
        read(tmp_path, VECTORS["tokenizer"])


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tokenizer(tmp_path)


def test_an_expression_that_explodes_is_stopped(tmp_path):
    pytest.importorskip("regex")
    split = {"type": "Split", "pattern": {"Regex": r"(a|b|ab)*(?=c)"}, "behavior": "Isolated", "invert": False}
    tokenizer = read(tmp_path, changed("pre_tokenizer", value=sequence(split, BYTE_LEVEL)))
    assert tokenizer.decode(tokenizer.encode("abc abab")) == "abc abab"
    start = time.process_time()
    with pytest.raises(FormatError, match=r"\(a\|b\|ab\).* takes too long on a text of 10000 characters"):
        tokenizer.encode("ab" * 5000)
    assert time.process_time() - start < 10


JSON = st.recursive(st.none() | st.booleans() | st.integers(-5, 400) | st.floats(allow_nan=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
PLACES = ["version", "truncation", "added_tokens", "added_tokens/0", "added_tokens/0/id", "added_tokens/0/content", "normalizer", "model",
          "pre_tokenizer", "pre_tokenizer/type", "pre_tokenizer/add_prefix_space", "post_processor", "decoder", "model/type", "model/vocab",
          "model/vocab/a", "model/merges", "model/merges/0", "model/merges/0/1", "model/ignore_merges", "model/unk_token"]


@pytest.mark.filterwarnings("ignore:encode")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), JSON)
def test_anything_anywhere_is_read_or_refused(tmp_path, place, value):
    path = [int(key) if key.isdigit() else key for key in place.split("/")]
    try:
        tokenizer = read(tmp_path, changed(*path, value=value))
    except FormatError:
        return
    tokenizer.encode("low" if isinstance(tokenizer, ByteLevelBPE) else "")
