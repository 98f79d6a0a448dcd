"""Building blocks of models."""
from pyllm.nn.cache import Cache
from pyllm.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from pyllm.nn.module import Module, normal, parameter
from pyllm.nn.positions import RotaryTable, positions
from pyllm.nn.quant import quantize
from pyllm.nn.step import BlockPlan, step

__all__ = ["BlockPlan", "Cache", "Embedding", "LayerNorm", "Linear", "Module", "RMSNorm", "RotaryTable", "normal", "parameter", "positions",
           "quantize", "step"]
