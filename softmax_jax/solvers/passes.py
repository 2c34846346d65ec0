"""Parts of a pass over the rows of a `Problem`: features, logits, losses, gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from softmax_jax.checks import is_wide
from softmax_jax.normalizer import softmax_and_normalizer
from softmax_jax.solvers.problem import Problem, SparseBlocks, block_of, over_blocks, put


def features(problem: Problem, j: jax.Array) -> jax.Array:
    """Returns ``[rows, d]``: block ``j`` as the model sees it."""
    dtype = problem.dtype
    if isinstance(problem.x, SparseBlocks):
        row, column, value = (block_of(a, j) for a in problem.x)
        x = jnp.zeros((problem.rows, problem.d), dtype).at[row, column].add(value.astype(dtype))
    else:
        # What float32 cannot hold is centered before it loses its digits.
        x = block_of(problem.x, j)
        x = x.astype(jax.dtypes.canonicalize_dtype(float) if is_wide(x.dtype) else dtype)
    center, scale = (
        jnp.broadcast_to(a.astype(x.dtype), x.shape) for a in (problem.center, problem.scale)
    )
    return ((x - center) * scale).astype(dtype)


def targets(problem: Problem, j: jax.Array, q: int) -> jax.Array:
    """Returns ``[1, q, rows]``: the target probabilities of block ``j``."""
    y = block_of(problem.targets, j)
    if problem.targets.ndim == 2:
        y = (jnp.arange(q)[:, None] == y[None, :]).astype(problem.dtype)
    return y[None]


def weights(problem: Problem, j: jax.Array, mass: jax.Array) -> jax.Array:
    """Returns ``[1 or k, rows]``: the weights of block ``j`` as a share of `mass`."""
    return block_of(problem.weights, j) / mass[:, None]


def mass(problem: Problem) -> jax.Array:
    """Returns ``[1 or k]``: the weight of all active rows; 1 if they have none."""
    is_active = (jnp.arange(problem.blocks) < problem.active).astype(problem.dtype)
    total = jnp.einsum("jkr,j->k", problem.weights, is_active, precision="highest")
    return jnp.where(total > 0, total, 1)


def linear(problem: Problem, theta: jax.Array) -> jax.Array:
    """Returns ``X W + b``: ``[blocks, k, q, rows]``, zero in blocks that are not active."""
    k, q, _ = theta.shape

    def fill(j, o):
        return put(o, product(theta, features(problem, j)), j)

    empty = jnp.zeros((problem.blocks, k, q, problem.rows), theta.dtype)
    return over_blocks(problem, fill, empty)


def logits(problem: Problem, theta: jax.Array) -> jax.Array:
    """Returns `linear` and the offset."""
    o = linear(problem, theta)
    return o if problem.offset is None else o + problem.offset[:, None]


def gradient(problem: Problem, probabilities: jax.Array) -> jax.Array:
    """Returns ``[R 1, R X]`` for ``R = S (P - Y)``, eq. 3.4.10: ``[k, q, 1 + d]``.

    Zero in the bias where that is held.
    """
    _, k, q, _ = probabilities.shape
    total = mass(problem)

    def add(j, g):
        p = block_of(probabilities, j)
        s = weights(problem, j, total)[:, None]
        return g + transposed_product(s * (p - targets(problem, j, q)), features(problem, j))

    zero = jnp.zeros((k, q, 1 + problem.d), probabilities.dtype)
    g = over_blocks(problem, add, zero)
    return g.at[..., 0].multiply(problem.intercept)


def loss_and_probabilities(problem: Problem, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss ``[k]``, eq. 3.4.9, and the softmax of the logits."""
    _, k, q, _ = logits.shape
    total = mass(problem)

    def add(j, carry):
        loss, probabilities = carry
        p, below, log_z = softmax(block_of(logits, j))
        terms = log_z - over_classes(targets(problem, j, q) * below)
        loss = loss + jnp.sum(weights(problem, j, total) * terms, axis=-1)
        return loss, put(probabilities, p, j)

    zero = jnp.zeros(k, logits.dtype)
    return over_blocks(problem, add, (zero, jnp.zeros_like(logits)))


def product(theta: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``W^T x + b`` for a block of features ``[rows, d]``: ``[k, q, rows]``."""
    k, q, columns = theta.shape
    w = theta[..., 1:].reshape(k * q, columns - 1)
    # Full precision, as accelerators would otherwise round float32 factors to 10 bits.
    o = jax.lax.dot_general(w, x, (((1,), (1,)), ((), ())), precision="highest")
    return o.reshape(k, q, len(x)) + jnp.broadcast_to(theta[..., :1], (k, q, len(x)))


def transposed_product(residual: jax.Array, x: jax.Array) -> jax.Array:
    """Returns ``[R 1, R X]: [k, q, 1 + d]`` for residuals ``[k, q, rows]`` and a block of rows."""
    k, q, rows = residual.shape
    g = jnp.matmul(residual.reshape(k * q, rows), x, precision="highest").reshape(k, q, -1)
    return jnp.concatenate([jnp.sum(residual, axis=-1, keepdims=True), g], axis=-1)


def over_classes(a: jax.Array) -> jax.Array:
    """Sums over the classes, ``[k, q, rows]`` to ``[k, rows]``, as one product with ones.

    XLA's CPU backend fuses several sums over the same exponentials into
    loops that compute them anew for each sum, and has no fast product with a batch of vectors:
    either takes five to ten times as long.
    """
    k, q, rows = a.shape
    ones = jnp.repeat(jnp.eye(k, dtype=a.dtype), q, axis=1)
    return jnp.matmul(ones, a.reshape(k * q, rows), precision="highest")


def mean_and_variance(p: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance of ``a`` under the probabilities: ``[k, rows]`` each.

    Along ``a``, the loss has the slope mean minus ``y . a``, and the variance as second derivative.
    """
    mean = over_classes(p * a)
    return mean, over_classes(p * a * a) - mean * mean


def softmax(o: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `normalizer.softmax_and_normalizer` of logits ``[k, q, rows]``."""
    return softmax_and_normalizer(o, axis=1, total=over_classes)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns inner products of parameters, for each problem: ``[k]``."""
    return jnp.einsum("kqc,kqc->k", a, b, precision="highest")


def wide(a: jax.Array) -> jax.Array:
    """Reshapes ``[k]`` to ``[k, 1, 1]``."""
    return a[:, None, None]


def steps_until_done(
    step: Callable[[Any], Any], state: Any, limit: jax.Array, stop_at_first: jax.Array
) -> tuple[Any, jax.Array]:
    """Takes up to ``limit`` steps, until all problems are done, or the first new one is.

    Returns:
      The state, and ``[k]`` steps that each problem took before it was done.
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
