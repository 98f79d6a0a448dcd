"""Dropout of attention's probabilities: the mask of the reference bit for bit, the same in the vjp; what it does to results."""
import numpy as np
import pytest

from pyllm import kernels as K
from pyllm.kernels import reference
from tests.kernels.test_attention import _restore, both_precisions, draw, every_isa  # noqa: F401 (a fixture)

KEY = 2**63 + 12345


def kept(b, h, tq, tk, dropout, key=KEY):
    """-> (B, H, Tq, Tk) bool, from what the docstring of the reference promises: word 2^32 ((b H + h) Tq + i) + j."""
    rows = np.arange(b * h * tq, dtype=np.uint64)
    words = [reference.random_bits(key, (row << np.uint64(32)) + np.arange(tk, dtype=np.uint64)) for row in rows]
    return np.array(words).reshape(b, h, tq, tk) >= dropout * 2**32


@every_isa
@both_precisions
@pytest.mark.parametrize("h, hkv", [(1, 1), (4, 2)])
@pytest.mark.parametrize("tq, options", [(1, {}), (3, {}), (7, dict(causal=False)), (256, {}), (256, dict(window=70)),
                                         (256, dict(causal=False, window=9))], ids=str)
def test_the_mask_is_of_coordinates_alone(isa, tq, options, h, hkv, reduced):
    """Forward and vjp, read off products with unit matrices: any table, tile, number of threads and of queries at a time."""
    K.use(isa)
    t = 256
    zeros = lambda n, heads: np.zeros((2, n, heads, t), np.float32)
    unit = lambda n, heads: np.ascontiguousarray(np.broadcast_to(np.eye(n, t, dtype=np.float32)[None, :, None], (2, n, heads, t)))
    q, k, v, dout = zeros(tq, h), zeros(t, hkv), unit(t, hkv), unit(tq, h)
    seen = reference.attention_mask(q, k, options.get("causal", True), options.get("window", 0), None, None)[:, None]
    want = kept(2, h, tq, t, 0.3) & seen
    for threads in (1, 3):
        K.set_num_threads(threads)
        out, lse = K.attention(q, k, v, dropout=0.3, key=KEY, reduced=reduced, **options)
        np.testing.assert_array_equal(out.transpose(0, 2, 1, 3) > 0, want)  # (b, i, h, j): the probability of key j
        counts = np.broadcast_to(seen.sum(3, keepdims=True), want.shape)
        np.testing.assert_allclose(out.transpose(0, 2, 1, 3)[want], (1 / 0.7 / counts)[want], rtol=1e-2 if reduced else 1e-6)
        np.testing.assert_allclose(lse, np.log(counts[..., 0]), rtol=1e-6)  # of all that is seen
        dv = K.attention_vjp(dout, q, k, v, out, lse, dropout=0.3, key=KEY, reduced=reduced, **options)[2]
        np.testing.assert_array_equal(dv.transpose(0, 2, 3, 1)[:, :, :tq] > 0, want.reshape(2, hkv, h // hkv, tq, t).any(2))


@every_isa
@both_precisions
def test_rows_that_lose_everything_and_values_that_are_not_finite(isa, reduced):
    """A query whose keys are all dropped gives 0 and keeps its lse; what is dropped of an infinite value does not come back as NaN."""
    K.use(isa)
    q, k, v, dout, _ = draw(np.random.default_rng(3), 1, 40, 40, 2, 2, 16)
    options = dict(dropout=0.9, key=KEY, reduced=reduced)
    out, lse = K.attention(q, k, v, **options)
    left = np.tril(kept(1, 2, 40, 40, 0.9)).any(3).transpose(0, 2, 1)
    assert not left.all() and np.isfinite(lse).all()
    np.testing.assert_array_equal(out.any(3), left)
    assert all(np.isfinite(g).all() for g in K.attention_vjp(dout, q, k, v, out, lse, **options)[:3])
    v[0, 0] = np.inf
    hit = np.tril(kept(1, 2, 40, 40, 0.9))[..., 0].transpose(0, 2, 1)
    infinite, _ = K.attention(q, k, v, **options)
    np.testing.assert_array_equal(np.isfinite(infinite).all(3), ~hit)
    np.testing.assert_array_equal(infinite[~hit], out[~hit])


@every_isa
@both_precisions
def test_no_dropout_is_the_same_bits_whatever_the_key(isa, reduced):
    K.use(isa)
    q, k, v, dout, _ = draw(np.random.default_rng(4), 2, 130, 130, 4, 2, 32)
    plain, lse = K.attention(q, k, v, reduced=reduced)
    out, same = K.attention(q, k, v, dropout=0.0, key=KEY, reduced=reduced)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_array_equal(lse, same)
    dropped, after = K.attention(q, k, v, dropout=0.5, key=KEY, reduced=reduced)
    assert not np.array_equal(dropped, plain)
    np.testing.assert_array_equal(lse, after)
    grads = [K.attention_vjp(dout, q, k, v, out, lse, reduced=reduced, **more) for more in ({}, dict(dropout=0.0, key=KEY))]
    for x, y in zip(*grads):
        np.testing.assert_array_equal(x, y) if x is not None else None


def test_the_mean_over_keys_is_attention_without_dropout():
    """Of 2000 masks, within five standard errors, element by element: nothing is biased by the place where it stands."""
    rng = np.random.default_rng(5)
    q, k, v, _, _ = draw(rng, 2, 9, 20, 2, 1, 4, causal=False)
    plain, _ = K.attention(q, k, v, causal=False)
    drawn = np.stack([K.attention(q, k, v, causal=False, dropout=0.3, key=int(key))[0] for key in rng.integers(0, 2**63, 2000)])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(0) - plain) < 5 * error).all()


def test_masks_of_neighbours_do_not_resemble_each_other():
    """The share that is kept, and that of pairs, along keys, queries, heads, entries and keys of the generator: within five deviations."""
    p, keep = 0.3, kept(3, 4, 100, 300, 0.3)

    def near(share, expected, n):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5

    near(keep.mean(), 1 - p, keep.size)
    for axis in range(4):
        for step in (1, 2, 16):
            if step < keep.shape[axis]:
                both = np.take(keep, range(step, keep.shape[axis]), axis) & np.take(keep, range(keep.shape[axis] - step), axis)
                near(both.mean(), (1 - p) ** 2, both.size / 3)  # pairs share elements
    for other in (KEY + 1, KEY ^ 2**63, KEY + 2**32, 0):
        near((keep & kept(3, 4, 100, 300, 0.3, other)).mean(), (1 - p) ** 2, keep.size)


@pytest.mark.parametrize("p, key", [(1.0, 0), (-0.1, 0), (float("nan"), 0), (0.5, -1), (0.5, 2**64)])
def test_arguments(p, key):
    x = np.zeros((1, 2, 1, 4), np.float32)
    with pytest.raises(ValueError, match="attention: dropout (p|key)="):
        K.attention(x, x, x, dropout=p, key=key)
