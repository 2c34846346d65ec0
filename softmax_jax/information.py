"""Surprisal, entropy, cross-entropy and divergence of distributions, in nats or in bits.

All take probabilities along the last axis, in arrays or lists, and work in float32 at least;
0 · log 0 is 0, as in the limit. A probability that is NaN or negative gives NaN. Bits are nats
over ``log 2``: 1 nat = 1.4427 bit.
"""

import math
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from softmax_jax._annotations import AnyArray, Array, Float
from softmax_jax._dtypes import accumulation_type, at_least_float32
from softmax_jax.checks import as_real

Unit = Literal["nats", "bits"]

NATS_PER_BIT = math.log(2.0)


Nats = TypeVar("Nats", float, jax.Array)
"""Information in nats."""


def to_bits(nats: Nats) -> Nats:
    """Returns ``nats / log 2``.

    Example:
      >>> to_bits(math.log(8.0))
      3.0
    """
    return nats / NATS_PER_BIT


@jax.transfer_guard("allow")
def surprisal(p: AnyArray, *, unit: Unit = "nats") -> Float[Array, "..."]:
    """Returns ``-log P(j)``, the information in an event of probability ``p``: elementwise.

    Infinite for an impossible event. From logits, `softmax_jax.losses.cross_entropy` gives the
    surprisal of a label without forming its probability.

    Example:
      >>> surprisal([0.5, 0.125], unit="bits").tolist()
      [1.0, 3.0]
    """
    return _in_unit(-jnp.log(_given(p, "p")), unit)


@jax.transfer_guard("allow")
def entropy(p: AnyArray, *, unit: Unit = "nats") -> Float[Array, "..."]:
    """Returns ``H[P] = -Σ_j P(j) log P(j)``, eq. 3.4.11, the expected surprisal: ``[...]``.

    It lies between 0 and ``log q``. A class of probability zero adds nothing to the value, nor to
    the gradient: derivatives are taken along the support of ``p``.

    Example:
      >>> float(entropy([0.5, 0.25, 0.25], unit="bits"))
      1.5
    """
    p = _given(p, "p")
    return _in_unit(0 - jnp.sum(_xlogy(p, p), axis=-1), unit)


@jax.transfer_guard("allow")
def cross_entropy(p: AnyArray, q: AnyArray, *, unit: Unit = "nats") -> Float[Array, "..."]:
    """Returns ``H(P, Q) = -Σ_j P(j) log Q(j)``, the cost to code draws from P by the code for Q.

    It is never below ``H[P]``, and equal to it only for ``Q = P``; infinite where Q rules out
    what P allows: ``[..., q] -> [...]``. Classes with ``P(j) = 0`` take no part, in the gradient
    either.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> float(cross_entropy([0.5, 0.5], [0.25, 0.75], unit="bits")).__round__(4)
      1.2075
    """
    p, q = _pair(p, q)
    return _in_unit(0 - jnp.sum(_xlogy(p, q), axis=-1), unit)


@jax.transfer_guard("allow")
def kl_divergence(p: AnyArray, q: AnyArray, *, unit: Unit = "nats") -> Float[Array, "..."]:
    """Returns ``KL(P, Q) = H(P, Q) - H[P] = Σ_j P(j) log(P(j) / Q(j))``: ``[...]``.

    Summed as ``Σ_j P(j) log(P(j) / Q(j)) - P(j) + Q(j)``, the same for distributions, whose terms
    are each non-negative: the result is never below zero by rounding, and nearby distributions
    keep their digits. Its gradients, ``log(P / Q)`` and ``1 - P / Q``, differ from those of the
    shorter sum by constants, which no motion along the distributions sees.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> float(kl_divergence([1.0, 0.0], [0.5, 0.5], unit="bits"))
      1.0
    """
    p, q = _pair(p, q)
    support = p != 0  # true for NaN, which must not vanish
    near = support & (jnp.abs(q - p) < 0.5 * p)
    # Nearby, with t = (q - p) / p, a term is p (t - log1p(t)): no two logarithms that cancel.
    p_near, q_near = jnp.where(near, p, 1), jnp.where(near, q, 1)
    t = (q_near - p_near) / p_near
    terms_near = p_near * (t - jnp.log1p(t))
    # Far apart, t would be rounded to -1 for a small q.
    is_far = support & ~near
    p_far, q_far = jnp.where(is_far, p, 1), jnp.where(is_far, q, 1)
    terms_far = p_far * (jnp.log(p_far) - jnp.log(q_far)) + (q_far - p_far)
    terms = jnp.where(support, jnp.where(near, terms_near, terms_far), q)
    return _in_unit(jnp.sum(jnp.maximum(terms, 0), axis=-1), unit)


def _xlogy(p: Float[Array, "*shape"], q: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns ``p log q``, with value and derivatives 0 where ``p = 0``."""
    support = p != 0  # true for NaN, which must not vanish
    # The inner `where` keeps log(0) out of the derivative, the outer one out of the value.
    return jnp.where(support, p * jnp.log(jnp.where(support, q, 1)), 0)


def _given(p: AnyArray, name: str) -> Float[Array, "..."]:
    return at_least_float32(as_real(p, name))


def _pair(p: AnyArray, q: AnyArray) -> tuple[Float[Array, "*batch q"], Float[Array, "*batch q"]]:
    p, q = _given(p, "p"), _given(q, "q")
    if p.shape != q.shape:
        raise ValueError(f"P has shape {p.shape} but Q has shape {q.shape}")
    kind = accumulation_type(p, q)
    return p.astype(kind), q.astype(kind)


def _in_unit(nats: Float[Array, "*shape"], unit: Unit) -> Float[Array, "*shape"]:
    if unit not in ("nats", "bits"):
        raise ValueError(f"unit must be 'nats' or 'bits', got {unit!r}")
    return nats / NATS_PER_BIT if unit == "bits" else nats
