"""Writes golden.json with PyTorch in float64: python -m tests.training.make_golden"""
import json
import math
from pathlib import Path

import numpy as np
import torch

from benchmarks.torch_gpt import TorchModel
from tests.training import tiny


def tokens(step, micro):
    """(2, 13) ids by a formula."""
    i = np.arange(26).reshape(2, 13)
    return (i * i * 7 + 3 * i + 5 * step + micro) % tiny.V


def curve(model):
    """Ten steps of two micro-batches, AdamW with decay of matrices, clipping to 0.5, warm-up of 3 and a cosine."""
    peer = TorchModel(tiny.filled(model)).double()
    groups = [{"params": [p for p in peer.parameters() if (p.ndim >= 2) == decays], "weight_decay": 0.1 * decays}
              for decays in (True, False)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(10):
        total, count = 0.0, 0
        optimizer.zero_grad()
        for micro in range(2):
            ids = torch.from_numpy(tokens(step, micro))
            loss = torch.nn.functional.cross_entropy(peer(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
            loss.backward()
            total, count = total + loss.item(), count + ids[:, 1:].numel()
        norm = math.sqrt(sum((p.grad / count).square().sum().item() for p in peer.parameters()))
        for p in peer.parameters():
            p.grad *= min(1.0, 0.5 / norm) / count
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1) / 4 if step < 3 else 1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 7))
        optimizer.step()
        losses.append(total / count)
        norms.append(norm)
    return {"loss": losses, "grad_norm": norms}


if __name__ == "__main__":
    golden = {"gpt2": curve(tiny.gpt2()), "llama": curve(tiny.llama())}
    Path(__file__).with_name("golden.json").write_text(json.dumps(golden, indent=1) + "\n")
