"""The peers: GPT-2 and Llama written plainly in PyTorch with scaled_dot_product_attention, over the weights of a pyllm model; a training
step of theirs at its best setting; transformers' own model.
"""
from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional as F


class TorchModel(torch.nn.Module):
    """tokens:(B, T) -> logits; cache: a list of (k, v) a layer, extended in place. share: over the weights themselves, no copy."""

    def __init__(self, model, share=False):
        super().__init__()
        self.config, self.family = model.config, model.config.model_type
        self.w = torch.nn.ParameterDict({name.replace(".", "/"): torch.nn.Parameter(torch.from_numpy(array if share else np.array(array)))
                                         for name, array in model.state().items()})
        self.layers = getattr(model.config, "n_layer", None) or model.config.num_hidden_layers

    def p(self, name):
        return self.w[name.replace(".", "/")] if name.replace(".", "/") in self.w else None

    def forward(self, tokens, cache=None):
        past = cache[0][0].shape[2] if cache else 0
        at = torch.arange(past, past + tokens.shape[1])
        x = (self.gpt2 if self.family == "gpt2" else self.llama)(tokens, at, cache, past)
        head = self.p("lm_head.weight")
        tied = "transformer.wte.weight" if self.family == "gpt2" else "model.embed_tokens.weight"
        return F.linear(x, head if head is not None else self.p(tied))

    def attend(self, q, k, v, layer, cache, past):
        if cache is not None:
            if past:
                k, v = (torch.cat(pair, 2) for pair in zip(cache[layer], (k, v)))
                cache[layer] = (k, v)
            else:
                cache.append((k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1])
        return y.transpose(1, 2).flatten(2)

    def gpt2(self, tokens, at, cache, past):
        c, p = self.config, self.p
        x = p("transformer.wte.weight")[tokens] + p("transformer.wpe.weight")[at]
        norm = lambda x, name: F.layer_norm(x, (c.n_embd,), p(f"{name}.weight"), p(f"{name}.bias"), c.layer_norm_epsilon)
        linear = lambda x, name: F.linear(x, p(f"{name}.weight"), p(f"{name}.bias"))
        for i in range(c.n_layer):
            h = f"transformer.h.{i}"
            qkv = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn")
            q, k, v = (y.unflatten(2, (c.n_head, -1)).transpose(1, 2) for y in qkv.split(c.n_embd, 2))
            x = x + linear(self.attend(q, k, v, i, cache, past), f"{h}.attn.c_proj")
            x = x + linear(F.gelu(linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc"), approximate="tanh"), f"{h}.mlp.c_proj")
        return norm(x, "transformer.ln_f")

    def llama(self, tokens, at, cache, past):
        c, p = self.config, self.p
        x, d = p("model.embed_tokens.weight")[tokens], c.head_size
        angles = at[:, None].double() * c.rope_theta ** (-torch.arange(0, d, 2).double() / d)
        cos, sin = torch.cos(angles).float().repeat(1, 2), torch.sin(angles).float().repeat(1, 2)
        turn = lambda y: (y * cos + torch.cat((-y[..., d // 2 :], y[..., : d // 2]), -1) * sin).type_as(y)
        norm = lambda x, name: F.rms_norm(x, (c.hidden_size,), p(f"{name}.weight"), c.rms_norm_eps)
        linear = lambda x, name: F.linear(x, p(f"{name}.weight"), p(f"{name}.bias"))
        for i in range(c.num_hidden_layers):
            h = f"model.layers.{i}"
            y = norm(x, f"{h}.input_layernorm")
            q, k, v = (linear(y, f"{h}.self_attn.{n}_proj").unflatten(2, (-1, d)).transpose(1, 2) for n in "qkv")
            x = x + linear(self.attend(turn(q), turn(k), v, i, cache, past), f"{h}.self_attn.o_proj")
            y = norm(x, f"{h}.post_attention_layernorm")
            x = x + linear(F.silu(linear(y, f"{h}.mlp.gate_proj")) * linear(y, f"{h}.mlp.up_proj"), f"{h}.mlp.down_proj")
        return norm(x, "model.norm")


def training_step(model, tokens, targets, precision, compiled=False):
    """model: a TorchModel, tokens, targets:(B, T) arrays -> () -> loss: forward, backward, clipping, AdamW(fused=True).

    bf16: autocast, the weights and the optimizer in float32. compiled: forward and backward through torch.compile.
    """
    tokens, targets = torch.from_numpy(tokens).long(), torch.from_numpy(targets).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def loss_of(tokens, targets):
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step():
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = forward(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def greedy(model, prompts, new):
    """-> () -> ids: `new` tokens a row by the TorchModel, keys and values cached."""
    @torch.no_grad()
    def run():
        tokens, cache, out = torch.tensor(prompts), [], []
        for _ in range(new):
            tokens = model(tokens, cache)[:, -1:].argmax(-1)
            out.append(tokens)
        return torch.cat(out, 1).tolist()

    return run


def transformers_greedy(model, prompts, new, dtype=torch.float32):
    """-> () -> ids: transformers' generate over the weights of a pyllm model, or None where it is not installed."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        return None
    from pyllm.folders import checkpoint_tensors

    config = model.config.to_dict()
    peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    peer.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in checkpoint_tensors(model).items()}, strict=False)
    peer = peer.to(dtype).eval()
    tokens = torch.tensor(prompts)
    options = dict(attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)

    @torch.no_grad()
    def run():
        return peer.generate(tokens, **options)[:, tokens.shape[1] :].tolist()

    return run
