r"""Newton's direction in the orthant of the present signs.

Where no weight changes its sign, the objective is smooth: with :math:`\sigma` for the signs, it is
the loss, the squared penalty and :math:`\tau\, \sigma \cdot W`. The direction minimises the
quadratic model of that over the weights A that are in the orthant, by conjugate gradients on

.. math:: (H_{AA} + \mathrm{diag}(\rho_A))\, D_A = -(G + \rho W + \tau \sigma)_A.

Limits of the weights make it a box; zero is a limit like any other.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, Int
from softmax_jax.solvers import passes
from softmax_jax.solvers.conjugate_gradients import conjugate_gradients
from softmax_jax.solvers.diagonal import mean_variances
from softmax_jax.solvers.methods.preconditioner import sample
from softmax_jax.solvers.methods.proximal_newton import common_set_apart
from softmax_jax.solvers.passes import dot, wide
from softmax_jax.solvers.problem import NEVER, Problem

# Lengths of a bent line that are tried, each a quarter of the one before.
_TRIES = 6


class Corner(NamedTuple):
    """The orthant that ``k`` problems are in, and the slope of the objective there."""

    theta: Float[Array, "k q columns"]
    sign: Float[Array, "k q columns"]
    """Signs; 0 for what is not penalised by its size."""
    moves: Bool[Array, "k q columns"]
    """Parameters that are in it: those that are not zero, or would not stay so."""
    low: Float[Array, "k q columns"]
    """Least parameters in it: 0 or a limit, or -inf."""
    high: Float[Array, "k q columns"]
    """Largest ones, likewise."""
    slope: Float[Array, "k q columns"]
    """Gradient of the objective for these signs."""
    ridge: Float[Array, "k q_or_1 columns"]

    def reached(self, d: Float[Array, "k q columns"]) -> Float[Array, "k q columns"]:
        """Returns the displacement to where ``d`` leads, or to the nearest point of the orthant."""
        there = self.theta + d
        d = jnp.where(there > self.low, d, self.low - self.theta)
        return jnp.where(there < self.high, d, self.high - self.theta)

    def is_inside(self, d: Float[Array, "k q columns"]) -> Bool[Array, "k q columns"]:
        """Returns which parameters ``d`` leaves off the sides of the orthant."""
        there = self.theta + d
        return (there > self.low) & (there < self.high)


class Preconditioner(NamedTuple):
    """Approximate inverse Hessians."""

    variance: Float[Array, " columns"]
    """One for the bias, and the variances of the features."""
    blocks: Float[Array, "k q_or_0 columns columns"]
    """Inverse Hessians of single classes, if there are any."""
    damping: Float[Array, " k"]
    """Share of its diagonal that is added to the Hessian."""


def of_columns(
    problem: Problem, of_weights: Float[Array, "k q_or_1 _"], of_bias: float = 0.0
) -> Float[Array, "k q_or_1 columns"]:
    """Returns numbers for all columns of the parameters, given those of the weights."""
    k, classes, _ = of_weights.shape
    of_weights = jnp.broadcast_to(of_weights, (k, classes, problem.d))
    bias = jnp.full((k, classes, 1), of_bias, of_weights.dtype)
    return jnp.concatenate([bias, of_weights], axis=2)


def without_common_part(
    problem: Problem, theta: Float[Array, "k q columns"]
) -> Float[Array, "k q columns"]:
    """Returns parameters with the best number added to the weights of each feature.

    Where classes differ in their penalty that is not looked for.
    """
    if not problem.penalty.is_same_for_classes:
        return theta
    ridge = of_columns(problem, problem.penalty.ridge)[:, 0]
    threshold = of_columns(problem, problem.penalty.threshold)[:, 0]
    counts = jnp.broadcast_to(theta[..., :1] > NEVER / 2, theta.shape)
    return jax.vmap(common_set_apart)(theta, counts, threshold, ridge)


def corner_of(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    gradient: Float[Array, "k q columns"],
    share: Float[Array, " k"],
) -> Corner:
    r"""Returns the orthant at ``theta``, where the mean loss has this gradient.

    Weights leave zero if :math:`|G| - \tau` is more than a ``share`` of the largest such excess:
    others would often come back once these have moved.
    """
    penalty = problem.penalty
    ridge = of_columns(problem, penalty.ridge)
    threshold = jnp.broadcast_to(of_columns(problem, penalty.threshold), theta.shape)
    lower, upper = _limits(problem, theta)
    g = gradient + jnp.broadcast_to(ridge, theta.shape) * theta
    is_free = threshold == 0
    may_enter = (theta == 0) & ~is_free & jnp.where(g > 0, lower < 0, upper > 0)
    excess = jnp.where(may_enter, jnp.abs(g) - threshold, 0)
    enters = (excess > 0) & (excess > wide(share) * jnp.max(excess, axis=(1, 2), keepdims=True))
    sign = jnp.where(is_free, 0, jnp.where(enters, -jnp.sign(g), jnp.sign(theta)))
    slope = g + threshold * sign
    low = jnp.where(sign > 0, jnp.maximum(lower, 0), lower)
    high = jnp.where(sign < 0, jnp.minimum(upper, 0), upper)
    is_held = ((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0))
    # The bias of a class of no weight stays where it is, and one that is held at zero does.
    moves = ((theta != 0) | enters | is_free) & ~is_held & (theta > NEVER / 2)
    moves = moves.at[..., 0].set(moves[..., 0] & (problem.intercept > 0))
    return Corner(theta, sign, moves, low, high, slope, ridge)


def _limits(
    problem: Problem, theta: Float[Array, "k q columns"]
) -> tuple[Float[Array, "k q columns"], Float[Array, "k q columns"]]:
    """Returns the limits of all parameters, infinite where there are none."""

    def of(limit, none):
        if limit is None:
            return jnp.full_like(theta, none)
        of_weights = jnp.broadcast_to(limit, (len(theta), *limit.shape))
        return jnp.broadcast_to(of_columns(problem, of_weights, none), theta.shape)

    return of(problem.penalty.lower, -jnp.inf), of(problem.penalty.upper, jnp.inf)


def newton_direction(
    problem: Problem,
    corner: Corner,
    probabilities: Float[Array, "blocks k q rows"],
    preconditioner: Preconditioner,
    most: Int[Array, " k"],
    *,
    rounds: int,
    accuracy: float,
) -> tuple[Float[Array, "k q columns"], Int[Array, " k"]]:
    """Returns the way to where Newton's method leads in the orthant, and the products it took.

    Args:
      problem: with strengths.
      corner: the orthant.
      probabilities: those at its parameters.
      preconditioner: for conjugate gradients.
      most: products with the Hessian at most, ``[k]``; 0 for problems to leave alone.
      rounds: times that what leaves the orthant is set to zero, and the rest solved for anew.
      accuracy: share of the residual, in the norm of the preconditioner, to stop at.
    """
    theta, moves = corner.theta, corner.moves
    right = jnp.where(moves, -corner.slope, 0)
    ridge = jnp.broadcast_to(corner.ridge, theta.shape)
    variance = preconditioner.variance[None, None, :]
    bends = mean_variances(problem, probabilities)[..., None] * variance
    diagonal = jnp.maximum(bends, jnp.finfo(theta.dtype).tiny) + ridge
    more = ridge + wide(preconditioner.damping) * diagonal

    def multiply(v):
        return passes.hessian_product(problem, probabilities, v) + more * v

    def precondition(r):
        if preconditioner.blocks.shape[1] == 0:
            return r / diagonal
        return jnp.einsum("kqab,kqb->kqa", preconditioner.blocks, r, precision="highest")

    def go_on(carry):
        *_, leaves, taken, i = carry
        return jnp.any(leaves & (taken < most)) & (i < rounds)

    def one_round(carry):
        # What has left the orthant stays at zero, and the others make up for it.
        here, moves, leaves, taken, i = carry
        again = leaves & (taken < most)
        rest = jnp.where(moves & wide(again), right - here.product, 0)
        more, taken = conjugate_gradients(
            partial(_masked, multiply, moves),
            partial(_masked, precondition, moves),
            rest,
            accuracy**2 * dot(right, precondition(right)),
            taken,
            # One is left for the model where weights leave.
            most - 1,
        )
        leaves = jnp.any(moves & (corner.reached(here.d + more) != here.d + more), axis=(1, 2))
        there, tries = jax.lax.cond(
            jnp.any(leaves & again),
            lambda: _lower_within(multiply, corner.reached, right, here, more, again, most - taken),
            lambda: (here._replace(d=here.d + more), jnp.zeros_like(taken)),
        )
        taken = taken + tries
        # Where all that is bent away does not lead down, the steepest way does.
        stuck = again & leaves & ~(there.value < here.value)
        tries_again = stuck & (taken < most)
        there, tries = jax.lax.cond(
            jnp.any(tries_again),
            lambda: _lower_within(
                multiply, corner.reached, right, there, rest / diagonal, tries_again, most - taken
            ),
            lambda: (there, jnp.zeros_like(taken)),
        )
        leaves = leaves & (~stuck | (there.value < here.value))
        moves = moves & corner.is_inside(there.d)
        return there, moves, leaves, taken + tries, i + 1

    zero = jnp.zeros_like(theta)
    none = jnp.zeros(len(most), jnp.int32)
    start = (_Model(zero, zero, zero[:, 0, 0]), moves, most > 0, none, 0)
    there, _, _, taken, _ = jax.lax.while_loop(go_on, one_round, start)
    return there.d, taken


class _Model(NamedTuple):
    """The quadratic model of ``k`` objectives at a displacement."""

    d: Float[Array, "k q columns"]
    product: Float[Array, "k q columns"]
    """The Hessian times ``d``."""
    value: Float[Array, " k"]


def _lower_within(
    multiply: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
    within: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
    right: Float[Array, "k q columns"],
    here: _Model,
    more: Float[Array, "k q columns"],
    again: Bool[Array, " k"],
    most: Int[Array, " k"],
) -> tuple[_Model, Int[Array, " k"]]:
    """Goes along the bent line into the orthant, for as far as the model falls.

    It takes ``most`` products at most.

    Returns:
      The model there, and the products it took.
    """

    def at(t):
        d = within(here.d + wide(t) * more)
        product = multiply(d)
        return _Model(d, product, dot(d, product) / 2 - dot(right, d))

    def fails(t, there):
        return again & (t > 0) & ~(there.value < here.value)

    def go_on(carry):
        t, there, _ = carry
        return jnp.any(fails(t, there))

    def shorten(carry):
        t, there, tries = carry
        own = fails(t, there)
        goes_on = tries < jnp.minimum(_TRIES, most)
        # Where it goes on no longer it is back at the start, which is no product of its own.
        t = jnp.where(own, jnp.where(goes_on, t / 4, 0), t)
        return t, at(t), tries + (own & goes_on)

    whole = again.astype(more.dtype)
    start = (whole, at(whole), again.astype(jnp.int32))
    _, there, tries = jax.lax.while_loop(go_on, shorten, start)
    stays = wide(~again)
    return (
        _Model(
            jnp.where(stays, here.d, there.d),
            jnp.where(stays, here.product, there.product),
            jnp.where(again, there.value, here.value),
        ),
        tries,
    )


def _masked(
    multiply: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
    moves: Bool[Array, "k q columns"],
    v: Float[Array, "k q columns"],
) -> Float[Array, "k q columns"]:
    return jnp.where(moves, multiply(v), 0)


def renewed_blocks(
    problem: Problem,
    rows: Float[Array, "pool rows columns"],
    size: int,
    logits: Float[Array, "blocks k q rows"],
    corner: Corner,
    blocks: Float[Array, "k q columns columns"],
    renewed: Bool[Array, " k"],
) -> Float[Array, "k q columns columns"]:
    """Returns inverse Hessians of single classes, new ones where they are to be renewed.

    Args:
      problem: the problem.
      rows: a one and the features of the pool of rows.
      size: rows that a Hessian is estimated from.
      logits: those of all rows.
      corner: the orthant.
      blocks: the old ones.
      renewed: which to renew.
    """
    pool, weightings = len(rows), problem.weights.shape[1]
    is_active = (jnp.arange(pool) < problem.active).astype(problem.dtype)

    def made(i):
        seen = problem.weights[:pool, jnp.minimum(i, weightings - 1)] * is_active[:, None]
        return jax.lax.cond(
            renewed[i],
            lambda: _block_inverses(
                *sample(size, rows, logits[:pool, i], seen), corner.moves[i], corner.ridge[i]
            ),
            lambda: blocks[i],
        )

    return jax.lax.map(made, jnp.arange(len(renewed)))


def _block_inverses(
    z: Float[Array, "n columns"],
    p: Float[Array, "n q"],
    s: Float[Array, " n"],
    moves: Bool[Array, "q columns"],
    ridge: Float[Array, "q_or_1 columns"],
) -> Float[Array, "q columns columns"]:
    r"""Returns inverses of :math:`Z^\top \mathrm{diag}(s\, p_c (1 - p_c)) Z` for each class.

    Parameters that do not move are not coupled to others.
    """
    curvature = (s[:, None] * p * (1 - p)).T
    h = jnp.matmul((curvature[:, :, None] * z[None]).transpose(0, 2, 1), z, precision="highest")
    diagonal = jnp.einsum("qaa->qa", h) + jnp.broadcast_to(ridge, moves.shape)
    bends = diagonal > jnp.finfo(h.dtype).tiny
    scale = jnp.where(bends, 1 / jnp.sqrt(jnp.where(bends, diagonal, 1)), 0)
    scaled = scale[:, :, None] * h * scale[:, None, :]
    coupled = moves[:, :, None] & moves[:, None, :] & ~jnp.eye(len(ridge[0]), dtype=bool)[None]
    one = (
        jnp.where(coupled, scaled, 0)
        + (1 + 100 * jnp.finfo(h.dtype).eps) * jnp.eye(len(ridge[0]), dtype=h.dtype)[None]
    )
    factor = jnp.linalg.cholesky(one, symmetrize_input=False)
    root = jax.lax.linalg.triangular_solve(
        factor,
        jnp.einsum("qa,ab->qab", scale, jnp.eye(len(ridge[0]), dtype=h.dtype)),
        left_side=True,
        lower=True,
    )
    found = jnp.matmul(root.transpose(0, 2, 1), root, precision="highest")
    alone = jnp.einsum("qa,ab->qab", scale**2, jnp.eye(len(ridge[0]), dtype=h.dtype))
    return jnp.where(jnp.all(jnp.isfinite(found), axis=(1, 2), keepdims=True), found, alone)
