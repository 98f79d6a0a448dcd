"""A training step: forward, backward, clipping, AdamW. PyTorch: the same model and batch, the faster of eager and compiled,
AdamW(fused=True), as many threads; in bf16 by autocast.
"""
from functools import partial

import numpy as np

import pyllm
from benchmarks.harness import Case, close, torch_or_none
from pyllm import objectives, training
from pyllm.cli.estimate import step_flops
from pyllm.data import IGNORED, Batch
from pyllm.models import GPT2, GPT2Config, Llama, LlamaConfig

MODELS = {
    "gpt_0.8M": lambda: GPT2(GPT2Config(vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4, bias=False)),
    "gpt_10.8M": lambda: GPT2(GPT2Config(vocab_size=65, n_positions=256, n_embd=384, n_layer=6, n_head=6, bias=False)),
    "gpt2_124M": lambda: GPT2(GPT2Config()),
    "llama_135M": lambda: Llama(LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                                            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)),
}
LEARNED = {"train": 1.0, "sft": 0.25}  # share of the tokens that are learned: all, or those of the completions
ROWS = [("train", "gpt_0.8M", 12, 64), ("train", "gpt_10.8M", 12, 256), ("train", "gpt2_124M", 4, 256), ("train", "gpt2_124M", 1, 1024),
        ("train", "llama_135M", 1, 512), ("sft", "llama_135M", 4, 512)]  # what, model, B, T


def cases(quick):
    for kind, name, b, t in ROWS[: 1 if quick else None]:
        flops = step_flops(MODELS[name](), b, t)  # all tokens through the head, as the peers have it
        for precision in ("f32", "bf16"):
            yield Case(f"{kind}_{name}", f"B{b} T{t}", partial(build, kind, name, b, t, precision), flops=flops, precision=precision,
                       unit=b * t)


def batch_of(model, b, t, kind="train"):
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (b, t + 1)).astype(np.int32)
    targets = np.ascontiguousarray(ids[:, 1:])
    targets[:, : t - round(LEARNED[kind] * t)] = IGNORED
    return Batch(np.ascontiguousarray(ids[:, :-1]), targets)


def stepper(model, batch, precision):
    """-> () -> loss: one step more of a training run over `batch` for ever."""
    def forever():
        while True:
            yield batch

    optimizer = training.AdamW(model, betas=(0.9, 0.99), weight_decay=0.1)
    records = training.train(model, objectives.clm, forever(), optimizer, steps=10**9, lr=1e-4)

    def step():
        with pyllm.precision(precision):
            return next(records).loss

    return step


def build(kind, name, b, t, precision):
    model = MODELS[name]().initialize(0)
    batch, v = batch_of(model, b, t, kind), model.config.vocab_size
    peers = None
    if torch_or_none():
        from benchmarks.torch_gpt import TorchModel, training_step

        peer_model = TorchModel(model)
        peers = {setting: training_step(peer_model, batch.tokens, batch.targets, precision, setting == "compiled")
                 for setting in ("eager", "compiled")}
    run = stepper(model, batch, precision)

    def check():
        mine = [run(), run()]
        assert 0.8 * np.log(v) < mine[0] < 1.3 * np.log(v), f"the first loss is {mine[0]}, expected about log {v}"
        if peers:
            close(mine, np.array([peers["eager"](), peers["eager"]()]), 1e-2 if precision == "bf16" else 1e-4,
                  "the first two losses against PyTorch")

    return run, check, {"torch": peers}
