"""Small models of each kind, sharp enough that the likeliest tokens differ from row to row."""
import pytest

from pyllm.folders import build

CONFIGS = {
    "gpt2": dict(model_type="gpt2", vocab_size=300, n_positions=96, n_embd=32, n_layer=2, n_head=4),
    "llama": dict(model_type="llama", vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=96),
    "gemma3": dict(model_type="gemma3_text", vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                   num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=96, sliding_window=5,
                   layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8),
    "t5": dict(model_type="t5", vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, n_positions=96),
    "bart": dict(model_type="bart", vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
                 decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=96),
}
MODELS = {}


@pytest.fixture
def model_of():
    """-> the model of a name in CONFIGS, made once."""
    def get(name):
        if name not in MODELS:
            MODELS[name] = build(CONFIGS[name], seed=3)
            for p in MODELS[name].parameters():
                p.data *= 4
        return MODELS[name]

    return get


@pytest.fixture(params=CONFIGS)
def any_model(request, model_of):
    return model_of(request.param)


@pytest.fixture(params=["gpt2", "llama", "gemma3"])
def causal(request, model_of):
    return model_of(request.param)
