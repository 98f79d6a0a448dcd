"""Attention and its vjp: every ISA against the float64 reference, and the promises about bits, masks and layouts."""
import functools
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference

ISAS = [name for name in K.available() if name != "reference"]
every_isa = pytest.mark.parametrize("isa", ISAS)
both_precisions = pytest.mark.parametrize("reduced", [False, True], ids=["f32", "bf16"])
dropped = pytest.mark.parametrize("dropout", [0.0, 0.3])
LENGTHS = st.sampled_from([0, 1, 2, 5, 31, 32, 33, 95, 96, 97, 130, 239, 240, 241, 257])
SIZES = st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 32, 48, 64, 65, 80, 128, 256])


@pytest.fixture(autouse=True)
def _restore():
    name, threads = K.active(), K.num_threads()
    yield
    K.use(name)
    K.set_num_threads(threads)


def draw(rng, b, tq, tk, h, hkv, d, *, causal=True, window=0, segments=False, starts=False, bias=None, dropout=0.0):
    """-> q, k, v, dout float32 and the options of a call."""
    q, k, v, dout = (rng.standard_normal((b, t, heads, d), np.float32) for t, heads in ((tq, h), (tk, hkv), (tk, hkv), (tq, h)))
    options = dict(causal=causal, window=window, **(dict(dropout=dropout, key=int(rng.integers(2**63))) if dropout else {}))
    if segments:
        options["segments"] = tuple(np.sort(rng.integers(0, 4, (b, t)), axis=1).astype(np.int32) for t in (tq, tk))
    if starts:
        options["starts"] = rng.integers(-2, max(tk, 1), b)
    if bias is not None:
        options["bias"] = rng.standard_normal((b if "b" in bias else 1, h if "h" in bias else 1, tq, tk), np.float32)
    return q, k, v, dout, options


F32, BF16 = 1e-5, 2e-2  # errors that are allowed


def in_float64(f, *arrays, bias=None, **options):
    return f(*(x.astype(np.float64) for x in arrays), bias=None if bias is None else bias.astype(np.float64), **options)


def expected(q, k, v, dout, options, need_bias=False):
    """-> out, lse and gradients in float64."""
    out, lse = in_float64(reference.attention, q, k, v, **options)
    return out, lse, *in_float64(reference.attention_vjp, dout, q, k, v, out, lse, need_bias=need_bias, **options)


def check(q, k, v, dout, options, need_bias=False, reduced=False, wants=None):
    """Native against float64, forward and vjp: errors as parts of the largest number (at least 1). -> the native results."""
    bound = BF16 if reduced else F32
    out, lse = K.attention(q, k, v, reduced=reduced, **options)
    want, want_lse, *wants = wants or expected(q, k, v, dout, options, need_bias)
    np.testing.assert_allclose(out, want, atol=bound * np.abs(want).max(initial=1.0), rtol=0)
    np.testing.assert_allclose(lse, want_lse, atol=bound, rtol=bound)
    grads = K.attention_vjp(dout, q, k, v, out, lse, need_bias=need_bias, reduced=reduced, **options)
    for name, got, exact in zip(("dq", "dk", "dv", "dbias"), grads, wants):
        if exact is None:
            assert got is None
            continue
        assert got.shape == exact.shape and got.dtype == np.float32, name
        size = np.abs(exact).max(initial=np.abs(v).max(initial=1.0) * q.shape[-1] ** 0.5)  # of the sums over D whose difference may be 0
        np.testing.assert_allclose(got / size, exact / size, atol=bound, rtol=0, err_msg=name)
    return out, lse, *grads


@functools.cache
def large(seed, *sizes, **options):
    """-> what `check` takes; the reference, seconds at these sizes, once for all ISAs."""
    case, need_bias = draw(np.random.default_rng(seed), *sizes, **options), "bias" in options
    return *case, need_bias, expected(*case, need_bias)


@every_isa
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_the_reference(isa, data):
    K.use(isa)
    pick = data.draw
    tq, tk, hkv = pick(LENGTHS), pick(LENGTHS), pick(st.sampled_from([1, 2]))
    bias = pick(st.sampled_from([None, "", "b", "h", "bh"]))
    args = draw(np.random.default_rng(pick(st.integers(0, 99))), pick(st.integers(1, 2)), tq, pick(st.sampled_from([tq, tk])),
                hkv * pick(st.sampled_from([1, 2, 3])), hkv, pick(SIZES), causal=pick(st.booleans()),
                window=pick(st.sampled_from([0, 0, 1, 2, 7, 100])), segments=pick(st.booleans()), starts=pick(st.booleans()), bias=bias,
                dropout=pick(st.sampled_from([0.0, 0.0, 0.1, 0.6])))
    check(*args, need_bias=bias is not None, reduced=pick(st.booleans()))


@every_isa
@both_precisions
@dropped
@pytest.mark.parametrize("options", [dict(), dict(causal=False), dict(window=300), dict(segments=True), dict(bias="h")], ids=str)
def test_several_tiles(isa, options, dropout, reduced):
    K.use(isa)
    *case, need_bias, wants = large(0, 1, 700, 700, 2, 1, 40, dropout=dropout, **options)
    check(*case, need_bias, reduced, wants)


@every_isa
@both_precisions
@dropped
@pytest.mark.parametrize("tq", [1, 3, 700])
def test_more_keys_than_one_part_of_the_forward(isa, tq, dropout, reduced):
    K.use(isa)
    *case, need_bias, wants = large(0, 1, tq, 2100, 2, 1, 24, dropout=dropout, causal=tq > 3)
    check(*case, need_bias, reduced, wants)


@every_isa
def test_bfloat16_is_what_the_reference_says(isa):
    """One tile: nearer to the reference with rounded factors than that is to the exact result."""
    K.use(isa)
    q, k, v, dout, _ = draw(np.random.default_rng(11), 2, 80, 80, 4, 2, 64)
    out, lse = K.attention(q, k, v, reduced=True)
    got = out, *K.attention_vjp(dout, q, k, v, out, lse, reduced=True)[:3]
    for reduced in (True, False):
        want, want_lse = in_float64(reference.attention, q, k, v, reduced=reduced)
        wants = want, *in_float64(reference.attention_vjp, dout, q, k, v, want, want_lse, reduced=reduced)[:3]
        errors = [np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2)) for x, y in zip(got, wants)]
        assert max(errors) < (4e-3 if reduced else 8e-3), errors
    assert min(errors) > 1e-4, "factors were not rounded"


@every_isa
def test_more_keys_than_one_task_of_the_vjp(isa):
    K.use(isa)
    *case, need_bias, wants = large(1, 2, 300, 1200, 2, 1, 16, bias="h")
    check(*case, need_bias, wants=wants)


@pytest.mark.parametrize("options", [dict(causal=True), dict(causal=False, window=2), dict(segments=True, bias="bh"), dict(bias="b"),
                                     dict(bias="h"), dict(bias="b", dropout=0.4), dict(causal=False, segments=True, dropout=0.1)], ids=str)
def test_reference_vjp_is_the_derivative(options):
    rng = np.random.default_rng(2)
    q, k, v, dout, options = draw(rng, 2, 4, 5, 4, 2, 3, **options)
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    bias = options.pop("bias", None)
    inputs = [q, k, v] + ([] if bias is None else [bias.astype(np.float64)])
    f = lambda q, k, v, bias=None: reference.attention(q, k, v, bias=bias, **options)
    out, lse = f(*inputs)
    grads = reference.attention_vjp(dout, q, k, v, out, lse, bias=None if bias is None else inputs[3], need_bias=bias is not None,
                                    **options)
    for i, x in enumerate(inputs):
        step = 1e-6 * rng.standard_normal(x.shape)
        ends = [f(*inputs[:i], x + sign * step, *inputs[i + 1 :])[0] for sign in (1, -1)]
        np.testing.assert_allclose((grads[i] * step).sum(), ((ends[0] - ends[1]) / 2 * dout).sum(), rtol=1e-6, atol=1e-13)


# ---- what a query sees ----


@every_isa
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 31, 240, 241, 299, 300, 301])
def test_window_is_exactly_that_many_keys(isa, window, causal):
    K.use(isa)
    t = 300
    v = np.eye(t, dtype=np.float32)[None, :, None, :]
    out, _ = K.attention(np.zeros((1, t, 1, t), np.float32), np.zeros((1, t, 1, t), np.float32), v, causal=causal, window=window)
    i = np.arange(t)
    seen = (i > i[:, None] - window) & (i <= i[:, None] if causal else i < i[:, None] + window)
    np.testing.assert_array_equal(out[0, :, 0] > 0, seen)


@every_isa
def test_packed_documents_equal_rows_of_their_own(isa):
    K.use(isa)
    lengths, rng = [1, 50, 240, 33, 129], np.random.default_rng(3)
    t = sum(lengths)
    q, k, v, dout, _ = draw(rng, 1, t, t, 2, 1, 24)
    segments = np.repeat(np.arange(1, 6), lengths)[None].astype(np.int32)
    out, lse = K.attention(q, k, v, segments=(segments, segments))
    grads = K.attention_vjp(dout, q, k, v, out, lse, segments=(segments, segments))
    for end, n in zip(np.cumsum(lengths), lengths):
        part = slice(end - n, end)
        own, own_lse = K.attention(q[:, part], k[:, part], v[:, part])
        np.testing.assert_allclose(out[:, part], own, atol=2e-6)
        for whole, alone in zip(grads, K.attention_vjp(dout[:, part], q[:, part], k[:, part], v[:, part], own, own_lse)):
            if whole is not None:
                np.testing.assert_allclose(whole[:, part], alone, atol=1e-5)


@every_isa
@both_precisions
@pytest.mark.parametrize("d", [16, 21])
@pytest.mark.parametrize("tq", [1, 6, 300])
def test_nothing_leaks_out_of_masked_positions(isa, tq, d, reduced):
    K.use(isa)
    q, k, v, dout, _ = draw(np.random.default_rng(4), 2, tq, 300, 4, 2, d)
    k_segments = np.ones((2, 300), np.int32)
    k_segments[:, [0, 7, 120, 299]] = 0
    q_segments = np.ones((2, tq), np.int32)
    q_segments[1, -1] = 0
    options = dict(segments=(q_segments, k_segments), starts=np.array([250 - tq // 2, 300 - tq]), reduced=reduced)

    def run():
        out, lse = K.attention(q, k, v, **options)
        return out, lse, *K.attention_vjp(dout, q, k, v, out, lse, **options)[:3]

    clean = run()
    k[k_segments == 0] = np.nan
    v[k_segments == 0] = np.inf
    q[q_segments == 0] = dout[q_segments == 0] = np.nan
    for name, x, y in zip(("out", "lse", "dq", "dk", "dv"), clean, run()):
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert not clean[0][1, -1].any() and np.isneginf(clean[1][1, :, -1]).all() and not clean[2][1, -1].any()


@every_isa
@both_precisions
def test_causal_future_that_is_nan_stays_in_the_future(isa, reduced):
    K.use(isa)
    q, k, v, _, _ = draw(np.random.default_rng(5), 1, 100, 100, 1, 1, 32)
    clean, _ = K.attention(q, k, v, reduced=reduced)
    k[:, 60:] = v[:, 60:] = np.nan
    out, _ = K.attention(q, k, v, reduced=reduced)
    np.testing.assert_array_equal(out[:, :60], clean[:, :60])
    assert np.isnan(out[:, 60:]).all()


@every_isa
def test_nan_that_is_seen_is_passed_on(isa):
    K.use(isa)
    q, k, v, _, _ = draw(np.random.default_rng(5), 1, 3, 3, 1, 1, 4)
    q[0, 1] = np.nan
    out, lse = K.attention(q, k, v)
    assert np.isnan(out[0, 1]).all() and np.isnan(lse[0, 0, 1]) and np.isfinite(out[0, [0, 2]]).all()


@pytest.mark.parametrize("isa", ISAS[:1])
@both_precisions
def test_what_nobody_sees_takes_no_time(isa, reduced):
    """A window of 128 and 32 documents of 4096 keys see less than a tenth of them; a third is the limit."""
    K.use(isa)
    t = 4096
    q, k, v, dout, _ = draw(np.random.default_rng(13), 1, t, t, 1, 1, 64)
    segments = np.repeat(np.arange(1, 33), t // 32)[None].astype(np.int32)

    def seconds(**options):
        began = time.process_time()
        out, lse = K.attention(q, k, v, reduced=reduced, **options)
        K.attention_vjp(dout, q, k, v, out, lse, reduced=reduced, **options)
        return time.process_time() - began

    masks = dict(), dict(window=128), dict(segments=(segments, segments))
    full, *others = (min(seconds(**mask) for _ in range(5)) for mask in masks)
    assert max(others) < full / 3, (full, others)


# ---- the same bits ----


@every_isa
@both_precisions
@pytest.mark.parametrize("bias", [None, "", "h", "b"])
def test_same_bits_for_any_number_of_threads(isa, bias, reduced):
    K.use(isa)
    q, k, v, dout, options = draw(np.random.default_rng(6), 2, 200, 1100, 4, 2, 24, window=700, bias=bias)
    options["reduced"] = reduced
    results = []
    for threads in (1, 2, 3, 4, 8):
        K.set_num_threads(threads)
        out, lse = K.attention(q, k, v, **options)
        results.append([out, lse, *K.attention_vjp(dout, q, k, v, out, lse, need_bias=bias is not None, **options)])
    for other in results[1:]:
        for x, y in zip(results[0], other):
            np.testing.assert_array_equal(x, y)


@every_isa
@both_precisions
@pytest.mark.parametrize("d", [16, 40, 64])
@pytest.mark.parametrize("window", [0, 100])
def test_a_row_does_not_depend_on_its_neighbours(isa, window, d, reduced):
    K.use(isa)
    options = dict(window=window, reduced=reduced)
    q, k, v, dout, _ = draw(np.random.default_rng(7), 3, 530, 530, 4, 2, d)
    out, lse = K.attention(q, k, v, **options)
    grads = K.attention_vjp(dout, q, k, v, out, lse, **options)
    alone, _ = K.attention(q[1:2], k[1:2], v[1:2], **options)
    np.testing.assert_array_equal(out[1:2], alone)
    for whole, part in zip(grads, K.attention_vjp(dout[1:2], q[1:2], k[1:2], v[1:2], alone, lse[1:2], **options)):
        if whole is not None:
            np.testing.assert_array_equal(whole[1:2], part)
    for begin, end in ((0, 1), (5, 6), (240, 241), (300, 303), (529, 530), (100, 137), (3, 480)):
        part, part_lse = K.attention(q[:, begin:end], k[:, :end], v[:, :end], **options)  # a cache of just these keys
        np.testing.assert_array_equal(part, out[:, begin:end])
        np.testing.assert_array_equal(part_lse, lse[:, :, begin:end])
        starts = np.full(3, begin)  # a longer cache
        np.testing.assert_array_equal(K.attention(q[:, begin:end], k, v, starts=starts, **options)[0], out[:, begin:end])


@every_isa
@both_precisions
def test_ragged_decode_gives_the_bits_of_the_full_forward(isa, reduced):
    """Keys of several parts, which a step takes as tasks of their own, on any number of threads."""
    K.use(isa)
    q, k, v, _, _ = draw(np.random.default_rng(8), 4, 2050, 2050, 6, 2, 32)
    out, lse = K.attention(q, k, v, reduced=reduced)
    at = np.array([0, 17, 960, 2049])
    rows = np.arange(4)
    for threads in (1, 3):
        K.set_num_threads(threads)
        one, one_lse = K.attention(q[rows, at][:, None], k, v, starts=at, reduced=reduced)
        np.testing.assert_array_equal(one[:, 0], out[rows, at])
        np.testing.assert_array_equal(one_lse[:, :, 0], lse[rows, :, at])


@every_isa
def test_partial_sums_of_the_vjp_do_not_grow_with_the_heads(isa):
    """32 MB at most, and the bits of a head are those it has alone."""
    K.use(isa)
    q, k, v, dout, _ = draw(np.random.default_rng(12), 1, 6, 30_000, 6, 2, 64, causal=False)
    out, lse = K.attention(q, k, v)
    grads = K.attention_vjp(dout, q, k, v, out, lse)
    group = [x[:, :, 3:] if x.shape[2] == 6 else x[:, :, 1:] for x in (dout, q, k, v, out)]
    for whole, part in zip(grads, K.attention_vjp(*group, lse[:, 3:])):
        if whole is not None:
            np.testing.assert_array_equal(whole[:, :, 3:] if whole.shape[2] == 6 else whole[:, :, 1:], part)


# ---- layouts and errors ----


@every_isa
def test_fused_views_and_other_layouts(isa):
    K.use(isa)
    rng = np.random.default_rng(9)
    b, t, h, hkv, d = 2, 70, 4, 2, 20
    qkv = rng.standard_normal((b, t, h + 2 * hkv, d), np.float32)
    split = lambda x: (x[:, :, :h], x[:, :, h : h + hkv], x[:, :, h + hkv :])
    dout = rng.standard_normal((b, t, h, d), np.float32)
    copies = [x.copy() for x in split(qkv)]
    want = K.attention(*copies)
    wants = K.attention_vjp(dout, *copies, *want)
    dqkv = np.full_like(qkv, np.nan)
    out = K.attention(*split(qkv))
    grads = K.attention_vjp(dout, *split(qkv), *out, out_grads=split(dqkv))
    assert all(x.base is dqkv for x in grads[:3])
    transposed = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in copies]
    longer = [np.concatenate([x, np.full_like(x, np.nan)], axis=1)[:, :t] for x in copies]
    heads_first = [np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in longer]
    layouts = {"fused": out, "transposed": K.attention(*transposed), "longer": K.attention(*longer), "cache": K.attention(*heads_first)}
    for name, got in layouts.items():
        for x, y in zip(got, want):
            np.testing.assert_array_equal(x, y, err_msg=name)
    for x, y in zip(split(dqkv), wants):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("isa", ISAS[:1])
@pytest.mark.parametrize("change, message", [
    (dict(k=(2, 5, 3, 8)), "4 heads of size 8, k and v 3"),
    (dict(v=(2, 6, 2, 8)), r"v \(2, 6, 2, 8\)"),
    (dict(window=-1), "window=-1"),
    (dict(segments=(np.ones((2, 4), np.int32), np.ones((2, 5), np.int32))), r"segments \(\(2, 4\), \(2, 5\)\)"),
    (dict(starts=np.zeros(3, np.int64)), r"starts \(3,\)"),
    (dict(bias=np.zeros((1, 3, 5, 5), np.float32)), r"bias \(1, 3, 5, 5\); expected \(1 or 2, 1 or 4, 5, 5\)"),
])
def test_shape_errors_name_the_argument(isa, change, message):
    K.use(isa)
    shapes = dict(q=(2, 5, 4, 8), k=(2, 5, 2, 8), v=(2, 5, 2, 8))
    options = {name: x for name, x in change.items() if name not in shapes}
    shapes.update({name: x for name, x in change.items() if name in shapes})
    if "k" in change:
        shapes["v"] = change["k"]
    with pytest.raises(ValueError, match=message):
        K.attention(*(np.zeros(s, np.float32) for s in shapes.values()), **options)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_dtype_errors_name_the_argument(isa):
    K.use(isa)
    x = np.zeros((1, 2, 1, 4), np.float32)
    with pytest.raises(TypeError, match="attention: k: .*float64"):
        K.attention(x, x.astype(np.float64), x)
    with pytest.raises(TypeError, match="attention: starts: .*int64.*int32"):
        K.attention(x, x, x, starts=np.zeros(1, np.int32))
    with pytest.raises(TypeError, match="attention: segments: .*int32.*int64"):
        K.attention(x, x, x, segments=(np.ones((1, 2), np.int64),) * 2)
