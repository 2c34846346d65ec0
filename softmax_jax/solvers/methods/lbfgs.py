"""`optax.lbfgs` on the same passes, for one problem at a time: the plain alternative.

No preconditioner, and a line search that takes a pass for each try. It is here to be compared with.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from softmax_jax.solvers import passes
from softmax_jax.solvers.problem import Problem

# Passes that a line search tries at most.
TRIES = 20


class State(NamedTuple):
    """Iterate of one problem, its gap, and the memory of the optimiser."""

    theta: jax.Array
    value: jax.Array
    gap: jax.Array
    done: jax.Array
    optimizer: optax.OptState


def lbfgs(most: jax.typing.ArrayLike = TRIES) -> optax.GradientTransformationExtraArgs:
    """L-BFGS whose line search takes up to ``most`` passes."""
    search = optax.scale_by_zoom_linesearch(most, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=10, linesearch=search)


def start(problem: Problem, z: None, theta: jax.Array) -> State:
    """At ``theta``, without a pass."""
    unknown = jnp.full(1, jnp.inf, theta.dtype)
    return State(theta, unknown, unknown, jnp.zeros(1, bool), lbfgs().init(theta))


def hand_over(
    problem: Problem, state: State, lane: jax.Array, source: jax.Array, l2: jax.Array
) -> State:
    """Lets a new problem go on from where the last one stands."""
    return start(problem, None, state.theta)


def forget(state: State, lane: jax.Array) -> State:
    """Starts anew, from where it stands."""
    return state._replace(done=jnp.zeros_like(state.done), optimizer=lbfgs().init(state.theta))


def advance(
    problem: Problem,
    basis: None,
    z: None,
    state: State,
    *,
    renew: jax.Array,
    target: jax.Array,
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    """Up to ``limit`` evaluations of the objective; how many it took."""

    def evaluate(theta):
        logits = passes.logits(problem, theta)
        loss, probabilities = passes.loss_and_probabilities(problem, logits)
        gradient = passes.gradient(problem, probabilities)
        w, penalty = theta[..., 1:], problem.penalty
        value = loss + penalty.smooth_value(w)
        return value[0], gradient.at[..., 1:].add(penalty.gradient(w))

    @jax.custom_vjp
    def objective(theta):
        return evaluate(theta)[0]

    objective.defvjp(evaluate, lambda gradient, ct: (ct * gradient,))
    value_and_grad = optax.value_and_grad_from_state(objective)

    def go_on(carry):
        state, taken = carry
        return (taken < limit) & ~state.done[0]

    def step(carry):
        state, taken = carry
        value, gradient = value_and_grad(state.theta, state=state.optimizer)
        g = gradient[..., 1:]
        gap = problem.penalty.dual_inner(g, g) / 2
        done = gap <= target * value
        updates, optimizer = lbfgs(jnp.minimum(limit - taken, TRIES)).update(
            gradient, state.optimizer, state.theta, value=value, grad=gradient, value_fn=objective
        )
        # What is done stays as it is, also where it is taken up again later.
        theta, optimizer = jax.tree.map(
            lambda new, old: jnp.where(done[0], old, new),
            (state.theta + updates, optimizer),
            (state.theta, state.optimizer),
        )
        tries = optax.tree.get(optimizer, "info").num_linesearch_steps
        state = State(theta, value[None], gap, done, optimizer)
        return state, taken + tries.astype(taken.dtype)

    state, taken = jax.lax.while_loop(go_on, step, (state, jnp.zeros((), jnp.int32)))
    return state, taken[None]
