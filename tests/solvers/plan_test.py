"""The choices for a problem, and their reasons."""

import numpy as np
import pytest

from softmax_jax import solvers


def problem(n, d, q):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = np.argmax(x[:, :q] + rng.gumbel(size=(n, q)), axis=1)
    y[:q] = np.arange(q)
    return x, y


@pytest.mark.parametrize(
    ("shape", "options", "method", "words"),
    [
        ((90, 4, 3), {"l2": 0.1}, "Newton", "float64: a pass takes 1.4e+03 multiplications"),
        ((90, 4, 3), {"l2": 0.1, "method": solvers.QuasiNewton(few=None)}, "QuasiNewton", "order"),
        ((90, 4, 3), {"l2": 0.1, "method": "lbfgs"}, "LBFGS", "it was asked for"),
        ((90, 4, 3), {"l2": 0.0, "l1": 0.1}, "OrthantNewton", "l1 > 0"),
        pytest.param(
            *((60, 2000, 3), {"l2": 0.1}, "QuasiNewton", "in the space of the rows"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["small", "forced", "by name", "l1", "wide"],
)
def test_the_plan_says_what_was_taken_and_why(shape, options, method, words):
    solution = solvers.fit(*problem(*shape), **options)
    plan = solution.plan
    assert type(plan.method).__name__ == method
    assert str(plan).startswith(f"{method} in {plan.dtype} on {plan.rows:,} rows")
    assert words in str(plan)
    assert plan.rows >= shape[0]
    assert plan.flop > 0


def test_paths_and_many_problems_have_a_plan_each():
    x, y = problem(90, 4, 3)
    path = solvers.fit_path(x, y, l2=[0.1, 0.01])
    assert [type(plan.method).__name__ for plan in path.plan] == ["Newton"] * 2
    many = solvers.fit_many([x, x[:50]], [y, y[:50]], l2=0.1)
    assert "many problems" in str(many.plan[1])
