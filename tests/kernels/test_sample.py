"""Sampling: the reference's choice for the same uniform numbers, limits of every option, frequencies."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import kernels as K
from pyllm.kernels import reference
from tests.strategies import sizes

ISAS = [name for name in K.available() if name != "reference"]
pytestmark = pytest.mark.skipif(not ISAS, reason="no compiled kernels")


@settings(max_examples=150)
@given(v=sizes(1), seed=st.integers(0, 2**32), temperature=st.sampled_from([0, 1e-8, 0.3, 1, 5]),
       top_k=st.sampled_from([0, 1, 3, 50, 10**6]), top_p=st.sampled_from([0, 1e-3, 0.5, 0.9, 1]),
       min_p=st.sampled_from([0, 0.05, 0.5, 1]), ties=st.booleans())
def test_same_choice_as_the_reference(v, seed, temperature, top_k, top_p, min_p, ties):
    rng = np.random.default_rng(seed)
    x = 3 * rng.standard_normal((6, v)).astype(np.float32)
    x = np.round(x) if ties else x  # -0 among them
    u = rng.random(6)
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_array_equal(K.sample(x, u, **options), reference.sample(x, u, **options))


def test_a_large_vocabulary():
    rng = np.random.default_rng(3)
    x, u = 2 * rng.standard_normal((4, 50257)).astype(np.float32), np.array([0, 0.3, 0.9, 1 - 2**-53])
    for options in ({}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 2.0, "top_k": 1000, "top_p": 0.99}):
        np.testing.assert_array_equal(K.sample(x, u, **options), reference.sample(x, u, **options))


@pytest.mark.parametrize("spread", [0, 1e-6, 0.1, 1, 30])
@pytest.mark.parametrize("temperature", [1e-8, 1, 50])
def test_a_draw_from_all_tokens_of_any_distribution(isa, spread, temperature):
    """Flat, peaked, equal logits, tokens that are shut out: buckets give what the walk in order gives."""
    rng = np.random.default_rng(5)
    x = (spread * rng.standard_normal((16, 20_011))).astype(np.float32)
    x[8:] = np.round(x[8:], 1)
    x[4:12, rng.integers(0, 20_011, 5000)] = -np.inf
    u = np.concatenate([rng.random(14), [0, 1 - 1e-9]])
    np.testing.assert_array_equal(K.sample(x, u, temperature), reference.sample(x, u, temperature))


def test_infinities_and_nan():
    inf, nan, u = np.inf, np.nan, np.array([0.99])
    rows = ([-inf, 1, -inf], [-inf] * 3, [1, inf, 2], [1, nan, 2], [nan] * 3, [1e38, -1e38, 3e38])
    for row in rows:
        x = np.float32([row])
        for temperature in (0, 1):
            with np.errstate(invalid="ignore"):
                expected = reference.sample(x, u, temperature)
            np.testing.assert_array_equal(K.sample(x, u, temperature), expected, err_msg=str(row))


def test_frequencies():
    """20,000 draws follow the probabilities within four standard deviations."""
    p = np.array([0.5, 0.25, 0.15, 0.1])
    n = 20_000
    ids = K.sample(np.broadcast_to(np.log(p).astype(np.float32), (n, 4)), np.random.default_rng(0).random(n))
    assert (np.abs(np.bincount(ids, minlength=4) - n * p) < 4 * np.sqrt(n * p * (1 - p))).all()


@pytest.mark.parametrize("options", [{"temperature": np.inf}, {"temperature": -1}, {"temperature": np.nan}, {"top_k": -1}, {"top_p": 1.1},
                                     {"min_p": -0.1}], ids=str)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=f"sample: .*{next(iter(options))}="):
        K.sample(np.zeros((1, 4), np.float32), np.zeros(1), **options)
