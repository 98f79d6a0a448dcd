"""AdaLoRA's ranks: the budget is met exactly, what is pruned stays out, files hold what was computed, resumed runs have the same bits."""
import json

import numpy as np
import pytest

from pyllm import objectives, peft, training
from pyllm.errors import ConfigError, FormatError
from tests.peft.tiny import batch_of, logits, make

METHOD = peft.AdaLoRA(init_r=4, target_r=2, tinit=2, tfinal=3, deltaT=2)
STEPS = 12


def trained(steps=STEPS, method=METHOD, family="llama", accumulate=1, rows=2, after=None):
    """-> model, optimizer after `steps` of STEPS; after: called after each step with step and model."""
    model = peft.inject(make(family), method, seed=2)
    return model, go_on(model, peft.allocate(model, training.AdamW(model, weight_decay=0.01), STEPS), 0, steps, after, accumulate, rows)


def go_on(model, optimizer, start, steps, after=None, accumulate=1, rows=2):
    batches = (batch_of("llama", rows, seed=s) for s in range(start * accumulate, 999))
    for record in training.train(model, peft.orthogonal(objectives.clm), batches, optimizer, steps=steps, start=start, lr=3e-2,
                                 accumulate=accumulate):
        if after:
            after(record, model)
    return optimizer


def values(model):
    return np.concatenate([a.lora_E.data[:, 0] for a in peft.adapters(model)])


def test_the_budget_falls_to_the_target_and_what_is_pruned_at_the_end_stays_out():
    used, total = {}, 16  # four layers
    trained(after=lambda record, model: used.update({record.step: values(model) != 0}))
    budget = {4: 10, 6: 8, 8: 8, 9: 8}  # int(8 + 8 left^3), left = 5/7, 3/7, 1/7, 0
    assert [int(used[s].sum()) for s in (1, 2, 3)] == [total] * 3
    assert {step: int(used[step].sum()) for step in budget} == budget
    assert all(np.array_equal(used[s], used[9]) for s in (10, 11, 12))
    assert used[5].sum() == total  # a pruned value may come back until the end


def test_ranks_follow_importance_not_position():
    """Layers get different numbers of triplets, and those with the largest scores."""
    model, optimizer = trained()
    counts = [int(a.kept.sum()) for a in peft.adapters(model)]
    scores = np.concatenate([optimizer._scores(a) for a in peft.adapters(model)])
    kept = np.concatenate([a.kept for a in peft.adapters(model)])
    assert scores[kept].min() >= scores[~kept].max() > 0 and len(set(counts)) > 1


@pytest.mark.parametrize("steps", [5, 12])
def test_a_folder_computes_what_was_trained_between_allocations_too(steps, tmp_path):
    model, _ = trained(steps)
    batch = batch_of("llama")
    expected = logits(model, batch).data
    peft.save(model, tmp_path / "a")
    other = peft.load(make("llama"), tmp_path / "a")
    assert np.array_equal(logits(other, batch).data, expected)
    pattern = json.loads((tmp_path / "a/adapter_config.json").read_text())["rank_pattern"]
    if steps == 12:
        assert {name: a.kept.tolist() for a in peft.adapters(model) for name in [f"{a.site}.lora_E"]} == pattern
        peft.save(other, tmp_path / "b")
        assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == (tmp_path / "b/adapter_model.safetensors").read_bytes()
    else:
        assert pattern is None
    report = peft.merge(other, verify=batch)
    assert report.max_diff <= 1e-5 * max(1, report.logits)


def test_averaged_weights_are_saved_whole(tmp_path):
    """The average of a value that was pruned is not zero: cut out, the folder would not be what was evaluated."""
    model = peft.inject(make("llama"), METHOD, seed=2)
    ema = training.EMA(model, 0.9)
    go_on(model, peft.allocate(model, training.AdamW(model), STEPS), 0, STEPS, lambda *_: ema.update())
    with ema.weights():
        expected = logits(model, batch_of("llama")).data
        peft.save(model, tmp_path / "a")
    assert np.array_equal(logits(peft.load(make("llama"), tmp_path / "a"), batch_of("llama")).data, expected)


@pytest.mark.parametrize("stop", [3, 7, 10])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(stop, tmp_path):
    whole, _ = trained()
    model, optimizer = trained(stop)
    path = training.save_checkpoint(tmp_path, stop, model, None, optimizer, {})
    again = peft.inject(make("llama"), METHOD, seed=9)
    optimizer = peft.allocate(again, training.AdamW(again, weight_decay=0.01), STEPS)
    assert training.load_checkpoint(path, again, optimizer)[0] == stop
    go_on(again, optimizer, stop, STEPS)
    one, two = (peft.tensors_of(m, "default") for m in (whole, again))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_a_checkpoint_without_the_ranks_is_refused(tmp_path):
    model = peft.inject(make("llama"), METHOD)
    plain = training.AdamW(model)
    path = training.save_checkpoint(tmp_path, 0, model, None, plain, {})
    with pytest.raises(FormatError, match="tensors of the ranks are missing"):
        training.load_checkpoint(path, model, peft.allocate(model, training.AdamW(model), STEPS))


def test_the_penalty_is_a_target_and_does_not_depend_on_the_split():
    model, batch = peft.inject(make("llama"), METHOD, seed=2), batch_of("llama", 4)
    plain, found = objectives.clm(model, batch), peft.orthogonal(objectives.clm)(model, batch)
    off = [np.linalg.norm(m @ m.T - np.eye(4)) for a in peft.adapters(model) for m in (a.lora_A.data, a.lora_B.data.T)]
    assert found.metrics["orthogonality"] / found.count == pytest.approx(np.mean(off), rel=1e-5)
    assert (found.total.item() - plain.total.item()) / found.count == pytest.approx(0.5 * np.mean(off), rel=1e-4)
    parts = [peft.orthogonal(objectives.clm)(model, batch.__class__(batch.tokens[i : i + 2], batch.targets[i : i + 2])) for i in (0, 2)]
    assert sum(p.total.item() for p in parts) == pytest.approx(found.total.item(), rel=1e-5)


def test_orthonormal_vectors_have_a_finite_gradient():
    """The root of zero has none."""
    model = peft.inject(make("llama"), METHOD)
    for a in peft.adapters(model):
        a.lora_A.data, a.lora_B.data = np.eye(4, 12, dtype=np.float32), np.eye(len(a.lora_B), 4, dtype=np.float32)
    peft.orthogonal(objectives.clm)(model, batch_of("llama")).total.backward()
    assert all(np.isfinite(p.grad).all() for a in peft.adapters(model) for p in a.own().values())


def test_other_methods_keep_their_optimizer_and_loss():
    model, batch = peft.inject(make("llama"), peft.LoRA(rank=2)), batch_of("llama")
    optimizer = training.AdamW(model)
    assert peft.allocate(model, optimizer, 9) is optimizer
    assert peft.orthogonal(objectives.clm)(model, batch).total.item() == objectives.clm(model, batch).total.item()


def test_settings_that_do_not_fit_are_refused(tmp_path):
    for settings in (dict(init_r=2, target_r=3), dict(init_r=0), dict(beta1=1.0), dict(deltaT=0), dict(orth_reg_weight=-1), dict(alpha=0)):
        with pytest.raises(ConfigError, match="AdaLoRA"):
            peft.AdaLoRA(**settings)
    model = peft.inject(make("llama"), METHOD)
    with pytest.raises(ConfigError, match="no steps to rank"):
        peft.allocate(model, training.AdamW(model), 5)
    peft.inject(model, METHOD, name="two")
    peft.activate(model, "default", "two")
    with pytest.raises(ConfigError, match="expected one to learn"):
        peft.allocate(model, training.AdamW(model), 12)
    model, _ = trained()
    peft.save(model, tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    for pattern in ({**config["rank_pattern"], "model.layers.9.lora_E": [True] * 4},
                    {name: [True] * 3 for name in config["rank_pattern"]}):
        (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "rank_pattern": pattern}))
        with pytest.raises(ConfigError, match="rank_pattern"):
            peft.load(make("llama"), tmp_path / "a")
