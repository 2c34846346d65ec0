"""Inverse Hessians of single classes, from a sample of the rows, to precondition with."""

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float
from softmax_jax.solvers.methods.corner import Corner
from softmax_jax.solvers.methods.preconditioner import sample
from softmax_jax.solvers.problem import Problem


def renewed_blocks(
    problem: Problem,
    rows: Float[Array, "pool rows columns"],
    size: int,
    logits: Float[Array, "blocks k q rows"],
    corner: Corner,
    blocks: Float[Array, "k q columns columns"],
    renewed: Bool[Array, " k"],
) -> Float[Array, "k q columns columns"]:
    """Returns inverse Hessians of single classes, new ones where they are to be renewed.

    Args:
      problem: the problem.
      rows: a one and the features of the pool of rows.
      size: rows that a Hessian is estimated from.
      logits: those of all rows.
      corner: the orthant.
      blocks: the old ones.
      renewed: which to renew.
    """
    pool, weightings = len(rows), problem.weights.shape[1]
    is_active = (jnp.arange(pool) < problem.active).astype(problem.dtype)
    diagonal = corner.diagonal

    def made(i):
        seen = problem.weights[:pool, jnp.minimum(i, weightings - 1)] * is_active[:, None]
        return jax.lax.cond(
            renewed[i],
            lambda: _block_inverses(
                *sample(size, rows, logits[:pool, i], seen), corner.moves[i], diagonal[i]
            ),
            lambda: blocks[i],
        )

    return jax.lax.map(made, jnp.arange(len(renewed)))


def _block_inverses(
    x: Float[Array, "n columns"],
    p: Float[Array, "n q"],
    s: Float[Array, " n"],
    moves: Bool[Array, "q columns"],
    ridge: Float[Array, "q columns"],
) -> Float[Array, "q columns columns"]:
    r"""Returns inverses of :math:`X^\top \mathrm{diag}(s\, p_c (1 - p_c)) X` for each class.

    Parameters that do not move are not coupled to others.
    """
    second_derivatives = (s[:, None] * p * (1 - p)).T  # of the loss of a row in its logits
    weighted = (second_derivatives[:, :, None] * x[None]).transpose(0, 2, 1)
    h = jnp.matmul(weighted, x, precision="highest")
    diagonal = jnp.einsum("qaa->qa", h) + ridge
    is_curved = diagonal > jnp.finfo(h.dtype).tiny
    scale = jnp.where(is_curved, 1 / jnp.sqrt(jnp.where(is_curved, diagonal, 1)), 0)
    scaled = scale[:, :, None] * h * scale[:, None, :]
    coupled = moves[:, :, None] & moves[:, None, :] & ~jnp.eye(moves.shape[1], dtype=bool)[None]
    one = (
        jnp.where(coupled, scaled, 0)
        + (1 + 100 * jnp.finfo(h.dtype).eps) * jnp.eye(moves.shape[1], dtype=h.dtype)[None]
    )
    factor = jnp.linalg.cholesky(one, symmetrize_input=False)
    root = jax.lax.linalg.triangular_solve(
        factor,
        jnp.einsum("qa,ab->qab", scale, jnp.eye(moves.shape[1], dtype=h.dtype)),
        left_side=True,
        lower=True,
    )
    found = jnp.matmul(root.transpose(0, 2, 1), root, precision="highest")
    alone = jnp.einsum("qa,ab->qab", scale**2, jnp.eye(moves.shape[1], dtype=h.dtype))
    return jnp.where(jnp.all(jnp.isfinite(found), axis=(1, 2), keepdims=True), found, alone)
