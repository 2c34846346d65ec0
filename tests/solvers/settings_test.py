"""Solvers under JAX settings of the caller's: the same numbers, and the settings left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import solvers

SETTINGS = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no transfers": lambda: jax.transfer_guard("disallow_explicit"),
    "x64": lambda: jax.enable_x64(True),
    "no NaN": lambda: jax.debug_nans(True),
    "no infinity": lambda: jax.debug_infs(True),
    "bfloat16 products": lambda: jax.default_matmul_precision("bfloat16"),
    "no jit": lambda: jax.disable_jit(),
}


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)), rng.integers(3, size=60)


SOLVERS = {
    "l2": lambda x, y: solvers.fit(x, y, l2=1e-2),
    "l1": lambda x, y: solvers.fit(x, y, l2=0, l1=1e-2),
    "no penalty": lambda x, y: solvers.fit(x, y, l2=0),
    "lbfgs": lambda x, y: solvers.fit(x, y, l2=1e-2, method="lbfgs"),
    "logits-free": lambda x, y: solvers.fit(x, y, l2=1e-2, method="logits-free"),
    "cross-validation": lambda x, y: solvers.cross_validate(x, y, l2=[1e-2, 1e-3], folds=3).path,
}


QUICK = ("l2", "cross-validation")


@pytest.fixture(
    scope="module",
    params=[pytest.param(s, marks=[] if s in QUICK else pytest.mark.slow) for s in SOLVERS],
)
def solver_and_reference(request):
    solve = SOLVERS[request.param]
    with jax.numpy_dtype_promotion("standard"):
        return solve, solve(*problem())


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_of_the_caller_change_nothing(solver_and_reference, settings):
    solve, reference = solver_and_reference
    with SETTINGS[settings]():
        solution = solve(*problem())
    np.testing.assert_array_equal(solution.params.w, reference.params.w)
    np.testing.assert_array_equal(solution.params.b, reference.params.b)
    np.testing.assert_array_equal(solution.gap, reference.gap)


@pytest.mark.slow
@pytest.mark.exact
def test_jax_arrays_under_a_transfer_guard():
    x, y = problem()
    arrays = (jnp.asarray(x, jnp.float32), jnp.asarray(y))
    weights, offset = jnp.full(60, 0.5), jnp.zeros((60, 3))
    with jax.transfer_guard("disallow"):
        solution = solvers.fit(*arrays, l2=1e-2, sample_weight=weights, offset=offset)
        found = solvers.cross_validate(*arrays, l2=1e-2, sample_weight=weights, offset=offset)
    reference = solvers.fit(x.astype(np.float32), y, l2=1e-2)
    assert solution.objective == pytest.approx(reference.objective, rel=1e-12)
    assert found.path.objective == solution.objective


def test_callbacks_run_under_the_settings_of_the_caller():
    names = ("enable_x64", "numpy_dtype_promotion", "transfer_guard_host_to_device", "debug_nans")

    def present():
        return {name: getattr(jax.config, f"jax_{name}") for name in names}

    outside, seen = present(), []

    def callback(progress):
        seen.append((present(), jnp.ones(1).dtype))
        raise StopIteration

    for x64, dtype in ((True, jnp.float64), (False, jnp.float32)):
        for method in ("quasi-newton", "logits-free"):
            with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
                before = present()
                with pytest.raises(StopIteration):
                    solvers.fit(*problem(), l2=1e-2, method=method, callback=callback)
            assert seen.pop() == (before, dtype)
    assert present() == outside
