"""Classes of no weight: no part of the work, and put back into the result."""

import numpy as np
import pytest
import scipy.special

from softmax_jax import solvers
from softmax_jax.model import Params

CLASSES, Q = np.array([1, 4, 6]), 8


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)), rng.integers(3, size=60)


def spread(array, fill):
    """``[..., 3]`` put in its places among the eight classes."""
    whole = np.full((*array.shape[:-1], Q), fill, float)
    whole[..., CLASSES] = array
    return whole


def assert_same(solution, small):
    """Asserts equality to the bit: the work is that on three classes."""
    np.testing.assert_array_equal(solution.params.w, spread(small.params.w, 0))
    np.testing.assert_array_equal(solution.params.b, spread(small.params.b, -np.inf))
    for name in ("objective", "gap", "relative_gap", "status", "passes"):
        np.testing.assert_array_equal(getattr(solution, name), getattr(small, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"l2": 1e-2}, {"l2": 0, "l1": 1e-2}, {"l2": 1e-2, "method": "logits-free"}],
    ids=["l2", "l1", "logits-free"],
)
def test_absent_classes_are_no_part_of_the_work(options):
    x, y = problem()
    small = solvers.fit(x, y, **options)
    solution = solvers.fit(x, CLASSES[y], num_classes=Q, **options)
    assert_same(solution, small)
    # The objective is that of all eight classes.
    w, b = solution.params
    p = scipy.special.softmax(x @ w + b, axis=1)
    value = -np.log(p[np.arange(60), CLASSES[y]]).mean()
    value += options["l2"] / 2 * (w**2).sum() + options.get("l1", 0) * np.abs(w).sum()
    assert solution.objective == pytest.approx(value, rel=1e-9)


def test_nothing_is_below_the_objective_less_the_gap_with_all_classes():
    x, y = problem()
    solution = solvers.fit(x, CLASSES[y], l2=1e-2, num_classes=Q)
    assert solution.status == solvers.Status.CERTIFIED
    rng = np.random.default_rng(1)
    for size in (1e-6, 1e-3, 0.1):
        w = solution.params.w + size * rng.normal(size=(4, Q))
        b = np.maximum(solution.params.b, -30) + size * rng.normal(size=Q)
        o = x @ w + b
        loss = scipy.special.logsumexp(o, axis=1) - o[np.arange(60), CLASSES[y]]
        value = loss.mean() + 5e-3 * (w**2).sum()
        assert value >= solution.objective - solution.gap


@pytest.mark.slow
def test_absent_classes_of_probabilities_weights_offsets_and_starts():
    x, _ = problem()
    rng = np.random.default_rng(1)
    # Sums are exact, whatever their order.
    soft = rng.multinomial(64, np.ones(3) / 3, size=60) / 64
    offset = rng.normal(size=(60, 3))
    initial = Params(np.ones((4, 3)), np.arange(3.0))
    weights = np.ones((2, 60))
    weights[0, :30] = 0
    weights[1, 30:] = 2
    small = solvers.fit_path(
        x, soft, l2=[1e-2, 1e-3], sample_weight=weights, offset=offset, initial=initial
    )
    solution = solvers.fit_path(
        x,
        spread(soft, 0),
        l2=[1e-2, 1e-3],
        sample_weight=weights,
        offset=spread(offset, 1e3),
        initial=Params(spread(initial.w, 7), spread(initial.b, -np.inf)),
    )
    assert_same(solution, small)


def slope(params, x, y, weights):
    """The largest entry of the gradient, in size, with l2 = 1e-2; absent classes have none."""
    p = scipy.special.softmax(x @ params.w + params.b, axis=1)
    r = weights[:, None] / weights.sum() * (p - np.eye(len(params.b))[y])
    return max(np.abs(x.T @ r + 1e-2 * params.w).max(), np.abs(r.sum(axis=0)).max())


@pytest.mark.slow
def test_rows_of_no_weight_are_the_only_ones_of_their_class():
    x, y = problem()
    weights = (y > 0) * 1.0
    solution = solvers.fit(x, np.eye(3)[y], l2=1e-2, sample_weight=weights)
    assert solution.params.b[0] == -np.inf
    assert slope(solution.params, x, y, weights) < 1e-8


@pytest.mark.slow
def test_a_class_that_one_weighting_lacks():
    x, y = problem()
    weights = np.stack([np.ones(60), y < 2])
    path = solvers.fit_path(x, CLASSES[y], l2=1e-2, sample_weight=weights, num_classes=Q)
    for m, present in enumerate((CLASSES, CLASSES[:2])):
        params = Params(path.params.w[m], path.params.b[m])
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(params.b)), present)
        assert (np.delete(params.w, present, axis=1) == 0).all()
        assert slope(params, x, CLASSES[y], weights[m]) < 1e-8


@pytest.mark.slow
def test_cross_validation_with_absent_classes():
    x, y = problem()
    small = solvers.cross_validate(x, y, l2=[1e-2, 1e-1], folds=3)
    found = solvers.cross_validate(x, CLASSES[y], l2=[1e-2, 1e-1], folds=3, num_classes=Q)
    assert_same(found.path, small.path)
    np.testing.assert_allclose(found.fold_loss, small.fold_loss, rtol=1e-12)
    np.testing.assert_array_equal(found.fold_accuracy, small.fold_accuracy)
    assert found.best == small.best


def test_classes_beyond_those_present_compile_nothing_new(count_compilations):
    x, y = problem()
    solvers.fit(x, y, l2=1e-2)
    many = np.array([0, 100, 499])
    assert count_compilations(lambda: solvers.fit(x, many[y], l2=1e-2, num_classes=500).gap) == 0
