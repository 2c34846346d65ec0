import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import solvers
from softmax_jax import losses
from softmax_jax.model import Params


@pytest.fixture
def problem(tmp_path):
    """The path of a file with 60 rows of 4 features, as workers read it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.integers(3, size=60)
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y, divisor=1.0)
    return str(path)


def test_objective():
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(5000, 4), dtype=np.uint8), rng.integers(3, size=5000)
    w, b = rng.normal(size=(4, 3)), rng.normal(size=3)
    expected = losses.objective(
        Params(jnp.asarray(w), jnp.asarray(b)), jnp.asarray(x / 255), jnp.asarray(y), l2=0.1
    )
    assert solvers.objective(x, y, w, b, 0.1) == pytest.approx(float(expected), rel=1e-6)


def climb(rate, budget, *, step=1):
    """With an excess of ``rate**n`` after n iterations of a second each."""

    def attempt(limit):
        assert limit % step == 0
        if limit > budget:
            return solvers.Trial(limit)
        return solvers.Trial(limit, seconds=limit, excess=rate**limit, stopped=False)

    peer = solvers.Peer("some", "solver", first=10, step=step)
    return solvers.climb(attempt, peer, solvers.TARGETS, budget)


@pytest.mark.parametrize("step", [1, 5])
def test_climb_just_meets_each_target(step):
    trials = climb(0.9, np.inf, step=step)
    for target in solvers.TARGETS:
        least = np.log(target) / np.log(0.9)
        assert least <= solvers.quickest(trials, target).seconds <= 1.1 * least + step


def test_climb_comes_down_to_a_target():
    assert solvers.quickest(climb(0.1, np.inf), 1e-2).seconds <= 3


def test_climb_stays_within_the_budget():
    trials = climb(0.9, 100)
    assert solvers.quickest(trials, 1e-4).seconds <= 100
    assert solvers.quickest(trials, 1e-6) is None


def test_frontier():
    points = [(1, 0.5), (2, 0.6), (3, 0.1), (4, 0.0)]
    assert solvers.frontier(points) == [(1, 0.5), (3, 0.1)]


def test_tables_and_figure(capsys):
    rows = [
        solvers.Row("ours, later calls", {1e-2: 0.5}, [solvers.Trial(10, 0.5, 1e-3, 100.0, 10.0)]),
        solvers.Row("ours, first call", {1e-2: 4.0}, [solvers.Trial(10, 4.0, 1e-3)]),
        solvers.Row("scikit-learn sag", {1e-2: 2.0}, climb(0.9, np.inf)),
        solvers.Row("scikit-learn saga", {}, [solvers.Trial(1)], missing="> 300"),
    ]
    solvers.print_single(rows, 2)
    out = capsys.readouterr().out
    assert "4.0 / 0.5" in out
    assert "> 600.0 / > 75.0" in out
    assert solvers.draw(rows).startswith(b"\x89PNG")


def test_a_worker_answers(problem):
    task = {"do": "iris", "data": problem, "package": "scikit-learn", "l2": 1.0, "tol": 1e-6}
    (answer,) = solvers.answers_of({**task, "strengths": {"C": 1 / 60}, "fits": 2}, 60.0)
    assert len(answer["seconds"]) == 2
    assert 0 < answer["objective"] < np.log(3)


def test_a_worker_is_not_waited_for(problem):
    task = {"do": "iris", "data": problem, "package": "scikit-learn", "l2": 1.0, "tol": 1e-6}
    answers = solvers.answers_of({**task, "strengths": {"C": 1 / 60}, "fits": 10**6}, 0.1)
    assert list(answers) == []


def test_a_worker_that_fails_says_why(problem):
    with pytest.raises(RuntimeError, match="KeyError: 'tols'"):
        list(solvers.answers_of({"do": "ours", "data": problem, "l2": 1.0}, 60.0))
