r"""Accelerated proximal gradient, for the elastic net.

FISTA (Beck and Teboulle 2009) with restarts where the momentum points uphill (O'Donoghue and
Candes 2015), in the metric :math:`D = \mathrm{diag}(v_j)` of the variances of the features, in
which the penalty stays separable:

.. math:: W^+ = \mathrm{prox}\left(Y - \frac{1}{L} D^{-1} \nabla f(Y)\right).

The curvature L along a step is measured on kept logits, without a pass: the loss has the second
derivative :math:`\sum_i s_i \mathrm{Var}_{p_i}(\delta_i)`, which unlike a difference of objectives
does not cancel near the optimum. A step is one pass over the rows, back and forward.

The gap is that of Fenchel and Young at Y, as if the bias were at its minimum, with the gradient
:math:`G = X^\top S (P - Y)` of the loss. With l2 = 0 it is infinite but where
:math:`|G| \le \tau`. So residuals are shrunk by :math:`c = 1 / \max(1, \max |G| / \tau)`, a little
less for rounding, which takes P towards the targets, and the entropies fall by :math:`1 - c` of the
loss at most:

.. math:: F - F^* \le \Omega(W) + \langle W, c G \rangle + \Omega^*(-c G) + (1 - c) \sum_i s_i l_i.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, ArrayLike, Bool, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.diagonal import variances
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods.dual import gap_of_sharp
from softmax_jax.solvers.methods.method import IterativeMethod, Method
from softmax_jax.solvers.methods.proximal_newton import ProximalNewton
from softmax_jax.solvers.passes import dot, per_problem
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


class State(NamedTuple):
    """State of ``k`` problems."""

    theta: Float[Array, "k q columns"]
    previous: Float[Array, "k q columns"]
    logits: Float[Array, "blocks k q rows"]
    """Logits of ``theta``, with the offset."""
    previous_logits: Float[Array, "blocks k q rows"]
    value: Float[Array, " k"]
    gap: Float[Array, " k"]
    curvature: Float[Array, " k"]
    """The L of the last step."""
    momentum: Float[Array, " k"]
    """FISTA's t."""
    done: Bool[Array, " k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proximal(IterativeMethod[State]):
    """Accelerated proximal gradient, for l1 > 0: the default there.

    Example:
      >>> import numpy as np
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]]), np.array([0, 0, 1, 1])
      >>> solution = fit(x, y, l2=0.0, l1=0.05, l1_method=Proximal(newton=None))
      >>> print(solution.status)
      certified
      >>> np.all(solution.params.w == 0, axis=1).tolist()  # the second feature tells nothing
      [False, True]
    """

    sample: int = 8192
    """Rows that the variances of the features are estimated from."""
    newton: ProximalNewton | None = ProximalNewton()  # noqa: RUF009  (frozen)
    """Method for problems of few parameters that this one does not solve soon, if any."""
    newton_after: int = 500
    """Passes after which it takes over: many, as a step of it costs many of these."""

    def reason(self, inputs: Inputs) -> str:
        """Returns the kind of problem that it is for."""
        return "for what others do not solve"

    def successor(self, inputs: Inputs) -> Method | None:
        """Returns `newton` for as few parameters as it is for."""
        penalty = inputs.problem.penalty
        if self.newton is None or penalty.grouped or not penalty.is_plain:
            return None
        few = (1 + inputs.problem.d) * inputs.q <= self.newton.most_parameters
        return self.newton if few else None

    @property
    def successor_after(self) -> float:
        """Passes after which `newton` takes over."""
        return self.newton_after

    def aids(self, problem: Problem, factor: jax.Array, q: int) -> Float[Array, " columns"]:
        """Returns the metric: one for the bias, and the variances of the features."""
        return variances(problem, self.sample)

    def init(
        self, problem: Problem, aids: Float[Array, " columns"], theta: jax.typing.ArrayLike
    ) -> State:
        """Returns the state at ``theta``, with nothing learnt yet: half a pass."""
        return _init(problem, theta)

    def advance(
        self,
        problem: Problem,
        aids: Float[Array, " columns"],
        state: State,
        *,
        target: ArrayLike,
        limit: ArrayLike,
        stop_at_first: ArrayLike,
    ) -> tuple[State, jax.Array]:
        """Takes up to ``limit`` steps."""
        return _advance(problem, aids, state, target, limit, stop_at_first)

    def hand_over(
        self, problem: Problem, state: State, slot: ArrayLike, source: ArrayLike
    ) -> State:
        """Lets a new problem in ``slot`` go on from where that of ``source`` stands."""
        return _hand_over(state, slot, source)

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Forgets the momentum."""
        return _restart(state, slot)


@compiled
def _init(problem: Problem, theta: Float[Array, "k q columns"]) -> State:
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


@partial(compiled, donate_argnames="state")
def _hand_over(state: State, slot: jax.Array, source: jax.Array) -> State:
    def put(array, value):
        return array.at[slot].set(value)

    theta, logits = state.theta[source], state.logits[:, source]
    return state._replace(
        theta=put(state.theta, theta),
        previous=put(state.previous, theta),
        logits=state.logits.at[:, slot].set(logits),
        previous_logits=state.previous_logits.at[:, slot].set(logits),
        gap=put(state.gap, jnp.inf),
        curvature=put(state.curvature, state.curvature[source]),
        momentum=put(state.momentum, 1),
        done=put(state.done, False),
    )


@partial(compiled, donate_argnames="state")
def _restart(state: State, slot: jax.Array) -> State:
    return state._replace(
        previous=state.previous.at[slot].set(state.theta[slot]),
        previous_logits=state.previous_logits.at[:, slot].set(state.logits[:, slot]),
        momentum=state.momentum.at[slot].set(1),
        done=state.done.at[slot].set(False),
    )


@partial(compiled, donate_argnames="state")
def _advance(
    problem: Problem,
    metric: Float[Array, " columns"],
    state: State,
    target: Float[Array, " k"],
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    return passes.steps_until_done(
        lambda state: _step(problem, metric, state, target), state, limit, stop_at_first
    )


def _step(
    problem: Problem, metric: Float[Array, " columns"], state: State, target: Float[Array, " k"]
) -> State:
    t = 0.5 * (1 + jnp.sqrt(1 + 4 * state.momentum**2))
    push = (state.momentum - 1) / t
    y = state.theta + per_problem(push) * (state.theta - state.previous)
    y_logits = state.logits + push[None, :, None, None] * (state.logits - state.previous_logits)
    loss, probabilities = passes.loss_and_probabilities(problem, y_logits)
    g = passes.gradient(problem, probabilities)
    w = y[..., 1:]
    penalty = problem.penalty
    value = loss + penalty.value(w)
    gap = gap_of_sharp(problem, w, g[..., 1:], loss)

    strength = per_problem(state.curvature) * metric[None, None, :]
    theta = y - g / strength
    theta = theta.at[..., 1:].set(penalty.prox(theta[..., 1:], strength[..., 1:]))
    move = theta - y
    ahead = passes.linear(problem, move)
    scaled = move * jnp.broadcast_to(metric[None, None, :], move.shape)
    size = dot(move, scaled)
    curvature = _largest_curvature(problem, y_logits, ahead) / jnp.where(size > 0, size, 1)
    accepted = (curvature <= state.curvature) & ~state.done
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
            jnp.maximum(0.9 * state.curvature, curvature),
            jnp.where(
                state.done,
                state.curvature,
                jnp.maximum(2 * state.curvature, 1.1 * curvature),
            ),
        ),
        momentum=jnp.where(accepted, jnp.where(uphill, 1, t), state.momentum),
        done=state.done | (finished & accepted),
    )


def _largest_curvature(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    ahead: Float[Array, "blocks k q rows"],
) -> Float[Array, " k"]:
    """Returns the larger second derivative of the mean loss at the two ends of ``ahead``."""
    mass = passes.mass(problem)

    def add(j, carry):
        a = block_of(ahead, j)
        o = block_of(logits, j)
        s = passes.weights(problem, j, mass)

        def second_derivative(o):
            p, _, _ = passes.softmax(o)
            return jnp.sum(s * passes.mean_and_variance(p, a)[1], axis=-1)

        return carry[0] + second_derivative(o), carry[1] + second_derivative(o + a)

    zero = jnp.zeros(logits.shape[1], logits.dtype)
    at_start, at_end = over_blocks(problem, add, (zero, zero))
    return jnp.maximum(at_start, at_end)
