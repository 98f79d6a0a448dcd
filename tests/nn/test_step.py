"""A step of all blocks in one call has the bits of the blocks one by one, on every ISA; what it does not take runs one by one."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.autograd import Tensor, no_grad, ops, precision
from pyllm.models.gpt2 import GPT2, GPT2Config
from pyllm.models.llama import Llama, LlamaConfig
from pyllm.nn import BlockPlan, Cache, LayerNorm, Linear, Module, RMSNorm, RotaryTable, positions, quantize, step, token

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


class Block(Module):
    """Any block a BlockPlan can describe, and the same in Python's operations."""

    def __init__(self, c, layer, draw, rotary):
        self.c, self.layer = c, layer
        width, (h, hkv, d) = c["width"], c["heads"]
        norm = lambda n: RMSNorm(n, 1e-6) if c["rms"] else LayerNorm(n, 1e-5, c["bias"])
        linear = lambda i, o: Linear(i, o, c["bias"])
        self.norm_1, self.norm_2 = norm(width), norm(width)
        self.qkv = [linear(width, (h + 2 * hkv) * d)] if c["fused"] else [linear(width, n * d) for n in (h, hkv, hkv)]
        self.q_norm, self.k_norm = (RMSNorm(d), RMSNorm(d)) if c["qk_norm"] else (None, None)
        self.out, self.up, self.down = linear(h * d, width), linear(width, c["inner"]), linear(c["inner"], width)
        self.gate = linear(width, c["inner"]) if c["gated"] else None
        self.rotary = rotary if c["rotary"] else None
        for p in self.parameters():
            p.data[...] = draw.standard_normal(p.shape) * 0.3

    def plan(self):
        h, hkv, d = self.c["heads"]
        return BlockPlan(self.norm_1, tuple(self.qkv), self.out, self.norm_2, self.up, self.down, self.c["act"], h, hkv, d**-0.5, self.gate,
                         self.q_norm, self.k_norm, self.rotary, self.c["interleaved"], self.c["window"])

    def __call__(self, x, at, cache):
        (h, hkv, d), y = self.c["heads"], self.norm_1(x)
        parts = ops.split_heads(self.qkv[0](y).data, h, hkv) if self.c["fused"] else [w(y).data for w in self.qkv]
        q, k, v = (np.ascontiguousarray(p).reshape(*x.shape[:2], -1, d) for p in parts)
        if self.q_norm:
            q, k = self.q_norm(q).data, self.k_norm(k).data
        if self.rotary:
            cos, sin = self.rotary(at.max())
            q, k = (ops.rope(a, cos=cos, sin=sin, positions=at, interleaved=self.c["interleaved"]).data for a in (q, k))
        keys, values = cache.append(self.layer, k, v)
        heads = ops.attention(q, keys, values, starts=cache.lengths, window=self.c["window"], scale=d**-0.5)
        x = self.out(heads.reshape(*x.shape[:2], -1), residual=x)
        y = self.norm_2(x)
        inner = ops.glu(self.gate(y), self.up(y), kind=self.c["act"]) if self.gate else self.up(y, activation=self.c["act"])
        return self.down(inner, residual=x)


PLANS = st.fixed_dictionaries(dict(
    width=st.sampled_from([1, 8, 24, 130]), heads=st.sampled_from([(1, 1, 2), (4, 2, 8), (6, 2, 4), (3, 3, 16), (8, 1, 64)]),
    inner=st.sampled_from([1, 40, 257]), rms=st.booleans(), bias=st.booleans(), fused=st.booleans(), qk_norm=st.booleans(),
    gated=st.booleans(), rotary=st.booleans(), interleaved=st.booleans(), window=st.sampled_from([0, 1, 3]),
    act=st.sampled_from(["gelu_tanh", "gelu", "silu", "relu"])))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30)
@given(c=PLANS, rows=st.sampled_from([1, 2, 3, 9]), steps=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_bits_of_the_blocks_one_by_one(isa, c, rows, steps, seed):
    draw = np.random.default_rng(seed)
    rotary = RotaryTable(2 * max(1, c["heads"][2] // 4))  # a part of the head, as some families want
    blocks = [Block(c, i, draw, rotary) for i in range(2)]
    one, two = Cache(rows, capacity=2), Cache(rows, capacity=2)
    with K.use(isa), no_grad():
        for t in steps:
            x = Tensor(draw.standard_normal((rows, t, c["width"])).astype(np.float32))
            got, want, at = step(blocks, x, one), x, positions(np.zeros((rows, t), np.int32), cache=two)
            for block in blocks:
                want = block(want, at, two)
            assert got.data.tobytes() == want.data.tobytes()
            real = draw.integers(0, t + 1, rows)  # ragged rows
            one.advance(real)
            two.advance(real)
        for layer in range(2):
            for b, n in enumerate(one.lengths):
                assert np.array_equal(one.layers[layer][:, b, :, :n], two.layers[layer][:, b, :, :n])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_bits_of_packed_blocks_one_by_one(isa, format, fused):
    blocks = [quantize(b, format, skip="down" if format == "bf16" else ()) for b in small(fused=fused, bias=True, gated=not fused)]
    one, two, draw = Cache(3, capacity=2), Cache(3, capacity=2), np.random.default_rng(0)
    with K.use(isa), no_grad():
        for t in (5, 1, 1):
            x = Tensor(draw.standard_normal((3, t, 64)).astype(np.float32))
            got, want, at = step(blocks, x, one), x, positions(np.zeros((3, t), np.int32), cache=two)
            for block in blocks:
                want = block(want, at, two)
            assert got.data.tobytes() == want.data.tobytes()
            one.advance(t)
            two.advance(t)


def small(**changes):
    c = dict(width=64, heads=(4, 2, 16), inner=96, rms=True, bias=False, fused=False, qk_norm=False, gated=True, rotary=True,
             interleaved=False, window=0, act="silu") | changes
    return [Block(c, i, np.random.default_rng(i), RotaryTable(16)) for i in range(2)]


def test_a_row_has_the_same_bits_alone_and_for_any_thread_count():
    blocks, x = small(width=600, inner=1600), np.random.default_rng(1).standard_normal((9, 1, 600)).astype(np.float32)
    run = lambda x: step(blocks, Tensor(x), Cache(len(x))).data
    before = K.num_threads()
    try:
        with no_grad():
            for threads in (1, 2, 5):
                K.set_num_threads(threads)
                together = run(x)
                for part in (slice(0, 1), slice(2, 5), slice(0, 8)):
                    assert np.array_equal(run(x[part]), together[part])
                assert threads == 1 or np.array_equal(together, first)
                first = together
    finally:
        K.set_num_threads(before)


def models():
    llama = LlamaConfig(vocab_size=70, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, max_position_embeddings=64)
    gpt2 = GPT2Config(vocab_size=70, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return [Llama(llama), GPT2(gpt2)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["f32", "bf16", "q4_0"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_token_has_the_bits_of_the_head_over_the_hidden_states(isa, format, which):
    model = quantize(models()[which].initialize(0), format)
    one, two, draw = Cache(3, capacity=4), Cache(3, capacity=4), np.random.default_rng(0)
    with K.use(isa), no_grad():
        for cache in (one, two):
            model.hidden(np.arange(9, dtype=np.int32).reshape(3, 3), cache=cache)
            cache.advance(np.array([3, 1, 2]))
        for n in range(8):  # the cache grows, rows leave and change places: what was bound before must not be written to
            ids = draw.integers(0, 70, len(one.lengths)).astype(np.int32)
            hidden, logits = token(model, ids, one)
            want = model.hidden(ids[:, None], cache=two)
            assert hidden.tobytes() == want.data.tobytes()
            assert logits.tobytes() == ops.linear(want, model.head_weight()).data.tobytes()
            for cache in (one, two):
                cache.advance(1)
                if n == 3:
                    cache.select([2, 0])


def test_tokens_beyond_the_model_are_refused_in_one_call_too():
    for model in models():
        cache = Cache(1)
        with no_grad():
            model.initialize(0).hidden(np.zeros((1, 1), np.int32), cache=cache)
        for bad in (-1, 70):
            with pytest.raises(ValueError, match="ids of the vocabulary"):
                token(model, np.array([bad], np.int32), cache)
    cache.lengths[0] = 64
    with pytest.raises(ValueError, match="positions of the context"):
        token(model, np.zeros(1, np.int32), cache)


def test_a_model_that_says_no_frame_is_left_to_python():
    model, cache = models()[1], Cache(1)
    with no_grad():
        model.initialize(0).hidden(np.zeros((1, 1), np.int32), cache=cache)
    model.transformer.ln_f = Other(64, 64)
    assert token(model, np.zeros(1, np.int32), cache) is None
    assert token(model, np.zeros(1, np.int32), Cache(1)) is None  # nothing read before


class Other(Linear):
    """A layer that computes something else."""


@pytest.mark.parametrize("change", [
    lambda b: setattr(b, "out", Other(64, 64)), lambda b: setattr(b.up.weight, "data", b.up.weight.data.astype(np.float64)),
    lambda b: setattr(b.down.weight, "data", np.asfortranarray(b.down.weight.data)),
])
def test_weights_of_another_kind_are_left_to_python(change):
    blocks = small()
    change(blocks[1])
    assert step(blocks, Tensor(np.zeros((1, 1, 64), np.float32)), Cache(1)) is None


def test_other_ways_of_computing_are_left_to_python():
    x, blocks = Tensor(np.zeros((1, 1, 64), np.float32)), small()
    with K.use("reference"):
        assert step(blocks, x, Cache(1)) is None
    with precision("bf16"):
        assert step(blocks, x, Cache(1)) is None
    assert step(blocks, x, Cache(1), rng=1) is None and step(blocks, x, Cache(1)) is not None


def test_what_does_not_fit_is_named():
    blocks = small()
    blocks[0].down = Linear(90, 64, False)
    with pytest.raises(ValueError, match="blocks: expected weights that fit one another"):
        step(blocks, Tensor(np.zeros((1, 1, 64), np.float32)), Cache(1))
    with pytest.raises(ValueError, match="blocks: expected x and out of"):
        step(small(), Tensor(np.zeros((1, 1, 65), np.float32)), Cache(1))
