"""Objectives, pure functions (model, batch, rng) -> Loss, one file each. OBJECTIVES: name -> function."""
from pyllm.objectives.base import Loss
from pyllm.objectives.clm import clm

OBJECTIVES = {"clm": clm}

__all__ = ["OBJECTIVES", "Loss", "clm"]
