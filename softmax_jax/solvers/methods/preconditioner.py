r"""An approximate inverse of the Hessian: exact where that is largest, Kronecker elsewhere.

The Hessian of the mean loss is :math:`\sum_i s_i (\mathrm{diag}(p_i) - p_i p_i^\top) \otimes x_i
x_i^\top`. In the principal components of the features, each in the unit in which it is penalised,

- it is formed on the bias and the ``r`` largest components, with all of the coupling between
  classes, from a sample of rows, and inverted: it has ``(r + 1) q`` rows, a thousand at most;
- on the other components it is taken to be :math:`A \otimes \mathrm{diag}(v)` with the mean
  :math:`A` of the class covariances and the variances :math:`v` of the components: diagonal in the
  eigenvectors of A, so that adding the ridge and inverting are divisions;
- all directions outside the components, if there are any, are taken to have one variance.

The usual block-diagonal preconditioner leaves out just the coupling: where two classes are confused
the loss is flat along moving both together, which p (1 - p) does not see. With it conjugate
gradients need many times as many steps; `docs/benchmarks.md` has the table. Rows are drawn in
proportion to :math:`1 - |p|^2`, the trace of their share of the Hessian (leverage-like sampling,
Cohen et al. 2015): at weak penalties most rows are certain and carry none. Approximate Hessians
from subsamples as preconditioners: Frangella et al., 2023, PROMISE, arXiv:2309.02014.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Float
from softmax_jax.normalizer import softmax
from softmax_jax.solvers.methods.components import Basis

# Rows whose Hessian is formed at once.
_ROWS = 8192


class Preconditioner(NamedTuple):
    """Approximate inverse Hessians of ``k`` problems."""

    core: Float[Array, "k m m"]
    """Inverse, of order ``m = q (1 + r)``, on the bias and the first components."""
    class_vectors: Float[Array, "k q q"]
    """Eigenvectors of the mean class covariance."""
    class_values: Float[Array, "k q"]
    """Eigenvalues of the mean class covariance."""


def sample(
    size: int,
    x: Float[Array, "pool rows c"],
    logits: Float[Array, "blocks q rows"],
    weights: Float[Array, "blocks rows"],
) -> tuple[Float[Array, "n c"], Float[Array, "n q"], Float[Array, " n"]]:
    """Draws rows that stand for all: their ``x``, probabilities and shares.

    Args:
      size: how many, if there are more.
      x: a one and the features of rows, or their component scores.
      logits: those of the same rows.
      weights: those of the same rows.
    """
    blocks, q, rows = logits.shape
    dtype = logits.dtype
    p = softmax(logits, axis=1)
    tiny = jnp.finfo(dtype).tiny
    s = weights / jnp.maximum(jnp.sum(weights), tiny)
    share = jnp.maximum(s * (1 - jnp.einsum("q,jqr->jr", jnp.ones(q, dtype), p * p)), 0)
    # Floor each row's share at a thousandth of its fair one, so that weights stay below 1000.
    share = share + 1e-3 * jnp.sum(share) * s + 1e-30 * (s > 0)
    if blocks * rows > size:
        # A systematic sample: as good as drawn at random, and the same each time.
        cumulated = jnp.cumsum(share.reshape(-1))
        places = (jnp.arange(size, dtype=dtype) + 0.5) * (cumulated[-1] / size)
        drawn = jnp.minimum(jnp.searchsorted(cumulated, places), cumulated.size - 1)
        s = s / jnp.where(share > 0, share, 1)
    else:
        drawn = jnp.arange(blocks * rows)
    block, row = jnp.divmod(drawn, rows)
    s = s[block, row]
    return x[block, row], p[block, :, row], s / jnp.maximum(jnp.sum(s), tiny)


def hessian(
    x: Float[Array, "n c"], p: Float[Array, "n q"], s: Float[Array, " n"]
) -> Float[Array, "q*c q*c"]:
    r"""Returns :math:`\sum_i s_i (\mathrm{diag}(p_i) - p_i p_i^\top) \otimes x_i x_i^\top`.

    Its rows and columns go class by class.
    """
    q, c = p.shape[1], x.shape[1]
    px = (p[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    spx = (px * s[:, None]).T
    of_class = (spx @ x).reshape(q, c, 1, c)
    diagonal = of_class * jnp.eye(q, dtype=p.dtype)[:, None, :, None]
    return diagonal.reshape(q * c, q * c) - spx @ px


def _of_part(
    x: Float[Array, "n c"],
    p: Float[Array, "n q"],
    s: Float[Array, " n"],
    share: Float[Array, ""],
) -> Float[Array, "q*c q*c"]:
    """Returns the `hessian` of a share of the rows, at least.

    Some rows are added at a time, as each takes the memory of ``q`` others.
    """
    number = -(-len(x) // _ROWS)
    if number == 1:
        return hessian(x, p, s)

    # Every so manieth row: the sample is in the order of the rows that it was drawn from.
    def split(a):
        a = jnp.pad(a, [(0, number * _ROWS - len(a))] + [(0, 0)] * (a.ndim - 1))
        return jnp.swapaxes(a.reshape(_ROWS, number, *a.shape[1:]), 0, 1)

    parts = split(x), split(p), split(s)

    def add(j, carry):
        h, total = carry
        x, p, s = (a[j] for a in parts)
        return h + hessian(x, p, s), total + jnp.sum(s)

    order, zero = p.shape[1] * x.shape[1], jnp.zeros((), x.dtype)
    needed = jnp.ceil(share * number).astype(jnp.int32)
    h, total = jax.lax.fori_loop(0, needed, add, (jnp.zeros((order, order), x.dtype), zero))
    return h / jnp.where(total > 0, total, 1)


def build(
    size: int,
    basis: Basis,
    scores: Float[Array, "pool rows c"],
    logits: Float[Array, "blocks q rows"],
    weights: Float[Array, "blocks rows"],
    l2: Float[Array, ""],
    share: Float[Array, ""],
) -> Preconditioner:
    """Forms the preconditioner of one problem, from a sample of its rows; see `sample`.

    Args:
      size: rows of the sample.
      basis: the components.
      scores: a one and the scores of the first ``r`` components, for the pool of rows.
      logits: those of the same rows.
      weights: those of the same rows.
      l2: strength of the penalty.
      share: how much of the sample to take, at least: work on some of the rows is worth less.
    """
    q, dtype = logits.shape[1], logits.dtype
    tiny = jnp.finfo(dtype).tiny
    scores, p, s = sample(size, scores, logits, weights)
    h = _of_part(scores, p, s, share)
    r, sp = scores.shape[1] - 1, s[:, None] * p
    mean = jnp.sum(sp, axis=0)
    values, vectors = jnp.linalg.eigh(jnp.diag(mean) - sp.T @ p)
    values = jnp.maximum(values, 0)
    # h is blind to one number added to the weights of all classes; without some curvature there,
    # its inverse would multiply what rounding leaves in that direction. Gradients sum to zero over
    # the classes, so that nothing else changes.
    rarest = jnp.min(jnp.where(mean > 0, mean, 1))
    moments = jnp.sum(s[:, None] * scores * scores, axis=0)
    h = h + jnp.kron(jnp.full((q, q), rarest / q), jnp.diag(moments))
    ridge = l2 * jnp.tile(jnp.concatenate([jnp.zeros(1, dtype), basis.ridge[:r]]), q)
    # What rounding blurs in the features' own units, in which they are of size 1 at most.
    u = basis.components[:, :r]
    blur = jnp.eye(1 + r, dtype=dtype).at[1:, 1:].set(u.T @ u)
    blur = jnp.kron(jnp.eye(q, dtype=dtype), (jnp.max(values) + tiny) * blur)
    return Preconditioner(_inverse(h, ridge, blur), vectors, values)


def _inverse(
    h: Float[Array, "m m"], ridge: Float[Array, " m"], blur: Float[Array, "m m"]
) -> Float[Array, "m m"]:
    """Inverts ``h`` with the ridge added, and a share of ``blur`` that leaves it definite.

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
        is_curved = diagonal > jnp.finfo(h.dtype).tiny
        scale = jnp.where(is_curved, 1 / jnp.sqrt(jnp.where(is_curved, diagonal, 1)), 0)
        one = scale[:, None] * total * scale[None, :] + jnp.diag(jnp.where(is_curved, 0.0, 1.0))
        factor = jnp.linalg.cholesky(one.astype(h.dtype))
        return (
            jax.scipy.linalg.solve_triangular(factor, jnp.diag(scale), lower=True),
            30 * share,
        )

    share = jnp.finfo(h.dtype).eps
    root, _ = jax.lax.while_loop(failed, try_more, (jnp.full_like(h, jnp.nan), share))
    return jnp.where(jnp.all(jnp.isfinite(root)), root.T @ root, 0)


def apply(
    pre: Preconditioner, basis: Basis, l2: Float[Array, " k"], g: Float[Array, "k q columns"]
) -> Float[Array, "k q columns"]:
    r"""Multiplies ``g`` by the approximate inverse, for strengths ``l2``.

    With the components :math:`U`, the core :math:`M^{-1}` on the bias and the first ``r`` of them,
    and the eigenvectors and eigenvalues :math:`V, a` of the mean class covariance,

    .. math:: t = g_W U, \qquad
        c = M^{-1} [g_b, t_{\le r}], \qquad
        c_{>r} = V\, \frac{V^\top t_{>r}}{a v^\top + l_2}, \qquad
        \Delta_b = c_b, \quad \Delta_W = c_W U^\top.

    Directions outside the components are treated as those beyond ``r``, with their mean variance.
    """
    k, q, _ = g.shape
    r = pre.core.shape[-1] // q - 1
    u = basis.components
    t = g[..., 1:] @ u
    first = jnp.concatenate([g[..., :1], t[..., :r]], axis=-1).reshape(k, q * (1 + r))
    first = jnp.einsum("kij,kj->ki", pre.core, first).reshape(k, q, 1 + r)

    blur = jnp.max(pre.class_values, axis=1)[:, None] * jnp.sum(u * u, axis=0)[None]

    def kronecker(a, variances, blur):
        a = jnp.einsum("kij,kic->kjc", pre.class_vectors, a)
        h = pre.class_values[:, :, None] * variances[None, None, :] + l2[:, None, None]
        # Along adding the same to all classes h is zero but for l2, and what is there is rounding.
        # So it is in directions in which features do not vary; without l2 nothing moves there.
        eps, tiny = jnp.finfo(h.dtype).eps, jnp.finfo(h.dtype).tiny
        floor = jnp.broadcast_to(10 * eps * blur[:, None, :] + tiny, h.shape)
        moves = (h > floor) | (l2 > 0)[:, None, None]
        return jnp.einsum("kij,kjc->kic", pre.class_vectors, moves * a / jnp.maximum(h, floor))

    others = kronecker(t[..., r:], basis.variances[r:], blur[:, r:])
    w = jnp.concatenate([first[..., 1:], others], axis=-1) @ u.T
    if u.shape[1] < u.shape[0]:
        f = jnp.broadcast_to(basis.factor, g[..., 1:].shape)
        outside = g[..., 1:] / f - (t @ u.T) * f
        rest = jnp.max(pre.class_values, axis=1)[:, None] / jnp.max(basis.factor) ** 2
        w = w + kronecker(outside, basis.rest[None], rest) / f
    return jnp.concatenate([first[..., :1], w], axis=-1)
