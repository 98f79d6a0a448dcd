"""Greedy decoding with cached keys: tokens per second, bytes are the weights read once a step; and the reading of a prompt of 64 tokens.

Peers: the same model in plain PyTorch, eager, and transformers' generate.
"""
from functools import partial

import numpy as np

from benchmarks.bench_train_step import MODELS
from benchmarks.harness import Case, torch_or_none
from pyllm.cli.estimate import step_flops
from pyllm.generation import generate

NEW, PROMPT = 16, 64


def cases(quick):
    for name in ("gpt_10.8M",) if quick else ("gpt_10.8M", "gpt2_124M", "llama_135M"):
        model = MODELS[name]()
        weights = sum(p.size for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n) * 4
        for rows in (1, 8):
            yield Case(f"decode_{name}", f"{rows} x {NEW} tokens", partial(build, name, rows, 8, NEW), bytes=float(weights) * NEW,
                       unit=rows * NEW)
        head = model.head_weight().size
        yield Case(f"prompt_{name}", f"{PROMPT} tokens", partial(build, name, 1, PROMPT, 1), unit=PROMPT,
                   flops=step_flops(model, 1, PROMPT) / 3 - 2.0 * head * (PROMPT - 1))  # the head reads the last token alone


def build(name, rows, length, new):
    model = MODELS[name]().initialize(0)
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length)).tolist()

    def run():
        return [g.ids for g in generate(model, None, prompts, max_tokens=new, temperature=0)]

    peers = {}
    if torch_or_none():
        from benchmarks.torch_gpt import TorchModel, greedy, transformers_greedy

        peers = {"torch": greedy(TorchModel(model), prompts, new), "transformers": transformers_greedy(model, prompts, new)}

    def check():
        mine = run()
        assert [len(ids) for ids in mine] == [new] * rows
        for peer, f in peers.items():
            same = np.mean(np.array(mine) == np.array(f())) if f else 1.0
            assert same > 0.9, f"only {100 * same:.0f} % of the greedy tokens agree with those of {peer}"

    return run, check, peers
