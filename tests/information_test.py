import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from softmax_jax import information

pytestmark = pytest.mark.exact

LN2 = np.log(2)


@st.composite
def distributions(draw, count=1):
    """Distributions over the same classes, zeros among them."""
    q = draw(st.integers(1, 6))
    result = []
    for _ in range(count):
        masses = draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 100]), min_size=q, max_size=q))
        masses = np.array(masses, np.float32)
        if masses.sum() == 0:
            masses[0] = 1
        result.append(jnp.asarray(masses / masses.sum()))
    return result


def test_a_fair_coin_has_one_bit():
    np.testing.assert_allclose(information.entropy(jnp.array([0.5, 0.5]), unit="bits"), 1)


def test_a_nat_is_1_4427_bits():
    np.testing.assert_allclose(information.to_bits(1.0), 1.442695, rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        information.surprisal,
        information.entropy,
        lambda p, **kw: information.cross_entropy(p, p[::-1], **kw),
        lambda p, **kw: information.kl_divergence(p, p[::-1], **kw),
    ],
)
def test_bits_are_nats_over_log_2_and_nothing_else_is_known(function):
    p = jnp.array([0.1, 0.2, 0.7])
    np.testing.assert_allclose(function(p, unit="bits"), function(p) / LN2, rtol=1e-6)
    with pytest.raises(ValueError, match="'nats' or 'bits'"):
        function(p, unit="bytes")


def test_surprisal_of_the_certain_and_the_impossible():
    np.testing.assert_array_equal(information.surprisal(jnp.array([1.0, 0.0])), [0, np.inf])


@settings(deadline=None, max_examples=60)
@given(distributions())
def test_entropy_lies_between_zero_and_log_q(ps):
    (p,) = ps
    entropy = float(information.entropy(p))
    assert -1e-7 <= entropy <= np.log(len(p)) + 1e-6
    np.testing.assert_allclose(entropy, scipy.stats.entropy(np.asarray(p, float)), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(distributions(count=2))
def test_gibbs_inequality_and_the_divergence(ps):
    p, q = ps
    cross, own = information.cross_entropy(p, q), information.entropy(p)
    kl = information.kl_divergence(p, q)
    assert cross >= own - 1e-6
    assert kl >= 0
    if np.isinf(cross):
        assert np.isinf(kl)
    else:
        np.testing.assert_allclose(kl, cross - own, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(distributions(count=2))
def test_bits_are_nats_over_log_2_and_classes_of_probability_zero_have_derivatives(ps):
    for function in (information.cross_entropy, information.kl_divergence):
        nats, gradients = jax.value_and_grad(function, argnums=(0, 1))(*ps)
        np.testing.assert_allclose(function(*ps, unit="bits"), nats / LN2, rtol=1e-6)
        assert not np.isnan(nats)
        assert not np.isnan(gradients).any()
        if np.isfinite(nats):
            assert np.isfinite(gradients[1]).all()


@settings(deadline=None, max_examples=30)
@given(distributions())
def test_equality_for_equal_distributions(ps):
    (p,) = ps
    assert information.cross_entropy(p, p) == information.entropy(p)
    assert information.kl_divergence(p, p) == 0


@pytest.mark.parametrize("exponent", [-30, -12, -9, -8, -7, -4, -2, -0.5, 0.2])
def test_divergence_of_distributions_far_apart(exponent):
    ratio = np.float32(10.0**exponent)
    p = jnp.array([0.5, 0.5])
    q = jnp.array([1 - 0.5 * ratio, 0.5 * ratio], jnp.float32)
    for a, b in ((p, q), (q, p)):
        exact = np.sum(scipy.special.kl_div(np.asarray(a, float), np.asarray(b, float)))
        np.testing.assert_allclose(information.kl_divergence(a, b), exact, rtol=1e-5)
        assert np.isfinite(jax.grad(information.kl_divergence, argnums=(0, 1))(a, b)).all()


@pytest.mark.parametrize("bad", [np.nan, -0.1])
def test_what_is_no_probability_gives_nan(bad):
    p, q = jnp.array([bad, 0.5]), jnp.array([0.5, 0.5])
    assert np.isnan(information.entropy(p))
    assert np.isnan(information.cross_entropy(p, p))
    assert np.isnan(information.kl_divergence(p, q))


def test_certainty_has_no_entropy():
    entropy = information.entropy(jnp.array([1.0, 0.0]))
    assert entropy == 0
    assert not np.signbit(entropy)


def test_nearby_distributions_keep_the_digits_of_their_divergence():
    p = np.array([0.3, 0.7])
    q = p + 1e-4 * np.array([1, -1])
    p32, q32 = p.astype(np.float32), q.astype(np.float32)
    exact = np.sum(scipy.special.rel_entr(p32.astype(float), q32.astype(float)))
    exact += float(q32.astype(float).sum() - p32.astype(float).sum())
    actual = information.kl_divergence(jnp.asarray(p32), jnp.asarray(q32))
    np.testing.assert_allclose(actual, exact, rtol=1e-3)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, q: information.entropy(p),
        information.cross_entropy,
        information.kl_divergence,
    ],
    ids=["entropy", "cross-entropy", "divergence"],
)
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.5, 0.0], [0.2, 0.8, 0.0]),
        ([0.5, 0.5, 0.0], [0.2, 0.5, 0.3]),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_no_nan_from_a_probability_of_zero(function, p, q):
    p, q = jnp.array(p), jnp.array(q)
    value, gradients = jax.value_and_grad(function, argnums=(0, 1))(p, q)
    assert np.isfinite(value)
    assert np.isfinite(gradients).all()


def test_ruling_out_what_happens_costs_infinity():
    p, q = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])
    assert information.cross_entropy(p, q) == np.inf
    assert information.kl_divergence(p, q) == np.inf


@pytest.mark.parametrize("function", [information.cross_entropy, information.kl_divergence])
def test_shapes_must_agree(function):
    with pytest.raises(ValueError, match=r"\(2,\) but Q has shape \(3,\)"):
        function(jnp.ones(2) / 2, jnp.ones(3) / 3)


def test_leading_axes_are_batch_axes():
    p = jnp.array([[0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(information.entropy(p), [LN2, 0], rtol=1e-6)


def test_lists_and_other_byte_orders_and_types_are_taken():
    p, q = [0.25, 0.75], np.array([0.5, 0.5], ">f8")
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(information.kl_divergence(p, q), expected, rtol=1e-6)
    narrow = information.entropy(jnp.asarray(p, jnp.float16))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, -0.25 * np.log(0.25) - 0.75 * np.log(0.75), rtol=1e-6)
    mixed = information.cross_entropy(jnp.asarray(p, jnp.bfloat16), jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(mixed, np.log(2), rtol=1e-6)
