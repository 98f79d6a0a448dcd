"""Both families against numbers of the transformers library (make_golden.py): logits, loss, every gradient, ten training steps."""
import json
from pathlib import Path

import numpy as np
import pytest

from pyllm import kernels, objectives, training
from pyllm.data.batch import Batch
from pyllm.folders import build, load_weights
from pyllm.io import safetensors

FILES = sorted(Path(__file__).with_name("golden").glob("*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def golden(request):
    """-> the file's tensors, the model with its weights, the batch."""
    tensors = safetensors.read(request.param)
    model = build(json.loads(safetensors.read_header(request.param)[1]["config"]))
    load_weights(model, {n.removeprefix("weight."): a for n, a in tensors.items() if n.startswith("weight.")})
    return tensors, model, Batch(*(np.array(tensors[n]) for n in ("tokens", "targets", "mask")))


@pytest.mark.parametrize("table", kernels.available())
def test_logits_loss_and_every_gradient(golden, table):
    tensors, model, batch = golden
    with kernels.use(table):
        logits = model(batch.tokens, batch.segments).data
        loss = objectives.clm(model, batch)
        loss.total.backward()
    real = batch.segments > 0
    np.testing.assert_allclose(logits[real], tensors["logits"][real], rtol=0, atol=2e-5)
    assert abs(loss.total.item() - tensors["loss"][0]) < 1e-4 and loss.count == (batch.targets >= 0).sum()
    grads = {n.removeprefix("grad."): a for n, a in tensors.items() if n.startswith("grad.")}
    own = {n: p.grad.T if n.endswith(model.TRANSPOSED) and p.ndim == 2 else p.grad for n, p in model.named_parameters()}
    assert own.keys() == grads.keys()
    for name, expected in grads.items():
        np.testing.assert_allclose(own[name], expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name)


def test_ten_training_steps(golden):
    """The loss curve of torch.optim.AdamW, betas 0.9 and 0.95, decay 0.1 on matrices, clipping at 1."""
    tensors, model, batch = golden
    optimizer = training.AdamW(model, betas=(0.9, 0.95), weight_decay=0.1)
    records = training.train(model, objectives.clm, iter([batch] * 10), optimizer, steps=10, lr=3e-3, clip=1.0)
    np.testing.assert_allclose([r.loss for r in records], tensors["curve"], rtol=0, atol=1e-5)


def test_both_families_have_files():
    assert {p.stem.split("-")[0] for p in FILES} == {"gpt2", "llama"}
    assert all(p.stat().st_size < 200_000 for p in FILES)
