"""Every method in every family: what an adapter leaves alone, what it trains, files, merging. A new method or family inherits all of it."""
import dataclasses

import numpy as np
import pytest

from pyllm import peft
from pyllm.autograd import Rng
from pyllm.models import FAMILIES
from tests.peft.tiny import CONFIGS, batch_of, learn, logits, loss, make

VARIANTS = {  # of methods with more than one face; every other one runs with its defaults
    "lora": [peft.LoRA(rank=2), peft.LoRA(rank=2, rslora=True, dropout=0.3, init="gaussian"), peft.LoRA(rank=2, dora=True),
             peft.LoRA(rank=2, init="pissa"), peft.LoRA(rank=2, bias="all")],
    "adalora": [peft.AdaLoRA(init_r=3, target_r=2), peft.AdaLoRA(init_r=2, target_r=1, dropout=0.3)],
    "houlsby": [peft.Houlsby(), peft.Houlsby(reduction=2, init="mam_adapter")],
    "pfeiffer": [peft.Pfeiffer(reduction=3), peft.Pfeiffer(reduction=2, init="mam_adapter", activation="gelu")],
    "parallel": [peft.Parallel(), peft.Parallel(reduction=2, init="houlsby")],
    "prefix": [peft.PrefixTuning(3, std=0.5), peft.PrefixTuning(2, projection=True, hidden=5)],
    "prompt": [peft.PromptTuning(3), peft.PromptTuning(2, init="sample_vocab"), peft.PromptTuning(3, init=(4, 5))],
    "p_tuning": [peft.PTuning(3, hidden=7)],
    "vera": [peft.VeRA(5)],
    "tokens": [peft.TrainedTokens((15, 26, 30))],
    "bitfit": [peft.BitFit(add=True), peft.BitFit(parts="query_middle", add=True)],
}
FACES = [VARIANTS.get(name, [kind()]) for name, kind in peft.METHODS.items()]
# A method's first face in every family, its others in every third.
CASES = [pytest.param(m, f, id=f"{''.join(x for x in str(m) if x.isalnum())[:60]}-{f}") for faces in FACES for i, m in enumerate(faces)
         for j, f in enumerate(CONFIGS) if i == 0 or (i + j) % 3 == 0]


def adapted(method, family, trained=False):
    """-> model, batch, the base's bytes and logits before."""
    model, batch = make(family), batch_of(family)
    base, before = {n: p.data.copy() for n, p in model.named_parameters()}, logits(model, batch).data
    peft.inject(model, method, seed=3)
    losses = learn(model, batch) if trained else None
    return model, batch, base, before, losses


def test_every_family_has_a_model_here():
    assert set(FAMILIES) <= {c["model_type"] for c in CONFIGS.values()}


@pytest.mark.parametrize("method, family", CASES)
def test_at_the_start_nothing_has_changed_and_the_adapter_alone_gets_gradients(method, family):
    model, batch, base, before, _ = adapted(method, family)
    if method.EXACT:
        assert np.array_equal(logits(model, batch).data, before)
    own = {id(p) for a in peft.adapters(model) for p in a.own().values()}
    loss(model, batch, Rng(1)).backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == (id(p) in own), name
        assert (p.grad is not None) <= (id(p) in own), name
    assert all(p.grad is not None and np.isfinite(p.grad).all() for a in peft.adapters(model) for p in a.own().values())


@pytest.mark.parametrize("method, family", CASES)
def test_steps_lower_the_loss_and_never_touch_the_base(method, family):
    model, batch, base, before, losses = adapted(method, family, trained=True)
    assert losses[-1] < losses[0]
    assert not np.array_equal(logits(model, batch).data, before)
    with peft.disabled(model):
        assert np.array_equal(logits(model, batch).data, before)
    peft.remove(model, "default")
    after = dict(model.named_parameters())
    assert after.keys() == base.keys() and all(np.array_equal(after[n].data, a) for n, a in base.items())
    assert np.array_equal(logits(model, batch).data, before)


@pytest.mark.parametrize("method, family", CASES)
def test_a_folder_gives_the_same_bits(method, family, tmp_path):
    model, batch, *_ = adapted(method, family, trained=True)
    expected = logits(model, batch).data
    peft.save(model, tmp_path / "adapter")
    other = peft.load(make(family), tmp_path / "adapter", name="mine")
    assert np.array_equal(logits(other, batch).data, expected) and peft.names(other) == ["mine"]


@pytest.mark.parametrize("method, family", CASES)
def test_merging_is_verified_and_undone_to_the_byte(method, family):
    model, batch, base, before, _ = adapted(method, family, trained=True)
    expected = logits(model, batch).data
    if not all(a.MERGES for a in peft.adapters(model)):
        with pytest.raises(ValueError, match="cannot be written as weights"):
            peft.merge(model)
        return
    report = peft.merge(model, verify=batch)
    assert report.max_diff <= 1e-5 * max(1, report.logits) and report.kl <= 1e-6
    assert model.state().keys() == base.keys()  # nothing but layers of the family
    np.testing.assert_allclose(logits(model, batch).data, expected, atol=1e-5 * report.logits)
    peft.unmerge(model)
    assert np.array_equal(logits(model, batch).data, expected)


@pytest.mark.parametrize("method, family", CASES)
def test_the_same_seed_gives_the_same_adapter(method, family):
    one, two = (peft.tensors_of(adapted(method, family)[0], "default") for _ in range(2))
    np.random.seed(5)
    other = make(family)
    peft.inject(other, method, seed=4)
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)
    assert peft.tensors_of(other, "default").keys() == one.keys()


def test_methods_are_frozen_settings():
    for kind in peft.METHODS.values():
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
