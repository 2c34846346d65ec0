"""Principal components of the features, in the units in which their weights are penalised."""

import bisect
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Float, Integer
from softmax_jax.solvers import cost, passes
from softmax_jax.solvers.placement import summed_over_devices
from softmax_jax.solvers.problem import Problem, block_of, over_blocks
from softmax_jax.solvers.sparse import SparseRows

# Products with the covariance, in which randomised subspace iteration finds components.
_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of what stands for the Hessian: components, and rows that they are estimated from."""

    core: int = 1000
    """Order of the inverse that is formed exactly, at most."""
    steps_for_core: float = 8.0
    """Steps of the solver that forming it may cost; inf takes `core` as it is."""
    leading: int = 256
    """Most components in it, and most of those that are computed where not all are."""
    steps_for_all: float = 25.0
    """Steps of the solver that all eigenvectors of the covariance may cost."""
    steps_for_leading: float = 10.0
    """Steps that the leading ones may cost, where all cost more."""
    steps_for_sparse: float = 1.0
    """The same of sparse rows: those of texts have no few directions that stand out."""
    sample: int = 8192
    """Rows that the Hessian, and the covariance, are estimated from."""
    steps_for_sample: float = 1.0
    """Steps that the Hessian of all features may cost, from a larger sample."""
    pool: int = 65_536
    """Rows that those of the Hessian are drawn from: their component scores are kept."""

    def decided(self, problem: Problem, q: int) -> "Sizes":
        """Returns these sizes with the order of the core, and components, worth their cost."""
        budget = self.steps_for_core * step_of(problem, q)
        rows = min(problem.blocks * problem.rows, self.sample)
        orders = range(1, self.core + 1)
        order = bisect.bisect_right(orders, budget, key=partial(cost.inverse_hessian, rows))
        sizes = dataclasses.replace(self, core=order)
        if sizes.is_exact(problem.d, q):
            # It needs no components. What its steps leave is the error of the sample.
            samples = range(self.sample, self.pool + 1, self.sample)
            most = self.steps_for_sample * step_of(problem, q)
            of_rows = partial(cost.inverse_hessian, order=(1 + problem.d) * q)
            number = bisect.bisect_right(samples, most, key=of_rows)
            return dataclasses.replace(sizes, sample=self.sample * max(number, 1))
        leading = min(sizes.components(problem, q), self.leading)
        return dataclasses.replace(sizes, leading=leading)

    def rank(self, d: int, q: int) -> int:
        """Returns how many components the core gets."""
        return min(d, max(self.core // q - 1, 0), self.leading)

    def is_exact(self, d: int, q: int) -> bool:
        """Returns whether the core has room for all features, so that it is the Hessian itself."""
        return self.rank(d, q) == d

    def blocks(self, problem: Problem) -> int:
        """Returns from how many blocks the covariance is estimated."""
        return min(problem.blocks, max(2, -(-self.sample // problem.rows)))

    def components(self, problem: Problem, q: int) -> int:
        """Returns how many components to compute: all ``d``, or as many as are worth their cost.

        All take a covariance and its eigenvectors. The leading ``p`` take some products with the
        covariance, two with the rows each, before which they are made orthonormal; `cost` has the
        model. Each component saves steps where the penalty is weak.

        The covariance of sparse features is out of the question.
        """
        d, step = problem.d, step_of(problem, q)
        sample = self.blocks(problem) / problem.blocks * numbers_of(problem)
        is_sparse = isinstance(problem.x, SparseRows)
        of_all = 2.0 * sample * d + cost.eigenvectors(d)
        if not is_sparse and of_all <= self.steps_for_all * step:
            return d
        budget = (self.steps_for_sparse if is_sparse else self.steps_for_leading) * step
        products = (cost.GATHER if is_sparse else 1.0) * 4.0 * sample

        def costs(p):
            return _ITERATIONS * (products * p + cost.orthonormal(d, p))

        numbers = range(1, min(self.leading, d) + 1)
        return max(1, bisect.bisect_right(numbers, budget, key=costs))


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


def basis(sizes: Sizes, problem: Problem, factor: Float[Array, " d"], q: int) -> Basis:
    """Computes the components from a sample of the rows, for ``q`` classes.

    Args:
      sizes: how many rows and components.
      problem: with features of mean zero.
      factor: ``[d]``: those of the penalty, or any other unit where nothing is penalised.
      q: the number of classes, on which it depends how many components the core has room for.
    """
    number = sizes.components(problem, q)
    active = jnp.minimum(sizes.blocks(problem), problem.active)
    problem = problem._replace(active=active)
    d, dtype = problem.d, problem.dtype
    is_exact = sizes.is_exact(d, q)
    # No component of what is hardly penalised drowns the others: a larger ridge does not hurt it.
    if not is_exact:
        factor = jnp.maximum(factor, 1e-7 * jnp.max(factor))
    unit = jnp.ones(d, dtype) if is_exact else 1 / factor

    mass, moments = summed_over_devices(_moments, problem, (), unit)
    mass = jnp.where(mass > 0, mass, 1)
    moments = moments / mass
    zero = jnp.zeros((), dtype)
    if is_exact:
        return Basis(jnp.eye(d, dtype=dtype), moments, factor**2, zero, factor)

    is_sparse = isinstance(problem.x, SparseRows)
    if number == d and not is_sparse:
        values, vectors = jnp.linalg.eigh(_covariance(problem, unit) / mass)
        values, vectors, rest = jnp.maximum(values[::-1], 0), vectors[:, ::-1], zero
    else:
        multiply = partial(_times_covariance, problem, unit, mass)
        values, vectors = _leading(multiply, d, number, dtype)
        rest = jnp.maximum(jnp.sum(moments) - jnp.sum(values), 0) / max(d - number, 1)
    ridge = jnp.ones(number, dtype)
    return Basis(unit[:, None] * vectors, values, ridge, rest, factor)


def _moments(
    problem: Problem, _: tuple[()], unit: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Returns the sum of the weights, and that of the squares of the features."""

    def add(j, carry):
        s = _weights(problem, j)
        return carry[0] + jnp.sum(s), carry[1] + passes.weighted_squares(problem, s, j, unit)

    return over_blocks(problem, add, (jnp.zeros((), unit.dtype), jnp.zeros_like(unit)))


def _weights(problem: Problem, j: Integer[Array, ""]) -> Float[Array, " rows"]:
    """Returns the weights of block ``j``, over all weightings."""
    return jnp.mean(block_of(problem.weights, j), axis=0)


def _dense(
    problem: Problem, unit: Float[Array, " d"], j: Integer[Array, ""]
) -> Float[Array, "rows d"]:
    x = passes.features(problem, j)
    return x * jnp.broadcast_to(unit, x.shape)


def _covariance(problem: Problem, unit: Float[Array, " d"]) -> Float[Array, "d d"]:
    """Returns the sum of the outer products of the rows, in these units."""

    def sums(problem, _, unit):
        def add(j, carry):
            x = _dense(problem, unit, j)
            return carry + jnp.matmul(x.T, _weights(problem, j)[:, None] * x, precision="highest")

        return over_blocks(problem, add, jnp.zeros((problem.d, problem.d), problem.dtype))

    return summed_over_devices(sums, problem, (), unit)


def _times_covariance(
    problem: Problem, unit: Float[Array, " d"], mass: Float[Array, ""], v: Float[Array, "d p"]
) -> Float[Array, "d p"]:
    """Returns the covariance times ``v``, without forming it."""

    def sums(problem, _, unit, v):
        def add(j, carry):
            s = _weights(problem, j)[:, None]
            if isinstance(problem.x, SparseRows):
                scores = passes.times(problem, unit[:, None] * v, j)
                return carry + unit[:, None] * passes.transposed_times(problem, s * scores, j)
            x = _dense(problem, unit, j)
            return carry + x.T @ (s * (x @ v))

        return over_blocks(problem, add, jnp.zeros_like(v))

    return summed_over_devices(sums, problem, (), unit, v) / mass


def _leading(
    multiply: Callable[[Float[Array, "d p"]], Float[Array, "d p"]],
    d: int,
    number: int,
    dtype: jnp.dtype,
) -> tuple[Float[Array, " p"], Float[Array, "d p"]]:
    """Returns the largest eigenvalues of a covariance, and their vectors.

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4).

    Args:
      multiply: products with the covariance.
      d: its order.
      number: how many.
      dtype: type to work in.
    """

    def iterate(_, pair):
        v = _orthonormal(pair[1])
        return v, multiply(v)

    v = jax.random.normal(jax.random.key(0), (d, number), dtype)
    v, multiplied = jax.lax.fori_loop(0, _ITERATIONS, iterate, (v, v))
    values, turn = jnp.linalg.eigh(v.T @ multiplied)
    return jnp.maximum(values[::-1], 0), v @ turn[:, ::-1]


def step_of(problem: Problem, q: int) -> float:
    """Returns the cost of a step on all rows."""
    of_kind = cost.sparse_step if isinstance(problem.x, SparseRows) else cost.step
    return of_kind(problem.blocks * problem.rows, numbers_of(problem), q)


def numbers_of(problem: Problem) -> int:
    """Returns how many numbers a product with all rows reads: those stored, without the zeros."""
    if isinstance(problem.x, SparseRows):
        return sum(pieces.value.size for pieces in problem.x.rows.levels[0])
    return problem.blocks * problem.rows * problem.d


def _orthonormal(v: Float[Array, "d p"]) -> Float[Array, "d p"]:
    """Returns orthonormal columns that span those of ``v``, for many rows.

    Products with a Gram matrix take less time than Householder reflections there. The first leaves
    what rounding makes of columns that are nearly dependent, the second mends that.
    """
    for _ in range(2):
        v = v / jnp.maximum(jnp.linalg.norm(v, axis=0), jnp.finfo(v.dtype).tiny)[None, :]
        values, vectors = jnp.linalg.eigh(jnp.matmul(v.T, v, precision="highest"))
        floor = jnp.finfo(v.dtype).eps * values[-1] + jnp.finfo(v.dtype).tiny
        v = jnp.matmul(
            v, vectors / jnp.sqrt(jnp.maximum(values, floor))[None, :], precision="highest"
        )
    return v


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
        ones = jnp.broadcast_to(problem.intercept, (problem.rows, 1))
        return jnp.concatenate([ones, passes.times(problem, components, j)], axis=1)

    return jax.lax.map(of_block, jnp.arange(blocks))
