import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.solver_comparison import measures, picture, processes, tables, trials
from benchmarks.solver_comparison.peers import Peer
from benchmarks.solver_comparison.trials import TARGETS, Trial
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
    assert measures.objective(x, y, w, b, 0.1) == pytest.approx(float(expected), rel=1e-6)


def climb(rate, budget, *, step=1):
    """Climbs with an excess of ``rate**n`` after n iterations of a second each."""

    def attempt(limit):
        assert limit % step == 0
        if limit > budget:
            return Trial(limit)
        return Trial(limit, seconds=limit, excess=rate**limit, stopped=False)

    peer = Peer("some", "solver", first=10, step=step)
    return trials.climb(attempt, peer, TARGETS, budget)


@pytest.mark.parametrize("step", [1, 5])
def test_climb_just_meets_each_target(step):
    found = climb(0.9, np.inf, step=step)
    for target in TARGETS:
        least = np.log(target) / np.log(0.9)
        assert least <= trials.quickest(found, target).seconds <= 1.1 * least + step


def test_climb_comes_down_to_a_target():
    assert trials.quickest(climb(0.1, np.inf), 1e-2).seconds <= 3


def test_climb_stays_within_the_budget():
    found = climb(0.9, 100)
    assert trials.quickest(found, 1e-4).seconds <= 100
    assert trials.quickest(found, 1e-6) is None


def test_frontier():
    points = [(1, 0.5), (2, 0.6), (3, 0.1), (4, 0.0)]
    assert trials.frontier(points) == [(1, 0.5), (3, 0.1)]


def test_tables_and_figure(capsys):
    rows = [
        tables.Row("ours, later calls", {1e-2: 0.5}, [Trial(10, 0.5, 1e-3, 100.0, 10.0)]),
        tables.Row("ours, first call", {1e-2: 4.0}, [Trial(10, 4.0, 1e-3)]),
        tables.Row("scikit-learn sag", {1e-2: 2.0}, climb(0.9, np.inf)),
        tables.Row("scikit-learn saga", {}, [Trial(1)], missing="> 300"),
    ]
    tables.print_seconds(rows)
    tables.print_ratios(rows, 2)
    out = capsys.readouterr().out
    assert "4.0 / 0.5" in out
    assert "> 600.0 / > 75.0" in out
    assert picture.draw(rows).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_worker_answers(problem):
    task = {"do": "iris", "data": problem, "package": "scikit-learn", "l2": 1.0, "tol": 1e-6}
    (answer,) = processes.answers_of({**task, "strengths": {"C": 1 / 60}, "fits": 2}, 60.0)
    assert len(answer["seconds"]) == 2
    assert 0 < answer["objective"] < np.log(3)


def test_a_worker_is_not_waited_for(problem):
    task = {"do": "iris", "data": problem, "package": "scikit-learn", "l2": 1.0, "tol": 1e-6}
    answers = processes.answers_of({**task, "strengths": {"C": 1 / 60}, "fits": 10**6}, 0.1)
    assert list(answers) == []


def test_a_worker_that_fails_says_why(problem):
    with pytest.raises(RuntimeError, match="KeyError: 'tols'"):
        list(processes.answers_of({"do": "ours", "data": problem, "l2": 1.0}, 60.0))
