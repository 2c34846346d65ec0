"""Separated classes, for which the loss without a penalty has no minimum."""

import jax.numpy as jnp

from softmax_jax._annotations import Array, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


def margin(problem: Problem, theta: Float[Array, "k q columns"]) -> Float[Array, " k"]:
    """Returns margins: the least lead of a row's class in ``W x + b``.

    The classes are separated where it is above zero. It takes half a pass.
    """
    k, q, _ = theta.shape

    def least(j, margin):
        o = passes.forward(problem, theta, j)
        is_target = jnp.broadcast_to(passes.targets(problem, j, q) > 0, o.shape)
        own = jnp.min(jnp.where(is_target, o, jnp.inf), axis=1)
        other = jnp.max(jnp.where(is_target, -jnp.inf, o), axis=1)
        counts = block_of(problem.weights, j) > 0
        return jnp.minimum(margin, jnp.min(jnp.where(counts, own - other, jnp.inf), axis=-1))

    return over_blocks(problem, least, jnp.full(k, jnp.inf, theta.dtype))
