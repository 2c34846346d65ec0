"""The duties of every method, and one written for this test."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import solvers
from softmax_jax.solvers import methods, passes
from softmax_jax.solvers.methods import METHODS, SHARP, SMOOTH, IterativeMethod, method_of


class State(NamedTuple):
    theta: jax.Array
    value: jax.Array
    gap: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientDescent(IterativeMethod):
    """The simplest method there is: features have mean squares of one at most."""

    rate: float = 1.0
    share: float = 1.0
    """Share of the gap that is told of."""
    width: int = 2
    float64_below: int = 0
    passes_to_begin = 0

    def init(self, problem, aids, theta):
        k = len(theta)
        unknown = jnp.full(k, jnp.inf, theta.dtype)
        return State(jnp.asarray(theta), unknown, unknown, jnp.zeros(k, bool))

    def advance(self, problem, aids, state, *, target, limit, stop_at_first):
        return _descend(self, problem, state, target, limit, stop_at_first)

    def hand_over(self, problem, state, slot, source):
        return State(
            state.theta.at[slot].set(state.theta[source]),
            state.value,
            state.gap.at[slot].set(jnp.inf),
            state.done.at[slot].set(False),
        )

    def restart(self, state, slot):
        return state._replace(done=state.done.at[slot].set(False))


@partial(jax.jit, static_argnames="method")
def _descend(method, problem, state, target, limit, stop_at_first):
    def step(state):
        loss, p = passes.loss_and_probabilities(problem, passes.logits(problem, state.theta))
        w, penalty = state.theta[..., 1:], problem.penalty
        g = passes.gradient(problem, p).at[..., 1:].add(penalty.gradient(w))
        value = loss + penalty.smooth_value(w)
        gap = method.share * penalty.dual_inner(g[..., 1:], g[..., 1:]) / 2
        done = state.done | (gap <= target * value)
        moved = state.theta - jnp.where(done, 0, method.rate)[:, None, None] * g
        return State(moved, value, gap, done)

    return passes.steps_until_done(step, state, limit, stop_at_first)


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    return x, np.argmax(x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(200, 3)), axis=1)


def test_a_method_of_ones_own():
    x, y = problem()
    weights = np.stack([np.arange(200) % 3 != i for i in range(3)]) * 1.0
    options = {"l2": [1.0, 0.1], "sample_weight": weights, "tol": 1e-4}
    ours = solvers.fit_path(x, y, method=GradientDescent(), **options)
    usual = solvers.fit_path(x, y, **options)
    assert (ours.status == solvers.Status.CERTIFIED).all()
    np.testing.assert_allclose(ours.objective, usual.objective, rtol=1e-4)
    assert (ours.passes > usual.passes).all()


def test_gaps_that_are_told_of_in_part_take_one_more_certificate():
    certificates = []

    class Optimist(GradientDescent):
        def certify(self, *args, **kwargs):
            certificate, passes = super().certify(*args, **kwargs)
            certificates.append(float(certificate.gap[0] / certificate.value[0]))
            return certificate, passes

    x, y = problem()
    found = solvers.fit(x, y, l2=0.1, tol=1e-4, method=Optimist(share=1 / 6))
    assert found.status == solvers.Status.CERTIFIED
    first, last = certificates
    assert 2e-4 < first < 7e-4
    # Not much further than it had to go.
    assert 3e-5 < last < 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_hashable_and_equal_ones_are_one(name):
    method = METHODS[name]
    assert hash(method) == hash(dataclasses.replace(method))
    assert method == dataclasses.replace(method)
    assert method != dataclasses.replace(method, patience=method.patience + 1)
    names = SHARP if name in SHARP else methods.SMOOTH
    assert method_of(name, names, "method") is method


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_an_equal_method_compiles_nothing_anew(name, count_compilations):
    x, y = problem()
    sharp = name in SHARP
    options = {"l2": 1e-2, "l1": 1e-3 * sharp, "tol": 1e-3}
    argument = "l1_method" if sharp else "method"
    first = solvers.fit(x, y, **options, **{argument: name})
    assert first.status == solvers.Status.CERTIFIED
    again = {argument: type(METHODS[name])()}
    assert count_compilations(lambda: solvers.fit(x, y, **options, **again) and None) == 0


@pytest.mark.slow
def test_other_constants_lead_to_the_same_solution():
    x, y = problem()
    usual = solvers.fit(x, y, l2=1e-3)
    for changes in (
        {"memory": 2},
        {"flat": 0.01},
        {"renewal_of_exact": 2},
        {"sizes": methods.Sizes(core=6)},
        {"sizes": methods.Sizes(core=6, leading=1, steps_for_all=0)},
        {"sizes": methods.Sizes(sample=50)},
        {"warm_up": (), "float64_below": 0},
    ):
        other = solvers.fit(x, y, l2=1e-3, method=solvers.QuasiNewton(**changes))
        assert other.status == solvers.Status.CERTIFIED, changes
        assert other.objective == pytest.approx(usual.objective, rel=1e-4), changes


@pytest.mark.parametrize("method", SMOOTH)
def test_a_slope_is_told_where_nothing_bounds_the_gap(method):
    x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
    options = {"method": method, "max_passes": 3}
    assert np.isnan(solvers.fit(x, y, l2=0.1, **options).slope)
    assert solvers.fit(x, y, l2=0.0, **options).slope > 0
