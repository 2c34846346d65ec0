r"""Proximal Newton for the elastic net on few parameters (Lee, Sun and Saunders 2014).

A step minimises the objective with the loss replaced by its quadratic model,

.. math:: \min_U\; \langle G, U - W \rangle + \tfrac12 \langle U - W, H (U - W) \rangle + \Omega(U),

with the Hessian H in full, and goes as far in that direction as the objective falls. Where weights
have to travel far, as with weak penalties or features that are hardly penalised, it takes a small
part of the passes of proximal gradients.

The model is minimised by coordinate descent, which finds the weights that are zero, in turns with
Newton's method on those that are not, which finds the others at once. The loss does not see one
number added to a feature's weights of all classes, so that neither gets anywhere along it: that
number is set by itself.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, ArrayLike, Bool, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods import preconditioner
from softmax_jax.solvers.methods.common import common_set_apart
from softmax_jax.solvers.methods.components import Sizes, scores
from softmax_jax.solvers.methods.dual import gap_of_sharp
from softmax_jax.solvers.methods.line_search import backtrack
from softmax_jax.solvers.methods.method import IterativeMethod
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.problem import Problem


class State(NamedTuple):
    """State of ``k`` problems, at ``theta``."""

    theta: Float[Array, "k q columns"]
    logits: Float[Array, "blocks k q rows"]
    """Logits, with the offset."""
    value: Float[Array, " k"]
    gap: Float[Array, " k"]
    done: Bool[Array, " k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalNewton(IterativeMethod[State]):
    """Proximal Newton, for l1 > 0 on few parameters: it forms the whole Hessian, in float64.

    Example:
      >>> import numpy as np
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]]), np.array([0, 0, 1, 1])
      >>> solution = fit(x, y, l2=0.0, l1=0.05, l1_method=ProximalNewton())
      >>> print(solution.status)
      certified
      >>> np.all(solution.params.w == 0, axis=1).tolist()  # the second feature tells nothing
      [False, True]
    """

    most_parameters: int = 1000
    """Parameters, (1 + d) q, up to which `Proximal` hands over to it: a step takes their cube."""
    rounds: int = 30
    """Rounds of the two ways to minimise the model, at most."""
    good_enough: float = 1e-6
    """Share of the first violation of the model's conditions at which it is at its minimum."""
    sample: int = 8192
    """Rows that the Hessian is estimated from, if there are more."""
    pool: int = 65_536
    """Rows that these are drawn from."""
    steps: int = 8
    patience: int = 5
    warm_up_steps: int = 12
    always_float64: bool = True
    float64_target: float = 1e-18

    def reason(self, inputs: Inputs) -> str:
        """Returns the number of parameters."""
        order = (1 + inputs.problem.d) * inputs.q
        return f"l1 > 0 and {order:,} parameters, for which proximal gradients may take too long"

    def check(self, *, has_l1: bool, grouped: bool, has_offset: bool, is_plain: bool) -> None:
        """Refuses penalties on groups, and those and limits of single weights."""
        if grouped:
            raise ValueError("grouped: the method 'proximal-newton' takes no groups; take another")
        if not is_plain:
            raise ValueError(
                "penalty_factor, lower, upper, relax: the method 'proximal-newton' takes none of "
                "them; take another"
            )

    def aids(
        self, problem: Problem, factor: jax.Array, q: int
    ) -> Float[Array, "pool rows columns"]:
        """Returns a one and the features, of the pool of rows."""
        sizes = Sizes(pool=self.pool)
        return scores(sizes, problem, jnp.eye(problem.d, dtype=problem.dtype))

    def init(
        self, problem: Problem, aids: Float[Array, "pool rows columns"], theta: jax.typing.ArrayLike
    ) -> State:
        """Returns the state at ``theta``: half a pass."""
        return _init(problem, theta)

    def advance(
        self,
        problem: Problem,
        aids: Float[Array, "pool rows columns"],
        state: State,
        *,
        target: ArrayLike,
        limit: ArrayLike,
        stop_at_first: ArrayLike,
    ) -> tuple[State, jax.Array]:
        """Takes up to ``limit`` steps."""
        return _advance(self, problem, aids, state, target, limit, stop_at_first)

    def hand_over(
        self, problem: Problem, state: State, slot: ArrayLike, source: ArrayLike
    ) -> State:
        """Lets a new problem in ``slot`` go on from where that of ``source`` stands."""
        return _hand_over(state, slot, source)

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Takes the problem up again."""
        return _restart(state, slot)


@compiled
def _init(problem: Problem, theta: Float[Array, "k q columns"]) -> State:
    unknown = jnp.full(problem.l2.size, jnp.inf, theta.dtype)
    done = jnp.zeros(problem.l2.size, bool)
    return State(theta, passes.logits(problem, theta), unknown, unknown, done)


@partial(compiled, donate_argnames="state")
def _hand_over(state: State, slot: jax.Array, source: jax.Array) -> State:
    return State(
        theta=state.theta.at[slot].set(state.theta[source]),
        logits=state.logits.at[:, slot].set(state.logits[:, source]),
        value=state.value.at[slot].set(jnp.inf),
        gap=state.gap.at[slot].set(jnp.inf),
        done=state.done.at[slot].set(False),
    )


@partial(compiled, donate_argnames="state")
def _restart(state: State, slot: jax.Array) -> State:
    return state._replace(done=state.done.at[slot].set(False))


@partial(compiled, static_argnames="method", donate_argnames="state")
def _advance(
    method: ProximalNewton,
    problem: Problem,
    x: Float[Array, "pool rows columns"],
    state: State,
    target: Float[Array, " k"],
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    return passes.steps_until_done(
        lambda state: _step(method, problem, x, state, target), state, limit, stop_at_first
    )


def _step(
    method: ProximalNewton,
    problem: Problem,
    x: Float[Array, "pool rows columns"],
    state: State,
    target: Float[Array, " k"],
) -> State:
    loss, probabilities = passes.loss_and_probabilities(problem, state.logits)
    g = passes.gradient(problem, probabilities)
    w = state.theta[..., 1:]
    value = loss + problem.penalty.value(w)
    gap = gap_of_sharp(problem, w, g[..., 1:], loss)

    ridge, threshold = problem.penalty.ridge, problem.penalty.threshold
    blocks = x.shape[0]
    is_active = (jnp.arange(blocks) < problem.active).astype(problem.dtype)

    def aim(i):
        weights = problem.weights[:blocks, jnp.minimum(i, problem.weights.shape[1] - 1)]
        sample = preconditioner.sample(
            method.sample, x, state.logits[:blocks, i], weights * is_active[:, None]
        )
        h = preconditioner.hessian(*sample)
        return _minimise_model(method, h, g[i], state.theta[i], ridge[i, 0], threshold[i, 0])

    direction = jax.lax.map(aim, jnp.arange(problem.l2.size)) - state.theta
    ahead = passes.linear(problem, direction)

    finished = state.done | (gap <= target * value)
    slope = (
        passes.dot(g, direction)
        + problem.penalty.value(w + direction[..., 1:])
        - problem.penalty.value(w)
    )
    t, _, _ = backtrack(
        problem, state.theta, state.logits, value, direction, ahead, slope, finished
    )
    # A whole step keeps the zeros that the model found.
    there = jnp.where(
        per_problem(t) == 1, state.theta + direction, state.theta + per_problem(t) * direction
    )
    return State(
        theta=jnp.where(per_problem(t) == 0, state.theta, there),
        logits=state.logits + t[None, :, None, None] * ahead,
        value=value,
        gap=gap,
        done=finished | (t == 0),
    )


class _Model(NamedTuple):
    """The quadratic model of ``m = q (1 + d)`` parameters, class by class, the bias first."""

    h: Float[Array, "m m"]
    """Hessian with the ridge."""
    g: Float[Array, " m"]
    """The gradient at ``origin``, that of the ridge included."""
    origin: Float[Array, " m"]
    threshold: Float[Array, " m"]
    """Zero for the biases."""
    is_free: Bool[Array, " m"]
    """Whether the loss depends on a parameter."""


def _minimise_model(
    method: ProximalNewton,
    h: Float[Array, "m m"],
    g: Float[Array, "q columns"],
    theta: Float[Array, "q columns"],
    ridge: Float[Array, " d"],
    threshold: Float[Array, " d"],
) -> Float[Array, "q columns"]:
    """Returns the minimum of the model, found from ``theta``."""
    q, columns = theta.shape

    def for_all(a):
        return jnp.tile(jnp.concatenate([jnp.zeros(1, a.dtype), a]), q)

    ridge = for_all(ridge)
    origin = theta.reshape(-1)
    diagonal = jnp.diagonal(h)
    model = _Model(
        h=h + jnp.diag(ridge),
        g=g.reshape(-1) + ridge * origin,
        origin=origin,
        threshold=for_all(threshold),
        is_free=diagonal > jnp.finfo(h.dtype).eps * jnp.max(diagonal) * 1e-3,
    )

    def slope(u):
        return model.g + model.h @ (u - origin)

    def violation(u):
        r = slope(u)
        at_zero = jnp.maximum(jnp.abs(r) - model.threshold, 0)
        away = jnp.abs(r + model.threshold * jnp.sign(u))
        own = jnp.where((u == 0) & (model.threshold > 0), at_zero, away)
        return jnp.max(jnp.where(model.is_free | (model.threshold > 0), own, 0))

    first = violation(origin)

    def go_on(carry):
        u, i = carry
        return (i < method.rounds) & (violation(u) > method.good_enough * first)

    def round_of_both(carry):
        u, i = carry
        u = _coordinate_descent(model, u, slope(u))
        u = _newton_on_support(model, u, slope(u))
        free = model.is_free.reshape(q, columns)
        alike = model.threshold[:columns], ridge[:columns]
        u = common_set_apart(u.reshape(q, columns), free, *alike).reshape(-1)
        return u, i + 1

    return jax.lax.while_loop(go_on, round_of_both, (origin, 0))[0].reshape(q, columns)


def _coordinate_descent(
    model: _Model, u: Float[Array, " m"], slope: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Minimises the model over each weight in turn, once."""

    def one(j, carry):
        u, r = carry
        curvature = jnp.where(model.is_free[j], model.h[j, j], 1)
        aim = u[j] - r[j] / curvature
        shrunk = jnp.maximum(jnp.abs(aim) - model.threshold[j] / curvature, 0)
        new = jnp.where(shrunk > 0, jnp.sign(aim) * shrunk, 0)
        # Without curvature there is the slope alone, which the penalty outweighs or does not.
        straight = jnp.where(jnp.abs(r[j]) < model.threshold[j], 0, u[j])
        new = jnp.where(model.is_free[j], new, straight)
        return u.at[j].set(new), r + (new - u[j]) * model.h[j]

    return jax.lax.fori_loop(0, u.size, one, (u, slope))[0]


def _newton_on_support(
    model: _Model, u: Float[Array, " m"], slope: Float[Array, " m"]
) -> Float[Array, " m"]:
    """Goes to the minimum over the weights that are not zero, or as far as the model falls.

    Along the way the model is quadratic between the places where a weight changes its sign, and
    its slope jumps up at these. So the lowest place is found by sorting them.
    """
    moves = model.is_free & ((u != 0) | (model.threshold == 0))
    scale = jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, jnp.diagonal(model.h), 1)), 0)
    both = scale[:, None] * model.h * scale[None, :]
    # With a unit diagonal, and some more, as it is flat along what all classes have in common.
    more = 1e3 * jnp.finfo(u.dtype).eps
    a = both + jnp.diag(jnp.where(moves, more, 1))
    r = jnp.where(moves, slope + model.threshold * jnp.sign(u), 0)
    d = -scale * jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), scale * r)
    d = jnp.where(jnp.all(jnp.isfinite(d)), d, 0)

    crosses = u * d < 0
    place = jnp.where(crosses, -u / jnp.where(crosses, d, 1), jnp.inf)
    order = jnp.argsort(place)
    places = place[order]
    jumps = jnp.cumsum(jnp.where(crosses, 2 * model.threshold * jnp.abs(d), 0)[order])
    first, curvature = r @ d, d @ (model.h @ d)
    before = jnp.concatenate([jnp.zeros(1, u.dtype), jumps[:-1]])
    reached = jnp.where(jnp.isfinite(places), places, 0) * curvature + first + jumps
    stops = jnp.isfinite(places) & (reached >= 0)
    at = jnp.argmax(stops)
    curvature = jnp.where(curvature > 0, curvature, 1)
    inside = jnp.minimum(-(first + before[at]) / curvature, places[at])
    beyond = -(first + jumps[-1]) / curvature
    # Without a change of signs the minimum is at 1; without curvature, it would be anywhere.
    t = jnp.clip(jnp.where(jnp.any(stops), inside, beyond), 0, 1)
    return jnp.where(crosses & (place == t), 0, u + t * d)
