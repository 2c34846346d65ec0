"""The best bias for given weights, and the margin by which they separate the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from softmax_jax.solvers import jax_settings, passes
from softmax_jax.solvers.bias import best_bias, best_bias_and_root, no_root
from softmax_jax.solvers.inputs import arrange
from softmax_jax.solvers.rows import checked_rows
from softmax_jax.solvers.separation import margin

N, D, Q = 60, 4, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.integers(Q, size=N)


def arranged(x, y, **options):
    """The problem for features that lie in their own units as they are, in blocks of 25 rows."""
    names = ("num_classes", "sample_weight", "class_weight", "offset", "scale", "shift", "initial")
    rows = checked_rows(x, y, **(dict.fromkeys(names) | options))
    inputs = arrange(
        rows,
        block_size=25,
        fit_intercept=True,
        standardize=False,
        grouped=False,
        is_smooth=False,  # not filled up
    )
    return inputs._replace(problem=jax.device_put(inputs.problem))


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_no_other_bias_has_a_lower_loss(size):
    offset, weights = size * RNG.normal(size=(N, Q)), RNG.integers(1, 4, size=N)
    with jax_settings.held():
        problem = arranged(X, Y, offset=offset, sample_weight=weights).problem
        bias = best_bias(problem, problem.offset[:, None])
        loss, p = passes.loss_and_probabilities(
            problem, problem.offset[:, None] + bias[None, :, :, None]
        )
        residuals = passes.gradient(problem, p)[..., 0]
    np.testing.assert_allclose(residuals, 0, atol=1e-13)

    def objective(b):
        o = offset + np.append(b, 0)
        terms = scipy.special.logsumexp(o, axis=1) - o[np.arange(N), Y]
        return np.average(terms, weights=weights)

    least = scipy.optimize.minimize(objective, np.zeros(Q - 1), method="BFGS").fun
    assert float(loss[0]) == pytest.approx(least, rel=1e-9)
    assert float(loss[0]) <= least * (1 + 1e-14)


def test_the_hessian_of_other_logits_leaves_no_more():
    with jax_settings.held():
        problem = arranged(X, Y, offset=RNG.normal(size=(N, Q))).problem
        others = 3 * problem.offset[:, None]
        _, root = best_bias_and_root(problem, others, no_root(others), has_root=False)
        nearly = problem.offset[:, None]
        nearly = nearly + best_bias(problem, nearly)[None, :, :, None]
        nearly = nearly.at[:, :, 0].add(1e-8)
        bias, _ = best_bias_and_root(problem, nearly, root, has_root=True)
        _, p = passes.loss_and_probabilities(problem, nearly + bias[None, :, :, None])
        residuals = passes.gradient(problem, p)[..., 0]
    np.testing.assert_allclose(residuals, 0, atol=1e-13)


def test_the_margin_is_the_least_lead_of_a_rows_class():
    theta = RNG.normal(size=(2, Q, 1 + D))
    weights = (np.arange(N) % 3 > 0) * 1.0
    with jax_settings.held():
        inputs = arranged(X, Y, sample_weight=weights)
        found = margin(inputs.problem, jnp.asarray(theta))
        features = (X - np.asarray(inputs.problem.center)) * np.asarray(inputs.problem.scale)
    for own, lead in zip(theta, np.asarray(found), strict=True):
        o = features @ own[:, 1:].T + own[:, 0]
        rivals = np.where(np.eye(Q)[Y] > 0, -np.inf, o).max(axis=1)
        assert lead == pytest.approx((o[np.arange(N), Y] - rivals)[weights > 0].min(), rel=1e-12)
