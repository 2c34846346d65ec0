r"""Newton's direction in the orthant of the present signs.

Where no weight changes its sign, the objective is smooth: with :math:`\sigma` for the signs, it is
the loss, the squared penalty and :math:`\tau\, \sigma \cdot W`. The direction minimises the
quadratic model of that over the weights A that are in the orthant, by conjugate gradients on

.. math:: (H_{AA} + \mathrm{diag}(\rho_A))\, D_A = -(G + \rho W + \tau \sigma)_A.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, Int
from softmax_jax.solvers import passes
from softmax_jax.solvers.conjugate_gradients import conjugate_gradients
from softmax_jax.solvers.diagonal import mean_variances
from softmax_jax.solvers.methods.corner import Corner
from softmax_jax.solvers.passes import dot, per_problem
from softmax_jax.solvers.problem import Problem

# Lengths of a line that are tried, each a quarter of the one before.
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
    multiply, precondition, diagonal = _system(problem, corner, probabilities, preconditioner)
    right = corner.projected(-corner.slope, corner.moves)
    enough = accuracy**2 * dot(right, precondition(right))

    def go_on(carry):
        *_, leaves, taken, i = carry
        return jnp.any(leaves & (taken < most)) & (i < rounds)

    def one_round(carry):
        # What has left the orthant stays at zero, and the others make up for it.
        here, moves, leaves, taken, i = carry
        again = leaves & (taken < most)
        rest = corner.projected(right - here.product, moves & per_problem(again))
        more, taken = conjugate_gradients(
            lambda v: corner.projected(multiply(v), moves),
            lambda r: corner.projected(precondition(r), moves),
            rest,
            enough,
            taken,
            # One is left for the model where weights leave.
            most - 1,
        )
        straight = here.d + more
        leaves = jnp.any(moves & (corner.reached(straight) != straight), axis=(1, 2))
        # Where the way, projected onto the orthant, does not lead down, the steepest one does.
        projected, is_lower, tries = _lower_within(
            multiply, corner.reached, right, here, (more, rest / diagonal), leaves, most - taken
        )
        there = projected._replace(d=jnp.where(per_problem(leaves), projected.d, straight))
        moves = moves & corner.is_inside(there.d)
        return there, moves, leaves & is_lower, taken + tries, i + 1

    zero = jnp.zeros_like(corner.theta)
    none = jnp.zeros(len(most), jnp.int32)
    start = (_Model(zero, zero, zero[:, 0, 0]), corner.moves, most > 0, none, 0)
    there, _, _, taken, _ = jax.lax.while_loop(go_on, one_round, start)
    return there.d, taken


_Map: TypeAlias = Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]]


def _system(
    problem: Problem,
    corner: Corner,
    probabilities: Float[Array, "blocks k q rows"],
    preconditioner: Preconditioner,
) -> tuple[_Map, _Map, Float[Array, "k q columns"]]:
    """Returns products with the Hessian, and with its approximate inverse, and its diagonal."""
    variance = preconditioner.variance[None, None, :]
    of_loss = mean_variances(problem, probabilities)[..., None] * variance
    of_loss = jnp.maximum(of_loss, jnp.finfo(variance.dtype).tiny)
    diagonal = of_loss + corner.diagonal
    damping = per_problem(preconditioner.damping) * diagonal

    def multiply(v):
        return (
            passes.hessian_product(problem, probabilities, v)
            + corner.hessian_product(v)
            + damping * v
        )

    def precondition(r):
        if corner.groups is not None:
            return corner.divided(corner.groups, r, of_loss)
        if preconditioner.blocks.shape[1] == 0:
            return r / diagonal
        return jnp.einsum("kqab,kqb->kqa", preconditioner.blocks, r, precision="highest")

    return multiply, precondition, diagonal


class _Model(NamedTuple):
    """The quadratic model of ``k`` objectives at a displacement."""

    d: Float[Array, "k q columns"]
    product: Float[Array, "k q columns"]
    """The Hessian times ``d``."""
    value: Float[Array, " k"]


def _lower_within(
    multiply: _Map,
    within: _Map,
    right: Float[Array, "k q columns"],
    here: _Model,
    ways: tuple[Float[Array, "k q columns"], Float[Array, "k q columns"]],
    tried: Bool[Array, " k"],
    most: Int[Array, " k"],
) -> tuple[_Model, Bool[Array, " k"], Int[Array, " k"]]:
    """Goes along a line, projected onto the orthant, until the model is lower: one of two ``ways``.

    Each length that is tried takes a product, ``most`` at most.

    Returns:
      The model there, whether it is lower, and the products it took.
    """

    def fails(is_lower, tries):
        return tried & ~is_lower & (tries < jnp.minimum(most, len(ways) * _TRIES))

    def go_on(carry):
        _, is_lower, tries = carry
        return jnp.any(fails(is_lower, tries))

    def one(carry):
        there, is_lower, tries = carry
        own = fails(is_lower, tries)
        way = jnp.where(per_problem(tries < _TRIES), *ways)
        t = 0.25 ** (tries % _TRIES).astype(right.dtype)
        d = within(here.d + per_problem(t) * way)
        product = multiply(d)
        value = dot(d, product) / 2 - dot(right, d)
        lower = own & (value < here.value)
        there = _Model(
            jnp.where(per_problem(lower), d, there.d),
            jnp.where(per_problem(lower), product, there.product),
            jnp.where(lower, value, there.value),
        )
        return there, is_lower | lower, tries + own

    none = jnp.zeros(len(tried), jnp.int32)
    return jax.lax.while_loop(go_on, one, (here, jnp.zeros_like(tried), none))
