"""Problems with more features than rows, solved in as many dimensions as there are rows."""

import dataclasses

import numpy as np
import pytest

from softmax_jax import solvers
from softmax_jax.solvers import row_space
from softmax_jax.solvers.methods import QuasiNewton

INSIDE, OUTSIDE = QuasiNewton(in_row_space=True), QuasiNewton(in_row_space=False)


def wide(rows=30, d=200, q=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, d)) * np.maximum(0.9 ** np.arange(d), 0.01) + 0.5
    return x, np.argmax(x[:, :q] + rng.gumbel(size=(rows, q)), axis=1), rng


@pytest.mark.parametrize("fit_intercept", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "weights",
        "repeated rows",
        "constant",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("soft", "offset", "standardize")),
    ],
)
def test_the_solution_is_that_of_all_features(kind, fit_intercept):
    x, y, rng = wide()
    options = {"l2": 0.02, "fit_intercept": fit_intercept, "standardize": kind == "standardize"}
    if kind == "soft":
        y = rng.dirichlet(np.ones(3), size=30)
    elif kind == "weights":
        options["sample_weight"] = rng.integers(0, 3, size=30)
    elif kind == "offset":
        options["offset"] = rng.normal(size=(30, 3))
    elif kind == "repeated rows":
        x[20:] = x[:10]
    elif kind == "constant":
        x[:, ::2] = 3.0
    inside = solvers.fit(x, y, method=INSIDE, **options)
    outside = solvers.fit(x, y, method=OUTSIDE, **options)
    assert inside.status == outside.status == "certified"
    assert inside.objective == pytest.approx(outside.objective, rel=1e-10)
    assert inside.gap <= 1e-9 * inside.objective
    np.testing.assert_allclose(inside.params.w, outside.params.w, atol=1e-6)
    np.testing.assert_allclose(inside.params.b, outside.params.b, atol=1e-5)


@pytest.mark.slow
def test_strengths_and_weightings_share_the_change_of_variables():
    x, y, _ = wide()
    folds = (np.arange(30) % 3 != np.arange(3)[:, None]) * 1.0
    options = {"l2": [1.0, 0.1, 0.01], "sample_weight": folds}
    inside = solvers.fit_path(x, y, method=INSIDE, **options)
    outside = solvers.fit_path(x, y, method=OUTSIDE, **options)
    assert inside.objective.shape == (3, 3)
    assert (inside.status == "certified").all()
    np.testing.assert_allclose(inside.objective, outside.objective, rtol=1e-10)
    np.testing.assert_allclose(inside.params.w, outside.params.w, atol=1e-6)


def test_a_class_of_no_weight_has_no_weights():
    x, y, _ = wide()
    solution = solvers.fit(x, np.where(y == 1, 0, y), l2=0.1, num_classes=4, method=INSIDE)
    assert solution.status == "certified"
    assert np.isneginf(solution.params.b[[1, 3]]).all()
    assert (solution.params.w[:, [1, 3]] == 0).all()


@pytest.mark.slow
def test_it_is_taken_where_it_costs_less(monkeypatch):
    taken = []
    solve = row_space.solve
    monkeypatch.setattr(row_space, "solve", lambda *a, **k: taken.append(True) or solve(*a, **k))
    for shape in [(40, 3000), (300, 40)]:
        x, y, _ = wide(*shape)
        assert solvers.fit(x, y, l2=0.1).status == "certified"
        assert taken == [True]


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3, 4, 6])
def test_passes_are_never_more_than_the_most(most):
    x, y, _ = wide()
    solution = solvers.fit(x, y, l2=1e-4, tol=1e-12, max_passes=most, method=INSIDE)
    assert solution.passes <= most
    assert solution.objective - solution.gap <= solvers.fit(x, y, l2=1e-4).objective


@pytest.mark.slow
def test_what_rounding_leaves_is_solved_with_all_features():
    # The change of variables keeps half of the digits of the smallest component.
    x, y, _ = wide()
    x[:, 0] *= 1e7
    solution = solvers.fit(x, y, l2=1e-3, method=INSIDE)
    assert solution.status == "certified"
    assert solution.objective == pytest.approx(solvers.fit(x, y, l2=1e-3).objective, rel=1e-6)


STARTS = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording(QuasiNewton):
    """Notes the size of the weights that work on all rows, or on a sample, begins at."""

    def init(self, problem, aids, theta):
        STARTS.append(np.abs(np.asarray(theta)[..., 1:]).max())
        return super().init(problem, aids, theta)


@pytest.mark.slow
def test_work_does_not_begin_above_zero():
    # Samples of fewer rows than features are explained by chance.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 1000)), rng.integers(5, size=600)
    STARTS.clear()
    method = Recording(in_row_space=False, float64_below=0)
    assert solvers.fit(x, y, l2=1e-3, block_size=20, method=method).status == "certified"
    *_, of_sample, of_all = STARTS
    assert of_sample > 0
    assert of_all == 0
