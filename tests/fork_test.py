"""Solvers in worker processes, started from a fresh interpreter: forks of this one are broken."""

import subprocess
import sys

import pytest

HEADER = """
import multiprocessing, os, sys, warnings
import numpy as np
import softmax_jax
warnings.simplefilter("ignore")  # JAX warns of forks

def fit(way, jax_is_used=False):
    from softmax_jax import solvers  # in the worker first, as users' tasks do
    from softmax_jax.estimator import SoftmaxRegression
    x, y = np.eye(6, 2), np.arange(6) % 2
    if jax_is_used:
        import jax.numpy as jnp
        jnp.ones(1) + 1
    try:
        if way == "fit":
            solvers.fit(x, y, l2=1.0)
        elif way == "fit_path":
            solvers.fit_path(x, y, l2=[1.0])
        elif way == "cross_validate":
            solvers.cross_validate(x, y, l2=[1.0], folds=2)
        elif way == "estimator":
            SoftmaxRegression(l2=1.0).fit(x, y)
        elif way == "partial_fit":
            SoftmaxRegression(l2=1.0).partial_fit(x, y, classes=[0, 1])
    except RuntimeError as error:
        return str(error)
    return "fitted"

def in_worker(start_method, ways, **options):
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        print(*[pool.apply(fit, (way,), options) for way in ways], sep="\\n")
"""


def run(body, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(HEADER + "if __name__ == '__main__':\n" + body)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_fork_after_jax_was_used_is_refused_at_every_door(tmp_path):
    body = """
    import jax.numpy as jnp
    jnp.ones(1) + 1
    in_worker("fork", ["fit", "fit_path", "cross_validate", "estimator", "partial_fit"])
"""
    lines = run(body, tmp_path)
    assert len(lines) == 5
    for line in lines:
        assert "forked" in line
        assert "spawn" in line
        assert "loky" in line


@pytest.mark.slow
def test_a_fork_before_jax_was_used_works(tmp_path):
    # The second call finds JAX in use by the worker itself.
    assert (
        run('    in_worker("fork", ["fit", "fit"], jax_is_used=True)\n', tmp_path) == ["fitted"] * 2
    )


@pytest.mark.slow
def test_workers_of_the_remedies_work_after_jax_was_used(tmp_path):
    body = """
    import joblib
    fit("fit")
    in_worker("spawn", ["fit"])
    print(*joblib.Parallel(2, backend="loky")(joblib.delayed(fit)("fit") for _ in range(2)))
    print(*joblib.Parallel(2, backend="multiprocessing")(joblib.delayed(fit)("fit") for _ in "ab"))
"""
    spawned, loky, forked = run(body, tmp_path)
    assert spawned == "fitted"
    assert loky == "fitted fitted"
    assert forked.count("forked") == 2
