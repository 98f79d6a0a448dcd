"""All blocks of a model over its cache in one call into C++: what decoding runs where a family describes its block."""
from dataclasses import dataclass, fields, replace

from pyllm import env
from pyllm import kernels as K
from pyllm.autograd import Tensor
from pyllm.autograd.tensor import reduced
from pyllm.extension import load
from pyllm.nn.layers import Layer, LayerNorm, Linear, RMSNorm
from pyllm.nn.rotary import RotaryTable

_C = load("pyllm._C")


@dataclass(frozen=True)
class BlockPlan:
    """x += out(attention(attention_norm(x))); x += down(mlp(mlp_norm(x))), mlp act(up(x)) or, with a gate, act(gate(x)) * up(x).

    qkv: one Linear that gives q, k and v, or one of each. q_norm, k_norm: over the channels of a head or of all, before the rotation.
    window: keys a query sees, 0 for all. Modules of other classes than those of nn.layers leave the block to Python.
    """

    attention_norm: LayerNorm | RMSNorm
    qkv: tuple
    out: Linear
    mlp_norm: LayerNorm | RMSNorm
    up: Linear
    down: Linear
    act: str
    heads: int
    kv_heads: int
    scale: float
    gate: Linear | None = None
    q_norm: LayerNorm | RMSNorm | None = None
    k_norm: LayerNorm | RMSNorm | None = None
    rotary: RotaryTable | None = None
    interleaved: bool = False
    window: int = 0


def step(blocks, x, cache, rng=None):
    """x:(B, T, C) Tensor, tokens behind those of `cache` -> what blocks give, bit for bit as one by one, keys and values appended; or None.

    None where they have to run one by one: no cache, weights of a kind that the call does not take, the reference kernels, bfloat16
    products, PYLLM_DEBUG, dropout. Each of blocks: a module with plan() -> BlockPlan, or None if it is no such block; blocks[i] is layer i
    of the cache.
    """
    if cache is None or rng is not None or reduced() or K.active() == "reference" or env.debug():
        return None
    if cache.step is None:
        cache.step = _Step(blocks)
    return cache.step(x, cache)


class _Step:
    """The plans of blocks, handed to C++ once for the life of a cache: it holds keys that these weights gave."""

    def __init__(self, blocks):
        plans, self.blocks = [_plain(block.plan()) for block in blocks], None
        if None in plans:
            return
        self.tables = list({id(p.rotary): p.rotary for p in plans if p.rotary is not None}.values())
        self.shapes = [(p.kv_heads, p.out.weight.shape[1] // p.heads) for p in plans]
        self.blocks = _C.Blocks([self._described(p) for p in plans], plans[0].out.weight.shape[0])

    def _described(self, p):
        named = {name: _norm(getattr(p, name)) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")}
        named |= {name: _weight(getattr(p, name)) for name in ("out", "gate", "up", "down")}
        return named | dict(qkv=[_weight(w) for w in p.qkv], heads=p.heads, kv_heads=p.kv_heads, window=p.window, scale=p.scale,
                            head_size=p.out.weight.shape[1] // p.heads, inner=p.up.weight.shape[0], act=K.native.ACTS[p.act],
                            table=-1 if p.rotary is None else self.tables.index(p.rotary), interleaved=p.interleaved)

    def __call__(self, x, cache):
        if self.blocks is None or x.dtype != K.native.F32:
            return None
        t, y = x.shape[1], K.empty(x.shape)
        stores = [cache.room(layer, t, *shape) for layer, shape in enumerate(self.shapes)]
        tables = [table(int(cache.starts.max()) + t - 1) for table in self.tables]
        self.blocks.run(x.data, y, cache.starts, stores, tables)
        return Tensor(y)


def _plain(plan):
    """-> the plan with the plain form of its layers; None unless C++ reads all of it: layers over dense float32 or packed weights."""
    if plan is None:
        return None
    layers = {f.name: getattr(plan, f.name) for f in fields(plan)}
    plan = replace(plan, qkv=tuple(w.plain() for w in plan.qkv), **{n: v.plain() for n, v in layers.items() if isinstance(v, Layer)})
    linears = [w for w in (*plan.qkv, plan.out, plan.gate, plan.up, plan.down) if w is not None]
    norms = [n for n in (plan.attention_norm, plan.mlp_norm, plan.q_norm, plan.k_norm) if n is not None]
    if any(type(w) is not Linear for w in linears) or any(type(n) not in (LayerNorm, RMSNorm) for n in norms):
        return None
    arrays = [p.data for module in linears + norms for p in module.parameters()]
    return plan if all(a.dtype == K.native.F32 and a.flags.c_contiguous and a.flags.aligned for a in arrays) else None


def _norm(norm):
    return norm and (norm.weight.data, _data(getattr(norm, "bias", None)), norm.eps, type(norm) is RMSNorm)


def _weight(linear):
    weight = linear and linear.weight
    return linear and (weight.native if isinstance(weight, K.Packed) else weight.data, _data(linear.bias))


def _data(tensor):
    return tensor if tensor is None else tensor.data
