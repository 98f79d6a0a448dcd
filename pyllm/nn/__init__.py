"""Building blocks of models."""
from pyllm.nn import virtual
from pyllm.nn.attention import ACTIVATIONS, RelativeBias, RotaryBlock, attend, split, through
from pyllm.nn.cache import Cache
from pyllm.nn.layers import Embedding, Layer, LayerNorm, Linear, OffsetRMSNorm, RMSNorm
from pyllm.nn.module import Module, normal, parameter
from pyllm.nn.positions import alibi, alibi_slopes, positions, relative_buckets, sinusoids
from pyllm.nn.quant import quantize
from pyllm.nn.rotary import RotaryTable, checked_scaling
from pyllm.nn.step import BlockPlan, Frame, step, token

__all__ = ["ACTIVATIONS", "BlockPlan", "Cache", "Embedding", "Frame", "Layer", "LayerNorm", "Linear", "Module", "OffsetRMSNorm", "RMSNorm",
           "RelativeBias", "RotaryBlock", "RotaryTable", "alibi", "alibi_slopes", "attend", "checked_scaling", "normal", "parameter",
           "positions", "quantize", "relative_buckets", "sinusoids", "split", "step", "through", "token", "virtual"]
