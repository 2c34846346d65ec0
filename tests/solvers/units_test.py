"""Solutions do not depend on the units of features, and penalties are those of users' units."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LogisticRegression

from softmax_jax import losses, model, solvers


def labels_of(z, q, seed=0):
    rng = np.random.default_rng(seed)
    return np.argmax(z @ rng.normal(size=(z.shape[1], q)) + rng.gumbel(size=(len(z), q)), axis=1)


def newton(x, y, l2, *, intercept=True, weights=None, steps=100):
    """The minimum in float64 by damped Newton steps with the whole Hessian: its F, W and b.

    ``l2`` is one strength, or one a feature.
    """
    n, q = len(x), y.max() + 1
    z = np.c_[np.ones(n) * intercept, x]
    s = np.ones(n) / n if weights is None else weights / weights.sum()
    ridge = np.r_[0, np.broadcast_to(l2, x.shape[1])]
    one_hot = np.eye(q)[y]

    def value(theta):
        o = z @ theta
        top = o.max(axis=1)
        terms = top + np.log(np.exp(o - top[:, None]).sum(axis=1)) - o[np.arange(n), y]
        return s @ terms + 0.5 * ridge @ (theta**2).sum(axis=1)

    theta = np.zeros((z.shape[1], q))
    for _ in range(steps):
        o = z @ theta
        p = np.exp(o - o.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        g = z.T @ (s[:, None] * (p - one_hot)) + ridge[:, None] * theta
        h = -np.einsum("n,na,nb,ni,nj->iajb", s, p, p, z, z, optimize=True)
        diagonal = np.einsum("n,na,ni,nj->aij", s, p, z, z, optimize=True)
        for a in range(q):
            h[:, a, :, a] += diagonal[a] + np.diag(ridge)
        step = np.linalg.pinv(h.reshape(g.size, -1), rcond=1e-13) @ g.ravel()
        step, t = step.reshape(g.shape), 1.0
        while value(theta - t * step) > value(theta) and t > 1e-12:
            t /= 2
        theta = theta - t * step
    return value(theta), theta[1:], theta[0]


@pytest.mark.slow
@pytest.mark.parametrize("constant", [1.0, 7.0, 7.3])
@pytest.mark.parametrize(("l2", "l1"), [(1e-2, 0.0), (1e-3, 1e-3)])
def test_without_an_intercept_a_constant_column_is_penalised_as_it_is(constant, l2, l1):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 2)), np.repeat([0, 1], [40, 20])
    x = np.column_stack([z, np.full(60, constant)])
    options = {"l2": l2, "l1": l1, "fit_intercept": False, "tol": 1e-9}
    found = solvers.fit(x, y, standardize=True, **options)
    deviation = np.append(z.std(axis=0), 1.0)
    expected = solvers.fit(x / deviation, y, **options)
    assert found.status == expected.status == solvers.Status.CERTIFIED
    np.testing.assert_allclose(found.objective, expected.objective, rtol=1e-8)
    np.testing.assert_allclose(found.params.w * deviation[:, None], expected.params.w, atol=1e-4)
    assert np.abs(found.params.w[2]).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anes96", "spector"])
def test_single_fits_agree_to_every_printed_digit_of_statsmodels(name):
    data = getattr(sm.datasets, name).load_pandas()
    x, y = np.asarray(data.exog, float), np.asarray(data.endog, int)
    theirs = sm.MNLogit(y, sm.add_constant(x, prepend=True)).fit(disp=0, tol=1e-14, maxiter=200)
    solution = solvers.fit(x, y, l2=0)
    ours = np.concatenate([solution.params.b[None], solution.params.w])
    ours = (ours - ours[:, :1])[:, 1:]
    np.testing.assert_allclose(ours, np.asarray(theirs.params), rtol=1e-6)
    assert -solution.objective * len(y) == pytest.approx(theirs.llf, rel=1e-12)
    assert solution.slope < 1e-9


@pytest.mark.slow
def test_weights_of_k_equal_k_copies_without_a_penalty():
    x = np.random.default_rng(0).normal(size=(200, 3))
    y, k = labels_of(x, 3), np.random.default_rng(1).integers(0, 4, size=200)
    weighted = solvers.fit(x, y, l2=0, sample_weight=k)
    copied = solvers.fit(np.repeat(x, k, axis=0), np.repeat(y, k), l2=0)
    np.testing.assert_allclose(weighted.params.w, copied.params.w, atol=1e-9)
    np.testing.assert_allclose(weighted.params.b, copied.params.b, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0, 1e-3])
def test_columns_in_unequal_units(l2):
    x = np.random.default_rng(0).normal([0, 5, 3], size=(300, 3))
    y, units = labels_of(x - [0, 5, 3], 3), np.array([1e-6, 1, 1e6])
    solution = solvers.fit(x * units, y, l2=l2)
    least, w, _ = newton(x, y, l2 / units**2)
    assert solution.objective == pytest.approx(least, rel=1e-9)
    w -= w.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(solution.params.w * units[:, None], w, atol=1e-6)
    assert solution.status == (solvers.Status.CERTIFIED if l2 else solvers.Status.NOT_CERTIFIED)


@pytest.mark.slow
def test_one_column_in_another_unit_among_many_rows():
    x = np.random.default_rng(0).normal(size=(60_000, 20))
    y = labels_of(x / 2, 10)
    plain = solvers.fit(x, y, l2=0)
    scaled = solvers.fit(x * np.where(np.arange(20) == 3, 1e6, 1), y, l2=0)
    assert scaled.objective == pytest.approx(plain.objective, rel=1e-6)
    assert plain.slope < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("column", ["times 1e6", "seconds since 1970"])
def test_l1_with_a_column_in_another_unit(column):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = labels_of(x, 3)
    x[:, 2] = x[:, 2] * 1e6 if column == "times 1e6" else 1.6e9 + 3e7 * x[:, 2]
    l1 = 0.01
    solution = solvers.fit(x, y, l2=0, l1=l1, tol=1e-12)
    assert solution.status == solvers.Status.CERTIFIED
    w = solution.params.w
    o = (x - solution.mean) @ w + solution.centered.b
    p = np.exp(o - o.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    g = (x - solution.mean).T @ (p - np.eye(3)[y]) / len(y)
    # The conditions of the optimum, feature by feature in its own unit.
    assert np.all(np.abs(g) <= l1 * (1 + 1e-2) + 1e-3 * (w == 0))
    np.testing.assert_allclose(g[w != 0], -l1 * np.sign(w[w != 0]), rtol=0.05)


def test_weights_without_a_penalty_sum_to_zero_over_the_classes():
    x = np.random.default_rng(0).normal(size=(200, 4))
    x[:, 1] = 7.0
    solution = solvers.fit(x, labels_of(x[:, [0, 2, 3]], 4), l2=0)
    np.testing.assert_allclose(solution.params.w.sum(axis=1), 0, atol=1e-14)
    assert np.all(solution.params.w[1] == 0)
    start = model.Params(np.ones((4, 4)), np.ones(4))
    other = solvers.fit(x, labels_of(x[:, [0, 2, 3]], 4), l2=0, initial=start)
    np.testing.assert_allclose(other.params.w, solution.params.w, atol=1e-8)


def objective_in_mpmath(w, b, x, y, l2):
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        for row, label in zip(x.tolist(), y, strict=True):
            o = [
                mpmath.fdot(row, w[:, c].tolist()) + mpmath.mpf(float(b[c])) for c in range(len(b))
            ]
            top = max(o)
            total += top + mpmath.log(sum(mpmath.exp(a - top) for a in o)) - o[label]
        squares = sum(mpmath.mpf(float(a)) ** 2 for a in w.ravel())
        return total / len(y) + mpmath.mpf(l2) / 2 * squares


@pytest.mark.slow
@pytest.mark.parametrize("offset", [1e8, 1e12, 1e14])
def test_the_certificate_is_of_the_returned_parameters_rounding_included(offset):
    z = np.random.default_rng(0).normal(size=(60, 3))
    y, x, l2 = labels_of(z, 3), offset + 1e-2 * z, 1e-8
    solution = solvers.fit(x, y, l2=l2)
    near = x - offset  # exact
    best = solvers.fit(near, y, l2=l2, tol=1e-12)
    least = objective_in_mpmath(*best.params, near, y, l2)
    reached = objective_in_mpmath(*solution.params, x, y, l2)
    assert float(reached - least) <= solution.gap + best.gap
    is_certified = solution.status == solvers.Status.CERTIFIED
    assert is_certified == (solution.relative_gap <= 1e-4) == (offset < 1e14)
    assert is_certified or "subtract the means" in solution.reason
    # In the form that is centered, nothing is lost.
    kept = objective_in_mpmath(*solution.centered, x - solution.mean, y, l2)
    assert float(kept - least) <= 1e-4 * float(least)


@pytest.mark.slow
def test_the_centered_form_can_be_evaluated_in_float32():
    x = 1.6e9 + np.random.default_rng(0).normal(size=(500, 3))
    y = labels_of(x - 1.6e9, 3)
    solution = solvers.fit(x, y, l2=1e-4)
    params = jax.tree.map(jnp.float32, solution.centered)
    loss = losses.objective(params, jnp.float32(x - solution.mean), jnp.asarray(y), l2=1e-4)
    assert float(loss) == pytest.approx(solution.objective, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e160, 1e-160])
def test_features_of_any_size(factor):
    z = np.random.default_rng(0).normal(size=(300, 4))
    y = labels_of(z, 3)
    solution = solvers.fit(z * factor, y, l2=1e-4)
    least = newton(z, y, 0)[0] if factor > 1 else -np.mean(np.log(np.bincount(y)[y] / len(y)))
    assert solution.objective == pytest.approx(least, rel=1e-9)
    assert np.isfinite(solution.params.w).all()


@pytest.mark.slow
def test_an_optimum_near_zero_is_certified():
    x = np.array([[-1.0], [1.0]]) * 1e9
    solution = solvers.fit(np.repeat(x, 5, axis=0), np.repeat([0, 1], 5), l2=1e-8)
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.objective < 1e-9


@pytest.mark.slow
def test_nothing_is_worse_than_no_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4)) * 10.0 ** rng.uniform(0, 7, size=4)
    offset, y = rng.normal(size=(100, 3)) * 1e5, rng.integers(3, size=100)
    solution = solvers.fit(x, y, l2=1e-3, offset=offset, max_passes=20)
    nothing = solvers.fit(np.zeros((100, 1)), y, l2=1e-3, offset=offset)
    assert solution.objective <= nothing.objective


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_without_an_intercept(weighted):
    rng = np.random.default_rng(0)
    x = rng.normal([3, 0, 1, 0], size=(150, 4))
    y, weights = labels_of(x - [3, 0, 1, 0], 3), rng.uniform(0, 2, size=150)
    options = {"sample_weight": weights} if weighted else {}
    solution = solvers.fit(x, y, l2=1e-2, fit_intercept=False, tol=1e-10, **options)
    least, w, _ = newton(x, y, 1e-2, intercept=False, weights=options.get("sample_weight"))
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.objective - least <= solution.gap
    assert solution.objective == pytest.approx(least, rel=1e-10)
    np.testing.assert_allclose(solution.params.w, w, atol=1e-6)
    assert np.all(solution.params.b == 0)
    theirs = LogisticRegression(C=1 / (1e-2 * 150), fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(x, y)
    if not weighted:
        np.testing.assert_allclose(solution.params.w, theirs.coef_.T, atol=1e-5)


@pytest.mark.slow
def test_a_class_without_rows_is_like_any_other_without_an_intercept():
    x = np.random.default_rng(0).normal(size=(50, 3)) + 1
    y = labels_of(x, 2)
    solution = solvers.fit(x, y, l2=1e-2, num_classes=3, fit_intercept=False, tol=1e-10)
    one_hot = np.eye(3)[y]
    p = model.probabilities(jax.tree.map(jnp.asarray, solution.params), jnp.asarray(x))
    gradient = x.T @ (np.asarray(p) - one_hot) / 50 + 1e-2 * solution.params.w
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert np.abs(solution.params.w[:, 2]).max() > 0.1


@pytest.mark.parametrize(("l2", "l1"), [(1e-2, 0), (0, 1e-2), (1e-3, 1e-2)])
def test_standardized_features(l2, l1):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)) * [1e3, 1, 1e-3, 50] + 10
    y, deviations = labels_of((x - 10) / [1e3, 1, 1e-3, 50], 3), x.std(axis=0)
    solution = solvers.fit(x, y, l2=l2, l1=l1, standardize=True, tol=1e-8)
    by_hand = solvers.fit(x / deviations, y, l2=l2, l1=l1, tol=1e-8)
    assert solution.objective == pytest.approx(by_hand.objective, rel=1e-7)
    np.testing.assert_allclose(
        solution.params.w * deviations[:, None], by_hand.params.w, atol=2e-4 if l1 else 1e-6
    )
    assert math.isclose(solution.params.b.sum(), 0, abs_tol=1e-9)


@pytest.mark.slow
def test_a_weak_absolute_penalty_alone_is_certified():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 50))
    y = labels_of(x / 3, 5)
    solution = solvers.fit(x, y, l2=0, l1=1e-4)
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.passes < 600
    assert not np.signbit(solution.params.w[solution.params.w == 0]).any()


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [{"l2": 1e-3}, {"l2": 0, "l1": 1e-2}])
def test_large_offsets_are_approached_from_smaller_ones(penalty):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(100, 4)) * 10.0 ** rng.uniform(0, 7, size=4)
    offset, y = rng.normal(size=(100, 3)) * 1e5, rng.integers(3, size=100)
    solution = solvers.fit(x, y, offset=offset, **penalty)
    assert solution.status == solvers.Status.CERTIFIED
    # From W = 0 no method gets far.
    nothing = solvers.fit(np.zeros((100, 1)), y, l2=1, offset=offset)
    assert solution.objective < 0.995 * nothing.objective
