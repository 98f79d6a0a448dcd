"""Every family against numbers of the transformers library (make_golden.py): logits, loss, every gradient, ten training steps."""
import json
from pathlib import Path

import numpy as np
import pytest

from pyllm import kernels, objectives, training
from pyllm.autograd import ops
from pyllm.data.batch import Batch
from pyllm.folders import build, load_weights
from pyllm.io import safetensors
from pyllm.models import FAMILIES

FILES = sorted(Path(__file__).with_name("golden").glob("*.safetensors"))


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def golden(request):
    """-> the file's tensors, the model with its weights, the batch; what the model is called with."""
    tensors = safetensors.read(request.param)
    model = build(json.loads(safetensors.read_header(request.param)[1]["config"]))
    load_weights(model, {n.removeprefix("weight."): a for n, a in tensors.items() if n.startswith("weight.")})
    return tensors, model, Batch(*(np.array(tensors[n]) for n in ("tokens", "targets", "mask")))


def run(model, tensors):
    """-> logits"""
    tokens, mask = np.array(tensors["tokens"]), np.array(tensors["mask"])
    if "decoder_tokens" in tensors:
        return model(tokens, np.array(tensors["decoder_tokens"]), mask)
    return model(tokens, mask)


@pytest.mark.parametrize("table", kernels.available())
def test_logits_loss_and_every_gradient(golden, table):
    tensors, model, batch = golden
    with kernels.use(table):
        logits = run(model, tensors)
        loss = ops.cross_entropy(logits, batch.targets)
        loss.backward()
    real = slice(None) if "decoder_tokens" in tensors else batch.segments > 0
    np.testing.assert_allclose(logits.data[real], tensors["logits"][real], rtol=0, atol=2e-5)
    assert abs(loss.item() - tensors["loss"][0]) < 1e-4
    grads = {n.removeprefix("grad."): a for n, a in tensors.items() if n.startswith("grad.")}
    own = {n: p.grad.T if n.endswith(model.TRANSPOSED) and p.ndim == 2 else p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == grads.keys()
    for name, expected in grads.items():
        np.testing.assert_allclose(own[name], expected, rtol=0, atol=2e-5 * max(1, np.abs(expected).max()), err_msg=name)


def test_ten_training_steps(golden):
    """The loss curve of torch.optim.AdamW, betas 0.9 and 0.95, decay 0.1 on matrices, clipping at 1."""
    tensors, model, batch = golden
    if "curve" not in tensors:
        return
    optimizer = training.AdamW(model, betas=(0.9, 0.95), weight_decay=0.1)
    records = training.train(model, objectives.clm, iter([batch] * 10), optimizer, steps=10, lr=3e-3, clip=1.0)
    np.testing.assert_allclose([r.loss for r in records], tensors["curve"], rtol=0, atol=2e-5)


def test_every_family_has_a_file():
    assert {p.stem.split("-")[0] for p in FILES} == FAMILIES.keys()
    assert all(p.stat().st_size < 200_000 for p in FILES)
