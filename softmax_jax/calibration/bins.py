"""Bins of similar confidence, and the sums over their examples that all errors are made of."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses
from softmax_jax._annotations import AnyArray, Array, Float, NDArray
from softmax_jax._dtypes import accumulation_type, at_least_float32
from softmax_jax.checks import (
    as_array,
    as_real,
    checked_count,
    checked_weights,
    is_known,
    refuse_other_than_probabilities,
)
from softmax_jax.data import blocks


class Bins(NamedTuple):
    """Sums over the examples of each bin, ``[bins]`` or ``[classes, bins]``.

    With weight ``s``, confidence ``c`` and outcome ``y`` of an example.
    """

    weight: Float[Array, "*bins"]
    """``Σ s``; the number of examples where they are not weighted."""
    confidence: Float[Array, "*bins"]
    """``Σ s c``"""
    outcome: Float[Array, "*bins"]
    """``Σ s y``"""
    gap: Float[Array, "*bins"]
    """``Σ s (y - c)``, which the two above have by rounding only."""
    confidence_squared: Float[Array, "*bins"]
    """``Σ s c²``"""
    outcome_squared: Float[Array, "*bins"]
    """``Σ s y²``"""
    product: Float[Array, "*bins"]
    """``Σ s c y``"""
    weight_squared: Float[Array, "*bins"]
    """``Σ s²``"""
    gap_squared: Float[Array, "*bins"]
    """``Σ s² (y - c)²``; of weights beyond 1e±15 float32 holds neither this nor the one above."""


def equal_width_edges(bins: int) -> Float[NDArray, " edges"]:
    """Returns the edges of bins of equal width: ``[0, 1 / bins, ..., 1]``.

    Example:
      >>> equal_width_edges(4).tolist()
      [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    return np.linspace(0, 1, checked_count(bins, "bins") + 1)


@jax.transfer_guard("allow")
def equal_mass_edges(confidence: AnyArray, bins: int) -> Float[NDArray, "*classes edges"]:
    """Returns edges that put equally many of the confidences in each bin, up to ties.

    Edges are confidences, the first and the last 0 and 1. Equal ones, of many equal confidences,
    make bins that stay empty.

    Args:
      confidence: ``[n]``, or ``[n, q]`` for edges of each class; of all the data, or of a sample.
      bins: how many.

    Returns:
      ``[bins + 1]`` or ``[q, bins + 1]``.

    Raises:
      ValueError: if there are no confidences, or what is none among them.

    Example:
      >>> equal_mass_edges([0.2, 0.3, 0.8, 0.9], 2).tolist()  # two confidences in each bin
      [0.0, 0.8, 1.0]
    """
    bins = checked_count(bins, "bins")
    values = np.asarray(as_array(confidence, "confidence"))
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"there are no confidences to take edges from: shape {values.shape}; expected [n] or "
            "[n, q]"
        )
    refuse_other_than_probabilities(values, "confidence")
    if values.dtype.kind not in "f":
        values = values.astype(np.float32)  # integers, and bfloat16
    values = np.sort(values, axis=0)
    first = -(-np.arange(1, bins) * len(values) // bins)
    inner = np.moveaxis(values[np.minimum(first, len(values) - 1)], 0, -1)
    zero = np.zeros((*values.shape[1:], 1), values.dtype)
    return np.concatenate([zero, inner, zero + 1], axis=-1)


@jax.transfer_guard("allow")
def reliability(
    confidence: AnyArray,
    outcome: AnyArray,
    edges: AnyArray,
    weights: AnyArray | None = None,
) -> Bins:
    """Returns the sums of a batch, in the type of the confidences, float32 at least.

    Args:
      confidence: ``[n]``, or ``[n, classes]``; probabilities, in [0, 1] up to rounding. Those of
        `class_wise` sum to 1 over the classes, those of a classifier for each class need not.
      outcome: of the same shape: 0 or 1, or probabilities where targets are.
      edges: ``[bins + 1]``, rising, or ``[classes, bins + 1]``.
      weights: ``[n]`` example weights, 0 or more, None for 1; rows of weight zero take no part.

    Raises:
      ValueError: if the shapes do not fit, the edges do not rise, confidences or outcomes of rows
        with weight are no probabilities, or weights are negative or not finite. Under a jax
        transformation values cannot raise: there, a confidence of NaN makes the sums of the last
        bin NaN.

    Example:
      >>> confidence, outcome = jnp.array([0.6, 0.7, 0.2]), jnp.array([1.0, 0.0, 0.0])
      >>> bins = reliability(confidence, outcome, equal_width_edges(2))
      >>> bins.weight.tolist(), bins.outcome.tolist()
      ([1.0, 2.0], [0.0, 1.0])
    """
    confidence, outcome = as_real(confidence, "confidence"), as_real(outcome, "outcome")
    if confidence.shape != outcome.shape or confidence.ndim not in (1, 2):
        raise ValueError(
            f"confidences of shape {confidence.shape} and outcomes of shape {outcome.shape}; "
            "expected [n] or [n, classes], both the same"
        )
    rows = jax.ShapeDtypeStruct(confidence.shape[:1], accumulation_type(confidence))
    weights = losses.weights_of(rows, weights)
    check_values(confidence, outcome, weights)
    confidence = at_least_float32(confidence)
    edges = checked_edges(edges, confidence)
    return _reliability(confidence, outcome.astype(confidence.dtype), edges, weights)


def check_values(confidence: jax.Array, outcome: jax.Array, weights: jax.Array) -> None:
    """Raises a ValueError, as `reliability`, for what is known."""
    counts = None
    if is_known(weights):
        # Of no rows there are sums, too.
        counts = checked_weights(weights, len(weights)) > 0 if len(weights) else np.zeros(0, bool)
    for a, where in ((confidence, "confidence"), (outcome, "outcome")):
        if counts is not None and is_known(a):
            refuse_other_than_probabilities(np.asarray(a), where, counts)


def checked_edges(edges: AnyArray, confidence: jax.Array) -> jax.Array:
    """Returns edges in the type of the confidences; raises a ValueError as `reliability`."""
    edges = as_real(edges, "edges")
    shape = edges.shape
    if shape[:-1] not in ((), confidence.shape[1:]) or shape[-1:] < (2,):
        raise ValueError(
            f"edges of shape {shape} for confidences of shape {confidence.shape}; expected "
            "[bins + 1] or [classes, bins + 1]"
        )
    if is_known(edges):
        values = np.asarray(edges).astype(np.float64)
        inner = values[..., 1:-1]
        if not (
            (values[..., 1:] >= values[..., :-1]).all() and ((inner >= 0) & (inner <= 1)).all()
        ):
            raise ValueError(f"edges: {values}; expected to rise from 0 to 1, as confidences do")
    return edges.astype(confidence.dtype)


@jax.jit
def _reliability(
    confidence: jax.Array, outcome: jax.Array, edges: jax.Array, weights: jax.Array
) -> Bins:
    one = partial(sums_of_bins, weights)
    if confidence.ndim == 1:
        return one(confidence, outcome, edges)
    in_axes = (1, 1, 0 if edges.ndim == 2 else None)
    return jax.vmap(one, in_axes=in_axes)(confidence, outcome, edges)


def sums_of_bins(s: jax.Array, c: jax.Array, y: jax.Array, edges: jax.Array) -> Bins:
    """Returns the sums for weights, confidences and outcomes ``[n]``, all of them checked."""
    c, y = jnp.where(s == 0, 0, c), jnp.where(s == 0, 0, y)
    d = y - c
    terms = (s, s * c, s * y, s * d, s * c * c, s * y * y, s * c * y, s * s, (s * d) ** 2)
    return Bins(*sums_by_bin(jnp.stack(terms, axis=1), number_of_bin(c, edges), edges).T)


def number_of_bin(c: jax.Array, edges: jax.Array) -> jax.Array:
    """Returns the bin of each confidence, ``[n]``; beyond the ends, that of the end."""
    return jnp.searchsorted(edges[1:-1], c, side="right")


def sums_by_bin(values: jax.Array, bin_of: jax.Array, edges: jax.Array) -> jax.Array:
    """Returns sums over the rows of each bin; of blocks first, to keep their rounding small."""
    bins = edges.shape[-1] - 1
    number, rows = blocks.balanced(len(values), blocks.ROWS)
    # One pass over all rows, which fuses with what the values are made of, unlike a loop.
    block = jnp.arange(len(values), dtype=bin_of.dtype) // max(rows, 1)
    sums = jax.ops.segment_sum(values, bin_of + bins * block, num_segments=bins * number)
    return jnp.sum(sums.reshape(number, bins, *values.shape[1:]), axis=0)
