"""Every way to scale rotary positions beside transformers: logits at positions 0, 1000 and 8191, tables, both generations of keys.

pytest -m parity tests/parity
"""
import numpy as np
import pytest

from pyllm.autograd import no_grad
from pyllm.folders import build, load_weights
from pyllm.nn import Cache

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

LLAMA = dict(model_type="llama", vocab_size=67, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
             max_position_embeddings=8192, initializer_range=0.2)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
SCALINGS = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "yarn-whole": {**YARN, "truncate": False, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn-factor": {**YARN, "attention_factor": 0.8},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 1024},
    "llama3.2": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 8192},
}


def peers(scaling, **values):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    values = {**LLAMA, **values}
    if scaling.get("rope_type") == "dynamic":
        values["max_position_embeddings"] = 2048
    config = AutoConfig.for_model(**values, rope_parameters={"rope_theta": 1e4, "rope_type": "default", **scaling})
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.copy_(p.float())
    ours = build(config.to_dict())
    load_weights(ours, {n: p.detach().float().numpy() for n, p in peer.named_parameters()})
    return peer, ours


@pytest.mark.parametrize("name", SCALINGS)
def test_logits_at_far_positions(name):
    import torch

    peer, ours = peers(SCALINGS[name])
    tokens = np.random.default_rng(0).integers(0, 67, (1, 8192)).astype(np.int32)
    with torch.no_grad():
        expected = peer(input_ids=torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    with no_grad():
        logits = ours(tokens).data
        for at in (0, 1, 1000, 2047, 2048, 8191):
            assert np.abs(logits[0, at] - expected[0, at]).max() <= 1e-4, at
        assert np.abs(logits - expected).max() <= (1e-3 if name == "dynamic" else 3e-4)  # the peer has its theta in float32
        if name == "dynamic":  # its rotations depend on the whole text's length, so that cached keys keep those of a shorter one
            return
        cache = Cache(1)
        for begin, end in ((0, 1000), (1000, 1001), (1001, 8191), (8191, 8192)):
            part = ours(tokens[:, begin:end], cache=cache).data
            cache.advance(np.array([end - begin]))
            np.testing.assert_allclose(part, logits[:, begin:end], rtol=0, atol=2e-5)


def test_dynamic_scaling_starts_beyond_the_context():
    """Texts up to the context are not touched, and a long one leaves nothing behind."""
    _, ours = peers(SCALINGS["dynamic"])
    plain = build({**LLAMA, "rope_theta": 1e4})
    plain.load(ours.state())
    tokens = np.random.default_rng(0).integers(0, 67, (1, 2050)).astype(np.int32)
    with no_grad():
        short = ours(tokens[:, :2048]).data
        assert np.array_equal(short, plain(tokens[:, :2048]).data)
        assert not np.array_equal(ours(tokens).data[:, :2048], short)
        assert np.array_equal(ours(tokens[:, :2048]).data, short)
    with pytest.raises(ValueError, match="the model has 8192 positions"):
        ours(np.zeros((1, 8193), np.int32))


@pytest.mark.parametrize("name", SCALINGS)
def test_old_keys_say_the_same(name):
    _, ours = peers(SCALINGS[name])
    old = {**LLAMA, "rope_theta": 1e4, "max_position_embeddings": ours.config.max_position_embeddings}
    if SCALINGS[name]:
        old["rope_scaling"] = {"type" if k == "rope_type" else k: v for k, v in SCALINGS[name].items()}
    assert build(old).config.rope(0) == ours.config.rope(0)
