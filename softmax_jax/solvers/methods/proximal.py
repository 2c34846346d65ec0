r"""Accelerated proximal gradient, for the elastic net.

FISTA (Beck and Teboulle 2009) with restarts where the momentum points uphill (O'Donoghue and
Candes 2015), in the metric :math:`D = \mathrm{diag}(v_j)` of the variances of the features, in
which the penalty stays separable:

.. math:: W^+ = \mathrm{prox}\left(Y - \frac{1}{L} D^{-1} \nabla f(Y)\right).

The curvature L along a step is measured on kept logits, without a pass: the loss has the second
derivative :math:`\sum_i s_i \mathrm{Var}_{p_i}(\delta_i)`, which unlike a difference of objectives
does not cancel near the optimum. A step is one pass over the rows, back and forward.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax.solvers import passes
from softmax_jax.solvers.methods.preconditioner import Basis
from softmax_jax.solvers.passes import dot, wide
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


class State(NamedTuple):
    """Of ``k`` problems."""

    theta: jax.Array
    previous: jax.Array
    logits: jax.Array
    """``[blocks, k, q, rows]`` of ``theta``, with the offset, and of ``previous``."""
    previous_logits: jax.Array
    value: jax.Array
    gap: jax.Array
    curvature: jax.Array
    """``[k]``: the L of the last step."""
    momentum: jax.Array
    """``[k]``: FISTA's t."""
    done: jax.Array


def start(problem: Problem, z: None, theta: jax.Array) -> State:
    """At ``theta``, with nothing learnt yet: half a pass."""
    logits = passes.logits(problem, theta)
    k = problem.l2.size
    return State(
        theta=theta,
        previous=theta,
        logits=logits,
        previous_logits=logits,
        value=jnp.full(k, jnp.inf, theta.dtype),
        gap=jnp.full(k, jnp.inf, theta.dtype),
        curvature=jnp.full(k, 0.5, theta.dtype),
        momentum=jnp.ones(k, theta.dtype),
        done=jnp.zeros(k, bool),
    )


def hand_over(
    problem: Problem, state: State, lane: jax.Array, source: jax.Array, l2: jax.Array
) -> State:
    """Lets the problem of ``lane``, a new one, go on from where that of ``source`` stands."""

    def put(array, value):
        return array.at[lane].set(value)

    theta, logits = state.theta[source], state.logits[:, source]
    return state._replace(
        theta=put(state.theta, theta),
        previous=put(state.previous, theta),
        logits=state.logits.at[:, lane].set(logits),
        previous_logits=state.previous_logits.at[:, lane].set(logits),
        gap=put(state.gap, jnp.inf),
        curvature=put(state.curvature, state.curvature[source]),
        momentum=put(state.momentum, 1),
        done=put(state.done, False),
    )


def forget(state: State, lane: jax.Array) -> State:
    """Starts the problem of a lane anew, from where it stands."""
    return state._replace(
        previous=state.previous.at[lane].set(state.theta[lane]),
        previous_logits=state.previous_logits.at[:, lane].set(state.logits[:, lane]),
        momentum=state.momentum.at[lane].set(1),
        done=state.done.at[lane].set(False),
    )


def advance(
    problem: Problem,
    basis: Basis,
    z: None,
    state: State,
    *,
    renew: jax.Array,
    target: jax.Array,
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    """Takes up to ``limit`` steps; how many each problem took. See `_quasi_newton.advance`."""
    variance = basis.second_moments
    # A constant feature has no gradient; any positive number will do for it.
    least = 1e-6 * jnp.max(variance) + 1e-30
    metric = jnp.concatenate([jnp.ones(1, variance.dtype), jnp.maximum(variance, least)])
    return passes.steps_until_done(
        lambda state: _step(problem, metric, state, target), state, limit, stop_at_first
    )


def _step(problem: Problem, metric: jax.Array, state: State, target: jax.Array) -> State:
    t = 0.5 * (1 + jnp.sqrt(1 + 4 * state.momentum**2))
    push = (state.momentum - 1) / t
    y = state.theta + wide(push) * (state.theta - state.previous)
    y_logits = state.logits + push[None, :, None, None] * (state.logits - state.previous_logits)
    loss, probabilities = passes.loss_and_probabilities(problem, y_logits)
    g = passes.gradient(problem, probabilities)
    w = y[..., 1:]
    penalty = problem.penalty
    value = loss + penalty.value(w)
    gap = penalty.fenchel_young(w, g[..., 1:])
    # Where l2 = 0 the certificate has to shrink the residuals first; as far as that goes.
    c = 1 / jnp.maximum(penalty.dual_norm(g[..., 1:]), 1)
    fitting = wide(0.999999 * c) * g[..., 1:]
    shrunk = penalty.fenchel_young(w, fitting)
    gap = jnp.where(problem.l2 > 0, gap, shrunk + (1 - c) * loss)

    strength = wide(state.curvature) * metric[None, None, :]
    theta = y - g / strength
    theta = theta.at[..., 1:].set(penalty.prox(theta[..., 1:], strength[..., 1:]))
    move = theta - y
    ahead = passes.linear(problem, move)
    scaled = move * jnp.broadcast_to(metric[None, None, :], move.shape)
    size = dot(move, scaled)
    bend = _bend(problem, y_logits, ahead) / jnp.where(size > 0, size, 1)
    accepted = (bend <= state.curvature) & ~state.done
    uphill = dot(scaled, theta - state.theta) < 0

    def choose(new, old):
        return jnp.where(jnp.expand_dims(accepted, tuple(range(1, old.ndim))), new, old)

    def choose_logits(new, old):
        return jnp.where(accepted[None, :, None, None], new, old)

    finished = gap <= target * value
    return State(
        theta=choose(theta, state.theta),
        previous=choose(state.theta, state.previous),
        logits=choose_logits(y_logits + ahead, state.logits),
        previous_logits=choose_logits(state.logits, state.previous_logits),
        value=jnp.where(state.done, state.value, value),
        gap=jnp.where(state.done, state.gap, gap),
        curvature=jnp.where(
            accepted,
            jnp.maximum(0.9 * state.curvature, bend),
            jnp.where(state.done, state.curvature, jnp.maximum(2 * state.curvature, 1.1 * bend)),
        ),
        momentum=jnp.where(accepted, jnp.where(uphill, 1, t), state.momentum),
        done=state.done | (finished & accepted),
    )


def _bend(problem: Problem, logits: jax.Array, ahead: jax.Array) -> jax.Array:
    """The larger second derivative of the mean loss along ``ahead``, at its start and its end."""
    mass = passes.mass(problem)

    def add(j, carry):
        a = block_of(ahead, j)
        o = block_of(logits, j)
        s = passes.weights(problem, j, mass)

        def bend(o):
            p, _, _ = passes.softmax(o)
            return jnp.sum(s * passes.mean_and_variance(p, a)[1], axis=-1)

        return carry[0] + bend(o), carry[1] + bend(o + a)

    zero = jnp.zeros(logits.shape[1], logits.dtype)
    at_start, at_end = over_blocks(problem, add, (zero, zero))
    return jnp.maximum(at_start, at_end)
