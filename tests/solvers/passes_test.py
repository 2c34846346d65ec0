"""The limit on passes: never exceeded, whatever the method, and what is returned is certified."""

import numpy as np
import pytest
import scipy.special

from softmax_jax import solvers

OFFSET = 100 * np.random.default_rng(2).normal(size=(400, 3))

WAYS = {
    "l2": {"l2": 1e-6},
    "l1": {"l2": 0, "l1": 1e-4},
    "no penalty": {"l2": 0},
    "large offsets": {"l2": 1e-6, "offset": OFFSET},
    "lbfgs": {"l2": 1e-6, "method": "lbfgs"},
    "logits-free": {"l2": 1e-6, "method": "logits-free"},
}


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 6)), rng.integers(3, size=400)


# Blocks of 40 rows, so that work begins on some of them, and float32 that does not suffice.
IN_FLOAT32_AND_WARMED_UP = {
    "block_size": 40,
    "method": solvers.QuasiNewton(float64_below=0),
    "l1_method": solvers.Proximal(float64_below=0, newton=solvers.ProximalNewton(float64_below=0)),
}


def assert_kept(solution, limit):
    assert 0 < np.max(solution.passes) <= limit
    for status, reason in zip(np.ravel(solution.status), np.ravel(solution.reason), strict=True):
        assert status == solvers.Status.CERTIFIED or f"max_passes = {limit:g}" in reason


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 2.5, 3, 4, 7])
@pytest.mark.parametrize("way", WAYS)
def test_passes_stay_within_their_limit(way, limit):
    x, y = problem()
    solution = solvers.fit(x, y, **WAYS[way], tol=1e-14, max_passes=limit)
    assert_kept(solution, limit)
    # The objective is that of the parameters, and no worse than without features.
    w, b = solution.params
    o = x @ w + b + WAYS[way].get("offset", 0)
    value = np.mean(scipy.special.logsumexp(o, axis=1) - o[np.arange(400), y])
    value += WAYS[way]["l2"] / 2 * (w**2).sum() + WAYS[way].get("l1", 0) * np.abs(w).sum()
    assert solution.objective == pytest.approx(value, rel=1e-12)
    if "offset" not in WAYS[way]:
        share = np.bincount(y) / 400
        assert value <= -(share * np.log(share)).sum() * (1 + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3, 4.5, 9, 30])
@pytest.mark.parametrize("way", ["l2", "l1"])
def test_passes_of_samples_and_of_float64_count(way, limit):
    solution = solvers.fit(
        *problem(), **WAYS[way], tol=1e-14, max_passes=limit, **IN_FLOAT32_AND_WARMED_UP
    )
    assert_kept(solution, limit)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_passes_of_each_problem_of_a_path_stay_within_the_limit(limit):
    weights = np.random.default_rng(1).integers(1, 3, size=(2, 400))
    path = solvers.fit_path(
        *problem(), l2=[1e-1, 1e-3, 1e-5], sample_weight=weights, tol=1e-14, max_passes=limit
    )
    assert_kept(path, limit)


@pytest.mark.slow
def test_more_passes_are_not_worse():
    solutions = [solvers.fit(*problem(), l2=1e-6, tol=1e-14, max_passes=m) for m in (1, 2, 3, 4)]
    assert (np.diff([solution.objective for solution in solutions]) <= 1e-12).all()
