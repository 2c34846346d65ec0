"""Weights of the classes in the loss of each row of a head, and the parts of them in a tile."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, Integer
from softmax_jax.checks import known_ids
from softmax_jax.data.targets import Dense, Ids, Targets
from softmax_jax.loss_options import LossOptions, is_zero


class TargetWeights(NamedTuple):
    """Weight ``y`` of each class in the loss of each row, a sum of the parts that are not None."""

    ids: Integer[Array, "n m"] | None = None
    """``[n, t]`` int32 classes of the sparse part, in any order."""
    weights: Float[Array, "n m"] | None = None
    """``[n, t]`` weights of the classes ``ids``, class weights included. NaN makes the loss of its
    row NaN."""
    dense: Float[Array, "n q"] | None = None
    """``[n, q]`` weights, to be multiplied by ``class_weights``."""
    class_weights: Float[Array, " q"] | None = None
    """``[q]``; None means 1."""
    uniform: jax.Array | None = None
    """``u``, which label smoothing spreads over the classes of every row: ``[q]``, or a scalar if
    all classes get the same."""


def weights_of_classes(
    targets: Targets,
    leading: tuple[int, ...],
    num_classes: int,
    options: LossOptions,
    dtype: np.dtype,
) -> TargetWeights:
    """Returns what each class weighs in the loss, class weights and smoothing included, by rows.

    Args:
      targets: parsed.
      leading: axes of the rows.
      num_classes: ``q``.
      options: checked.
      dtype: of the weights.
    """
    n, class_weights = math.prod(leading), options.class_weights
    uniform = None
    if not is_zero(options.label_smoothing):
        uniform = jnp.ones((), dtype) if class_weights is None else class_weights
        uniform = uniform / num_classes
    if isinstance(targets, Dense):
        dense = targets.probabilities.reshape(n, num_classes)
        return TargetWeights(dense=dense, class_weights=class_weights, uniform=uniform)
    if isinstance(targets, Ids):
        ids, weights = targets.ids[..., None], jnp.ones((*leading, 1), dtype)
    else:
        ids, weights = targets.ids, targets.weights.astype(dtype)
    ids, is_class = known_ids(ids, num_classes)
    if class_weights is not None:
        weights = weights * class_weights[ids]
    weights = jnp.where(is_class, weights, jnp.nan)
    shape = (n, ids.shape[-1])
    return TargetWeights(ids.reshape(shape), weights.reshape(shape), uniform=uniform)


def mass_of(targets: TargetWeights, dtype: np.dtype) -> Float[Array, " n"]:
    """Returns the total weight ``Σ_j y_j`` of each row before smoothing: ``[n]``."""
    if targets.weights is not None:
        return jnp.sum(targets.weights, axis=1)
    assert targets.dense is not None
    dense = targets.dense.astype(dtype)
    if targets.class_weights is None:
        return jnp.sum(dense, axis=1)
    return jnp.matmul(dense, targets.class_weights, precision="highest")


def columns(a: jax.Array, start: int | jax.Array, width: int) -> jax.Array:
    """Returns ``width`` entries of the last axis, from ``start`` on."""
    return jax.lax.dynamic_slice_in_dim(a, start, width, axis=a.ndim - 1)


def places_in_tile(
    ids: jax.Array, start: int | jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
    """Returns where classes are in a tile, ``width`` if they are not; and whether they are."""
    inside = (ids >= start) & (ids < start + width)
    return jnp.where(inside, ids - start, width), inside


def dense_of_tile(
    targets: TargetWeights, start: int | jax.Array, width: int, dtype: np.dtype
) -> jax.Array:
    """Returns the dense part of the targets for the classes of a tile: ``[rows, width]``."""
    assert targets.dense is not None
    y = columns(targets.dense, start, width).astype(dtype)
    if targets.class_weights is not None:
        y = y * columns(targets.class_weights, start, width)[None]
    return y
