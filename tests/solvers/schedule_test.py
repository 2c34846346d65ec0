"""Slots, samples to begin with, and offsets by way of smaller ones: what users can see of them."""

import numpy as np
import pytest

from softmax_jax import solvers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 5))
Y = np.argmax(X @ RNG.normal(size=(5, 3)) + RNG.gumbel(size=(400, 3)), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warm_up", "shares"), [((), []), ((4,), [1 / 4]), ((8, 2), [1 / 8, 1 / 2]), ((1,), [])]
)
def test_work_begins_on_the_samples_that_the_method_names(warm_up, shares):
    method = solvers.QuasiNewton(warm_up=warm_up, float64_below=0)
    solution = solvers.fit(X, Y, l2=1e-3, method=method, block_size=50)
    assert solution.status == solvers.Status.CERTIFIED
    rows = solution.history.rows
    np.testing.assert_allclose(rows[: len(shares)], shares)
    assert (rows[len(shares) :] == 1).all()
    assert len(rows) > len(shares)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
def test_progress_counts_the_solved_problems(slots):
    seen = []
    path = solvers.fit_path(X, Y, l2=np.geomspace(1, 1e-4, 5), slots=slots, callback=seen.append)
    assert path.l2.shape == (5,)
    counts = [progress.solved for progress in seen]
    assert counts == sorted(counts)
    assert 5 - slots <= counts[-1] < 5
    assert {progress.problems for progress in seen} == {5}


@pytest.mark.slow
def test_problems_that_change_their_method_are_counted_once():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) + 0.02 * rng.normal(size=(200, 5))
    y = rng.integers(3, size=200)
    seen = []
    method = solvers.Proximal(newton_after=60)
    path = solvers.fit_path(x, y, l2=0, l1=[1e-3, 1e-4], l1_method=method, callback=seen.append)
    assert (path.status == solvers.Status.CERTIFIED).all()
    assert max(progress.solved for progress in seen) < 2


def test_large_offsets_are_approached_by_way_of_smaller_ones():
    offset = 100 * np.random.default_rng(2).normal(size=(400, 3))
    options = {"l2": 1e-4, "offset": offset}
    usual = solvers.fit(X, Y, **options)
    at_once = solvers.fit(X, Y, method=solvers.QuasiNewton(large_offset=np.inf), **options)
    assert usual.status == solvers.Status.CERTIFIED
    assert at_once.objective - at_once.gap <= usual.objective * (1 + 1e-12)
    assert usual.objective - usual.gap <= at_once.objective * (1 + 1e-12)
    # Passes of the smaller ones count.
    assert usual.passes > usual.history.passes[-1] - usual.history.passes[0]
