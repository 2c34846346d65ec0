"""Principal components of the features, in the units in which their weights are penalised."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Float
from softmax_jax.solvers import cost, passes
from softmax_jax.solvers.problem import Problem, block_of, over_blocks


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of what stands for the Hessian: components, and rows that they are estimated from."""

    core: int = 1000
    """Order of the inverse that is formed exactly."""
    leading: int = 256
    """Most components in it, and most of those that are computed where not all are."""
    steps_for_all: float = 25.0
    """Steps of the solver that all eigenvectors of the covariance may cost."""
    steps_for_leading: float = 10.0
    """Steps that the leading ones may cost, where all cost more."""
    sample: int = 8192
    """Rows that the Hessian, and the covariance, are estimated from."""
    pool: int = 65_536
    """Rows that those of the Hessian are drawn from: their component scores are kept."""

    def rank(self, d: int, q: int) -> int:
        """Returns how many components the core gets."""
        return min(d, max(self.core // q - 1, 0), self.leading)

    def components(self, n: int, d: int, q: int) -> int:
        """Returns how many components to compute: all ``d``, or as many as are worth their cost.

        All take a covariance and its eigenvectors, ``p`` of them four products with the rows and
        back: `cost` has the model. Each component beyond saves steps where the penalty is weak.
        """
        rows, step = min(n, self.sample), cost.step(n, d, q)
        if 2.0 * rows * d * d + cost.eigenvectors(d) <= self.steps_for_all * step:
            return d
        worth = self.steps_for_leading * step / (16.0 * rows * d)
        return int(min(max(worth, 1), self.leading, d - 1))

    def is_exact(self, d: int, q: int) -> bool:
        """Returns whether the core has room for all features, so that it is the Hessian itself."""
        return self.rank(d, q) == d


class Basis(NamedTuple):
    r"""Principal components of ``x / factor``, largest first; or the features as they are.

    The latter where the core has room for all of them, as it needs no basis then. For components
    the penalty is :math:`\tfrac{l_2}{2} |a|^2` of weights :math:`W = U a`, so that one basis
    diagonalises the covariance C of the features and the ridge alike: :math:`U^\top C U =
    \mathrm{diag}(v)` and :math:`U^\top F^2 U = I` for the factors F.
    """

    components: Float[Array, "d p"]
    """Directions ``U``, orthonormal once multiplied by the factors."""
    variances: Float[Array, " p"]
    """Variances ``v`` of the components."""
    ridge: Float[Array, " p"]
    """Penalty of the components, as a multiple of l2: 1, or the squares of the factors."""
    rest: Float[Array, ""]
    """Mean variance of the directions outside."""
    factor: Float[Array, " d"]
    """Factors ``F``."""
    second_moments: Float[Array, " d"]
    """Second moments of the features, which are centered."""


def basis(sizes: Sizes, problem: Problem, factor: Float[Array, " d"], q: int) -> Basis:
    """Computes the components from a sample of the rows, for ``q`` classes.

    Args:
      sizes: how many rows and components.
      problem: with features of mean zero.
      factor: ``[d]``: those of the penalty, or any other unit where nothing is penalised.
      q: the number of classes, on which it depends how many components the core has room for.
    """
    blocks = min(problem.blocks, max(2, -(-sizes.sample // problem.rows)))
    problem = problem._replace(active=jnp.minimum(blocks, problem.active))
    d, dtype = problem.d, problem.dtype
    is_exact = sizes.is_exact(d, q)
    # No component of what is hardly penalised drowns the others: a larger ridge does not hurt it.
    if not is_exact:
        factor = jnp.maximum(factor, 1e-7 * jnp.max(factor))
    unit = jnp.ones(d, dtype) if is_exact else 1 / factor

    def weighted(j):
        x = passes.features(problem, j)
        s = jnp.mean(block_of(problem.weights, j), axis=0)
        return x * jnp.broadcast_to(unit, x.shape), s[:, None]

    def add_moments(j, carry):
        x, s = weighted(j)
        return carry[0] + jnp.sum(s), carry[1] + jnp.sum(s * x * x, axis=0)

    mass, moments = over_blocks(problem, add_moments, (jnp.zeros((), dtype), jnp.zeros(d, dtype)))
    mass = jnp.where(mass > 0, mass, 1)
    moments = moments / mass
    zero = jnp.zeros((), dtype)
    if is_exact:
        return Basis(jnp.eye(d, dtype=dtype), moments, factor**2, zero, factor, moments)

    number = sizes.components(problem.blocks * problem.rows, d, q)
    if number == d:

        def add_covariance(j, carry):
            x, s = weighted(j)
            return carry + jnp.matmul(x.T, s * x, precision="highest")

        covariance = over_blocks(problem, add_covariance, jnp.zeros((d, d), dtype))
        values, vectors = jnp.linalg.eigh(covariance / mass)
        u = unit[:, None] * vectors[:, ::-1]
        values = jnp.maximum(values[::-1], 0)
        return Basis(u, values, jnp.ones(d, dtype), zero, factor, moments * factor**2)

    def multiply(v):
        def add(j, carry):
            x, s = weighted(j)
            return carry + x.T @ (s * (x @ v))

        return over_blocks(problem, add, jnp.zeros((d, v.shape[1]), dtype)) / mass

    v = jax.random.normal(jax.random.key(0), (d, number), dtype)
    for _ in range(3):
        v = jnp.linalg.qr(multiply(v))[0]
    values, turn = jnp.linalg.eigh(v.T @ multiply(v))
    values = jnp.maximum(values[::-1], 0)
    rest = jnp.maximum(jnp.sum(moments) - jnp.sum(values), 0) / (d - number)
    u = unit[:, None] * (v @ turn[:, ::-1])
    return Basis(u, values, jnp.ones(number, dtype), rest, factor, moments * factor**2)


def scores(
    sizes: Sizes, problem: Problem, components: Float[Array, "d r"]
) -> Float[Array, "blocks rows 1+r"]:
    """Returns a one and component scores of the first rows.

    The one is zero where the bias is held at zero.

    Args:
      sizes: how many rows.
      problem: with ``d`` features.
      components: ``r`` directions.
    """
    blocks = min(problem.blocks, -(-sizes.pool // problem.rows))

    def of_block(j):
        x = passes.features(problem, j)
        ones = jnp.broadcast_to(problem.intercept, (len(x), 1))
        return jnp.concatenate([ones, jnp.matmul(x, components, precision="highest")], axis=1)

    return jax.lax.map(of_block, jnp.arange(blocks))
