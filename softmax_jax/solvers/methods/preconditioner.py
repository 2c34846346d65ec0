r"""An approximate inverse of the Hessian: exact where the curvature is, Kronecker elsewhere.

The Hessian of the mean loss is :math:`\sum_i s_i (\mathrm{diag}(p_i) - p_i p_i^\top) \otimes x_i
x_i^\top`. In the principal components of the features, each in the unit in which it is penalised,

- it is formed on the bias and the ``r`` largest components, with all of the coupling between
  classes, from a sample of rows, and inverted: it has ``(r + 1) q`` rows, about a thousand;
- on the other components it is taken to be :math:`A \otimes \mathrm{diag}(v)` with the mean
  :math:`A` of the class covariances and the variances :math:`v` of the components: diagonal in the
  eigenvectors of A, so that adding the ridge and inverting are divisions;
- all directions outside the components, if there are any, are taken to have one variance.

The usual block-diagonal preconditioner leaves out just the coupling: where two classes are confused
the loss is flat along moving both together, which p (1 - p) does not see. On Fashion-MNIST
(l2 = 1e-4) conjugate gradients need 115 steps to a hundredth of the energy with it, and 5 with this
one; `docs/solvers.md` has the table. Rows are drawn in proportion to :math:`1 - |p|^2`, the trace
of their share of the Hessian (leverage-like sampling, Cohen et al. 2015): at weak penalties most
rows are certain and carry none. Approximate Hessians from subsamples as preconditioners: Frangella
et al., 2023, PROMISE, arXiv:2309.02014.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax.solvers import passes
from softmax_jax.solvers.problem import Problem, block_of, over_blocks

# Up to so many features, the covariance and all of its eigenvectors; beyond, the leading ones by
# subspace iteration.
COMPLETE_UP_TO = 2048
LEADING = 256
# Order of the inverse that is formed exactly, and how many rows it is estimated from.
CORE = 1000
SAMPLE = 8192
# Rows that those are drawn from: their component scores are kept.
POOL = 65_536


class Basis(NamedTuple):
    r"""Principal components of ``x / factor``, largest first; or the features as they are.

    The latter where the core has room for all of them, as it needs no basis then. For components
    the penalty is :math:`\tfrac{l_2}{2} |a|^2` of weights :math:`W = U a`, so that one basis
    diagonalises the covariance C of the features and the ridge alike: :math:`U^\top C U =
    \mathrm{diag}(v)` and :math:`U^\top F^2 U = I` for the factors F.
    """

    components: jax.Array
    """``U: [d, p]``: orthonormal once multiplied by the factors."""
    variances: jax.Array
    """``v: [p]``."""
    ridge: jax.Array
    """``[p]``: the penalty of the components, times l2: 1, or the squares of the factors."""
    rest: jax.Array
    """The mean variance of the directions outside."""
    factor: jax.Array
    """``F: [d]``."""
    second_moments: jax.Array
    """``[d]``: of the features, which are centered."""


class Preconditioner(NamedTuple):
    """Of ``k`` problems."""

    core: jax.Array
    """``[k, q (r + 1), q (r + 1)]``: the inverse on the bias and the first components."""
    class_vectors: jax.Array
    """``[k, q, q]``: eigenvectors of the mean class covariance."""
    class_values: jax.Array
    """``[k, q]``."""


def rank(d: int, q: int) -> int:
    """How many components the core gets."""
    return min(d, max(CORE // q - 1, 0), LEADING)


def basis(problem: Problem, blocks: int, factor: jax.Array, q: int) -> Basis:
    """Of the features in the first ``blocks``, for ``q`` classes.

    Args:
      problem: centered.
      blocks: a sample.
      factor: ``[d]``: those of the penalty, or any other unit where nothing is penalised.
      q: the number of classes, on which it depends how many components the core has room for.
    """
    problem = problem._replace(active=jnp.minimum(blocks, problem.active))
    d, dtype = problem.d, problem.dtype
    is_exact = rank(d, q) == d
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

    if d <= COMPLETE_UP_TO:

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

    v = jax.random.normal(jax.random.key(0), (d, LEADING), dtype)
    for _ in range(3):
        v = jnp.linalg.qr(multiply(v))[0]
    values, turn = jnp.linalg.eigh(v.T @ multiply(v))
    values = jnp.maximum(values[::-1], 0)
    rest = jnp.maximum(jnp.sum(moments) - jnp.sum(values), 0) / (d - LEADING)
    u = unit[:, None] * (v @ turn[:, ::-1])
    return Basis(u, values, jnp.ones(LEADING, dtype), rest, factor, moments * factor**2)


def scores(problem: Problem, basis: Basis, q: int) -> jax.Array:
    """``[blocks, rows, 1 + r]``: a one and the first component scores of the first `POOL` rows.

    Zero for the one where the bias is held.
    """
    blocks = min(problem.blocks, -(-POOL // problem.rows))
    u = basis.components[:, : rank(problem.d, q)]

    def of_block(j):
        x = passes.features(problem, j)
        ones = jnp.broadcast_to(problem.intercept, (len(x), 1))
        return jnp.concatenate([ones, jnp.matmul(x, u, precision="highest")], axis=1)

    return jax.lax.map(of_block, jnp.arange(blocks))


def sample(
    z: jax.Array, logits: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows that stand for all: of ``z``, of the probabilities ``[n, q]``, and their shares ``[n]``.

    Args:
      z: ``[blocks, rows, 1 + r]``, from `scores`.
      logits: ``[blocks, q, rows]``.
      weights: ``[blocks, rows]``.
    """
    blocks, q, rows = logits.shape
    dtype = logits.dtype
    p = jax.nn.softmax(logits, axis=1)
    tiny = jnp.finfo(dtype).tiny
    s = weights / jnp.maximum(jnp.sum(weights), tiny)
    share = jnp.maximum(s * (1 - jnp.einsum("q,jqr->jr", jnp.ones(q, dtype), p * p)), 0)
    # No row counts a thousand times what it has a right to, though its prediction be certain.
    share = share + 1e-3 * jnp.sum(share) * s + 1e-30 * (s > 0)
    if blocks * rows > SAMPLE:
        # A systematic sample: as good as drawn at random, and the same each time.
        cumulated = jnp.cumsum(share.reshape(-1))
        places = (jnp.arange(SAMPLE, dtype=dtype) + 0.5) * (cumulated[-1] / SAMPLE)
        drawn = jnp.minimum(jnp.searchsorted(cumulated, places), cumulated.size - 1)
        s = s / jnp.where(share > 0, share, 1)
    else:
        drawn = jnp.arange(blocks * rows)
    block, row = jnp.divmod(drawn, rows)
    s = s[block, row]
    return z[block, row], p[block, :, row], s / jnp.maximum(jnp.sum(s), tiny)


def hessian(z: jax.Array, p: jax.Array, s: jax.Array) -> jax.Array:
    """``sum_i s_i (diag(p_i) - p_i p_i^T) x z_i z_i^T``, class by class: ``[q c, q c]``.

    Args:
      z: ``[n, c]``.
      p: ``[n, q]``.
      s: ``[n]``.
    """
    sp = s[:, None] * p
    zp = (p[:, :, None] * z[:, None, :]).reshape(len(z), -1)
    diagonal = jax.lax.map(lambda c: z.T @ (z * c[:, None]), sp.T)
    return _block_diagonal(diagonal) - (zp * s[:, None]).T @ zp


def build(
    basis: Basis, z: jax.Array, logits: jax.Array, weights: jax.Array, l2: jax.Array
) -> Preconditioner:
    """For one problem, with one strength and the components of ``z``; see `sample`."""
    q, dtype = logits.shape[1], logits.dtype
    tiny = jnp.finfo(dtype).tiny
    z, p, s = sample(z, logits, weights)
    h = hessian(z, p, s)
    k1, sp = z.shape[1], s[:, None] * p
    mean = jnp.sum(sp, axis=0)
    values, vectors = jnp.linalg.eigh(jnp.diag(mean) - sp.T @ p)
    values = jnp.maximum(values, 0)
    # h is blind to one number added to the weights of all classes; without some curvature there,
    # its inverse would multiply what rounding leaves in that direction. Gradients sum to zero over
    # the classes, so that nothing else changes.
    rarest = jnp.min(jnp.where(mean > 0, mean, 1))
    h = h + jnp.kron(jnp.full((q, q), rarest / q), jnp.diag(jnp.sum(s[:, None] * z * z, axis=0)))
    ridge = l2 * jnp.tile(jnp.concatenate([jnp.zeros(1, dtype), basis.ridge[: k1 - 1]]), q)
    # What rounding blurs in the features' own units, in which they are of size 1 at most.
    u = basis.components[:, : k1 - 1]
    blur = jnp.eye(k1, dtype=dtype).at[1:, 1:].set(u.T @ u)
    blur = jnp.kron(jnp.eye(q, dtype=dtype), (jnp.max(values) + tiny) * blur)
    return Preconditioner(_inverse(h, ridge, blur), vectors, values)


def _inverse(h: jax.Array, ridge: jax.Array, blur: jax.Array) -> jax.Array:
    """Of ``h`` with the ridge added, and of a share of ``blur`` that leaves it definite.

    Zero, so that nothing moves, if there is no such share, as ``h`` is not finite.
    """
    ridged = h + jnp.diag(ridge)

    def failed(carry):
        root, share = carry
        return ~jnp.all(jnp.isfinite(root)) & (share < 1e3)

    def try_more(carry):
        _, share = carry
        # With a unit diagonal, as components may differ by more orders than there are digits. What
        # has no curvature at all, as where all predictions are certain, does not move.
        total = ridged + share * blur
        diagonal = jnp.diagonal(total)
        bends = diagonal > jnp.finfo(h.dtype).tiny
        scale = jnp.where(bends, 1 / jnp.sqrt(jnp.where(bends, diagonal, 1)), 0)
        one = scale[:, None] * total * scale[None, :] + jnp.diag(jnp.where(bends, 0.0, 1.0))
        factor = jnp.linalg.cholesky(one.astype(h.dtype))
        return (
            jax.scipy.linalg.solve_triangular(factor, jnp.diag(scale), lower=True),
            30 * share,
        )

    share = 10 * jnp.finfo(h.dtype).eps
    root, _ = jax.lax.while_loop(failed, try_more, (jnp.full_like(h, jnp.nan), share))
    return jnp.where(jnp.all(jnp.isfinite(root)), root.T @ root, 0)


def _block_diagonal(blocks: jax.Array) -> jax.Array:
    q, m, _ = blocks.shape
    full = jnp.zeros((q, m, q, m), blocks.dtype)
    c = jnp.arange(q)
    return full.at[c, :, c, :].set(blocks).reshape(q * m, q * m)


def apply(pre: Preconditioner, basis: Basis, l2: jax.Array, g: jax.Array) -> jax.Array:
    """The approximate inverse times ``g``: ``[k, q, 1 + d]``, for strengths ``l2: [k]``."""
    k, q, _ = g.shape
    k1 = pre.core.shape[-1] // q
    u = basis.components
    t = g[..., 1:] @ u
    head = jnp.concatenate([g[..., :1], t[..., : k1 - 1]], axis=-1).reshape(k, q * k1)
    head = jnp.einsum("kij,kj->ki", pre.core, head).reshape(k, q, k1)

    blur = jnp.max(pre.class_values, axis=1)[:, None] * jnp.sum(u * u, axis=0)[None]

    def kronecker(a, variances, blur):
        a = jnp.einsum("kij,kic->kjc", pre.class_vectors, a)
        h = pre.class_values[:, :, None] * variances[None, None, :] + l2[:, None, None]
        # Along adding the same to all classes h is zero but for l2, and what is there is rounding.
        eps, tiny = jnp.finfo(h.dtype).eps, jnp.finfo(h.dtype).tiny
        h = jnp.maximum(h, 10 * eps * blur[:, None, :] + tiny)
        return jnp.einsum("kij,kjc->kic", pre.class_vectors, a / h)

    tail = kronecker(t[..., k1 - 1 :], basis.variances[k1 - 1 :], blur[:, k1 - 1 :])
    w = jnp.concatenate([head[..., 1:], tail], axis=-1) @ u.T
    if u.shape[1] < u.shape[0]:
        f = jnp.broadcast_to(basis.factor, g[..., 1:].shape)
        outside = g[..., 1:] / f - (t @ u.T) * f
        rest = jnp.max(pre.class_values, axis=1)[:, None] / jnp.max(basis.factor) ** 2
        w = w + kronecker(outside, basis.rest[None], rest) / f
    return jnp.concatenate([head[..., :1], w], axis=-1)
