"""GRPO and its relatives, best of n, rejection sampling, online DPO: they learn, they are what they say, they go on with the same bits."""
import numpy as np
import pytest

from pyllm.align import (GRPOConfig, SelectionConfig, best_of_n, frozen_copy, group_advantages, grpo, kto_kl, online_dpo,
                         rejection_sampling, rollout, with_reference)
from pyllm.align.grpo import ALGORITHMS
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build
from pyllm.objectives import kto
from pyllm.training import AdamW
from tests.align import toys

GRPO = {"steps": 3, "batch": 3, "num_generations": 4, "micro_batch": 5, "max_completion_length": 6, "lr": 3e-3, "lr_end": 3e-3,
        "beta": 0.05, "num_iterations": 2, "num_mini_batches": 2}
SELECT = {"steps": 3, "batch": 6, "num_generations": 4, "micro_batch": 4, "max_completion_length": 6, "lr": 3e-3}


def run(method, config, model=None, optimizer=None, reward=toys.likes_three, **options):
    model = model or toys.policy()
    optimizer = optimizer or AdamW(model, weight_decay=0)
    reference = () if method is rejection_sampling else (frozen_copy(toys.policy()),)
    return model, optimizer, list(method(model, *reference, toys.prompts(), reward, optimizer, config, stop=(0,), **options))


METHODS = {**{name: (grpo, GRPOConfig, {**GRPO, "algorithm": name}) for name in ALGORITHMS},
           "filtered": (grpo, GRPOConfig, {**GRPO, "algorithm": "dapo", "epsilon_high": 0.28, "filter_equal": True,
                                           "mask_truncated_completions": True, "missing_eos_penalty": 0.1, "patience": 0}),
           "online_dpo": (online_dpo, SelectionConfig, {**SELECT, "epochs": 2}), "rejection": (rejection_sampling, SelectionConfig, SELECT)}
EVERY = pytest.mark.parametrize("name", METHODS)


@EVERY
def test_it_learns(name):
    method, config, options = METHODS[name]
    longer = {**options, "steps": 25, "batch": 8, "patience": 0, "lr": 1e-2, **({"lr_end": 1e-2} if config is GRPOConfig else {})}
    found = run(method, config(**longer))[2]
    assert np.mean([it.metrics["reward"] for it in found[-3:]]) > found[0].metrics["reward"] + 0.1


@EVERY
def test_a_run_that_stops_goes_on_with_the_same_bits(name):
    method, config, options = METHODS[name]
    whole, _, found = run(method, config(**options))
    model, optimizer, first = run(method, config(**{**options, "steps": 1}))
    again = toys.policy(seed=9)
    again.load(model.state())
    restored = AdamW(again, weight_decay=0)
    restored.load_state(optimizer.state())
    _, _, rest = run(method, config(**options), again, restored, start=1)
    assert toys.bits(again) == toys.bits(whole)
    assert [it.metrics.get("loss") for it in first + rest] == [it.metrics.get("loss") for it in found]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_kl_is_0_and_the_ratio_1_before_the_first_update(name):
    found = run(grpo, GRPOConfig(**{**GRPO, "steps": 1, "algorithm": name, "num_iterations": 1, "num_mini_batches": 1}))[2]
    assert found[0].metrics["objective/kl"] == 0 and found[0].metrics["val/ratio"] == pytest.approx(1, abs=1e-7)
    assert found[0].metrics.get("kl", 0) == 0 and found[0].metrics["entropy"] > 0


def test_without_a_reference_no_divergence_is_claimed():
    policy = toys.policy()
    found = list(grpo(policy, None, toys.prompts(), toys.likes_three, AdamW(policy), GRPOConfig(**{**GRPO, "steps": 1, "beta": 0.0})))
    assert not [name for name in found[0].metrics if "kl" in name.split("/")[-1].split("_")]


def test_group_advantages_are_their_definitions():
    scores = np.array([1.0, 2.0, 4.0, 0.0, 0.0, 3.0])
    for kind in ("grpo", "dr_grpo", "rloo", "reinforce++"):
        found, expected = group_advantages(scores, 3, kind), []
        for i, r in enumerate(scores):
            group = [scores[j] for j in range(6) if j // 3 == i // 3]
            others = [scores[j] for j in range(6) if j // 3 == i // 3 and j != i]
            mean, total = sum(group) / 3, sum(scores) / 6
            deviation = (sum((x - mean) ** 2 for x in group) / 2) ** 0.5
            overall = (sum((x - total) ** 2 for x in scores) / 5) ** 0.5
            expected.append({"grpo": (r - mean) / (deviation + 1e-4), "dr_grpo": r - mean, "rloo": r - sum(others) / 2,
                             "reinforce++": (r - total) / overall}[kind])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="groups of 4"):
        group_advantages(scores, 4, "grpo")


def test_equal_scores_and_cut_responses_can_count_for_nothing():
    """DAPO: a prompt that is always or never solved has no say; the mean is over those that have."""
    config = GRPOConfig(**{**GRPO, "steps": 1, "filter_equal": True, "patience": 0})
    before = toys.policy()
    model, _, found = run(grpo, config, reward=lambda drawn: np.zeros(len(drawn.tokens)))
    assert toys.bits(model) == toys.bits(before) and found[0].metrics["frac_reward_zero_std"] == 1 and "loss" not in found[0].metrics


def test_the_best_of_n_is_the_best():
    options = dict(max_tokens=6, temperature=1.0, stop=(0,), seed=4)
    drawn = rollout(toys.policy(), [p for p in toys.prompts() for _ in range(5)], **options)
    scores = toys.likes_three(drawn).reshape(10, 5)
    best = best_of_n(toys.policy(), toys.prompts(), toys.likes_three, 5, **options)
    assert best.scores.tolist() == scores.max(1).tolist()
    for row in range(10):
        assert np.array_equal(best.response(row), drawn.response(5 * row + scores[row].argmax()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prompt_that_is_read_once_gives_its_group_the_same_bits(family):
    """Also where prompts are of unequal length, longer than a chunk that is read at once, and rows leave early."""
    sizes = {"n_positions": 256, "n_embd": 16, "n_head": 2} if family == "gpt2" else {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 256}
    model = build({"model_type": family, "vocab_size": toys.V, **sizes}, seed=1)
    prompts = [*toys.prompts(4), np.random.default_rng(9).integers(1, toys.V, 200).tolist()]
    options = dict(max_tokens=9, stop=(0, 1), seed=3)
    once, each = rollout(model, prompts, copies=3, **options), rollout(model, [p for p in prompts for _ in range(3)], **options)
    assert np.array_equal(once.tokens, each.tokens) and once.logp.tobytes() == each.logp.tobytes() and (once.lengths < 9).any()


def test_kto_compares_with_responses_to_other_prompts():
    """The estimate is 0 at the start, at least 0 later, and the same whatever the padding; with it KTO's step takes any split."""
    model, reference = toys.policy(), frozen_copy(toys.policy())
    drawn = rollout(model, toys.prompts(6), max_tokens=6, stop=(0,), seed=1)
    batch = drawn.batch()
    assert kto_kl(model, reference, batch) == 0
    model.trunk.wte.weight.data *= 1.3
    kl = kto_kl(model, reference, batch)
    sides = (batch.tokens, 5), (batch.targets, IGNORED), (batch.segments, 0)
    wide = [np.pad(a, ((0, 0), (2, 3)), constant_values=fill) for a, fill in sides]
    assert kl >= 0 and kto_kl(model, reference, Batch(*wide)) == pytest.approx(kl, rel=1e-4, abs=1e-6)
    some = with_reference(Batch(batch.tokens, batch.targets, batch.segments, extra={
        "label": np.arange(6) % 2, "kl": np.full(6, kl)}), reference)
    whole, parts = kto(model, some), [kto(model, some.rows(slice(i, i + 2))) for i in (0, 2, 4)]
    assert sum(p.total.item() for p in parts) == pytest.approx(whole.total.item(), rel=1e-6)
    with pytest.raises(ValueError, match="kto_kl: 1 row"):
        kto_kl(model, reference, batch.rows(slice(0, 1)))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="expected one of grpo, dr_grpo"):
        GRPOConfig(algorithm="gpro")
    with pytest.raises(ValueError, match="each other's baseline"):
        GRPOConfig(num_generations=1)
    with pytest.raises(ValueError, match="beta=0.1 without a reference"):
        grpo(toys.policy(), None, toys.prompts(), toys.likes_three, None, GRPOConfig(beta=0.1))
    with pytest.raises(ValueError, match="there is nothing to learn from"):
        run(grpo, GRPOConfig(**{**GRPO, "steps": 9, "patience": 2}), reward=lambda drawn: np.zeros(len(drawn.tokens)))
