"""Paths of strengths in one program, for methods whose steps start well where a neighbour ended.

Each of ``k`` problems goes from one strength to the next as soon as it is solved there. It begins
where the line through its last two solutions leads, within the signs of the last one: solutions are
nearly linear in between the strengths at which a weight comes or goes. The step to there is the
predictor of predictor-corrector methods (Park and Hastie 2007); those of the method correct it.
"""

import dataclasses
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, Int
from softmax_jax.solvers.methods.method import State, Walk
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.problem import Problem, within_limits


class Path(NamedTuple):
    """Strengths in their order, and what counts as solved."""

    l2: Float[Array, " strengths"]
    l1: Float[Array, " strengths"]
    target: Float[Array, " strengths"]
    """Relative gaps at which a problem goes on to the next strength."""


@runtime_checkable
class WalkingState(State, Protocol):
    """Parts that the state of a method has on a walk, for ``k`` problems."""

    @property
    def passes(self) -> Int[Array, " k"]:
        """Passes that each problem took for its present strength."""


StateOfWay = TypeVar("StateOfWay", bound=WalkingState)


@dataclasses.dataclass(frozen=True)
class Way(Generic[StateOfWay]):
    """Parts of a method that a walk is made of."""

    begin: Callable[[Problem, Array], StateOfWay]
    """Returns the state of a problem at parameters."""
    measured: Callable[[Problem, StateOfWay], StateOfWay]
    """Returns a state with objectives and gaps for the strengths of a problem."""
    step: Callable[[Problem, StateOfWay, Array], StateOfWay]
    """Takes a step with each problem but those that are done, which are named last."""
    is_stuck: Callable[[StateOfWay], Bool[Array, " k"]]
    """Returns which problems go on unsolved."""
    begin_next: Callable[[StateOfWay, Array, Array, Array], StateOfWay]
    """Returns the state, given predictors, which problems go on to the next strength, and which of
    those step along their predictor first."""


class _Progress(NamedTuple):
    """The progress of each of ``k`` problems."""

    at: Int[Array, " k"]
    """Strengths that are done."""
    previous: Float[Array, "k q columns"]
    """The solution of the last of them."""
    found: Walk


def walk(
    way: Way[StateOfWay],
    problem: Problem,
    theta: Float[Array, "k q columns"],
    previous: Float[Array, "k q columns"],
    path: Path,
) -> Walk:
    """Solves a path; see `PathMethod.walk`. In float32 it ends where a problem is stuck."""
    number, k = path.l1.size, len(theta)

    def under(at):
        at = jnp.minimum(at, number - 1)
        penalty = dataclasses.replace(problem.penalty, l2=path.l2[at], l1=path.l1[at])
        return problem._replace(penalty=penalty), path.target[at]

    def go_on(carry):
        _, progress = carry
        return jnp.any(progress.at < number)

    def one(carry):
        state, progress = carry
        _, target = under(progress.at)
        state, progress = _moved_on(way, problem, state, progress, target)
        own, target = under(progress.at)
        state = way.measured(own, state)
        # Where the solution is one for the next strength, too, there is nothing to do; nor where no
        # pass is allowed.
        is_solved = state.gap <= target * state.value
        is_done = (progress.at >= number) | is_solved | way.is_stuck(state)
        state = jax.lax.cond(
            jnp.all(is_done),
            lambda state: state,
            lambda state: way.step(own, state, is_done),
            state,
        )
        return state, progress

    none = jnp.zeros(k, jnp.int32)
    state, predictor = way.begin(under(none)[0], theta), _predictor(problem, theta, previous)
    has_predictor = jnp.any(predictor != 0, axis=(1, 2))
    state = way.begin_next(state, predictor, jnp.ones(k, bool), has_predictor)
    nothing = jnp.zeros((number, k), theta.dtype)
    parameters = jnp.zeros((number, *theta.shape), theta.dtype)
    found = Walk(parameters, nothing, nothing + jnp.inf, nothing)
    _, progress = jax.lax.while_loop(go_on, one, (state, _Progress(none, theta, found)))
    return progress.found


def _moved_on(
    way: Way[StateOfWay],
    problem: Problem,
    state: StateOfWay,
    progress: _Progress,
    target: Float[Array, " k"],
) -> tuple[StateOfWay, _Progress]:
    """Records problems that are done with a strength, and lets them begin the next one."""
    at, found = progress.at, progress.found
    number, k = found.gap.shape
    is_solved = state.gap <= target * state.value
    moves = (at < number) & (is_solved | way.is_stuck(state))
    slot, place = jnp.arange(k), jnp.where(moves, at, number)

    def put(array, own):
        return array.at[place, slot].set(own.astype(array.dtype), mode="drop")

    found = Walk(
        theta=put(found.theta, state.theta),
        value=put(found.value, state.value),
        gap=put(found.gap, state.gap),
        passes=put(found.passes, state.passes),
    )
    predictor = _predictor(problem, state.theta, progress.previous)
    state = way.begin_next(state, predictor, moves, is_solved)
    previous = jnp.where(per_problem(moves), state.theta, progress.previous)
    at = at + moves
    if state.theta.dtype == jnp.float32:
        at = jnp.where(moves & ~is_solved, number, at)
    return state, _Progress(at, previous, found)


def _predictor(
    problem: Problem, theta: Float[Array, "k q columns"], previous: Float[Array, "k q columns"]
) -> Float[Array, "k q columns"]:
    """Returns the way on along the line through the last two solutions, with the last signs."""
    ahead = 2 * theta - previous
    same = ahead * theta
    if problem.penalty.grouped:
        same = jnp.broadcast_to(jnp.sum(same, axis=1, keepdims=True), same.shape)
    stays = (same > 0).at[..., 0].set(True)
    return within_limits(problem, jnp.where(stays, ahead, 0)) - theta
