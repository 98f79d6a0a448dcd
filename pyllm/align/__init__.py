"""Alignment: reward models, rollouts, policies that learn from rewards or from preferences, constitutions."""
from pyllm.align.advantages import gae, group_advantages, whiten
from pyllm.align.grpo import GRPOConfig, grpo
from pyllm.align.invariants import InvariantError
from pyllm.align.policy import ActorCritic, WithoutAdapters, frozen_copy, kto_kl, log_probs, reference_of, with_reference
from pyllm.align.ppo import PPOConfig, ppo
from pyllm.align.reward import RewardModel, agreement, rule, step_ends
from pyllm.align.rollout import Rollout, assemble, rollout
from pyllm.align.selection import SelectionConfig, best_of_n, online_dpo, rejection_sampling

__all__ = ["ActorCritic", "GRPOConfig", "InvariantError", "PPOConfig", "RewardModel", "Rollout", "SelectionConfig",
           "WithoutAdapters", "agreement", "assemble", "best_of_n", "frozen_copy", "gae", "group_advantages", "grpo", "kto_kl", "log_probs",
           "online_dpo", "ppo", "reference_of", "rejection_sampling", "rollout", "rule", "step_ends", "whiten", "with_reference"]
