"""quantize: what is packed, what is left, and that a packed model decodes, trains around its frozen weights and says what it cannot do."""
import numpy as np
import pytest

import pyllm
from pyllm import kernels as K
from pyllm.autograd import Tensor, no_grad, ops
from pyllm.generation import generate
from pyllm.kernels import Packed
from pyllm.kernels.packed import FORMATS
from pyllm.models import GPT2, GPT2Config, Llama, LlamaConfig
from pyllm.nn import Cache, Linear

formats = pytest.mark.parametrize("format", FORMATS)


def gpt2(**options):
    return GPT2(GPT2Config(vocab_size=130, n_positions=64, n_embd=64, n_layer=2, n_head=4, initializer_range=0.15, **options)).initialize(3)


def llama():
    return Llama(LlamaConfig(vocab_size=130, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.15)).initialize(4)


MODELS = pytest.mark.parametrize("make", [gpt2, llama], ids=["gpt2", "llama"])


def tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, 130, (rows, length))


def logits(model, ids):
    with no_grad():
        return model(ids).data


# ---- what is packed ------------------------------------------------------------------------------------------------------


@formats
def test_weights_are_packed_norms_and_biases_are_not(format):
    model = gpt2()
    total = model.num_parameters()
    assert pyllm.quantize(model, format) is model
    packed, left = dict(model.named_packed()), dict(model.named_parameters())
    assert len(packed) == 2 + 2 * 4 and all(path.endswith(".weight") for path in packed)
    assert all(p.ndim == 1 for p in left.values()) and list(model.state()) == list(left)
    assert sum(w.size for w in packed.values()) + model.num_parameters() == total
    embeddings = "q8_0" if format in ("q4_0", "q4_1") else format
    assert {path: w.format for path, w in packed.items()} == {p: embeddings if "wte" in p or "wpe" in p else format for p in packed}
    assert model.head_weight() is model.transformer.wte.weight is model.get("transformer.wte.weight")


def test_choices():
    """Patterns to skip, a format for the embeddings, a second format, and back to floats."""
    model = llama()
    before = {path: p.data.copy() for path, p in model.named_parameters()}
    pyllm.quantize(model, "q4_1", skip=("lm_head", "*.mlp.*"), embeddings="bf16")
    packed = dict(model.named_packed())
    assert packed["model.embed_tokens.weight"].format == "bf16" and packed["model.layers.0.self_attn.q_proj.weight"].format == "q4_1"
    assert not any("mlp" in path or "lm_head" in path for path in packed)
    pyllm.quantize(model, "q8_0", skip="model.embed_tokens.weight")
    assert model.lm_head.weight.format == "q8_0" and model.model.embed_tokens.weight.format == "bf16"
    held = model.lm_head.weight
    assert pyllm.quantize(model, "q8_0").lm_head.weight is held
    pyllm.quantize(model, "f32")
    assert not dict(model.named_packed()) and list(before) == [path for path, _ in model.named_parameters()]
    np.testing.assert_array_equal(model.lm_head.weight.data, held.dequantize())
    for path, p in model.named_parameters():
        np.testing.assert_allclose(p.data, before[path], atol=0.1 * np.abs(before[path]).max())
        assert p.requires_grad


def test_a_tied_weight_stays_tied():
    model = gpt2()
    model.lm_head = Linear(64, 130, bias=False)
    model.lm_head.weight = model.transformer.wte.weight
    pyllm.quantize(model, "q8_0")
    assert model.lm_head.weight is model.transformer.wte.weight and len(dict(model.named_packed())) == 10


def test_errors_come_at_once_and_nothing_is_changed():
    model = GPT2(GPT2Config(vocab_size=20, n_positions=8, n_embd=40, n_layer=1, n_head=2))
    with pytest.raises(ValueError) as error:
        pyllm.quantize(model, "q4_0", skip=("transformer.wpe", "lm_haed"))
    text = str(error.value)
    assert "skip='lm_haed' matches no Linear or Embedding" in text and "transformer.wte: rows of 40 weights, q8_0 takes" in text
    assert "transformer.h.0.attn.c_attn: rows of 40 weights, q4_0 takes a multiple of 32" in text and "wpe" not in text
    assert not dict(model.named_packed())
    pyllm.quantize(model, "bf16")
    for wrong in ("q3", "Q8_0"):
        with pytest.raises(ValueError, match=f"quantize: format='{wrong}'; expected one of bf16, q8_0, q4_0, q4_1, or f32"):
            pyllm.quantize(model, wrong)


def test_a_folder_of_floats_takes_no_packed_weights(tmp_path):
    """Never a folder that lacks what was packed."""
    model = pyllm.quantize(gpt2(), "q8_0")
    with pytest.raises(ValueError, match=r"save: 10 packed weights, .*pyllm.quantize\(model, 'f32'\)"):
        pyllm.save(model, None, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pyllm.save(pyllm.quantize(model, "f32"), None, tmp_path / "model")
    again = pyllm.load(tmp_path / "model")[0]
    np.testing.assert_array_equal(logits(again, tokens(1, 9)), logits(model, tokens(1, 9)))


# ---- what it computes ----------------------------------------------------------------------------------------------------


@MODELS
@pytest.mark.parametrize("format, tolerance", [("bf16", 0.02), ("q8_0", 0.05), ("q4_0", 0.45), ("q4_1", 0.45)])
def test_logits_are_close_to_the_float_models(make, format, tolerance):
    ids, exact = tokens(3, 20), make()
    expected = logits(exact, ids)
    got = logits(pyllm.quantize(make(), format), ids)
    error = np.sqrt(np.square(got - expected).mean() / np.square(expected - expected.mean(-1, keepdims=True)).mean())
    assert 1e-5 < error < tolerance
    if format in ("bf16", "q8_0"):
        assert (got.argmax(-1) == expected.argmax(-1)).mean() > 0.9


@MODELS
@formats
def test_cached_decoding_is_the_full_forward(make, format):
    """Bit for bit, whatever the number of rows a product has: a prompt of 23, then 1, 3 and 9 tokens at a time, two texts."""
    model, ids = pyllm.quantize(make(), format), tokens(2, 40)
    expected, cache, at = logits(model, ids), Cache(2, 40), 0
    with no_grad():
        for step in (23, 1, 1, 3, 9, 1, 2):
            hidden = model.hidden(ids[:, at : at + step], cache=cache)
            got = ops.linear(hidden, model.head_weight()).data
            cache.advance(step)
            np.testing.assert_array_equal(got, expected[:, at : at + step])
            at += step


@MODELS
@formats
def test_generate(make, format):
    """Rows alone or together, one thread or many: the same text; with 8 bits and more, mostly the float model's."""
    prompts = [ids.tolist() for ids in (tokens(1, 5)[0], tokens(1, 12, 1)[0], tokens(1, 1, 2)[0])]
    model, options = pyllm.quantize(make(), format), {"max_tokens": 12, "temperature": 0}
    together = [g.ids for g in generate(model, None, prompts, **options)]
    assert [generate(model, None, p, **options).ids for p in prompts] == together
    before = K.num_threads()
    try:
        K.set_num_threads(1)
        assert [g.ids for g in generate(model, None, prompts, **options)] == together
    finally:
        K.set_num_threads(before)
    if format in ("bf16", "q8_0"):
        floats = [g.ids for g in generate(make(), None, prompts, **options)]
        assert np.mean([a == b for x, y in zip(together, floats) for a, b in zip(x, y)]) > 0.6


@formats
def test_gradients_flow_through_frozen_weights(format):
    """QLoRA: an adapter on a packed base has the gradients of one on the base's unpacked weights, the base none."""
    model, plain = pyllm.quantize(gpt2(), format), gpt2()
    pyllm.quantize(pyllm.quantize(plain, format), "f32")
    rng = np.random.default_rng(5)
    down, up = (rng.standard_normal(s).astype(np.float32) * 0.1 for s in ((4, 64), (192, 4)))
    grads = []
    for m in (model, plain):
        a, b = Tensor(down, requires_grad=True), Tensor(up, requires_grad=True)
        x = m.transformer.wte(tokens(2, 7)) + m.transformer.wpe(np.arange(14).reshape(2, 7))
        block = m.transformer.h[0]
        h = block.ln_1(x)
        y = block.attn.c_attn(h) + ops.linear(ops.linear(h, a), b)
        y = block.attn.c_proj(ops.attention_packed(y, heads=4, kv_heads=4), residual=x)
        y = block.mlp.c_proj(block.mlp.c_fc(block.ln_2(y), activation="gelu_tanh"), residual=y)
        loss = ops.linear_cross_entropy(m.transformer.ln_f(y), m.head_weight(), None, tokens(2, 7, 1).astype(np.int32))
        loss.backward()
        grads.append((loss.item(), a.grad, b.grad, block.ln_1.weight.grad))
        assert isinstance(block.attn.c_attn.weight, Packed) == (m is model)
    (loss, *got), (expected_loss, *expected) = grads
    assert abs(loss / expected_loss - 1) < 0.02
    for g, e in zip(got, expected):
        assert np.linalg.norm(g - e) < 0.05 * np.linalg.norm(e)


def test_dx_of_linear_is_the_unpacked_weights():
    """Through ops.linear, with activation, bias and residual: the bits of a float weight where the activation's input agrees."""
    rng = np.random.default_rng(6)
    w = Packed.quantize(rng.standard_normal((48, 64)).astype(np.float32), "q4_0")
    x, residual = (Tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True) for s in ((2, 3, 64), (2, 3, 48)))
    y = ops.linear(x, w, None, residual)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    np.testing.assert_array_equal(x.grad, K.matmul(dy.reshape(6, 48), w.dequantize()).reshape(2, 3, 64))
    np.testing.assert_array_equal(residual.grad, dy)
