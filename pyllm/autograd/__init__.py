"""Reverse-mode differentiation over NumPy arrays: a tape of operations, each with its vjp."""
from pyllm.autograd.gradcheck import check_vjp
from pyllm.autograd.rng import Rng, drawing, drawn_from
from pyllm.autograd.tensor import REGISTRY, Tensor, checkpoint, no_grad, op, precision, recording

__all__ = ["REGISTRY", "Rng", "Tensor", "check_vjp", "checkpoint", "drawing", "drawn_from", "no_grad", "op", "precision", "recording"]
