"""Cached decoding is the full forward at positions 1, 1,000 and 8,000, for every kind of position and of window, in one ragged batch."""
import numpy as np
import pytest

import pyllm
from pyllm import kernels as K
from pyllm.folders import build
from pyllm.generation import Decoder, Session, generate
from pyllm.models.seq2seq import Continuation

FAR = 8000 if K.active() != "reference" else 1200  # NumPy takes minutes for 8000
CONTEXT = FAR + 192
ROTARY = dict(model_type="llama", vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=1, max_position_embeddings=CONTEXT)
GPT2 = dict(model_type="gpt2", vocab_size=64, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2)
CONFIGS = {
    "rope": ROTARY,
    "linear": {**ROTARY, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {**ROTARY, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {**ROTARY, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "original_max_position_embeddings": 1024}},
    "yarn": {**ROTARY, "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 1024}},
    "mistral": {**ROTARY, "model_type": "mistral", "sliding_window": 7},
    "qwen2": {**ROTARY, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1},
    "qwen3": {**ROTARY, "model_type": "qwen3", "head_dim": 8},
    "gemma3": {**ROTARY, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 512, "query_pre_attn_scalar": 8,
               "layer_types": ["sliding_attention", "full_attention"]},
    "learned": GPT2,
}
SIDES = {  # name -> (configuration, the farthest position: T5's biases are as wide as they are long)
    "t5": (dict(model_type="t5", vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, n_positions=1200), 1000),
    "bart": (dict(model_type="bart", vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
                  decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=CONTEXT), FAR),
}


def sharp(config):
    model = build(config, seed=1)
    for p in model.parameters():
        p.data *= 3
    return model


def equal_bits(got, want):
    if K.active() == "reference":
        np.testing.assert_allclose(got, want, atol=1e-3)
    else:
        assert np.float32(got).tobytes() == want.tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_near_and_far_positions_have_the_bits_of_the_full_forward(name):
    model, draw = sharp(CONFIGS[name]), np.random.default_rng(0)
    prompts = [draw.integers(1, 64, n).tolist() for n in (1, 1000, FAR - 3)]
    options = dict(max_tokens=6, seed=3, logprobs=True)
    results = generate(model, None, prompts, **options)
    for prompt, result in zip(prompts, results):
        assert len(result.ids) == 6
        with pyllm.no_grad():
            logits = model(np.array([prompt + result.ids])).data[0, len(prompt) - 1 : -1]
        equal_bits(result.logprobs, K.log_softmax(logits)[np.arange(6), result.ids])
    if K.active() != "reference":
        session = Session(model)
        generate(model, None, prompts[2][:4000], max_tokens=1, session=session)
        assert generate(model, None, prompts[2], session=session, **{**options, "seed": 5}) == results[2] and session.reused == 4000


@pytest.mark.parametrize("name", SIDES)
def test_near_and_far_positions_of_an_encoder_decoder(name):
    config, far = SIDES[name]
    model, draw = sharp(config), np.random.default_rng(0)
    texts = [draw.integers(1, 64, n).tolist() for n in (1, 40, 9)]
    begun = [draw.integers(1, 64, n).tolist() for n in (1, 200, far - 3)]
    with pyllm.no_grad():
        memory = model.read(texts)
    decoder, logps, ids = Decoder(Continuation(model), begun, memory=memory), [[], [], []], [[], [], []]
    for _ in range(6):
        for row, id, logp in zip(decoder.rows, decoder.step(), decoder.logprobs()):
            ids[row].append(int(id))
            logps[row].append(logp)
        decoder.advance(np.ones(3, bool))
    for text, before, drawn, logp in zip(texts, begun, ids, logps):
        with pyllm.no_grad():
            logits = model(np.array([text]), np.array([before + drawn[:-1]])).data[0, len(before) - 1 :]
        equal_bits(logp, K.log_softmax(logits)[np.arange(6), drawn])
