"""Greedy decoding with cached keys: tokens per second, bytes are the weights read once a step; and the reading of a prompt of 64 tokens.

Peers: the same model in plain PyTorch, eager, and transformers' generate, in bf16 with bfloat16 weights; nothing for q8_0 and q4.
"""
from functools import partial

import numpy as np

import pyllm
from benchmarks.bench_train_step import MODELS
from benchmarks.harness import Case, torch_or_none
from pyllm.cli.estimate import step_flops
from pyllm.generation import generate
from pyllm.nn import Embedding

NEW, PROMPT = 32, 64
BYTES = {"f32": 4.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32}  # a weight; tables of q4 models are q8_0


def cases(quick):
    for name in ("gpt_10.8M",) if quick else ("gpt_10.8M", "gpt2_124M", "llama_135M"):
        model = MODELS[name]()
        for precision in BYTES:
            for rows in (1, 8):
                yield Case(f"decode_{name}", f"{rows} x {NEW} tokens", partial(build, name, rows, 8, NEW, precision), precision=precision,
                           bytes=NEW * weight_bytes(model, precision), unit=rows * NEW)
            head = model.head_weight().size
            yield Case(f"prompt_{name}", f"{PROMPT} tokens", partial(build, name, 1, PROMPT, 1, precision), precision=precision,
                       unit=PROMPT, flops=step_flops(model, 1, PROMPT) / 3 - 2.0 * head * (PROMPT - 1))  # the head: the last token


def weight_bytes(model, precision):
    """-> bytes of the matrices that a step reads: all but the table of positions."""
    tables = {id(m.weight) for _, m in model.named_modules() if isinstance(m, Embedding)}
    each = lambda p: BYTES["q8_0" if precision in ("q4_0", "q4_1") and id(p) in tables else precision]
    return sum(p.size * each(p) for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n)


def build(name, rows, length, new, precision):
    model = MODELS[name]().initialize(0)
    prompts, peers = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, length)).tolist(), {}
    torch = torch_or_none()
    if torch and precision in ("f32", "bf16"):
        from benchmarks.torch_gpt import TorchModel, greedy, transformers_greedy

        dtype = torch.float32 if precision == "f32" else torch.bfloat16
        peers = {"torch": greedy(TorchModel(model).to(dtype), prompts, new),
                 "transformers": transformers_greedy(model, prompts, new, dtype)}
    if precision != "f32":
        pyllm.quantize(model, precision)

    def run():
        return [g.ids for g in generate(model, None, prompts, max_tokens=new, temperature=0)]

    def check():
        """Against the peers in float32, else against a forward of all at once: near ties may fall otherwise."""
        mine = np.array(run())
        assert mine.shape == (rows, new)
        wanted = {peer: f() for peer, f in peers.items() if f and precision == "f32"}
        with pyllm.no_grad():
            whole = model(np.concatenate([prompts, mine], 1)[:, :-1]).data
        wanted["the whole forward"] = whole[:, length - 1 :].argmax(-1)
        for peer, ids in wanted.items():
            same = np.mean(mine == np.array(ids))
            assert same > 0.9, f"only {100 * same:.0f} % of the greedy tokens agree with {peer}"

    return run, check, peers
