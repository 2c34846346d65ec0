"""`fit_many` against `fit`, problem by problem."""

import numpy as np
import pytest
import scipy.sparse

from softmax_jax import solvers
from softmax_jax.solvers import Status

P, N, D, Q = 7, 40, 3, 4


@pytest.fixture(scope="module")
def problems():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(P, N, D)) * 10.0 ** np.arange(-1, 2)
    y = np.argmax(x @ rng.normal(size=(P, D, Q)) + rng.gumbel(size=(P, N, Q)), axis=2)
    return x, y


def same(solution, ones, atol=1e-9):
    """Asserts that problems have the solutions that `fit` finds of each."""
    for i, one in enumerate(ones):
        assert solution.status[i] == one.status
        assert solution.objective[i] == pytest.approx(one.objective, rel=1e-12)
        assert solution.relative_gap[i] <= 1e-12 or solution.status[i] != Status.CERTIFIED
        for name in ("params", "centered"):
            for found, wanted in zip(getattr(solution, name), getattr(one, name), strict=True):
                np.testing.assert_allclose(found[i], wanted, rtol=1e-7, atol=atol)
        np.testing.assert_allclose(solution.mean[i], one.mean, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fit_intercept": False},
        {"standardize": True},
        {"scale": 0.5, "shift": np.arange(D)},
        {"standardize": True, "fit_intercept": False},
    ],
    ids=["plain", "no intercept", "standardize", "scale", "both"],
)
def test_problems_are_solved_as_by_fit(problems, options):
    x, y = problems
    l2 = np.geomspace(1e-3, 1, P)
    solution = solvers.fit_many(x, y, l2=l2, **options)
    same(
        solution,
        [
            solvers.fit(*one, l2=s, num_classes=Q, **options)
            for *one, s in zip(x, y, l2, strict=True)
        ],
    )
    assert solution.params.w.shape == (P, D, Q)
    np.testing.assert_array_equal(solution.l2, l2)
    assert (solution.passes > 2).all()


def test_problems_of_different_numbers_of_rows(problems):
    x, y = problems
    sizes = [40, 12, 33, 5, 40, 21, 17]
    xs, ys = ([list(a[:n]) for a, n in zip(part, sizes, strict=True)] for part in (x, y))
    xs = [np.array(a) for a in xs]
    weights = [np.arange(n) % 3 + 1.0 for n in sizes]
    solution = solvers.fit_many(xs, ys, l2=0.01, sample_weight=weights, num_classes=Q)
    same(
        solution,
        [
            solvers.fit(a, b, l2=0.01, sample_weight=s, num_classes=Q)
            for a, b, s in zip(xs, ys, weights, strict=True)
        ],
    )


def test_probabilities_and_classes_without_rows(problems):
    x, _ = problems
    soft = np.random.default_rng(1).dirichlet(np.ones(Q), size=(P, N))
    soft[2, :, 1] = 0
    soft /= soft.sum(axis=2, keepdims=True)
    solution = solvers.fit_many(x, soft, l2=0.01)
    same(solution, [solvers.fit(a, b, l2=0.01) for a, b in zip(x, soft, strict=True)])
    assert solution.params.b[2, 1] == -np.inf
    assert (solution.params.w[2, :, 1] == 0).all()


@pytest.mark.slow
def test_more_parameters_and_no_penalty_are_left_to_fit(problems):
    x, y = problems
    solution = solvers.fit_many(x[:2], y[:2], l2=[0.0, 0.1], num_classes=Q)
    assert list(solution.status) == [Status.AT_INFINITY, Status.CERTIFIED]
    rng = np.random.default_rng(2)
    wide, labels = rng.normal(size=(2, 30, 50)), np.tile(np.arange(30) % 6, (2, 1))
    solution = solvers.fit_many(wide, labels, l2=0.1)
    same(solution, [solvers.fit(a, b, l2=0.1) for a, b in zip(wide, labels, strict=True)])


def test_what_newton_does_not_certify_in_its_steps_goes_on(problems):
    x, y = problems
    solution = solvers.fit_many(x, y, l2=1e-3, max_passes=3)
    assert set(solution.status) == {Status.NOT_CERTIFIED}
    assert all("max_passes = 3" in reason for reason in solution.reason)


def test_as_many_rows_as_before_compile_nothing(problems, count_compilations):
    x, y = problems
    solvers.fit_many(x, y, l2=0.1)
    assert count_compilations(lambda: solvers.fit_many(x[::-1], y[::-1], l2=0.2)) == 0


@pytest.mark.slow
def test_problems_may_be_solved_side_by_side(problems, monkeypatch):
    x, y = problems
    in_turn = solvers.fit_many(x, y, l2=0.01)
    # As on a device with many cores, which there need not be one of here.
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    together = solvers.fit_many(x, y, l2=0.01)
    assert set(together.status) == {Status.CERTIFIED}
    np.testing.assert_allclose(together.objective, in_turn.objective, rtol=1e-13)
    np.testing.assert_allclose(together.params.w, in_turn.params.w, atol=1e-10)


def test_progress_is_told(problems):
    x, y = problems
    told = []
    solvers.fit_many(x, y, l2=0.1, callback=told.append)
    assert told[-1].solved == told[-1].problems == P
    assert [report.solved for report in told] == sorted({report.solved for report in told})
    assert told[-1].seconds > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((0, 3, 2))}, r"x: expected dense features \[p, n, d\]"),
        ({"x": np.zeros((3, 2))}, r"x: problem 0 has shape \(2,\); expected \[n"),
        ({"x": [np.zeros((3, 2)), np.zeros((3, 1))]}, r"x: problem 1 has shape \(3, 1\)"),
        ({"x": [scipy.sparse.eye_array(3, format="csr")] * P}, "x: expected dense features"),
        ({"y": np.zeros((P, N - 1), int)}, "y: expected as many rows in each problem as in x"),
        ({"y": np.arange(P * N).reshape(P, N) // N % 4}, "y of problem 0"),
        ({"y": np.arange(P * N).reshape(P, N) // N % 4, "l2": 0}, "y of problem 0"),
        ({"l2": [1.0, 2.0]}, r"l2: \[1.0, 2.0\]; expected a number, or one for each of 7"),
        ({"l2": -1.0}, "l2: -1.0; expected finite numbers"),
        ({"tol": 0}, "tol: 0; expected a positive number"),
        ({"sample_weight": np.zeros((P, N))}, "sample_weight"),
        ({"sample_weight": np.arange(P)[:, None] + np.zeros((P, N))}, "y of problem 0"),
    ],
)
def test_bad_input_is_refused(problems, change, message):
    x, y = problems
    with pytest.raises(ValueError, match=message):
        solvers.fit_many(**{"x": x, "y": y, "l2": 0.1} | change)
