"""Causal language modelling against its definition, written out over the logits."""
import numpy as np
import pytest

from pyllm.data.batch import IGNORED, Batch
from pyllm.objectives import clm
from tests.training import tiny


@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_definition(family, smoothing, z_loss):
    model = tiny.filled(getattr(tiny, family)(), np.float64)
    draw = np.random.default_rng(1)
    tokens, targets = (draw.integers(0, tiny.V, (3, 7)).astype(np.int32) for _ in range(2))
    targets[1, 2:5] = IGNORED
    logits = model(tokens).data
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
    each = (1 - smoothing) * nll + smoothing * (log_z - logits.mean(-1)) + z_loss * log_z**2
    loss = clm(model, Batch(tokens, targets), label_smoothing=smoothing, z_loss=z_loss)
    assert loss.count == 18 and loss.metrics == {}
    np.testing.assert_allclose(loss.total.item(), each[targets != IGNORED].sum(), rtol=1e-12)


def test_segments_reach_the_model():
    """The second document of a row does not see the first: what stands there does not matter to it."""
    model = tiny.filled(tiny.gpt2())
    tokens = np.array([[1, 2, 3, 4, 5, 6]], np.int32)
    targets = np.array([[IGNORED, IGNORED, IGNORED, 5, 6, 7]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2]], np.int32)
    other = tokens.copy()
    other[0, :3] = 9, 8, 7
    assert clm(model, Batch(tokens, targets, segments)).total.item() == clm(model, Batch(other, targets, segments)).total.item()
    assert clm(model, Batch(tokens, targets)).total.item() != clm(model, Batch(other, targets)).total.item()
