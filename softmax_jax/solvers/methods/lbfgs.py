"""`optax.lbfgs` on the same passes, for one problem at a time: the plain alternative.

No preconditioner, and a line search that takes a pass for each try. It is here to be compared with.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Int
from softmax_jax.solvers import passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.methods.dual import penalised
from softmax_jax.solvers.methods.method import IterativeMethod
from softmax_jax.solvers.problem import Problem


class State(NamedTuple):
    """Iterate of one problem, its gap, and the memory of the optimiser."""

    theta: Float[Array, "1 q columns"]
    value: Float[Array, " 1"]
    gap: Float[Array, " 1"]
    done: Bool[Array, " 1"]
    optimizer: optax.OptState


def optimizer_of(memory: int, most: jax.typing.ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Returns L-BFGS whose line search takes up to ``most`` passes."""
    search = optax.scale_by_zoom_linesearch(most, initial_guess_strategy="one")
    return optax.lbfgs(memory_size=memory, linesearch=search)


Parameters = TypeVar("Parameters")
"""A pytree of arrays."""


@dataclasses.dataclass(frozen=True)
class Stepped(Generic[Parameters]):
    """A step of `optax.lbfgs`, and what was found at its start."""

    params: Parameters
    """Parameters at its end."""
    value: Float[Array, ""]
    """Objective at its start."""
    gradient: Parameters
    """Gradient at its start."""
    optimizer: optax.OptState


def last_passes(optimizer: optax.OptState) -> Int[Array, ""]:
    """Returns the passes of the last line search."""
    return optax.tree.get(optimizer, "info").num_linesearch_steps


def stepped(
    evaluate: Callable[[Parameters], tuple[Float[Array, ""], Parameters]],
    params: Parameters,
    optimizer: optax.OptState,
    *,
    memory: int,
    most: ArrayLike,
) -> Stepped[Parameters]:
    """Takes a step of `optax.lbfgs` in up to ``most`` passes.

    Args:
      evaluate: returns the objective and its gradient, in one pass.
      params: where the step begins.
      optimizer: state of `optimizer_of`.
      memory: pairs that it keeps.
      most: passes of the line search, at most.
    """

    @jax.custom_vjp
    def objective(params):
        return evaluate(params)[0]

    # The line search differentiates the objective; what it gets is the gradient of the same pass.
    objective.defvjp(evaluate, lambda gradient, ct: (jax.tree.map(lambda g: ct * g, gradient),))
    value, gradient = optax.value_and_grad_from_state(objective)(params, state=optimizer)
    updates, optimizer = optimizer_of(memory, most).update(
        gradient, optimizer, params, value=value, grad=gradient, value_fn=objective
    )
    return Stepped(optax.apply_updates(params, updates), value, gradient, optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGS(IterativeMethod[State]):
    """`optax.lbfgs`, for l1 = 0, on kept logits.

    Example:
      >>> import numpy as np
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> print(fit(x, y, l2=0.1, method=LBFGS(memory=20)).status)
      certified
    """

    memory: int = 10
    """Pairs of moves and changes of the gradient."""
    tries: int = 20
    """Passes of a line search, at most."""
    width: int = 1

    def check(self, *, has_l1: bool, grouped: bool, has_offset: bool, is_plain: bool) -> None:
        """Refuses absolute penalties."""
        if has_l1:
            raise ValueError("l1: the method 'lbfgs' is for smooth penalties; take another")

    def init(self, problem: Problem, aids: tuple[()], theta: jax.typing.ArrayLike) -> State:
        """Returns the state at ``theta``."""
        return _init(self, theta)

    def advance(
        self,
        problem: Problem,
        aids: tuple[()],
        state: State,
        *,
        target: ArrayLike,
        limit: ArrayLike,
        stop_at_first: ArrayLike,
    ) -> tuple[State, jax.Array]:
        """Takes up to ``limit`` steps."""
        return _advance(self, problem, state, target, limit, stop_at_first)

    def hand_over(
        self, problem: Problem, state: State, slot: ArrayLike, source: ArrayLike
    ) -> State:
        """Lets a new problem go on from where the last one stands."""
        return _init(self, state.theta)

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Empties the memory."""
        return state._replace(
            done=jnp.zeros_like(state.done), optimizer=_init(self, state.theta).optimizer
        )


@partial(compiled, static_argnames="method")
def _init(method: LBFGS, theta: Float[Array, "1 q columns"]) -> State:
    unknown, done = jnp.full(1, jnp.inf, theta.dtype), jnp.zeros(1, bool)
    optimizer = optimizer_of(method.memory, method.tries).init(theta)
    return State(theta, unknown, unknown, done, optimizer)


@partial(compiled, static_argnames="method", donate_argnames="state")
def _advance(
    method: LBFGS,
    problem: Problem,
    state: State,
    target: Float[Array, " 1"],
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    def evaluate(theta):
        logits = passes.logits(problem, theta)
        loss, probabilities = passes.loss_and_probabilities(problem, logits)
        gradient = passes.gradient(problem, probabilities)
        value, gradient = penalised(problem, theta, loss, gradient)
        return value[0], gradient

    def go_on(carry):
        state, taken = carry
        return (taken < limit) & ~state.done[0]

    def step(carry):
        state, taken = carry
        most = jnp.minimum(limit - taken, method.tries)
        new = stepped(evaluate, state.theta, state.optimizer, memory=method.memory, most=most)
        g = new.gradient[..., 1:]
        gap = problem.penalty.dual_inner(g, g) / 2
        done = gap <= target * new.value
        # What is done stays as it is, also where it is taken up again later.
        theta, optimizer = jax.tree.map(
            lambda new, old: jnp.where(done[0], old, new),
            (new.params, new.optimizer),
            (state.theta, state.optimizer),
        )
        state = State(theta, new.value[None], gap, done, optimizer)
        return state, taken + last_passes(optimizer).astype(taken.dtype)

    state, taken = jax.lax.while_loop(go_on, step, (state, jnp.zeros((), jnp.int32)))
    return state, taken[None]
