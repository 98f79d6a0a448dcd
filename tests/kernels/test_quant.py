"""Packed weights: ggml's bytes and values, products against float64, the same bits for any rows, threads and ISA's tile, clear errors."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import Packed, reference
from pyllm.kernels.packed import FORMATS
from tests.strategies import lay_out, layouts

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")
formats = pytest.mark.parametrize("format", FORMATS)
ROWS = st.sampled_from([0, 1, 3, 31, 32, 33, 64, 100])


def weights(seed, o, i, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((o, i))).astype(np.float32)


def packed(seed, o, i, format):
    return Packed.quantize(weights(seed, o, i), format)


def block_values(format, data):
    """The 32 weights of one block of bytes, written out by hand from the format's definition."""
    halves = [float(np.frombuffer(bytes(data[n : n + 2]), np.float16)[0]) for n in (0, 2)]
    if format == "q8_0":
        return [halves[0] * (b - 256 if b > 127 else b) for b in data[2:34]]
    if format == "q4_0":
        return [halves[0] * ((b & 15) - 8) for b in data[2:18]] + [halves[0] * ((b >> 4) - 8) for b in data[2:18]]
    return [halves[0] * (b & 15) + halves[1] for b in data[4:20]] + [halves[0] * (b >> 4) + halves[1] for b in data[4:20]]


# ---- the formats ---------------------------------------------------------------------------------------------------------


@formats
@given(o=ROWS, blocks=st.integers(0, 3), seed=st.integers(0, 2**32))
def test_bytes_come_back(format, o, blocks, seed):
    """Any bytes, those no quantiser writes too: -128, NaN scales, negative scales."""
    shape = (o, 32 * blocks + (seed % 32 if format == "bf16" else 0))
    row = 2 * shape[1] if format == "bf16" else blocks * FORMATS[format]
    data = np.random.default_rng(seed).integers(0, 256, (o, row), np.uint8)
    w = Packed.from_blocks(format, shape, data)
    np.testing.assert_array_equal(w.to_blocks(), data)
    assert w.shape == shape and w.size == o * shape[1] and len(w) == o and Packed.from_blocks(format, shape, data.tobytes()).shape == shape


@formats
@pytest.mark.parametrize("o, i", [(1, 32), (33, 96), (64, 64)])
def test_weaving_without_the_compiled_part_is_the_same(monkeypatch, format, o, i):
    row = 2 * i if format == "bf16" else i // 32 * FORMATS[format]
    data = np.random.default_rng(o).integers(0, 256, (o, row), np.uint8)
    one = Packed.from_blocks(format, (o, i), data)
    monkeypatch.setattr("pyllm.kernels.packed._C", None)
    two = Packed.from_blocks(format, (o, i), data)
    for name in ("words", "scales", "mins"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "bf16"])
def test_values_are_those_of_the_definition(format, isa):
    data = np.random.default_rng(1).integers(0, 256, (40, 2 * FORMATS[format]), np.uint8)
    data.reshape(40, 2, -1)[:, :, 1] &= 0xBF  # finite scales and minima
    data.reshape(40, 2, -1)[:, :, 3] &= 0xBF
    expected = np.array([[v for b in row.reshape(2, -1) for v in block_values(format, b.tolist())] for row in data])
    w = Packed.from_blocks(format, (40, 64), data)
    np.testing.assert_array_equal(w.dequantize(), expected.astype(np.float32))
    np.testing.assert_array_equal(K.embedding(w, np.arange(40)), w.dequantize())


@formats
def test_quantising_loses_half_a_step(format):
    """Every weight is within half a step of its block (a float16 scale's error beside it), and what a block can hold exactly comes back."""
    x = weights(2, 64, 128, 0.05)
    error = np.abs(Packed.quantize(x, format).dequantize() - x).reshape(64, 4, 32).max(2)
    blocks = x.reshape(64, 4, 32)
    most, spread = np.abs(blocks).max(2), blocks.max(2) - blocks.min(2)
    allowed = {"bf16": most / 256, "q8_0": most / 254 * 1.08, "q4_0": most / 8 * 1.01, "q4_1": spread / 30 * 1.08}[format]
    assert (error <= allowed).all()
    for exact in (np.zeros((3, 32), np.float32), np.full((2, 32), 0.0 if format == "q8_0" else -0.5, np.float32)):
        np.testing.assert_array_equal(Packed.quantize(exact, format).dequantize(), exact)


def test_halves_are_rounded_like_ggml():
    """q8_0 rounds halves away from 0, also where adding a half would carry; q4_0 rounds them up and cuts 16 to 15."""
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = 127, 0.5, -0.5, 2.5, -2.5, np.nextafter(np.float32(0.5), np.float32(0))
    assert Packed.quantize(x, "q8_0").to_blocks()[0, 2:8].view(np.int8).tolist() == [127, 1, -1, 3, -3, 0]
    x[0, :6] = -8, 8, 0.5, -0.5, 7.4, -7.6
    assert (Packed.quantize(x, "q4_0").to_blocks()[0, 2:8] & 15).tolist() == [0, 15, 9, 8, 15, 0]


@settings(max_examples=30)
@given(o=st.integers(1, 40), blocks=st.integers(1, 4), seed=st.integers(0, 2**32), scale=st.sampled_from([1e-30, 1e-6, 1e-2, 1.0, 1e4]))
def test_the_quantiser_is_ggmls(o, blocks, seed, scale):
    """Bit for bit that of the package gguf, where it is installed."""
    quants = pytest.importorskip("gguf.quants")
    from gguf import GGMLQuantizationType

    x = weights(seed, o, 32 * blocks, scale)
    x[:, ::7] = np.round(x[:, ::7] / np.float32(scale)) * np.float32(scale) + np.float32(0)  # ties, equal extremes; no -0
    for format in FORMATS:
        kind = GGMLQuantizationType[format.upper()]
        data = quants.quantize(x, kind).view(np.uint8).reshape(o, -1)
        w = Packed.quantize(x, format)
        np.testing.assert_array_equal(w.to_blocks(), data)
        np.testing.assert_array_equal(w.dequantize(), quants.dequantize(quants.quantize(x, kind), kind).reshape(x.shape))


# ---- products ------------------------------------------------------------------------------------------------------------


def check(w, x, tolerance=2e-6, **options):
    """K.linear against the reference, whose x is rounded like the kernel's and whose sums are float64."""
    got = K.linear(x, w, **options)
    wide = {name: a.astype(np.float64) if isinstance(a, np.ndarray) else a for name, a in options.items()}
    expected = reference.linear(x.astype(np.float64), w, **wide)
    for g, e in zip(*((a if isinstance(a, tuple) else (a,)) for a in (got, expected)), strict=True):
        assert g.shape == e.shape and g.dtype == np.float32
        size = np.abs(reference.in_precision_of(w, x)).astype(np.float64) @ np.abs(w.dequantize()).T.astype(np.float64) + np.abs(e)
        size += sum(np.abs(a) for a in wide.values() if isinstance(a, np.ndarray))
        assert (np.abs(g - e) <= tolerance * size + 1e-30).all()


@formats
@settings(max_examples=25)
@given(m=st.sampled_from([0, 1, 2, 5, 6, 7, 8, 13, 97]), o=ROWS, i=st.integers(0, 5), odd=st.integers(0, 31), layout=layouts(),
       act=st.sampled_from([None, "gelu_tanh", "silu"]), extra=st.booleans(), seed=st.integers(0, 2**32))
def test_linear(format, m, o, i, odd, layout, act, extra, seed):
    """Any shape, any layout of x, all of the epilogue; on every ISA."""
    k = 32 * i + (odd if format == "bf16" else 0)
    rng, w = np.random.default_rng(seed), packed(seed, o, k, format)
    x = lay_out(rng.standard_normal((m, k)).astype(np.float32), layout)
    options = {"act": act}
    if extra:
        options |= {"bias": rng.standard_normal(o).astype(np.float32), "residual": rng.standard_normal((m, o)).astype(np.float32)}
    for isa in ISAS:
        with K.use(isa):
            check(w, x, **options)


@formats
def test_linear_is_exact_where_it_can_be(format, isa):
    """Small whole numbers lose nothing on the way in, so the result is the integer product."""
    rng = np.random.default_rng(3)
    x = rng.integers(-7, 8, (9, 64)).astype(np.float32)
    x[:, ::32] = 127  # the scale is then 1
    w = rng.integers(-7, 8, (70, 64)).astype(np.float32)
    w[:, ::32] = {"bf16": 0, "q8_0": 127, "q4_0": -8, "q4_1": -7}[format]
    if format == "q4_1":
        w[:, 1::32] = 8
    p = Packed.quantize(w, format)
    np.testing.assert_array_equal(p.dequantize(), w)
    np.testing.assert_array_equal(K.linear(x, p), x @ w.T)


@formats
def test_a_row_has_the_same_bits_whatever_the_rows_and_the_threads(format, isa):
    w, x = packed(4, 200, 160, format), weights(5, 203, 160)
    bias, residual = weights(6, 1, 200)[0], weights(7, 203, 200)
    together, before = K.linear(x, w, bias=bias, act="gelu", residual=residual)[0], K.num_threads()
    for m in (*range(1, 15), 96, 97):
        for at in (0, 100):
            rows = slice(at, at + m)
            np.testing.assert_array_equal(K.linear(x[rows], w, bias=bias, act="gelu", residual=residual[rows])[0], together[rows])
    try:
        for threads in (1, 2, 3, 8):
            K.set_num_threads(threads)
            np.testing.assert_array_equal(K.linear(x, w, bias=bias, act="gelu", residual=residual)[0], together)
    finally:
        K.set_num_threads(before)


@formats
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(format, isa, bad):
    w, x = packed(8, 40, 96, format), weights(9, 5, 96)
    x[2, 50] = bad
    finite = np.isfinite(K.linear(x, w)).all(1)
    assert finite.tolist() == [True, True, False, True, True]


@formats
def test_extreme_rows(format, isa):
    """Zeros, subnormals and large values in x: as the reference has them, never NaN."""
    w, x = packed(10, 33, 64, format), weights(11, 6, 64)
    for row, scale in enumerate((0.0, 1e-40, 1e-36, 1e-30, 1e30, 1.0)):
        x[row] *= np.float32(scale)
    y = K.linear(x, w)
    assert np.isfinite(y).all() and (y[0] == 0).all()
    check(w, x[2:])


@formats
def test_float16_scales_of_every_kind(format, isa):
    """Subnormal, largest, negative and zero scales widen exactly."""
    if format == "bf16":
        return
    data = np.random.default_rng(12).integers(0, 256, (64, FORMATS[format]), np.uint8)
    halves = np.float16([6e-8, 3e-6, 6.1e-5, 65504, -65504, -2e-7, 0.0, -0.0] * 8)
    data[:, :2] = halves.view(np.uint8).reshape(64, 2)
    if format == "q4_1":
        data[:, 2:4] = halves[::-1].copy().view(np.uint8).reshape(64, 2)
    w = Packed.from_blocks(format, (64, 32), data)
    check(w, weights(13, 3, 32))
    np.testing.assert_array_equal(K.embedding(w, np.arange(64)), w.dequantize())


@formats
def test_vjp_is_the_product_with_the_unpacked_weight(format, isa):
    """dx bit for bit that of a float weight, also beyond the rows that are unpacked at a time."""
    for o, i in ((7, 32), (1700, 96)):
        w, dy = packed(14, o, i, format), weights(15, 9, o)
        np.testing.assert_array_equal(K.linear_vjp(dy, w), K.matmul(dy, w.dequantize()))
    expected = reference.linear_vjp(dy.astype(np.float64), w)
    np.testing.assert_allclose(K.linear_vjp(dy, w), expected, rtol=1e-4, atol=1e-3)


@formats
def test_head_and_loss(format, isa):
    """linear_cross_entropy with a packed head: loss and dh as with the reference, no dw."""
    w, h = packed(16, 101, 64, format), weights(17, 20, 64)
    targets = np.random.default_rng(18).integers(-1, 101, 20).astype(np.int32)
    got = K.linear_cross_entropy(h, w, None, targets, need=(True, False, False))
    expected = reference.linear_cross_entropy(h.astype(np.float64), w, None, targets, need=(True, False, False))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-4)
    assert got[2] is None is got[3]


# ---- errors --------------------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    x = weights(0, 4, 33)
    for format in ("q8_0", "q4_0", "q4_1"):
        with pytest.raises(ValueError, match=rf"Packed.quantize: {format} takes rows of a multiple of 32 weights, got 33 .* bf16"):
            Packed.quantize(x, format)
    with pytest.raises(ValueError, match="format='q3'; expected one of bf16, q8_0, q4_0, q4_1"):
        Packed.quantize(x, "q3")
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(O, I\)"):
        Packed.quantize(x[:, 0], "bf16")
    with pytest.raises(ValueError, match=r"NaN or infinity at \(1, 2\)"):
        Packed.quantize(np.where(np.arange(132).reshape(4, 33) == 35, np.nan, x), "bf16")
    with pytest.raises(ValueError, match="must fit in float16"):
        Packed.quantize(np.full((1, 32), 1e8, np.float32), "q8_0")
    with pytest.raises(ValueError, match="10 bytes; expected 34 for q8_0"):
        Packed.from_blocks("q8_0", (1, 32), bytes(10))
    w = packed(0, 8, 32, "q4_0")
    with pytest.raises(ValueError, match=r"Packed: words .* expected"):
        Packed("q4_0", (64, 32), w.words, w.scales)
    with pytest.raises(ValueError, match=r"Packed: scales .* expected"):
        Packed("q4_0", (8, 32), w.words)
    with pytest.raises(ValueError, match=r"linear: x \(2, 31\) and w Packed\(q4_0, \(8, 32\)\)"):
        K.linear(np.zeros((2, 31), np.float32), w)
    with pytest.raises(ValueError, match=r"linear: bias \(7,\), expected \(8,\)"):
        K.linear(np.zeros((2, 32), np.float32), w, bias=np.zeros(7, np.float32))
    with pytest.raises(ValueError, match=r"linear_vjp: dy \(2, 9\)"):
        K.linear_vjp(np.zeros((2, 9), np.float32), w)
    with pytest.raises(IndexError, match=r"embedding: token id 8 at position 1, expected 0\.\.7"):
        K.embedding(w, np.array([0, 8]))
    with pytest.raises(TypeError, match="linear: got float16"):
        K.linear(np.zeros((2, 32), np.float16), w)
