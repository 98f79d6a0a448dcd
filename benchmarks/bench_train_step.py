"""A training step: forward, backward, clipping, AdamW. PyTorch: the same model and batch, eager, AdamW(fused=True)."""
import numpy as np

from benchmarks.harness import Case, close, torch_or_none
from pyllm import objectives, training
from pyllm.cli.estimate import step_flops
from pyllm.data import Batch
from pyllm.models import GPT2, GPT2Config, Llama, LlamaConfig

MODELS = {  # name: model, B, T
    "gpt_0.8M": (lambda: GPT2(GPT2Config(vocab_size=65, n_positions=64, n_embd=128, n_layer=4, n_head=4, bias=False)), 12, 64),
    "gpt_10.8M": (lambda: GPT2(GPT2Config(vocab_size=65, n_positions=256, n_embd=384, n_layer=6, n_head=6, bias=False)), 12, 256),
    "gpt2_124M": (lambda: GPT2(GPT2Config()), 4, 256),
    "llama_135M": (lambda: Llama(LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                                             num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)), 1, 512),
}


def cases(quick, threads):
    torch = torch_or_none(threads)
    for name, (build, b, t) in MODELS.items():
        if quick and name != "gpt_0.8M":
            continue
        model = build().initialize(0)
        if torch:
            from benchmarks.torch_gpt import TorchModel

            peer_model = TorchModel(model)
        ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (b, t + 1)).astype(np.int32)
        batch = Batch(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))

        def forever(batch=batch):
            while True:
                yield batch

        optimizer = training.AdamW(model, betas=(0.9, 0.99), weight_decay=0.1)
        records = training.train(model, objectives.clm, forever(), optimizer, steps=10**9, lr=1e-4)
        peer, first = None, []
        if torch:
            optimizer = torch.optim.AdamW(peer_model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
            tokens, targets = torch.from_numpy(batch.tokens).long(), torch.from_numpy(batch.targets).long()

            def peer(peer_model=peer_model, optimizer=optimizer, tokens=tokens, targets=targets):
                loss = torch.nn.functional.cross_entropy(peer_model(tokens).flatten(0, 1), targets.flatten())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(peer_model.parameters(), 1.0)
                optimizer.step()
                return loss.item()

        def check(records=records, peer=peer, v=model.config.vocab_size):
            mine = [next(records).loss for _ in range(2)]
            assert 0.8 * np.log(v) < mine[0] < 1.3 * np.log(v), f"the first loss is {mine[0]}, expected about log {v}"
            if peer:
                close(mine, np.array([peer(), peer()]), 1e-4, "the first two losses against PyTorch")

        yield Case(f"train_{name}", f"B{b} T{t}", lambda records=records: next(records), check, flops=step_flops(model, b, t), torch=peer,
                   unit=b * t)
