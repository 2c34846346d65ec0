r"""Distributions for a bound where some weights are not penalised at all.

For a bound by Fenchel's duality, the residuals :math:`R = S (P - Y)` have to be orthogonal to the
features of such weights, A, as to the ones of the bias. Near the minimum they nearly are, with
:math:`G = X^\top R`. Steps of Newton's method on these weights alone take that away,

.. math:: p_i' \propto p_i \exp(-x_i^\top \Delta), \qquad H_{AA} \Delta_A = G_A,

up to rounding. Only P moves, the weights that are certified stay.
"""

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.conjugate_gradients import conjugate_gradients
from softmax_jax.solvers.diagonal import mean_variances, variances
from softmax_jax.solvers.passes import dot, over_classes, per_problem
from softmax_jax.solvers.problem import Problem, block_of, over_blocks, put

# Products with the Hessian for a tilt, and tilts.
_PRODUCTS, _TILTS = 300, 20


def balanced(
    problem: Problem,
    probabilities: Float[Array, "blocks k q rows"],
    is_free: Bool[Array, "k q columns"],
) -> Float[Array, "blocks k q rows"]:
    """Returns distributions near ``probabilities`` whose gradient is zero where ``is_free``.

    They are tilted for as long as that halves what is left. A product with the Hessian is a pass.
    """
    variance = variances(problem, problem.blocks * problem.rows)[None, None, :]

    def left(p):
        g = jnp.where(is_free, passes.gradient(problem, p), 0)
        return g, jnp.sum(jnp.abs(g), axis=(1, 2))

    def go_on(carry):
        _, _, size, last, i = carry
        return jnp.any(size < last / 2) & (i < _TILTS)

    def tilt(carry):
        p, g, size, _, i = carry
        bends = mean_variances(problem, p)[..., None] * variance
        tilted = _tilted(problem, p, _direction(problem, p, g, bends, is_free))
        rest, smaller = left(tilted)
        falls = smaller < size
        tilted = jnp.where(falls[None, :, None, None], tilted, p)
        g = jnp.where(per_problem(falls), rest, g)
        return tilted, g, jnp.where(falls, smaller, size), size, i + 1

    g, size = left(probabilities)
    unknown = jnp.full_like(size, jnp.inf)
    return jax.lax.while_loop(go_on, tilt, (probabilities, g, size, unknown, 0))[0]


def _direction(
    problem: Problem,
    probabilities: Float[Array, "blocks k q rows"],
    g: Float[Array, "k q columns"],
    bends: Float[Array, "k q columns"],
    is_free: Bool[Array, "k q columns"],
) -> Float[Array, "k q columns"]:
    """Returns :math:`H_{AA}^{-1} G_A`."""

    def multiply(v):
        return jnp.where(is_free, passes.hessian_product(problem, probabilities, v), 0)

    def precondition(r):
        return r / jnp.maximum(bends, jnp.finfo(r.dtype).tiny)

    enough = 1e-10 * dot(g, precondition(g))
    none = jnp.zeros(len(g), jnp.int32)
    return conjugate_gradients(multiply, precondition, g, enough, none, none + _PRODUCTS)[0]


def _tilted(
    problem: Problem,
    probabilities: Float[Array, "blocks k q rows"],
    direction: Float[Array, "k q columns"],
) -> Float[Array, "blocks k q rows"]:
    ahead = passes.linear(problem, direction)

    def add(j, tilted):
        p, a = block_of(probabilities, j), block_of(ahead, j)
        raised = p * jnp.exp(jnp.min(a, axis=1, keepdims=True) - a)
        return put(tilted, raised / over_classes(raised)[:, None], j)

    return over_blocks(problem, add, probabilities)
