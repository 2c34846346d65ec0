r"""Newton's method with all of the Hessian, for small problems of few parameters.

.. math:: H = \sum_i s_i\, (\mathrm{diag}(p_i) - p_i p_i^\top) \otimes \tilde x_i \tilde x_i^\top
    + \mathrm{diag}(\rho), \qquad \Delta = -H^{-1} \nabla F, \qquad \tilde x_i = (1, x_i).

Where it forms and factors H in less time than the overhead of a step takes, nothing converges in
fewer steps: near the solution each of them doubles the number of digits (Nocedal and Wright,
*Numerical Optimization*, section 3.3). The line search makes it converge from everywhere. Its
programs are smaller than those of `quasi_newton`, and compile sooner.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Int, NDArray
from softmax_jax.solvers import certificate as certificates
from softmax_jax.solvers import cost, passes
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods import line_search
from softmax_jax.solvers.methods.dual import penalised
from softmax_jax.solvers.methods.method import IterativeMethod, Method, Mixture, Setup, of_slot
from softmax_jax.solvers.methods.preconditioner import hessian
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


class State(NamedTuple):
    """State of ``k`` problems, at ``theta``."""

    theta: Float[Array, "k q columns"]
    gradient: Float[Array, "k q columns"]
    """Gradient of the objective."""
    value: Float[Array, " k"]
    """Objectives; inf before the first step."""
    gap: Float[Array, " k"]
    """Duality gaps, with a nat for what is left of the bias' gradient."""
    logits: Float[Array, "blocks k q rows"]
    """Logits, with the offset."""
    probabilities: Float[Array, "blocks k q rows"]
    decrement: Float[Array, " k"]
    """Decrease of the objective that the last step promised."""
    start: Float[Array, "k q columns"]
    """Parameters that the first step leads to, from zero, where logits take no pass."""
    done: Bool[Array, " k"]
    """Problems whose gap is small enough, or rounding all that is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newton(IterativeMethod[State]):
    """Newton's method, for l2 > 0 = l1 and few parameters: the default for small problems.

    Example:
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> print(fit(x, y, l2=0.1, method=Newton()).status)
      certified
    """

    fallback: Method | None = None
    """Method for problems that this one does not solve, if any."""
    fallback_after: int = 100
    """Passes after which it takes over."""
    rounding: float = 1e-12
    """A step that promises less than this share of the objective is taken as it is, without a
    search. The last one promises less than its square, or as much as the one before."""
    flat: float = 0.25
    """The line search ends where the slope is this share of the first one."""
    patience: int = 20
    passes_to_begin: ClassVar[int] = 0
    always_float64: bool = True
    float64_target: float = 1e-18

    def reason(self, inputs: Inputs) -> str:
        """Returns the costs of the Hessian and of a step."""
        problem = inputs.problem
        return self.reason_for(problem.blocks * problem.rows, problem.d, inputs.q)

    def reason_for(self, n: int, d: int, q: int) -> str:
        """Returns the costs of the Hessian and of a step, for these sizes."""
        hessian, step = cost.inverse_hessian(n, (1 + d) * q), cost.step(n, n * d, q)
        more = "" if hessian <= step else ", but penalties differ by orders, or it was asked for"
        return f"the Hessian takes {hessian:.1e} FLOP, the rest of a step {step:.1e}{more}"

    def suits(self, n: int, d: int, q: int) -> bool:
        """Returns whether a problem is small, and a Hessian costs no more than another step."""
        hessian_costs = cost.inverse_hessian(n, (1 + d) * q)
        return n * d * q <= self.float64_below and hessian_costs <= cost.step(n, n * d, q)

    def successor(self, inputs: Inputs) -> Method | None:
        """Returns the fallback."""
        return self.fallback

    @property
    def successor_after(self) -> float:
        """Passes after which the fallback takes over."""
        return self.fallback_after

    def prepare(
        self, inputs: Inputs, weightings: Sequence[int], dtype: DTypeLike, *, penalised: bool
    ) -> Setup:
        """Returns the problems with the chosen weightings, in float64."""
        problem = inputs.problem
        if list(weightings) != list(range(problem.weights.shape[1])):
            problem = problem._replace(weights=problem.weights[:, np.array(weightings)])
        return Setup(problem, problem, inputs.units, ())

    def init(self, problem: Problem, aids: tuple[()], theta: ArrayLike) -> State:
        """Returns the state at zero, about to step to ``theta``: no pass."""
        return blank(problem, np.asarray(theta))

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
        """Lets a new problem in ``slot`` begin where that of ``source`` stands."""
        state = jax.tree.map(np.array, state)
        i, j = np.asarray(slot).item(), np.asarray(source).item()
        begun = blank(problem, state.theta[[j] * len(state.theta)])
        for name, axis in zip(State._fields, _AXES, strict=True):
            at = (slice(None),) * axis + (i,)
            getattr(state, name)[at] = getattr(begun, name)[at]
        return state

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Tries again from where the problem stands."""
        done: Any = np.array(state.done)  # see `blank`
        done[np.asarray(slot)] = False
        return state._replace(done=done)

    def certify(
        self,
        setup: Setup,
        exact: Problem,
        theta: Array | NDArray,
        dual: Mixture | None,
        slot: ArrayLike,
        weighting: ArrayLike,
        *,
        most: float,
    ) -> tuple[Certificate, int]:
        """Certifies the problem of a slot: with its bias as it is, if that is the best one."""
        tried = 0
        if most >= 2:
            certificate = jax.device_get(_certified(exact, theta, slot, weighting))
            if certificate.gap[0] < certificate.value[0]:
                return certificate, 1
            tried = 1
        certificate, taken = super().certify(setup, exact, theta, dual, slot, weighting, most=most)
        return certificate, tried + taken


# Axes of the problems in each part of the state.
_AXES = (0, 0, 0, 0, 1, 1, 0, 0, 0)


def blank(problem: Problem, theta: Float[Array | NDArray, "k q columns"]) -> State:
    """Returns the state at zero, about to step to ``theta``.

    Its arrays are of NumPy, for which nothing is compiled; programs return them as those of JAX.
    """
    k, q, _ = theta.shape
    zero, unknown = np.zeros(theta.shape), np.full(k, np.inf)
    logits = np.zeros((problem.blocks, k, q, problem.rows))
    if problem.offset is not None:
        logits += np.asarray(problem.offset)[:, None]
    parts: dict[str, Any] = {
        "theta": zero,
        "gradient": zero,
        "value": unknown,
        "gap": unknown,
        "logits": logits,
        "probabilities": np.zeros_like(logits),
        "decrement": unknown,
        "start": theta,
        "done": np.zeros(k, bool),
    }
    return State(**parts)


def steps(
    method: Newton,
    problem: Problem,
    state: State,
    target: Float[Array, " k"],
    limit: ArrayLike,
    stop_at_first: ArrayLike,
) -> tuple[State, Int[Array, " k"]]:
    """Takes up to ``limit`` steps; returns how many each problem took."""
    return passes.steps_until_done(
        lambda state: _step(method, problem, state, target), state, limit, stop_at_first
    )


_advance = partial(compiled, static_argnames="method")(steps)


def _step(method: Newton, problem: Problem, state: State, target: jax.Array) -> State:
    is_first = jnp.isinf(state.value)
    direction, decrement = line_search.guarded(
        state.gradient, _direction(problem, state), state.start, is_first
    )
    is_small = ~is_first & (decrement <= method.rounding * state.value)
    ahead = passes.linear(problem, direction)
    line = line_search.Line(
        theta=state.theta,
        logits=state.logits,
        value=state.value,
        gradient=state.gradient,
        direction=direction,
        ahead=ahead,
        step=jnp.ones_like(decrement),
        is_fixed=is_first | is_small,
        is_done=state.done,
    )
    t, loss, probabilities = line_search.search(problem, line, flat=method.flat)
    theta = state.theta + per_problem(t) * direction
    value, gradient = penalised(problem, theta, loss, passes.gradient(problem, probabilities))
    g = gradient[..., 1:]
    gap = problem.penalty.dual_inner(g, g) / 2 + jnp.sum(jnp.abs(gradient[..., 0]), axis=1)
    is_rounding = is_small & (decrement > state.decrement / 4)
    is_last = (decrement <= method.rounding**2 * value) | is_rounding | ((t == 0) & ~is_first)
    return State(
        theta=theta,
        gradient=gradient,
        value=value,
        gap=gap,
        logits=state.logits + t[None, :, None, None] * ahead,
        probabilities=probabilities,
        decrement=decrement,
        start=state.start,
        done=state.done | (gap <= target * value) | is_last,
    )


def _direction(problem: Problem, state: State) -> Float[Array, "k q columns"]:
    """Returns Newton's direction."""
    h = _hessians(problem, state.probabilities)
    k, q, columns = state.theta.shape
    # There is no curvature along one number added to the bias of all classes that have weight.
    bias = jnp.einsum("kaa->ka", h)[:, ::columns]
    counts = (bias > 0).astype(h.dtype)
    rarest = jnp.min(bias, axis=1, where=bias > 0, initial=1)
    shift = rarest[:, None, None] * counts[:, :, None] * counts[:, None, :]
    h = h.at[:, ::columns, ::columns].add(shift)
    ridge = jnp.broadcast_to(problem.penalty.ridge, (k, 1, columns - 1))
    ridge = jnp.concatenate([jnp.zeros((k, 1, 1), h.dtype), ridge], axis=2)
    ridge = jnp.broadcast_to(ridge, (k, q, columns)).reshape(k, -1)
    # Scaled to a unit diagonal, as features differ by orders. What has no curvature does not
    # move.
    diagonal = jnp.einsum("kaa->ka", h) + ridge
    is_curved = diagonal > jnp.finfo(h.dtype).tiny
    scale = jnp.where(is_curved, 1 / jnp.sqrt(jnp.where(is_curved, diagonal, 1)), 0)
    h = scale[:, :, None] * h * scale[:, None, :]
    on_diagonal = jnp.where(is_curved, scale * ridge * scale, 1) + 10 * jnp.finfo(h.dtype).eps
    h = h + on_diagonal[:, :, None] * jnp.eye(q * columns, dtype=h.dtype)[None]
    factor = jnp.linalg.cholesky(h, symmetrize_input=False)
    right = (scale * state.gradient.reshape(k, -1))[..., None]
    for is_transposed in (False, True):
        right = jax.lax.linalg.triangular_solve(
            factor, right, left_side=True, lower=True, transpose_a=is_transposed
        )
    return -(scale * right[..., 0]).reshape(k, q, columns)


def _hessians(
    problem: Problem, probabilities: Float[Array, "blocks k q rows"]
) -> Float[Array, "k m m"]:
    """Returns Hessians of the mean loss, class by class, each with its bias in front."""
    _, k, q, rows = probabilities.shape
    total = passes.mass(problem)
    ones = jnp.broadcast_to(problem.intercept, (rows, 1))

    def add(j, h):
        x = jnp.concatenate([ones, passes.features(problem, j)], axis=1)
        p, s = block_of(probabilities, j), passes.weights(problem, j, total)
        s = jnp.broadcast_to(s, (k, rows))
        return h + jax.vmap(lambda p, s: hessian(x, p.T, s))(p, s)

    order = q * (1 + problem.d)
    return over_blocks(problem, add, jnp.zeros((k, order, order), probabilities.dtype))


@compiled
def _certified(
    exact: Problem, theta: Array | NDArray, slot: ArrayLike, weighting: ArrayLike
) -> Certificate:
    alone = exact._replace(weights=of_slot(exact.weights, weighting, 1))
    return certificates.certify(alone, of_slot(theta, slot, 0), None, is_best_bias=True)
