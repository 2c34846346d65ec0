r"""The diagonal of the Hessian, approximately: a number of the class times one of the feature.

.. math:: \sum_i s_i\, p_{ic} (1 - p_{ic})\, x_{ij}^2 \approx
    \Big(\sum_i s_i\, p_{ic} (1 - p_{ic})\Big) \Big(\sum_i s_i\, x_{ij}^2\Big)
"""

import jax.numpy as jnp

from softmax_jax._annotations import Array, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.placement import summed_over_devices
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


def variances(problem: Problem, sample: int) -> Float[Array, " columns"]:
    """Returns one for the bias, and the mean squares of the features in a sample of the rows.

    The features are centered.
    """
    blocks = min(problem.blocks, max(2, -(-sample // problem.rows)))
    problem = problem._replace(active=jnp.minimum(blocks, problem.active))

    def sums(problem, _):
        def add(j, carry):
            s = jnp.mean(block_of(problem.weights, j), axis=0)
            return carry[0] + jnp.sum(s), carry[1] + passes.weighted_squares(problem, s, j)

        zero = jnp.zeros((), problem.dtype)
        return over_blocks(problem, add, (zero, jnp.zeros(problem.d, problem.dtype)))

    mass, moments = summed_over_devices(sums, problem, ())
    variance = moments / jnp.where(mass > 0, mass, 1)
    # A constant feature has no gradient; any positive number will do for it.
    least = 1e-6 * jnp.max(variance) + 1e-30
    return jnp.concatenate([jnp.ones(1, variance.dtype), jnp.maximum(variance, least)])


def mean_variances(
    problem: Problem, probabilities: Float[Array, "blocks k q rows"]
) -> Float[Array, "k q"]:
    """Returns the means of ``p (1 - p)``."""

    def sums(problem, probabilities, total):
        def add(j, carry):
            p, s = block_of(probabilities, j), passes.weights(problem, j, total)[:, None]
            return carry + jnp.sum(s * p * (1 - p), axis=-1)

        zero = jnp.zeros(probabilities.shape[1:3], probabilities.dtype)
        return over_blocks(problem, add, zero)

    return summed_over_devices(sums, problem, probabilities, passes.mass(problem))
