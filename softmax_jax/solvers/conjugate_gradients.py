"""Conjugate gradients, for several systems at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Float, Int
from softmax_jax.solvers.passes import dot, per_problem


def conjugate_gradients(
    multiply: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
    precondition: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
    right: Float[Array, "k q columns"],
    enough: Float[Array, " k"],
    taken: Int[Array, " k"],
    most: Int[Array, " k"],
) -> tuple[Float[Array, "k q columns"], Int[Array, " k"]]:
    """Solves systems by preconditioned conjugate gradients.

    Args:
      multiply: products with the matrices.
      precondition: products with their approximate inverses.
      right: right-hand sides.
      enough: squared norms of the residual, in that of the preconditioner, to stop at.
      taken: products so far.
      most: products to stop at.

    Returns:
      The solutions, and the products so far.
    """

    def unsolved(size, taken):
        return (size > enough) & (taken < most)

    def go_on(carry):
        *_, size, taken = carry
        return jnp.any(unsolved(size, taken))

    def one(carry):
        x, rest, way, size, taken = carry
        own = unsolved(size, taken)
        product = multiply(way)
        curvature = dot(way, product)
        length = jnp.where(own & (curvature > 0), size / jnp.where(curvature > 0, curvature, 1), 0)
        x, rest = x + per_problem(length) * way, rest - per_problem(length) * product
        preconditioned = precondition(rest)
        # Where there is no curvature there is no more to be found.
        after = jnp.where(curvature > 0, dot(rest, preconditioned), 0)
        way = jnp.where(
            per_problem(own),
            preconditioned + per_problem(after / jnp.where(size > 0, size, 1)) * way,
            way,
        )
        return x, rest, way, jnp.where(own, after, size), taken + own

    way = precondition(right)
    start = (jnp.zeros_like(right), right, way, dot(right, way), taken)
    x, _, _, _, taken = jax.lax.while_loop(go_on, one, start)
    return x, taken
