r"""Distributions for a bound where some weights are not penalised at all.

For a bound by Fenchel's duality, the residuals :math:`R = S (P - Y)` have to be orthogonal to the
features of such weights, A, as to the ones of the bias. Near the minimum they nearly are, with
:math:`G = X^\top R`. In first order the logits :math:`X \Delta` take that away,

.. math:: p_i' = p_i - p_i (x_i^\top \Delta - p_i \cdot x_i^\top \Delta), \qquad
    H_{AA} \Delta_A = G_A,

and as it is linear in P, nothing of it is left but rounding. The rows still sum to one.
"""

import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.conjugate_gradients import conjugate_gradients
from softmax_jax.solvers.diagonal import mean_variances, variances
from softmax_jax.solvers.passes import dot, over_classes
from softmax_jax.solvers.problem import Problem, block_of, over_blocks, put

# Products with the Hessian: many, as the precision of a certificate is at stake.
_PRODUCTS = 2000


def balanced(
    problem: Problem,
    probabilities: Float[Array, "blocks k q rows"],
    is_free: Bool[Array, "k q columns"],
) -> Float[Array, "blocks k q rows"]:
    """Returns distributions near ``probabilities`` whose gradient is zero where ``is_free``.

    A pass for each product with the Hessian. They may be negative where it was not small before.
    """
    g = jnp.where(is_free, passes.gradient(problem, probabilities), 0)
    variance = variances(problem, problem.blocks * problem.rows)
    bends = mean_variances(problem, probabilities)[..., None] * variance[None, None, :]

    def multiply(v):
        return jnp.where(is_free, passes.hessian_product(problem, probabilities, v), 0)

    def precondition(r):
        return r / jnp.maximum(bends, jnp.finfo(r.dtype).tiny)

    enough = (4 * jnp.finfo(g.dtype).eps) ** 2 * jnp.maximum(dot(g, precondition(g)), 1e-8)
    none = jnp.zeros(len(g), jnp.int32)
    delta, _ = conjugate_gradients(multiply, precondition, g, enough, none, none + _PRODUCTS)
    ahead = passes.linear(problem, delta)

    def add(j, tilted):
        p, a = block_of(probabilities, j), block_of(ahead, j)
        return put(tilted, p - p * (a - over_classes(p * a)[:, None]), j)

    return over_blocks(problem, add, probabilities)
