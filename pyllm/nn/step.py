"""All blocks of a model over its cache in one call into C++: what decoding runs where a family describes its block."""
from dataclasses import dataclass, fields, replace

from pyllm import env
from pyllm import kernels as K
from pyllm.autograd import Tensor
from pyllm.autograd.tensor import reduced
from pyllm.extension import load
from pyllm.nn.layers import Embedding, Layer, LayerNorm, Linear, RMSNorm
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


@dataclass(frozen=True)
class Frame:
    """head(norm(blocks(embedding[id] + positions[at]))): what stands before and behind the blocks. head: (V, C), without a bias."""

    embedding: Embedding
    norm: LayerNorm | RMSNorm
    positions: Embedding | None = None
    head: object = None


def step(blocks, x, cache, rng=None):
    """x:(B, T, C) Tensor, tokens behind those of `cache` -> what blocks give, bit for bit as one by one, keys and values appended; or None.

    None where they have to run one by one: no cache, weights of a kind that the call does not take, the reference kernels, bfloat16
    products, PYLLM_DEBUG, dropout. Each of blocks: a module with plan() -> BlockPlan, or None if it is no such block; blocks[i] is layer i
    of the cache.
    """
    if cache is None or rng is not None or _python():
        return None
    if cache.step is None:
        cache.step = _Step(blocks)
    return cache.step(x, cache)


def token(model, ids, cache):
    """ids:(B,) int32 in 0..V-1, read behind a cache that `step` filled -> hidden:(B, C), logits:(B, V) of what follows; or None.

    The bits are those of the head over model.hidden, in one call. None where it takes Python: see step; a model without a frame().
    """
    return None if cache.step is None or _python() else cache.step.token(model, ids, cache)


def _python():
    return reduced() or K.active() == "reference" or env.debug()


class _Step:
    """The plans of blocks, handed to C++ once for the life of a cache: it holds keys that these weights gave."""

    def __init__(self, blocks):
        plans, self.blocks, self.sizes = [_plain(block.plan()) for block in blocks], None, None
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
        y = K.empty(x.shape)
        self.blocks.run(x.data, y, *self._bound(cache, x.shape[1]))
        return Tensor(y)

    def token(self, model, ids, cache):
        if self.sizes is None:
            self.sizes = self._sizes(model.frame())
        if not self.sizes:
            return None
        hidden, logits = (K.empty((len(ids), size)) for size in self.sizes)
        self.blocks.token(ids, hidden, logits, *self._bound(cache, 1))
        return hidden, logits

    def _bound(self, cache, t):
        """-> what C++ takes of a cache for t more tokens a row: lengths, keys and values, rotary tables."""
        starts = cache.starts
        needed = int(starts.max()) + t
        if cache.bound is None or needed > cache.bound.room:
            stores = [cache.room(layer, t, *shape) for layer, shape in enumerate(self.shapes)]
            cache.bound = self.blocks.bind(stores)
        return starts, cache.bound, [table(needed - 1) for table in self.tables]

    def _sizes(self, frame):
        """frame: a Frame or None -> C, V, once C++ has it; () where it does not take it."""
        if self.blocks is None or frame is None:
            return ()
        plain = {f.name: part.plain() for f in fields(frame) if isinstance(part := getattr(frame, f.name), Layer)}
        frame = replace(frame, **plain)
        tables = [e for e in (frame.embedding, frame.positions) if e is not None]
        weights = [w for w in (frame.head, *(e.weight for e in tables), *frame.norm.parameters()) if not isinstance(w, K.Packed)]
        if any(type(e) is not Embedding for e in tables) or type(frame.norm) not in (LayerNorm, RMSNorm) or not _floats(weights):
            return ()
        (vocabulary, channels), positions = frame.head.shape, frame.positions
        self.blocks.put_ends((_native(frame.embedding.weight), None), None if positions is None else (_native(positions.weight), None),
                             _norm(frame.norm), (_native(frame.head), None), vocabulary, 0 if positions is None else len(positions.weight))
        return channels, vocabulary


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
    return plan if _floats(p for module in linears + norms for p in module.parameters()) else None


def _floats(tensors):
    """-> whether all of them are dense float32."""
    return all(a.dtype == K.native.F32 and a.flags.c_contiguous and a.flags.aligned for a in (t.data for t in tensors))


def _norm(norm):
    return norm and (norm.weight.data, _data(getattr(norm, "bias", None)), norm.eps, type(norm) is RMSNorm)


def _weight(linear):
    return linear and (_native(linear.weight), _data(linear.bias))


def _native(weight):
    return weight.native if isinstance(weight, K.Packed) else weight.data


def _data(tensor):
    return tensor if tensor is None else tensor.data
