"""Objectives, pure functions (model, batch, rng) -> Loss, one file each. OBJECTIVES: name -> function."""
from pyllm.objectives.base import Loss
from pyllm.objectives.classify import class_weights, classify
from pyllm.objectives.clm import clm
from pyllm.objectives.cpo import cpo
from pyllm.objectives.distill import distill
from pyllm.objectives.dpo import dpo
from pyllm.objectives.grpo import grpo
from pyllm.objectives.kto import kto
from pyllm.objectives.mlm import mlm
from pyllm.objectives.orpo import orpo
from pyllm.objectives.ppo import ppo
from pyllm.objectives.reward import reward_pairs
from pyllm.objectives.seq2seq import seq2seq
from pyllm.objectives.simpo import simpo
from pyllm.objectives.span import span

PREFERENCES = {"dpo": dpo, "simpo": simpo, "orpo": orpo, "cpo": cpo, "kto": kto}  # of responses as they are
ALIGNMENT = {"reward_pairs": reward_pairs, **PREFERENCES, "ppo": ppo, "grpo": grpo}
OBJECTIVES = {"clm": clm, "mlm": mlm, "seq2seq": seq2seq, "classify": classify, "classify_tokens": classify, "span": span,
              "distill": distill, **ALIGNMENT}

__all__ = ["OBJECTIVES", "Loss", "class_weights", *OBJECTIVES]
classify_tokens = classify  # the targets' shape tells one from the other
