"""Every differentiable operation. A new one: a function under @op in the file of its kind, and its name here."""
from pyllm.autograd.ops.attention import attention, attention_packed, rope, split_heads
from pyllm.autograd.ops.linear import activation, dropout, embedding, glu, linear
from pyllm.autograd.ops.loss import (cross_entropy, linear_cross_entropy, linear_kl, linear_log_probs, linear_log_probs_entropy,
                                     log_softmax, softmax)
from pyllm.autograd.ops.math import (add, concat, divide, exp, log, log_sigmoid, matmul, maximum, mean, minimum, multiply, power, reshape,
                                     sigmoid, subtract, sum, take, tanh, transpose, where)
from pyllm.autograd.ops.norm import layer_norm, rms_norm

__all__ = [name for name in dir() if not name.startswith("_")]
