"""A LoRA step (r = 8, q_proj and v_proj) beside the full step, and beside PEFT over transformers and PyTorch.

    python -m benchmarks peft                       # time
    python -m benchmarks.bench_peft lora            # peak memory of three steps in a process of its own: lora, full, q4_0, peft
"""
import sys
from functools import partial

import numpy as np

import pyllm
from benchmarks.bench_train_step import MODELS, batch_of
from benchmarks.harness import Case, close, torch_or_none
from pyllm import measure, objectives, peft, training

ROWS = [("llama_135M", 4, 256)]  # model, B, T


def cases(quick):
    for name, b, t in [("gpt_0.8M", 2, 32)] if quick else ROWS:
        for precision in ("f32", "bf16"):
            yield Case(f"lora_{name}", f"B{b} T{t}", partial(build, name, b, t, precision), precision=precision, unit=b * t)


def stepper(model, batch, precision):
    """-> () -> loss: one step more over the batch."""
    def forever():
        while True:
            yield batch

    records = training.train(model, objectives.clm, forever(), training.AdamW(model), steps=10**9, lr=1e-4, precision=precision)
    return lambda: next(records).loss


def adapted(name, packed=None):
    model = MODELS[name]().initialize(0)
    if packed:
        pyllm.quantize(model, packed)
    return peft.inject(model, peft.LoRA(rank=8), seed=0)


def build(name, b, t, precision):
    model, full = adapted(name), MODELS[name]().initialize(0)
    batch = batch_of(full, b, t)
    run, other = stepper(model, batch, precision), stepper(full, batch, precision)
    peer = theirs(full, batch, precision) if torch_or_none() else None

    def check():
        first = run()
        close(first, other(), 1e-6, "the first loss against the full step's")
        if peer:
            close(first, peer(), 1e-2 if precision == "bf16" else 1e-4, "the first loss against PEFT's")

    return run, check, {"full": other, "peft": peer}


def theirs(model, batch, precision):
    """-> () -> loss of one step more by PEFT, fused AdamW; None where it or transformers is not installed, or knows no such model."""
    try:
        import peft as library
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        return None
    if model.config.model_type != "llama":
        return None
    config = AutoConfig.for_model(**model.config.to_dict())
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in model.state().items()}, strict=False)
    peer = library.get_peft_model(peer, library.LoraConfig(r=8, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens, targets = (torch.from_numpy(a).long() for a in (batch.tokens, batch.targets))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = peer(input_ids=tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in peer.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def memory(kind, name="llama_135M", b=4, t=256):
    """-> MB: the peak of this process after three steps of one kind."""
    if kind == "peft":
        model = MODELS[name]().initialize(0)
        run = theirs(model, batch_of(model, b, t), "f32")
        del model
    else:
        model = MODELS[name]().initialize(0) if kind == "full" else adapted(name, None if kind == "lora" else kind)
        run = stepper(model, batch_of(model, b, t), "f32")
    losses = [run() for _ in range(3)]
    assert np.isfinite(losses).all()
    return measure.peak_rss_mb()


if __name__ == "__main__":
    print(f"{sys.argv[1]}: {memory(sys.argv[1]):.0f} MB")
