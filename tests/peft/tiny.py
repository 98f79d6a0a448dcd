"""A small model of every family, a batch for it, a loss: what the tests of adapters share."""
import numpy as np

from pyllm.autograd import ops
from pyllm.data.batch import Batch
from pyllm.folders import build

ROTARY = dict(vocab_size=31, max_position_embeddings=24, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
              num_key_value_heads=1, initializer_range=0.2)
BERT = dict(model_type="bert", vocab_size=31, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=24, initializer_range=0.2)
CONFIGS = {  # a new family adds its line
    "gpt2": dict(model_type="gpt2", vocab_size=31, n_positions=24, n_embd=12, n_layer=2, n_head=3, initializer_range=0.2),
    "llama": {**ROTARY, "model_type": "llama"},
    "mistral": {**ROTARY, "model_type": "mistral", "sliding_window": 5},
    "qwen2": {**ROTARY, "model_type": "qwen2"},
    "qwen3": {**ROTARY, "model_type": "qwen3", "head_dim": 6, "tie_word_embeddings": True},
    "gemma3_text": {**ROTARY, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 5,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "bert": BERT,
    "t5": dict(model_type="t5", vocab_size=31, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3, n_positions=24),
    "bart": dict(model_type="bart", vocab_size=31, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
                 decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=24, max_position_embeddings=24, init_std=0.2),
    "bert-classifier": {**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 3},
}


def make(name, seed=1, **changes):
    """A model with weights large enough that every path matters, biases and norms too."""
    model = build({**CONFIGS[name], **changes}, seed=seed)
    draw = np.random.default_rng(seed)
    for _, p in model.named_parameters():
        p.data = (p.data + draw.standard_normal(p.shape) * 0.1).astype(np.float32)
    return model


def batch_of(name, rows=2, length=7, seed=0):
    draw = np.random.default_rng(seed)
    tokens, other = draw.integers(0, 31, (2, rows, length)).astype(np.int32)
    if name in ("t5", "bart"):
        return Batch(tokens, other, decoder_tokens=np.roll(other, 1, axis=1))
    return Batch(tokens, other[:, 0] % 3 if name == "bert-classifier" else other)


def logits(model, batch, rng=None):
    """-> Tensor (B, ..., V)."""
    if batch.decoder_tokens is None:
        return model(batch.tokens, batch.segments, rng=rng)
    return model(batch.tokens, batch.decoder_tokens, batch.segments, batch.decoder_segments, rng=rng)


def loss(model, batch, rng=None):
    return ops.cross_entropy(logits(model, batch, rng), batch.targets)


def learn(model, batch, steps=8, lr=3e-2):
    """-> the losses of a few steps of AdamW."""
    from pyllm.training import AdamW

    optimizer, losses = AdamW(model, weight_decay=0.0), []
    for _ in range(steps):
        total = loss(model, batch)
        total.backward()
        losses.append(total.item())
        optimizer.step(lr)
        optimizer.zero_grad()
    return losses
