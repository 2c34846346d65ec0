"""Parts of a pass over the rows of a `Problem`: features, logits, losses, gradients."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Int, Integer, Shaped
from softmax_jax.checks import exceeds_float32
from softmax_jax.data.host_targets import by_class
from softmax_jax.normalizer import softmax_and_normalizer
from softmax_jax.solvers import sparse
from softmax_jax.solvers.placement import summed_and_filled, summed_over_devices
from softmax_jax.solvers.problem import Problem, block_of, over_blocks, put
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.streamed import StreamedRows, block_at


def features(problem: Problem, j: Integer[Array, ""]) -> Float[Array, "rows d"]:
    """Returns block ``j`` of dense rows as the model sees it."""
    assert not isinstance(problem.x, SparseRows)
    dtype = problem.dtype
    # What float32 cannot hold is centered before it loses its digits.
    if isinstance(problem.x, StreamedRows):
        x = block_at(problem.x, j, problem.active)
    else:
        x = block_of(problem.x, j)
    x = x.astype(jax.dtypes.canonicalize_dtype(float) if exceeds_float32(x.dtype) else dtype)
    center, scale = (
        jnp.broadcast_to(a.astype(x.dtype), x.shape) for a in (problem.center, problem.scale)
    )
    return ((x - center) * scale).astype(dtype)


def forward(
    problem: Problem, theta: Float[Array, "k q columns"], j: Integer[Array, ""]
) -> Float[Array, "k q rows"]:
    """Returns ``W^T x + b`` for block ``j``."""
    if not isinstance(problem.x, SparseRows):
        return product(theta, features(problem, j))
    k, q, columns = theta.shape
    w = theta[..., 1:].reshape(k * q, columns - 1)
    o = times(problem, w.T, j).T.reshape(k, q, problem.rows)
    return o + jnp.broadcast_to(theta[..., :1], o.shape)


def backward(
    problem: Problem, residual: Float[Array, "k q rows"], j: Integer[Array, ""]
) -> Float[Array, "k q columns"]:
    """Returns ``[R 1, R X]`` for residuals of block ``j``."""
    if not isinstance(problem.x, SparseRows):
        return transposed_product(residual, features(problem, j))
    k, q, rows = residual.shape
    g = transposed_times(problem, residual.reshape(k * q, rows).T, j).T.reshape(k, q, problem.d)
    return jnp.concatenate([jnp.sum(residual, axis=-1, keepdims=True), g], axis=-1)


def times(
    problem: Problem, v: Float[Array, "d p"], j: Integer[Array, ""]
) -> Float[Array, "rows p"]:
    r"""Returns ``X V`` for block ``j``.

    Features are :math:`(x - c)\, g`, which centering would make dense. So sparse entries are
    multiplied as they are stored, and :math:`X V = x\, (g V) - 1\, (c \cdot g V)`.
    """
    if not isinstance(problem.x, SparseRows):
        return jnp.matmul(features(problem, j), v, precision="highest")
    center, scale = _units(problem)
    scaled = scale[:, None] * v
    o = sparse.product(problem.x.rows, scaled, j)
    return o - jnp.broadcast_to(jnp.matmul(center, scaled, precision="highest")[None], o.shape)


def transposed_times(
    problem: Problem, r: Float[Array, "rows p"], j: Integer[Array, ""]
) -> Float[Array, "d p"]:
    r"""Returns ``X^T R`` for block ``j``.

    Of sparse entries it is :math:`(x^\top R - c\, (1^\top R))\, g`.
    """
    if not isinstance(problem.x, SparseRows):
        return jnp.matmul(features(problem, j).T, r, precision="highest")
    center, scale = _units(problem)
    g = sparse.product(problem.x.columns, r, j)
    return scale[:, None] * (g - center[:, None] * jnp.sum(r, axis=0)[None, :])


def weighted_sum(
    problem: Problem, s: Float[Array, " rows"], j: Integer[Array, ""]
) -> Float[Array, " d"]:
    """Returns the sum of the rows of block ``j`` with weights ``s``."""
    if not isinstance(problem.x, SparseRows):
        return s @ features(problem, j)
    return transposed_times(problem, s[:, None], j)[:, 0]


def weighted_squares(
    problem: Problem,
    s: Float[Array, " rows"],
    j: Integer[Array, ""],
    unit: Float[Array, " d"] | None = None,
) -> Float[Array, " d"]:
    r"""Returns the sum of the squared rows of block ``j`` with weights ``s``.

    Of sparse entries it is :math:`g^2 (\sum s x^2 - 2 c \sum s x + c^2 \sum s)`.

    Args:
      problem: the rows.
      s: weights.
      j: the block.
      unit: factors on the features.
    """
    if not isinstance(problem.x, SparseRows):
        x = features(problem, j)
        x = x if unit is None else x * jnp.broadcast_to(unit, x.shape)
        return jnp.sum(s[:, None] * x * x, axis=0)
    center, scale = _units(problem)
    columns = problem.x.columns
    first = sparse.product(columns, s[:, None], j)[:, 0]
    second = sparse.product(columns, s[:, None], j, jnp.square)[:, 0]
    squares = jnp.maximum(second - center * (2 * first - center * jnp.sum(s)), 0)
    return squares * (scale if unit is None else scale * unit) ** 2


def _units(problem: Problem) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    center, scale = (jnp.asarray(a, problem.dtype) for a in (problem.center, problem.scale))
    return center, scale


def targets(problem: Problem, j: Integer[Array, ""], q: int) -> Float[Array, "1 {q} rows"]:
    """Returns the target probabilities of block ``j``."""
    return by_class(block_of(problem.targets, j), q, problem.dtype)[None]


def weights(
    problem: Problem, j: Integer[Array, ""], mass: Float[Array, " m"]
) -> Float[Array, "m rows"]:
    """Returns the weights of block ``j`` as a share of `mass`."""
    return block_of(problem.weights, j) / mass[:, None]


def mass(problem: Problem) -> Float[Array, " m"]:
    """Returns the weight of all active rows; 1 if they have none."""

    def sums(problem, _):
        is_active = (jnp.arange(problem.blocks) < problem.active).astype(problem.dtype)
        return jnp.einsum("jkr,j->k", problem.weights, is_active, precision="highest")

    total = summed_over_devices(sums, problem, ())
    return jnp.where(total > 0, total, 1)


def linear(problem: Problem, theta: Float[Array, "k q columns"]) -> Float[Array, "blocks k q rows"]:
    """Returns ``X W + b``, zero in blocks that are not active."""
    k, q, _ = theta.shape

    def fill(j, o):
        return put(o, forward(problem, theta, j), j)

    empty = jnp.zeros((problem.blocks, k, q, problem.rows), theta.dtype)
    return over_blocks(problem, fill, empty)


def logits(problem: Problem, theta: Float[Array, "k q columns"]) -> Float[Array, "blocks k q rows"]:
    """Returns `linear` and the offset."""
    o = linear(problem, theta)
    return o if problem.offset is None else o + problem.offset[:, None]


def gradient(
    problem: Problem, probabilities: Float[Array, "blocks k q rows"]
) -> Float[Array, "k q columns"]:
    """Returns ``[R 1, R X]`` for ``R = S (P - Y)``, eq. 3.4.10.

    Zero in the bias where that is held.
    """

    def sums(problem, probabilities, total):
        _, k, q, _ = probabilities.shape

        def add(j, g):
            p = block_of(probabilities, j)
            s = weights(problem, j, total)[:, None]
            return g + backward(problem, s * (p - targets(problem, j, q)), j)

        return over_blocks(problem, add, jnp.zeros((k, q, 1 + problem.d), probabilities.dtype))

    g = summed_over_devices(sums, problem, probabilities, mass(problem))
    return g.at[..., 0].multiply(problem.intercept)


def hessian_product(
    problem: Problem,
    probabilities: Float[Array, "blocks k q rows"],
    v: Float[Array, "k q columns"],
) -> Float[Array, "k q columns"]:
    r"""Returns the Hessian of the mean loss times ``v``: a pass without exponentials.

    .. math:: X^\top S\, (\mathrm{diag}(P) - P P^\top)\, X V
    """

    def sums(problem, probabilities, total, v):
        def add(j, product):
            p, a = block_of(probabilities, j), forward(problem, v, j)
            s = weights(problem, j, total)[:, None]
            weighted = p * a
            mean = over_classes(weighted)[:, None]
            return product + backward(problem, s * (weighted - p * mean), j)

        return over_blocks(problem, add, jnp.zeros_like(v))

    product = summed_over_devices(sums, problem, probabilities, mass(problem), v)
    return product.at[..., 0].multiply(problem.intercept)


def loss_and_probabilities(
    problem: Problem, logits: Float[Array, "blocks k q rows"]
) -> tuple[Float[Array, " k"], Float[Array, "blocks k q rows"]]:
    """Returns the mean loss, eq. 3.4.9, and the softmax of the logits."""

    def of_rows(problem, logits, total):
        _, k, q, _ = logits.shape

        def add(j, carry):
            loss, probabilities = carry
            p, below, log_z = softmax(block_of(logits, j))
            terms = log_z - over_classes(targets(problem, j, q) * below)
            loss = loss + jnp.sum(weights(problem, j, total) * terms, axis=-1)
            return loss, put(probabilities, p, j)

        zero = jnp.zeros(k, logits.dtype)
        return over_blocks(problem, add, (zero, jnp.zeros_like(logits)))

    return summed_and_filled(of_rows, problem, logits, mass(problem))


def product(
    theta: Float[Array, "k q columns"], x: Float[Array, "rows d"]
) -> Float[Array, "k q rows"]:
    """Returns ``W^T x + b`` for a block of features."""
    k, q, columns = theta.shape
    w = theta[..., 1:].reshape(k * q, columns - 1)
    # Full precision, as accelerators would otherwise round float32 factors to 10 bits.
    o = jax.lax.dot_general(w, x, (((1,), (1,)), ((), ())), precision="highest")
    return o.reshape(k, q, len(x)) + jnp.broadcast_to(theta[..., :1], (k, q, len(x)))


def transposed_product(
    residual: Float[Array, "k q rows"], x: Float[Array, "rows d"]
) -> Float[Array, "k q 1+d"]:
    """Returns ``[R 1, R X]`` for residuals and a block of rows."""
    k, q, rows = residual.shape
    g = jnp.matmul(residual.reshape(k * q, rows), x, precision="highest").reshape(k, q, -1)
    return jnp.concatenate([jnp.sum(residual, axis=-1, keepdims=True), g], axis=-1)


def over_classes(a: Float[Array, "k q rows"]) -> Float[Array, "k rows"]:
    """Sums over the classes, as one product with ones.

    XLA's CPU backend fuses several sums over the same exponentials into
    loops that compute them anew for each sum, and has no fast product with a batch of vectors:
    either takes five to ten times as long.
    """
    k, q, rows = a.shape
    ones = jnp.repeat(jnp.eye(k, dtype=a.dtype), q, axis=1)
    return jnp.matmul(ones, a.reshape(k * q, rows), precision="highest")


def mean_and_variance(
    p: Float[Array, "k q rows"], a: Float[Array, "k q rows"]
) -> tuple[Float[Array, "k rows"], Float[Array, "k rows"]]:
    """Returns mean and variance of ``a`` under the probabilities.

    Along ``a``, the loss has the slope mean minus ``y . a``, and the variance as second derivative.
    """
    mean = over_classes(p * a)
    return mean, over_classes(p * a * a) - mean * mean


def softmax(
    o: Float[Array, "k q rows"],
) -> tuple[Float[Array, "k q rows"], Float[Array, "k q rows"], Float[Array, "k rows"]]:
    """Returns `normalizer.softmax_and_normalizer` of logits."""
    return softmax_and_normalizer(o, axis=1, total=over_classes)


def dot(a: Float[Array, "k q columns"], b: Float[Array, "k q columns"]) -> Float[Array, " k"]:
    """Returns inner products of parameters, for each problem."""
    return jnp.einsum("kqc,kqc->k", a, b, precision="highest")


def per_problem(a: Shaped[Array, " k"]) -> Shaped[Array, "k 1 1"]:
    """Reshapes ``[k]`` to ``[k, 1, 1]``."""
    return a[:, None, None]


@runtime_checkable
class WithDone(Protocol):
    """State that says which problems are done."""

    @property
    def done(self) -> Bool[Array, " k"]:
        """Problems that are done."""


State = TypeVar("State", bound=WithDone)


def steps_until_done(
    step: Callable[[State], State],
    state: State,
    limit: ArrayLike,
    stop_at_first: ArrayLike,
) -> tuple[State, Int[Array, " k"]]:
    """Takes up to ``limit`` steps, until all problems are done, or the first new one is.

    Returns:
      The state, and the steps that each problem took before it was done.
    """
    idle = state.done

    def go_on(carry):
        state, taken = carry
        news = jnp.any(state.done & ~idle)
        return (jnp.max(taken) < limit) & ~jnp.all(state.done) & ~(stop_at_first & news)

    def one(carry):
        state, taken = carry
        return step(state), taken + ~state.done

    return jax.lax.while_loop(go_on, one, (state, jnp.zeros(idle.shape, jnp.int32)))
