"""The losses of alignment beside TRL's own, called with the same log-probabilities; entropies and log-probabilities beside its kernels'.

TRL's trainers are asked for their loss alone: what they would run a model for is handed to them.

pytest -m parity tests/parity/test_align.py
"""
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from pyllm.align import group_advantages, log_probs, with_reference
from pyllm.autograd import no_grad, ops
from pyllm.objectives import cpo, dpo, grpo, kto, orpo, reward_pairs, simpo
from tests.objectives.test_alignment import B, batch, named, policy, rewarder

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch")
pytest.importorskip("trl")


def tensor(a):
    return torch.from_numpy(np.asarray(a, np.float64))


def trainer(**settings):
    """What a loss of TRL's asks of its trainer."""
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, device="cpu", num_processes=1)
    return SimpleNamespace(**{"model": SimpleNamespace(training=False), "accelerator": same, "aux_loss_enabled": False,
                              "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0, "_tp_size": 1, **settings})


def halves(data):
    """-> rows in TRL's order: all chosen, then all rejected."""
    return np.r_[0 : len(data.tokens) : 2, 1 : len(data.tokens) : 2]


def outputs(logp, mask):
    """-> what TRL's fused head gives, one position shorter than the tokens."""
    zero = torch.zeros_like(logp)
    return SimpleNamespace(log_probs=logp, entropy=zero, mean_logits=zero, is_top1=zero.bool(), log_sum_sq_probs=zero, aux_loss=None)


def per_token(model, data):
    """-> (B, T) log p in float64 and the mask, of responses."""
    with no_grad():
        logp = ops.linear_log_probs(model.hidden(data.tokens, data.segments), model.head_weight(), None, data.targets).data
    return np.asarray(logp, np.float64), data.targets >= 0


@pytest.mark.parametrize("loss, smoothing", [("sigmoid", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.1)])
def test_dpo(loss, smoothing):
    from trl import DPOTrainer

    model, data = policy(dtype=np.float64), batch()
    logp, mask = per_token(model, data)
    order = halves(data)
    ref = tensor(data.extra["ref_logp"][order]).chunk(2)
    # TRL's masks stand at the tokens, ours at the positions that draw them: one column further left.
    completion = torch.from_numpy(np.pad(mask[order], ((0, 0), (1, 0)))).long()
    inputs = {"input_ids": torch.zeros(completion.shape).long(), "attention_mask": torch.ones(completion.shape).long(),
              "completion_mask": completion, "ref_chosen_logps": ref[0], "ref_rejected_logps": ref[1]}
    stub = trainer(beta=0.3, label_smoothing=smoothing, loss_types=[loss], loss_weights=[1.0], f_divergence_type="reverse_kl",
                   ld_alpha=None, precompute_ref_logps=True, use_weighting=False)
    theirs = DPOTrainer._compute_loss(stub, lambda **_: outputs(tensor(logp[order]), mask), inputs, False)
    mine = dpo(model, data, beta=0.3, loss=loss, label_smoothing=smoothing)
    assert mine.total.item() / mine.count == pytest.approx(theirs.item(), rel=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"):
        assert mine.metrics[name] / mine.count == pytest.approx(stub._metrics["eval"][name][0], rel=1e-5), name


def test_simpo_cpo_orpo():
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    model, data = policy(dtype=np.float64), batch()
    logp, mask = per_token(model, data)
    total, mean = tensor(logp.sum(1)), tensor(logp.sum(1) / mask.sum(1))
    stub = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0)
    theirs = CPOTrainer.cpo_loss(stub, mean[::2], mean[1::2])[0].sum().item()
    assert simpo(model, data).total.item() == pytest.approx(theirs, rel=1e-6)
    stub = trainer(alpha=0.0, loss_type="sigmoid", beta=0.1, label_smoothing=0.1)
    theirs = CPOTrainer.cpo_loss(stub, total[::2], total[1::2])[0].sum().item()
    assert cpo(model, data, alpha=0.0, label_smoothing=0.1).total.item() == pytest.approx(theirs, rel=1e-6)
    stub = trainer(beta=0.1)
    theirs = -mean[::2].sum().item() - ORPOTrainer.odds_ratio_loss(stub, mean[::2], mean[1::2])[0].sum().item()
    assert orpo(model, data).total.item() == pytest.approx(theirs, rel=1e-6)


def test_kto():
    from trl import KTOTrainer

    model, data = policy(dtype=np.float64), batch()
    logp, mask = per_token(model, data)
    completion = torch.from_numpy(np.pad(mask, ((0, 0), (1, 0)))).long()
    inputs = {"input_ids": torch.zeros(completion.shape).long(), "attention_mask": torch.ones(completion.shape).long(),
              "completion_mask": completion, "label": torch.tensor(data.extra["label"]), "ref_logps": tensor(data.extra["ref_logp"]),
              "ref_KL_logps": tensor(np.zeros(B))}
    stub = trainer(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5, precompute_ref_logps=True, calculate_KL=True, loss_type="kto",
                   _compute_kl_logps=lambda model, batch: tensor(np.full(B, 0.3)))
    theirs = KTOTrainer._compute_loss(stub, lambda **_: outputs(tensor(logp), mask), inputs, False)
    mine = kto(model, data, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    assert mine.total.item() / mine.count == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_grpo(loss):
    from trl import GRPOTrainer

    model, data = policy(dtype=np.float64), named(batch(), advantages="row_advantages", ref_logp="ref_logps")
    logp, mask = per_token(model, data)
    none, ids = torch.zeros(B, 0).long(), torch.zeros(mask.shape).long()
    inputs = {"prompt_ids": none, "prompt_mask": none, "completion_ids": ids, "completion_mask": torch.from_numpy(mask).long(),
              "advantages": tensor(data.extra["advantages"]),
              "old_per_token_logps": tensor(data.extra["logp"]), "ref_per_token_logps": tensor(data.extra["ref_logp"]),
              "num_items_in_batch": torch.tensor(float(mask.sum()))}
    zero = tensor(np.zeros(mask.shape))
    stub = trainer(_get_per_token_logps_and_entropies=lambda *_, **__: (tensor(logp), zero, None), top_entropy_quantile=1.0, beta=0.04,
                   off_policy_mask_threshold=None, importance_sampling_level="token", loss_type=loss, epsilon_low=0.2, epsilon_high=0.28,
                   args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1), use_vllm=False,
                   vllm_importance_sampling_correction=False, max_completion_length=10, current_gradient_accumulation_steps=1,
                   _entropy_bonus_enabled=False)
    theirs = GRPOTrainer._compute_loss(stub, None, inputs)
    mine = grpo(model, data, loss=loss, beta=0.04, epsilon_high=0.28, max_length=10)
    assert mine.total.item() / mine.count == pytest.approx(theirs.item(), rel=1e-6)
    if loss == "dapo":  # means over tokens there too
        for name in ("kl", "clip_ratio/region_mean"):
            assert mine.metrics[name] / mine.count == pytest.approx(stub._metrics["eval"][name][0], rel=1e-5), name


def test_rloo():
    from trl import RLOOTrainer

    model, data = policy(dtype=np.float64), named(batch(), advantages="row_advantages")
    logp, mask = per_token(model, data)
    none, ids = torch.zeros(B, 0).long(), torch.zeros(mask.shape).long()
    inputs = {"prompt_ids": none, "prompt_mask": none, "completion_ids": ids, "completion_mask": torch.from_numpy(mask).long(),
              "advantages": tensor(data.extra["advantages"]),
              "old_logps": tensor(data.extra["logp"].sum(1))}
    stub = trainer(_get_per_token_logps_and_entropies=lambda *_, **__: (tensor(logp), tensor(np.zeros(mask.shape)), None), epsilon_low=0.2,
                   epsilon_high=0.28)
    mine = grpo(model, data, loss="rloo", epsilon_high=0.28)
    assert mine.total.item() / mine.count == pytest.approx(RLOOTrainer._compute_loss(stub, None, inputs).item(), rel=1e-6)


@pytest.mark.parametrize("margin", [False, True])
def test_reward(margin):
    from trl import RewardTrainer

    model, data = rewarder(np.float64), batch()
    order = halves(data)
    logits = tensor(model(data.tokens, data.segments).data[order])
    inputs = {"attention_mask": torch.ones(1), **({"margin": tensor(data.extra["margin"][::2])} if margin else {})}
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=0.01))
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=logits), inputs)
    if not margin:
        del data.extra["margin"]
    mine = reward_pairs(model, data, centre=0.01)
    assert mine.total.item() / mine.count == pytest.approx(theirs.item(), rel=1e-6)
    for name in ("accuracy", "margin", "mean_reward"):
        assert mine.metrics[name] / mine.count == pytest.approx(stub._metrics["eval"][name][0], rel=1e-5), name


def test_log_probabilities_and_entropies():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    draw = np.random.default_rng(0)
    x, w = draw.standard_normal((2, 7, 16)), draw.standard_normal((301, 16))
    targets = draw.integers(0, 301, (2, 7)).astype(np.int32)
    logp, entropy = ops.linear_log_probs_entropy(x.astype(np.float32), w.astype(np.float32), None, targets, 0.7)
    logits = tensor(x @ w.T / 0.7)
    np.testing.assert_allclose(logp.data, selective_log_softmax(logits, torch.from_numpy(targets).long()).numpy(), atol=2e-5)
    np.testing.assert_allclose(entropy.data, entropy_from_logits(logits).numpy(), atol=2e-5)


def test_log_probabilities_of_a_model_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    import pyllm

    model, data = policy(), batch()
    pyllm.save(model, None, tmp_path / "m")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "m").double().eval()
    with torch.no_grad():
        logits = peer(torch.from_numpy(data.tokens).long(), attention_mask=torch.from_numpy(data.segments).long()).logits
    expected = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(np.maximum(data.targets, 0)).long()[..., None])[..., 0].numpy()
    expected = np.where(data.targets >= 0, expected, 0)
    np.testing.assert_allclose(log_probs(model, data), expected, atol=2e-5)
    np.testing.assert_allclose(with_reference(data, model).extra["ref_logp"], expected.sum(1), atol=5e-5)


def test_advantages_of_groups():
    """As TRL's trainers write them out: z-scores with the deviation of n - 1 and 1e-4; leave-one-out means."""
    rewards = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = rewards.reshape(-1).numpy()
    z = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    rloo = rewards - (rewards.sum(1, keepdim=True) - rewards) / 5
    np.testing.assert_allclose(group_advantages(flat, 6, "grpo"), z.reshape(-1).numpy(), rtol=1e-10)
    np.testing.assert_allclose(group_advantages(flat, 6, "rloo"), rloo.reshape(-1).numpy(), rtol=1e-10)
