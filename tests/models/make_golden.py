"""Writes golden/*.safetensors: small models of the transformers library, computed in float64, for the tests that run without it.

    python tests/models/make_golden.py [NAME ...]

Each file: config (metadata, JSON), weights, tokens, targets, mask (0 = padding), logits, loss (the sum over targets), d(loss)/d(weight) of
every weight; of causal models also curve: the mean losses of ten steps of torch.optim.AdamW with clipping on that batch. Encoder-decoders
have decoder_tokens besides, whose targets and logits they are.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

FOLDER = Path(__file__).with_name("golden")
CASES = {
    "gpt2": dict(model_type="gpt2", vocab_size=61, n_positions=24, n_embd=20, n_layer=2, n_head=4),
    "gpt2-untied": dict(model_type="gpt2", vocab_size=37, n_positions=16, n_embd=15, n_layer=2, n_head=3, n_inner=31,
                        activation_function="gelu", tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True,
                        layer_norm_epsilon=1e-3),
    "llama": dict(model_type="llama", vocab_size=61, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=6,
                  num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False),
    "llama-tied": dict(model_type="llama", vocab_size=37, hidden_size=15, intermediate_size=29, num_hidden_layers=2, num_attention_heads=3,
                       num_key_value_heads=1, head_dim=6, max_position_embeddings=32, attention_bias=True, mlp_bias=True,
                       tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "llama-3": dict(model_type="llama", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=2,
                    max_position_embeddings=64, tie_word_embeddings=True,
                    rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                     "original_max_position_embeddings": 8, "rope_theta": 100.0}),
    "mistral": dict(model_type="mistral", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, sliding_window=3, max_position_embeddings=32),
    "qwen2": dict(model_type="qwen2", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=32, use_sliding_window=True, sliding_window=4, max_window_layers=1,
                  rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4}),
    "qwen3": dict(model_type="qwen3", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=4, max_position_embeddings=32, tie_word_embeddings=True),
    "gemma3_text": dict(model_type="gemma3_text", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=3,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=4, max_position_embeddings=32, sliding_window=3,
                        query_pre_attn_scalar=9, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
                                         "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}),
    "bert": dict(model_type="bert", vocab_size=23, hidden_size=8, intermediate_size=13, num_hidden_layers=2, num_attention_heads=4,
                 max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "t5": dict(model_type="t5", vocab_size=23, d_model=8, d_kv=5, d_ff=13, num_layers=2, num_heads=3, dropout_rate=0.0,
               relative_attention_num_buckets=8, relative_attention_max_distance=10),
    "t5-1.1": dict(model_type="t5", vocab_size=23, d_model=8, d_kv=4, d_ff=13, num_layers=1, num_decoder_layers=2, num_heads=4,
                   dropout_rate=0.0, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": dict(model_type="bart", vocab_size=23, d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
                 decoder_attention_heads=2, encoder_ffn_dim=13, decoder_ffn_dim=11, max_position_embeddings=16, dropout=0.0),
}
HEADS = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM, "bart": AutoModelForSeq2SeqLM}
PLAIN_GPT2 = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)


def batch(vocab_size):
    """3 rows of 11: one whole, one with padding on the left, one with padding on the right and ignored targets within."""
    draw = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(vocab_size, (3, 11), generator=draw) for _ in range(2))
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = mask[2, 8:] = 0
    targets[mask == 0] = -100
    targets[2, 2:4] = -100
    return tokens, targets, mask


def loss_of(model, tokens, targets, mask):
    kind = model.config.model_type
    inputs = dict(input_ids=tokens, attention_mask=mask)
    if kind in ("t5", "bart"):
        inputs |= dict(decoder_input_ids=tokens.flip(1), use_cache=False)
    else:
        inputs |= dict(position_ids=(mask.cumsum(1) - 1).clamp(min=0), **({} if kind == "bert" else {"use_cache": False}))
    logits = model(**inputs).logits
    return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def make(name, values):
    torch.manual_seed(0)
    kind = values["model_type"]
    spread = {} if kind == "t5" else {"init_std" if kind == "bart" else "initializer_range": 0.2}
    plain = PLAIN_GPT2 if kind == "gpt2" else {}
    if kind in ("bert", "gemma3_text", "bart"):  # the row of a padding token would get no gradient
        plain = {"pad_token_id": None}
    config = AutoConfig.for_model(**values, **plain, **spread)
    model = HEADS.get(kind, AutoModelForCausalLM).from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())  # what the file can hold
    tokens, targets, mask = batch(config.vocab_size)
    if kind == "bart":  # its positions are counted from the padding, ours from the text
        mask[1, :4], mask[1, 7:] = 1, 0
        targets[mask == 0] = -100
    weights = {f"weight.{n}": p.detach().float().clone() for n, p in model.named_parameters()}
    logits, loss = loss_of(model, tokens, targets, mask)
    loss.backward()
    grads = {f"grad.{n}": p.grad.float() for n, p in model.named_parameters()}
    tensors = {**weights, **grads, "tokens": tokens.int(), "targets": targets.int(), "mask": mask.int(), "logits": logits.detach().float(),
               "loss": loss.detach()[None]}
    if kind in ("t5", "bart"):
        tensors["decoder_tokens"] = tokens.flip(1).int()
    if kind not in HEADS:
        tensors["curve"] = torch.tensor(curve_of(model, tokens, targets, mask), dtype=torch.float64)
    FOLDER.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, FOLDER / f"{name}.safetensors", {"config": json.dumps(config.to_dict())})


def curve_of(model, tokens, targets, mask):
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=plain, weight_decay=0.0)], lr=3e-3, betas=(0.9, 0.95))
    curve = []
    for _ in range(10):
        optimizer.zero_grad()
        mean = loss_of(model, tokens, targets, mask)[1] / (targets >= 0).sum()
        mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(mean.item())
    return curve


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name])
