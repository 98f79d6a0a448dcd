"""Greedy decoding with cached keys, float32: tokens per second; bytes are the weights read once a step. PyTorch: the same model, eager."""
import numpy as np

from benchmarks.bench_train_step import MODELS
from benchmarks.harness import Case, torch_or_none
from pyllm.generation import generate

NEW = 16


def cases(quick, threads):
    torch = torch_or_none(threads)
    for name in ("gpt_10.8M",) if quick else ("gpt_10.8M", "gpt2_124M", "llama_135M"):
        model = MODELS[name][0]().initialize(0)
        weights = sum(p.size for n, p in model.named_parameters() if p.ndim == 2 and "wpe" not in n) * 4
        for rows in (1, 8):
            prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, 8)).tolist()

            def run(model=model, prompts=prompts):
                return [g.ids for g in generate(model, None, prompts, max_tokens=NEW, temperature=0)]

            peer = None
            if torch:
                from benchmarks.torch_gpt import TorchModel

                peer_model = TorchModel(model)

                @torch.no_grad()
                def peer(peer_model=peer_model, prompts=prompts):
                    tokens, cache, out = torch.tensor(prompts), [], []
                    for _ in range(NEW):
                        tokens = peer_model(tokens, cache)[:, -1:].argmax(-1)
                        out.append(tokens)
                    return torch.cat(out, 1).tolist()

            def check(run=run, peer=peer, rows=rows):
                mine = run()
                assert [len(ids) for ids in mine] == [NEW] * rows
                if peer:
                    same = np.mean(np.array(mine) == np.array(peer()))
                    assert same > 0.9, f"only {100 * same:.0f} % of the greedy tokens agree with PyTorch's"

            yield Case(f"decode_{name}", f"{rows} x {NEW} tokens", run, check, bytes=float(weights) * NEW, torch=peer, unit=rows * NEW)
