import jax
import numpy as np
import pytest
import scipy.stats

from softmax_jax.data.shuffle import permutation


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4095, 4096, 4097, 60_000])
def test_every_index_comes_once(n):
    order = np.asarray(permutation(jax.random.key(n), n))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_keys_decide():
    a, b = (np.asarray(permutation(jax.random.key(seed), 10_000)) for seed in (0, 1))
    np.testing.assert_array_equal(a, np.asarray(permutation(jax.random.key(0), 10_000)))
    assert np.mean(a == b) < 0.01


@pytest.fixture(scope="module")
def orders():
    """2,000 permutations of 4,096."""
    keys = jax.random.split(jax.random.key(0), 2000)
    return np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, 4096)))(keys))


def chi_square_p(counts):
    return scipy.stats.chisquare(counts).pvalue


@pytest.mark.parametrize("position", [0, 1, 63, 64, 2048, 4095])
def test_each_position_is_uniform_over_keys(orders, position):
    counts = np.bincount(orders[:, position] // 64, minlength=64)
    assert chi_square_p(counts) > 1e-4


@pytest.mark.parametrize("distance", [1, 2, 63, 64, 65, 128])
def test_neighbours_are_independent(orders, distance):
    # Differences of a pair of places, modulo n, would betray rows or columns that move together.
    difference = (orders[:, distance] - orders[:, 0]) % 4096
    assert chi_square_p(np.bincount(difference // 64, minlength=64)) > 1e-4
    rows, columns = difference // 64, difference % 64
    assert np.mean(rows == 0) < 0.03
    assert np.mean(columns == 0) < 0.03


def test_fixed_points_are_as_rare_as_in_random_permutations(orders):
    fixed = np.sum(orders == np.arange(4096), axis=1)
    counts = np.bincount(np.minimum(fixed, 4), minlength=5)
    poisson = scipy.stats.poisson(1).pmf(range(4))
    expected = len(orders) * np.array([*poisson, 1 - poisson.sum()])
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_within_one_permutation_neighbours_are_uncorrelated():
    order = np.asarray(permutation(jax.random.key(3), 60_000))
    for lag in (1, 2, 244, 245, 246, 490):
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(60_000)


@pytest.mark.parametrize(
    ("n", "message"), [(-1, "0 or more"), (2.5, "an integer"), (2**31, "to index with int32")]
)
def test_a_number_that_is_no_index_is_refused(n, message):
    with pytest.raises(ValueError, match=message):
        permutation(jax.random.key(0), n)
