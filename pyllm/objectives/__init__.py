"""Objectives, pure functions (model, batch, rng) -> Loss, one file each. OBJECTIVES: name -> function."""
from pyllm.objectives.base import Loss
from pyllm.objectives.classify import class_weights, classify
from pyllm.objectives.clm import clm
from pyllm.objectives.mlm import mlm
from pyllm.objectives.seq2seq import seq2seq
from pyllm.objectives.span import span

OBJECTIVES = {"clm": clm, "mlm": mlm, "seq2seq": seq2seq, "classify": classify, "classify_tokens": classify, "span": span}

__all__ = ["OBJECTIVES", "Loss", "class_weights", *OBJECTIVES]
classify_tokens = classify  # the targets' shape tells one from the other
