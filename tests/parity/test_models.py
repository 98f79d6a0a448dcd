"""Every causal family beside transformers and PyTorch: logits, loss, every gradient, training, folders in both directions.

pytest -m parity tests/parity
"""
import dataclasses
import itertools

import numpy as np
import pytest

import pyllm
from pyllm import objectives, training
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build, load_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

GPT2 = dict(model_type="gpt2", vocab_size=67, n_positions=33, n_embd=24, n_layer=2, n_head=4, initializer_range=0.2)
LLAMA = dict(model_type="llama", vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, initializer_range=0.2)
CONFIGS = {
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
    "gpt2-odd": {**GPT2, "vocab_size": 101, "n_embd": 21, "n_head": 3, "n_inner": 37, "layer_norm_epsilon": 1e-3},
    "gpt2-gelu": {**GPT2, "activation_function": "gelu", "n_layer": 3},
    "gpt2-relu": {**GPT2, "activation_function": "relu", "n_head": 1},
    "gpt2-silu": {**GPT2, "activation_function": "silu", "scale_attn_weights": False},
    "gpt2-scaled": {**GPT2, "scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    "llama": LLAMA,
    "llama-tied": {**LLAMA, "tie_word_embeddings": True},
    "llama-grouped": {**LLAMA, "num_key_value_heads": 2},
    "llama-multi-query": {**LLAMA, "num_key_value_heads": 1},
    "llama-biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama-head-size": {**LLAMA, "head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 3},
    "llama-odd": {**LLAMA, "vocab_size": 103, "hidden_size": 27, "num_attention_heads": 3, "head_dim": 18, "intermediate_size": 41},
    "llama-theta": {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}, "rms_norm_eps": 1e-3},
    "llama-gelu": {**LLAMA, "hidden_act": "gelu_pytorch_tanh"},
    "llama-linear": {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    "llama-3": {**LLAMA, "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                             "original_max_position_embeddings": 16, "rope_theta": 500.0}},
    "llama-yarn": {**LLAMA, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                                                "rope_theta": 1e4}},
    "mistral": {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5},
    "mistral-all-keys": {**LLAMA, "model_type": "mistral", "num_key_value_heads": 1, "head_dim": 10, "sliding_window": None},
    "qwen2": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2-window": {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 4, "num_hidden_layers": 3, "use_sliding_window": True,
                     "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True},
    "qwen3-window": {**LLAMA, "model_type": "qwen3", "num_key_value_heads": 1, "head_dim": 6, "attention_bias": True,
                     "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
    "gemma3": {**LLAMA, "model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 10, "num_hidden_layers": 7,
               "sliding_window": 6, "query_pre_attn_scalar": 17, "initializer_range": 0.1},
    "gemma3-scaled": {**LLAMA, "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4,
                      "layer_types": ["full_attention", "sliding_attention"], "tie_word_embeddings": False, "initializer_range": 0.1,
                      "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
}
SHAPES = [(1, 1), (1, 33), (3, 8), (2, 17), (5, 2)]


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def pair(request):
    """-> (peer in float64, ours) with the same weights, all of them random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    plain = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    plain = {"gpt2": plain, "gemma3_text": {"pad_token_id": None}}  # a padding token's row would get no gradient
    config = AutoConfig.for_model(**request.param, **plain.get(request.param["model_type"], {}))
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())
    ours = build(config.to_dict())
    load_weights(ours, {n: p.detach().float().numpy() for n, p in peer.named_parameters()})
    return peer, ours


def draw(rows, length, v, padding=None, seed=0):
    """-> Batch with ignored targets, and padding of the second half of the rows on the side `padding`."""
    rng = np.random.default_rng([seed, rows, length])
    tokens, targets = rng.integers(0, v, (2, rows, length)).astype(np.int32)
    segments = np.ones_like(tokens)
    if padding and length > 2:
        side = slice(0, length // 3) if padding == "left" else slice(length - length // 3, length)
        segments[rows // 2 :, side] = 0
    targets[(segments == 0) | (rng.random(targets.shape) < 0.2)] = IGNORED
    targets[0, -1] = 1 if segments[0, -1] else IGNORED
    return Batch(tokens, targets, segments)


def run_peer(peer, batch):
    """-> logits, the sum of the losses."""
    import torch

    mask = torch.from_numpy(batch.segments).long()
    at = (mask.cumsum(1) - 1).clamp(min=0)
    out = peer(input_ids=torch.from_numpy(batch.tokens).long(), attention_mask=mask, position_ids=at, use_cache=False).logits
    return out, torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.from_numpy(batch.targets).long().flatten(), reduction="sum")


def own(model, kind="data"):
    """{name in the checkpoint: weight or gradient}"""
    arrays = {n: getattr(p, kind) for n, p in model.named_parameters()}
    return {n: a.T if n.endswith(model.TRANSPOSED) and a.ndim == 2 else a for n, a in arrays.items()}


def close(got, expected, tolerance, what=""):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max(initial=0)), err_msg=what)


@pytest.mark.parametrize("shape, padding", [*itertools.product(SHAPES, [None]), ((4, 9), "left"), ((4, 9), "right")])
def test_logits_loss_and_every_gradient(pair, shape, padding):
    peer, ours = pair
    batch = draw(*shape, ours.config.vocab_size, padding)
    logits, total = run_peer(peer, batch)
    peer.zero_grad()
    total.backward()
    loss = objectives.clm(ours, batch)
    loss.total.backward()
    real = batch.segments > 0
    close(ours(batch.tokens, batch.segments).data[real], logits.detach().numpy()[real], 2e-6)
    assert abs(loss.total.item() - total.item()) <= 2e-6 * max(1, abs(total.item()))
    grads = own(ours, "grad")
    assert grads.keys() == dict(peer.named_parameters()).keys()
    for name, p in peer.named_parameters():
        close(grads[name], p.grad.numpy(), 2e-5, name)


def test_ten_steps_of_adamw(pair):
    import torch

    peer, ours = pair
    batches = [draw(4, 16, ours.config.vocab_size, seed=seed) for seed in range(10)]
    groups = [dict(params=[p for p in peer.parameters() if p.ndim >= 2], weight_decay=0.1),
              dict(params=[p for p in peer.parameters() if p.ndim < 2], weight_decay=0.0)]
    optimizer, expected, norms = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8), [], []
    for batch in batches:
        optimizer.zero_grad()
        mean = run_peer(peer, batch)[1] / batch.count
        mean.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0).item())
        optimizer.step()
        expected.append(mean.item())
    records = list(training.train(ours, objectives.clm, iter(batches), training.AdamW(ours, betas=(0.9, 0.95), weight_decay=0.1),
                                  steps=10, lr=1e-3, clip=1.0))
    assert max(norms) > 1  # clipping was at work
    close([r.loss for r in records], expected, 1e-5)
    close([r.grad_norm for r in records], norms, 1e-3)  # Adam makes whole steps of gradients that are rounding noise
    for name, p in peer.named_parameters():
        got, expected = own(ours)[name].copy(), p.detach().numpy().copy()
        if name.endswith("c_attn.bias"):  # the softmax does not feel a key bias: its gradient is rounding noise, which Adam makes steps of
            keys = slice(len(got) // 3, 2 * len(got) // 3)
            got[keys] = expected[keys] = 0
        close(got, expected, 1e-3, name)


def test_our_folders_open_in_transformers_and_theirs_here(pair, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    peer, ours = pair
    batch = draw(2, 9, ours.config.vocab_size)
    pyllm.save(ours, None, tmp_path / "ours")
    opened, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        close(run_peer(opened.eval(), batch)[0].numpy(), run_peer(peer, batch)[0].numpy(), 1e-6)

    peer.float().save_pretrained(tmp_path / "theirs")
    again, tokenizer = pyllm.load(tmp_path / "theirs")
    assert tokenizer is None and all(np.array_equal(a, own(again)[n]) for n, a in own(ours).items())
    for field in dataclasses.fields(ours.config):
        if field.name != "extra":
            assert getattr(again.config, field.name) == getattr(ours.config, field.name), field.name
    assert np.array_equal(again(batch.tokens).data, ours(batch.tokens).data)
