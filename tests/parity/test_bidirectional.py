"""Decoders that see both sides, as encoders of embeddings: beside transformers. pytest -m parity tests/parity/test_bidirectional.py"""
import numpy as np
import pytest

import pyllm
from pyllm.folders import build, load_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
SIZES = dict(vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
             head_dim=6,
             max_position_embeddings=40, initializer_range=0.2)
CONFIGS = {"llama": dict(model_type="llama", is_causal=False), "qwen3": dict(model_type="qwen3", is_causal=False),
           "gemma3": dict(model_type="gemma3_text", use_bidirectional_attention=True, sliding_window=6, sliding_window_pattern=2,
                          query_pre_attn_scalar=6),
           "gemma3-odd": dict(model_type="gemma3_text", use_bidirectional_attention=True, sliding_window=5, sliding_window_pattern=3,
                              query_pre_attn_scalar=6)}


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_folders(name, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**SIZES | CONFIGS[name])
    peer = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in peer.parameters():
            p += 0.1 * torch.randn_like(p)
    values = {**config.to_dict(), "architectures": [type(peer).__name__]}
    ours = build(values)
    load_weights(ours, {n: p.detach().numpy() for n, p in peer.named_parameters()})
    tokens = np.random.default_rng(0).integers(3, 67, (3, 17)).astype(np.int32)
    mask = np.ones_like(tokens)
    mask[1, 11:] = 0
    with torch.no_grad():
        expected = peer(input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(ours(tokens, mask).data[mask > 0], expected[mask > 0], atol=2e-5 * np.abs(expected).max())
    peer.save_pretrained(tmp_path / "theirs")
    again, _ = pyllm.load(tmp_path / "theirs")
    np.testing.assert_allclose(again(tokens, mask).data, ours(tokens, mask).data, atol=1e-6)
    pyllm.save(again, None, tmp_path / "ours")
    opened = transformers.AutoModel.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(tokens).long(), "attention_mask": torch.from_numpy(mask).long()}
        np.testing.assert_allclose(opened(**inputs).last_hidden_state.numpy()[mask > 0], expected[mask > 0], atol=1e-4)
