"""Softmax and its log-normaliser, in two accuracies that have names.

*Accurate* are `log_normalizer` and `surprisals`, to the last digits whatever the offset and the
margin; losses and confidences are made of them. *Fast* are `softmax`, and `softmax_and_normalizer`
for a loss beside it: gradients, certificates and probabilities, of which a few ulp are enough.
`log_softmax` is the one for arrays of NumPy or of another namespace.

With ``m = max_k o_k``, every surprisal is a sum of two terms that are never negative::

    -log softmax(o)_j = (m - o_j) + r,    r = log Σ_k exp(o_k - m) = log1p(S) >= 0,

where ``S`` sums ``exp(o_k - m)`` over all classes but one that attains the maximum. Nothing
cancels: not a common offset of 1e6 against itself, and not 1 + S for a confident prediction,
where the familiar ``logsumexp(o) - o_j`` loses every digit of a loss of 1e-9.

Three roundings are left that a float32 loss would show; `log_normalizer` keeps each of them small
in a function of its own. The effort is O(q) elementwise work beside the O(d q) of the logits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Float, Shaped

_LOG2 = math.log(2.0)
# log 2 in two parts (Cody and Waite): the first has so few bits that its multiples are exact.
_LOG2_HIGH = 0.693359375
_LOG2_LOW = _LOG2 - _LOG2_HIGH
# Below exp(-87) float32 is subnormal, which XLA's devices flush to zero.
_FLOAT32_LOWEST_EXPONENT = -87.0


@jax.jit
def log_normalizer(
    logits: Float[Array, "*batch q"],
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns ``m = max_k o_k`` and ``r = log Σ_k exp(o_k - m)``, so ``logsumexp(o) = m + r``.

    Args:
      logits: ``[..., q]``, float32 or float64. Entries of ``-inf`` are impossible classes.

    Returns:
      ``m`` and ``r``, both ``[...]``; NaN where the largest logit is not finite.

    Example:
      >>> m, r = log_normalizer(jnp.array([1e6, 1e6]))
      >>> float(m), f"{r:.4f}"  # log 2
      (1000000.0, '0.6931')
    """
    q = logits.shape[-1]
    m = jnp.max(logits, axis=-1)
    top = jnp.broadcast_to(m[..., None], logits.shape)
    # Impossible classes are taken out of the sums, where their infinities would cancel to NaN.
    is_impossible = jnp.isneginf(logits)
    logits = jnp.where(is_impossible, top, logits)
    gap = logits - top
    # What the subtraction rounded away (Knuth's TwoSum): exp would multiply it by |gap|.
    back = logits - gap
    lost = (logits - (gap + back)) + (back - top)

    high, low = _exp(gap, lost)
    # One class that attains the maximum is left out of the sums. It is named once: XLA may form the
    # logits anew for each of their uses, such as `a x + b` with a rounding less, so that tests of
    # equality differ from sum to sum. Where none passes, the sums have a one too many.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    attains = (gap == 0) & ~is_impossible
    left_out = jnp.min(jnp.where(attains, classes, q), axis=-1)
    counts = (classes != jnp.broadcast_to(left_out[..., None], logits.shape)) & ~is_impossible
    high, low = jnp.where(counts, high, 0), jnp.where(counts, low, 0)

    # Error-free splitting (Rump, Ogita and Oishi 2008): with M a power of two above the sum, the
    # leading parts (t + M) - M are multiples of one unit and add up exactly, in any order.
    # `frexp` gives the exponent that bounds the largest term; q terms need log2(q) more bits.
    _, exponent = jnp.frexp(jnp.max(high, axis=-1))
    shift = jnp.ldexp(jnp.ones_like(m), exponent + math.ceil(math.log2(q)))
    shift = jnp.broadcast_to(shift[..., None], logits.shape)
    leading = (high + shift) - shift
    rest = (high - leading) + low
    excess = (left_out == q).astype(logits.dtype)
    others = jnp.maximum(jnp.sum(leading, axis=-1) - excess + jnp.sum(rest, axis=-1), 0)
    return m, jnp.where(jnp.isfinite(m), _log1p(others), jnp.nan)


def _exp(
    x: Float[Array, "*shape"], correction: Float[Array, "*shape"]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns ``exp(x + correction)`` for ``x <= 0`` as a large and a small part, not added."""
    if x.dtype != jnp.float32:
        e = jnp.exp(x)
        return e, jnp.where(e > 0, e * correction, 0)
    # exp(x) = 2^k exp(s) with |s| <= log(2) / 2, and exp(s) - 1 by its Taylor polynomial, whose
    # remainder is below 2^-27. The leading 2^k is exact, so only the smaller part is rounded.
    inside = x >= _FLOAT32_LOWEST_EXPONENT
    x = jnp.where(inside, x, 0)
    k = jnp.round(x * (1 / _LOG2))
    s_high = x - k * _LOG2_HIGH
    s_low = correction - k * _LOG2_LOW
    s = s_high + s_low
    series = jnp.full_like(s, 1 / math.factorial(7))
    for n in range(6, 1, -1):
        series = series * s + 1 / math.factorial(n)
    two_to_k = jax.lax.bitcast_convert_type((k.astype(jnp.int32) + 127) << 23, jnp.float32)
    small = two_to_k * (s_high + (s_low + s * s * series))
    return jnp.where(inside, two_to_k, 0), jnp.where(inside, small, 0)


def _log1p(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns ``log(1 + x)`` for ``x >= 0``, keeping XLA's log1p in its good range.

    XLA's float32 log1p is right to 0.8 ulp below sqrt(2) - 1 and to 2.4 ulp just above, so there
    ``log(1 + x) = log 2 + log1p((x - 1) / 2)`` is used, whose subtraction is exact.
    """
    return jnp.where(x < 0.4142, jnp.log1p(x), _LOG2 + jnp.log1p((x - 1) / 2))


@jax.custom_jvp
@jax.jit
def surprisals(logits: Float[Array, "*batch q"]) -> Float[Array, "*batch q"]:
    r"""Returns ``-log softmax(o)_j`` in nats for every class, two non-negative terms: ``[..., q]``.

    .. math:: -\log p_j = (\max_k o_k - o_j) + \log\sum_k e^{o_k - \max_l o_l}

    Accurate, see `log_normalizer`. Its derivative is ``p_k - δ_jk``.

    Args:
      logits: ``[..., q]``, float32 or float64.

    Example:
      >>> [f"{nats:.6g}" for nats in surprisals(jnp.array([20.0, 0.0]))]
      ['2.06115e-09', '20']
    """
    m, r = log_normalizer(logits)
    below_top = jnp.maximum(jnp.broadcast_to(m[..., None], logits.shape) - logits, 0)
    return below_top + jnp.broadcast_to(r[..., None], logits.shape)


@surprisals.defjvp
def _(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    surprisal = surprisals(logits)
    mean_tangent = jnp.sum(jnp.exp(-surprisal) * tangent, axis=-1, keepdims=True)
    return surprisal, jnp.broadcast_to(mean_tangent, tangent.shape) - tangent


def softmax(logits: Float[Array, "*shape"], axis: int = -1) -> Float[Array, "*shape"]:
    """Returns probabilities, eq. 3.4.3, along an axis of classes.

    Fast: each is right to a few ulp, and to about ``|o_j - max o|`` ulp where it is small.

    Example:
      >>> softmax(jnp.zeros(4)).tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    return jax.nn.softmax(logits, axis=axis)


def softmax_and_normalizer(
    logits: Float[Array, "*shape"],
    axis: int = -1,
    total: Callable[[Shaped[Array, "*shape"]], Shaped[Array, "..."]] | None = None,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"], Float[Array, "..."]]:
    r"""Returns the softmax, ``o - max o``, and the log of the sum of its exponentials.

    .. math:: -\log p_j = r - (o_j - m), \qquad m = \max_k o_k, \qquad
        r = \log \sum_k e^{o_k - m}

    Fast: ``r`` is the log1p of what is beside one of the largest, so that its digits survive where
    a prediction is nearly certain. The last ones do not, as they do in `log_normalizer`.

    Args:
      logits: any shape.
      axis: of the classes.
      total: the sum over that axis; by default `jax.numpy.sum`.

    Returns:
      The first two in the shape of ``logits``, the third without the axis of classes.

    Example:
      >>> p, below, r = softmax_and_normalizer(jnp.zeros(2))
      >>> p.tolist(), below.tolist(), f"{r:.4f}"
      ([0.5, 0.5], [0.0, 0.0], '0.6931')
    """
    below = logits - jnp.max(logits, axis=axis, keepdims=True)
    e = jnp.exp(below)
    total = total or partial(jnp.sum, axis=axis)
    everything = total(e)
    rest = total(jnp.where(below == 0, 0, e))
    # Not counted, as XLA may form `below` twice, see `log_normalizer`.
    ties = jnp.round(everything - rest) - 1
    return e / jnp.expand_dims(everything, axis), below, jnp.log1p(rest + ties)


def log_softmax(logits: AnyArray, namespace: Any = np) -> AnyArray:
    """Returns ``log softmax(o)`` of arrays ``[n, q]`` of a namespace of the array API.

    In float64, as its callers have it, plain subtraction of the largest keeps enough digits.

    Example:
      >>> log_softmax(np.zeros((1, 2))).round(4)
      array([[-0.6931, -0.6931]])
    """
    below = logits - namespace.max(logits, axis=1, keepdims=True)
    return below - namespace.log(namespace.sum(namespace.exp(below), axis=1, keepdims=True))
