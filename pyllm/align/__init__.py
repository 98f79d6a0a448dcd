"""Alignment: reward models, rollouts, policies that learn from rewards or from preferences, constitutions."""
from pyllm.align.advantages import gae, group_advantages, whiten
from pyllm.align.invariants import InvariantError
from pyllm.align.policy import ActorCritic, frozen_copy, log_probs, with_reference
from pyllm.align.ppo import PPOConfig, ppo
from pyllm.align.reward import RewardModel, rule
from pyllm.align.rollout import Rollout, rollout

__all__ = ["ActorCritic", "InvariantError", "PPOConfig", "RewardModel", "Rollout", "frozen_copy", "gae", "group_advantages", "log_probs",
           "ppo", "rollout", "rule", "whiten", "with_reference"]
