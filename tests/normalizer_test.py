"""The float32 log-normaliser against extended precision of the very same numbers."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special

from softmax_jax import cross_entropy, normalizer
from softmax_jax.normalizer import log_normalizer

pytestmark = pytest.mark.exact

# A loss below this is made of terms that float32 flushes to zero.
SMALLEST = 1e-30


def exact_losses(logits, labels):
    """Losses in extended precision (np.longdouble), by a sum in which nothing cancels."""
    o = logits.astype(np.longdouble)
    top = o.argmax(axis=-1)[:, None]
    m = np.take_along_axis(o, top, axis=-1)
    terms = np.exp(o - m)
    np.put_along_axis(terms, top, 0, axis=-1)
    label_logit = np.take_along_axis(o, labels[:, None], axis=-1)
    return (m - label_logit)[:, 0] + np.log1p(terms.sum(axis=-1))


jitted_cross_entropy = jax.jit(cross_entropy)


def ulps(actual, exact):
    exact32 = exact.astype(np.float32)
    error = np.abs(np.asarray(actual).astype(np.longdouble) - exact) / np.spacing(exact32)
    return np.where(exact > SMALLEST, error, 0).astype(np.float64)


def random_logits(rng, rows, classes, scale, offset):
    return (rng.normal(size=(rows, classes)) * scale + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_losses_are_within_two_ulps(classes, scale, offset):
    rng = np.random.default_rng(0)
    logits = random_logits(rng, 100_000 // classes, classes, scale, offset)
    for labels in (rng.integers(classes, size=len(logits)), logits.argmax(axis=-1)):
        exact = exact_losses(logits, labels)
        assert ulps(jitted_cross_entropy(logits, labels), exact).max() <= 2
        assert ulps(cross_entropy(logits, labels), exact).max() <= 2


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_losses_of_probabilities_are_within_four_ulps(classes, scale, offset):
    rng = np.random.default_rng(0)
    logits = random_logits(rng, 20_000 // classes, classes, scale, offset)
    targets = rng.dirichlet(np.ones(classes), size=len(logits)).astype(np.float32)
    exact = sum(
        targets[:, j].astype(np.longdouble) * exact_losses(logits, np.full(len(logits), j))
        for j in range(classes)
    )
    assert ulps(jitted_cross_entropy(logits, targets), exact).max() <= 4


def test_a_confident_prediction_keeps_its_digits():
    for margin in (5.0, 20.0, 40.0, 65.0):
        logits = np.array([[margin, 0.1, 0.0]], np.float32)
        exact = mpmath.log1p(sum(mpmath.exp(mpmath.mpf(float(o)) - margin) for o in logits[0, 1:]))
        actual = jitted_cross_entropy(logits, np.array([0]))[0]
        assert abs(mpmath.mpf(float(actual)) - exact) / exact < 2 * np.finfo(np.float32).eps


def test_the_reference_agrees_with_mpmath():
    mpmath.mp.dps = 50
    logits = random_logits(np.random.default_rng(1), 20, 7, 5.0, 1e6)
    for row, reference in zip(logits, exact_losses(logits, logits.argmax(-1)), strict=True):
        numbers = [mpmath.mpf(float(o)) for o in row]
        value = mpmath.log(sum(mpmath.exp(o - max(numbers)) for o in numbers))
        assert abs(mpmath.mpf(float(reference)) - value) <= 1e-15 * value


def test_float64_is_as_accurate():
    mpmath.mp.dps = 50
    logits = np.random.default_rng(2).normal(size=(50, 5)) * 8
    with jax.enable_x64(True):
        _, r = log_normalizer(jnp.asarray(logits))
    for row, value in zip(logits, np.asarray(r), strict=True):
        numbers = sorted((mpmath.mpf(float(o)) for o in row), reverse=True)
        exact = mpmath.log1p(sum(mpmath.exp(o - numbers[0]) for o in numbers[1:]))
        assert abs(mpmath.mpf(float(value)) - exact) <= 4 * np.finfo(np.float64).eps * exact


@pytest.mark.parametrize("classes", [1, 2, 5, 64, 100_003])
def test_equal_logits_give_the_log_of_their_number(classes):
    m, r = log_normalizer(jnp.full((classes,), 3.0, jnp.float32))
    assert m == 3
    np.testing.assert_allclose(r, np.log(classes), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("logits", "m", "r"),
    [
        ([0.0, -np.inf], 0.0, 0.0),
        ([1e30, -1e30], 1e30, 0.0),
        ([-1e30, -1e30], -1e30, np.log(2)),
        ([3e38, -3e38], 3e38, 0.0),
        ([-np.inf, -np.inf], -np.inf, np.nan),
        ([np.inf, 0.0], np.inf, np.nan),
        ([np.nan, 0.0], np.nan, np.nan),
    ],
)
def test_extremes(logits, m, r):
    actual = log_normalizer(jnp.array(logits, jnp.float32))
    np.testing.assert_allclose(actual, np.array([m, r], np.float32), rtol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_fast_softmax_brings_its_normaliser(axis):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32) * 9
    logits[0, :2] = logits.max() + 1  # a tie
    p, below, r = normalizer.softmax_and_normalizer(jnp.asarray(logits), axis)
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=axis, keepdims=True)
    normaliser = np.log(np.exp(exact).sum(axis=axis))
    np.testing.assert_array_equal(below, exact.astype(np.float32))
    np.testing.assert_allclose(r, normaliser, rtol=1e-5)
    expected = np.exp(exact - np.expand_dims(normaliser, axis))
    np.testing.assert_allclose(p, expected, rtol=1e-5)
    np.testing.assert_allclose(normalizer.softmax(jnp.asarray(logits), axis), expected, rtol=1e-5)


def test_the_log_softmax_of_numpy_arrays_is_that_of_scipy():
    logits = np.random.default_rng(0).normal(size=(4, 5)) * 100
    expected = scipy.special.log_softmax(logits, axis=1)
    np.testing.assert_allclose(normalizer.log_softmax(logits), expected, rtol=1e-12)
