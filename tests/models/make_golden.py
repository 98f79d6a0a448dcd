"""Writes golden/*.safetensors: small models of the transformers library, computed in float64, for the tests that run without it.

    python tests/models/make_golden.py

Each file: config (metadata, JSON), weights, tokens, targets, mask (0 = padding), logits, loss (the sum over targets), d(loss)/d(weight) of
every weight, and curve: the mean losses of ten steps of torch.optim.AdamW with clipping on that batch (see STEPS in test_golden.py).
"""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

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
}
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
    at = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=at, use_cache=False).logits
    return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def make(name, values):
    torch.manual_seed(0)
    kind = values["model_type"]
    config = AutoConfig.for_model(**values, **(PLAIN_GPT2 if kind == "gpt2" else {}), initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
            p.copy_(p.float())  # what the file can hold
    tokens, targets, mask = batch(config.vocab_size)
    weights = {f"weight.{n}": p.detach().float().clone() for n, p in model.named_parameters()}
    logits, loss = loss_of(model, tokens, targets, mask)
    loss.backward()
    grads = {f"grad.{n}": p.grad.float() for n, p in model.named_parameters()}

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
    tensors = {**weights, **grads, "tokens": tokens.int(), "targets": targets.int(), "mask": mask.int(), "logits": logits.detach().float(),
               "loss": loss.detach()[None], "curve": torch.tensor(curve, dtype=torch.float64)}
    FOLDER.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, FOLDER / f"{name}.safetensors", {"config": json.dumps(config.to_dict())})


if __name__ == "__main__":
    for name, values in CASES.items():
        make(name, values)
