"""PPO: it learns; each silent error of field reports is one test; a run that stops goes on with the same bits."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.align import ActorCritic, InvariantError, gae, invariants, log_probs, rollout
from pyllm.align.ppo import penalized, values, with_scores
from pyllm.autograd import Rng, no_grad, ops
from pyllm.folders import build
from tests.align import toys
from tests.align.toys import run, settings


def test_it_learns():
    before, after = (run(settings(steps=steps, batch=16, num_ppo_epochs=4, kl_coef=0.01, lr=1e-2, lr_end=1e-2, patience=0))[2]
                     for steps in (1, 25))
    assert after[-1].metrics["objective/scores"] > before[0].metrics["objective/scores"] + 0.4


def test_kl_is_exactly_0_and_the_ratio_1_before_the_first_update():
    """trl#235, #925: what is recorded while decoding, the training forward and the reference are the same bits."""
    _, _, found = run(settings(steps=1, num_ppo_epochs=1, num_mini_batches=1))
    assert all(found[0].metrics[name] == 0 for name in ("objective/kl", "objective/kl_k1", "objective/kl_k2", "objective/kl_k3"))
    assert found[0].metrics["val/ratio"] == 1 and found[0].metrics["val/ratio_var"] == 0
    drawn = found[0].rollout
    assert np.array_equal(drawn.logp, drawn.ref_logp) and drawn.logp[drawn.mask].all()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_log_probabilities_and_values_drawn_are_those_of_the_training_forward(family):
    sizes = {"n_positions": 64, "n_embd": 32, "n_head": 4} if family == "gpt2" else {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "head_dim": 8}
    model = build({"model_type": family, "vocab_size": 50, **sizes}, seed=1)
    prompts = [[5, 1, 2], [7], [3, 3, 3, 3, 3, 3, 3, 3, 3]]
    actor = ActorCritic(model)
    actor.value.reset(Rng(3))
    drawn = rollout(model, prompts, max_tokens=40, temperature=0.7, stop=(4, 9), seed=2, value=actor.value)
    assert np.array_equal(drawn.logp, log_probs(model, drawn.batch(), 0.7))
    assert np.array_equal(drawn.values, values(actor, drawn.batch())) and np.abs(drawn.values[drawn.mask]).min() > 0
    assert len(set(drawn.lengths.tolist())) > 1


def test_a_policy_that_is_not_its_reference_is_noticed():
    other = toys.policy()
    other.trunk.wpe.weight.data *= 1.5
    with pytest.raises(InvariantError, match="KL to the reference is 0 before the first update"):
        run(reference=other)
    assert run(settings(steps=1, starts_at_reference=False), reference=other)[2][0].metrics["objective/kl_k3"] > 0


def test_the_score_is_on_the_last_response_token():
    """Not on the padding behind it (trl#3750), not on the prompt; for responses of any length, with and without an end."""
    drawn = rollout(toys.policy(), toys.prompts(), max_tokens=6, stop=(0, 1, 2), seed=3)
    assert drawn.ended.any() and not drawn.ended.all()
    rewards = with_scores(np.zeros(drawn.tokens.shape), np.arange(1.0, 11.0), drawn)
    for row in range(10):
        at = np.flatnonzero(rewards[row])
        assert at.tolist() == [np.flatnonzero(drawn.targets[row] >= 0)[-1]] and rewards[row, at[0]] == row + 1
        assert drawn.tokens[row, at[0] + 1] == drawn.response(row, end=True)[-1]
    moved = np.roll(rewards, 1, axis=1)
    with pytest.raises(InvariantError, match="the score is on the last response token"):
        invariants.score_on_last_token(moved, np.zeros_like(moved), np.arange(1.0, 11.0), drawn)


def test_statistics_do_not_depend_on_the_padding():
    """trl#6121: means over padded positions shrink with the share of padding. A long row is a stranger to the others' numbers."""
    model = toys.policy()
    drawn = rollout(model, toys.prompts(), max_tokens=6, stop=(0, 1, 2), seed=3)
    with no_grad():
        _, entropy = ops.linear_log_probs_entropy(model.hidden(drawn.tokens, drawn.segments), model.head_weight(), None, drawn.targets)
    assert (entropy.data[drawn.mask] > 0).all() and not entropy.data[~drawn.mask].any() and not drawn.logp[~drawn.mask].any()
    invariants.masks(drawn)
    with pytest.raises(InvariantError, match="statistics run over response tokens only"):
        invariants.masks(drawn.with_(logp=np.where(drawn.mask, drawn.logp, 1.0)))
    with pytest.raises(InvariantError, match="response mask sums"):
        invariants.masks(drawn.with_(lengths=drawn.lengths + 1))
    with pytest.raises(InvariantError, match="entropy is never negative"):
        invariants.entropy_is_not_negative(-1e-9)


def test_a_response_without_a_stop_token_is_penalized():
    drawn = rollout(toys.policy(), toys.prompts(), max_tokens=6, stop=(0, 1, 2), seed=3)
    scores = np.ones(10)
    assert penalized(scores, drawn, settings(missing_eos_penalty=0.5)).tolist() == np.where(drawn.ended, 1, 0.5).tolist()
    assert penalized(scores, drawn, settings(missing_eos_score=-1.0)).tolist() == np.where(drawn.ended, 1, -1).tolist()


def test_a_stop_token_counts_only_from_where_it_is_asked_to():
    early = rollout(toys.policy(), toys.prompts(), max_tokens=8, stop=range(10), seed=1)
    late = rollout(toys.policy(), toys.prompts(), max_tokens=8, stop=range(10), stop_after=4, seed=1)
    assert early.lengths.min() < 4 and late.lengths.min() == 5
    for row in range(10):
        assert np.array_equal(early.response(row, end=True), late.response(row, end=True)[: early.lengths[row]])


def test_a_row_is_drawn_alike_alone_and_in_any_batch():
    drawn = rollout(toys.policy(), toys.prompts(), max_tokens=6, stop=(0,), seed=5)
    fewer = rollout(toys.policy(), toys.prompts()[:3], max_tokens=6, stop=(0,), seed=5)
    for row in range(3):
        assert np.array_equal(drawn.response(row), fewer.response(row))


@pytest.mark.parametrize("options", [{}, {"target_kl": 0.05, "kl_horizon": 50.0, "whiten_rewards": True, "whiten_advantages": "minibatch",
                                          "kl_estimator": "k3", "entropy_coef": 0.01, "missing_eos_penalty": 0.3}], ids=["plain", "all"])
def test_a_run_that_stops_goes_on_with_the_same_bits(options):
    """Stopped anywhere in an iteration: it is begun again from the state before it."""
    whole, _, found = run(settings(steps=4, **options))
    actor, optimizer, first = run(settings(steps=2, **options))
    coefficient = found[2].metrics["objective/kl_coef"]
    assert bool(options) == (coefficient != 0.05)
    again = ActorCritic(toys.policy(seed=9))
    again.load(actor.state())
    from pyllm.training import AdamW

    restored = AdamW(again, weight_decay=0)
    restored.load_state(optimizer.state())
    _, _, rest = run(settings(steps=4, **options), model=toys.policy(), actor=again, optimizer=restored, start=2, kl_coef=coefficient)
    assert toys.bits(again) == toys.bits(whole)
    assert [{**it.metrics, "eps": 0} for it in first + rest] == [{**it.metrics, "eps": 0} for it in found]


def test_micro_batches_and_threads_leave_a_run_unchanged():
    whole, split = ([it.metrics for it in run(settings(micro_batch=size))[2]] for size in (8, 1))
    for name, value in whole[0].items():  # later a token may fall on the other side of a clip
        assert name == "eps" or split[0][name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
    K.set_num_threads(2)
    threads = run(settings(micro_batch=8))[2][-1].metrics
    K.set_num_threads(1)
    assert {**threads, "eps": 0} == {**whole[-1], "eps": 0}


def test_a_value_model_of_its_own():
    value = build({**toys.policy().config.to_dict(), "architectures": ["GPT2ForValue"]}, seed=3)
    model = toys.policy()
    actor, _, found = run(model=model, actor=ActorCritic(model, value))
    assert {name.split(".")[0] for name in actor.state()} == {"policy", "value"} and found[-1].metrics["loss/value_avg"] > 0


def test_bad_input_is_refused_before_compute():
    model = toys.policy()
    wide = toys.policy(vocab_size=20)
    for words, options in (("policy has 19 tokens, its reference 20", {"reference": wide}),
                           ("reference is the policy itself", {"reference": model}),
                           ("prompt 3 has 5 tokens and responses up to 30", {"config": settings(response_length=30)})):
        with pytest.raises(ValueError, match=words):
            run(model=model, **options)
    with pytest.raises(TypeError, match="expected an ActorCritic"):
        run(actor=model)
    with pytest.raises(ValueError, match="num_mini_batches=9, expected at most batch=8"):
        settings(num_mini_batches=9)


def test_rewards_that_say_nothing_stop_the_run():
    with pytest.raises(ValueError, match="iteration 3: the reward was the same for all responses, 1.0, in 3 iterations"):
        run(settings(steps=9, patience=3), reward=lambda drawn: np.ones(len(drawn.tokens)))
    with pytest.raises(ValueError, match="the reward of response 2 is nan"):
        run(reward=lambda drawn: np.where(np.arange(len(drawn.tokens)) == 2, np.nan, 1))
    with pytest.raises(ValueError, match="the reward gives"):
        run(reward=lambda drawn: np.ones(3))


def test_rewards_step_by_step():
    """(B, T): a process reward at every token; the sum at the end is the same task with another credit."""
    each = lambda drawn: np.where(drawn.mask, (drawn.targets == 3) * 1.0, 0)  # noqa: E731
    assert run(reward=each)[2][-1].metrics["objective/scores"] >= 0
    with pytest.raises(ValueError, match="not 0 beside the response"):
        run(reward=lambda drawn: np.ones(drawn.tokens.shape))


def gae_loops(rewards, values, mask, gamma, lam):
    """The sum over what comes, term by term: no recursion."""
    advantages = np.zeros(rewards.shape)
    for b in range(len(rewards)):
        at = np.flatnonzero(mask[b])
        for i, t in enumerate(at):
            for j, u in enumerate(at[i:]):
                behind = values[b, at[i + j + 1]] if i + j + 1 < len(at) else 0
                advantages[b, t] += (gamma * lam) ** j * (rewards[b, u] + gamma * behind - values[b, u])
    return advantages


def test_gae_is_its_definition():
    draw = np.random.default_rng(0)
    rewards, values = draw.standard_normal((2, 5, 9))
    mask = np.arange(9) >= np.array([0, 2, 8, 3, 0])[:, None]
    mask &= np.arange(9) < np.array([9, 5, 9, 4, 0])[:, None]
    for gamma, lam in ((1, 0.95), (0.9, 1), (1, 0), (0.8, 0.7)):
        advantages, returns = gae(rewards, values, mask, gamma, lam)
        expected = gae_loops(rewards, values, mask, gamma, lam)
        np.testing.assert_allclose(advantages, expected, atol=1e-12)
        np.testing.assert_allclose(returns, np.where(mask, expected + values, 0), atol=1e-12)
    with pytest.raises(ValueError, match="has a hole"):
        gae(rewards, values, np.arange(9)[None] % 2 == np.zeros((5, 1)), 1, 1)


def test_with_lora_the_reference_is_the_same_model_without_its_adapters():
    """No second copy; the divergence is 0 at the start and not after it; the base does not move (trl#925)."""
    from pyllm import peft
    from pyllm.align import WithoutAdapters

    model = toys.policy()
    base = toys.bits(toys.policy())
    peft.inject(model, peft.LoRA(rank=4), seed=1)
    _, _, found = run(settings(steps=3), model=model, reference=WithoutAdapters(model))
    assert found[0].metrics["objective/kl"] == 0 and found[-1].metrics["objective/kl_k3"] > 0
    with peft.disabled(model):
        assert np.array_equal(model(np.array([[1, 2, 3]], np.int32)).data, toys.policy()(np.array([[1, 2, 3]], np.int32)).data)
    assert toys.bits(toys.policy()) == base
    with pytest.raises(ValueError, match="the model has no adapters: it would be its own reference"):
        WithoutAdapters(toys.policy())
    model.trunk.ln_f.weight.requires_grad = True
    with pytest.raises(ValueError, match="1 weights beside the adapters learn, among them transformer.ln_f.weight"):
        WithoutAdapters(model)
