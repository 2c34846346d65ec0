r"""Newton's direction in the orthant of the present signs.

Where no weight changes its sign, the objective is smooth: with :math:`\sigma` for the signs, it is
the loss, the squared penalty and :math:`\tau\, \sigma \cdot W`. The direction minimises the
quadratic model of that over the weights A that are in the orthant, by conjugate gradients on

.. math:: (H_{AA} + \mathrm{diag}(\rho_A))\, D_A = -(G + \rho W + \tau \sigma)_A.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, Int
from softmax_jax.solvers import passes
from softmax_jax.solvers.conjugate_gradients import conjugate_gradients
from softmax_jax.solvers.diagonal import mean_variances
from softmax_jax.solvers.methods.corner import Corner
from softmax_jax.solvers.passes import dot, wide
from softmax_jax.solvers.problem import Problem

# Lengths of a bent line that are tried, each a quarter of the one before.
_TRIES = 6


class Preconditioner(NamedTuple):
    """Approximate inverse Hessians."""

    variance: Float[Array, " columns"]
    """One for the bias, and the variances of the features."""
    blocks: Float[Array, "k q_or_0 columns columns"]
    """Inverse Hessians of single classes, if there are any."""
    damping: Float[Array, " k"]
    """Share of its diagonal that is added to the Hessian."""


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
    right = corner.projected(-corner.slope, moves)
    variance = preconditioner.variance[None, None, :]
    bends = mean_variances(problem, probabilities)[..., None] * variance
    bends = jnp.maximum(bends, jnp.finfo(theta.dtype).tiny)
    diagonal = bends + corner.diagonal
    damping = wide(preconditioner.damping) * diagonal

    def multiply(v):
        return passes.hessian_product(problem, probabilities, v) + corner.bent(v) + damping * v

    def precondition(r):
        if corner.groups is not None:
            return corner.divided(corner.groups, r, bends)
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
        rest = corner.projected(right - here.product, moves & wide(again))
        more, taken = conjugate_gradients(
            lambda v: corner.projected(multiply(v), moves),
            lambda r: corner.projected(precondition(r), moves),
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
