"""The targets of a head: class ids, distributions, or a few weighted classes a row."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax import losses
from softmax_jax._head_sweeps import Targets
from softmax_jax.checks import as_array, as_ids, as_real, known_ids


class SparseTargets(NamedTuple):
    """Soft labels over few classes of a row, from a teacher's largest probabilities for example."""

    ids: jax.Array
    """``[..., t]`` integers; of a class that is named twice, the weights are added."""
    weights: jax.Array
    """``[..., t]``; they need not sum to one."""


def made_targets(
    targets: Any,
    leading: tuple[int, ...],
    v: int,
    class_weights: jax.Array | None,
    ignore_id: int | None,
    kind: Any,
) -> tuple[Targets, jax.Array]:
    """The targets by rows, and which rows ``[...]`` count."""
    n = math.prod(leading)
    counts = jnp.ones(leading, bool)
    if not isinstance(targets, SparseTargets):
        targets = as_array(targets, "targets")
        if ignore_id is not None:
            targets, counts = losses.without_ignored(targets, ignore_id, rank=len(leading))
        targets = losses.as_targets(jax.ShapeDtypeStruct((*leading, v), kind), targets)
        if targets.ndim > len(leading):
            return Targets(dense=targets.reshape(n, v), class_weights=class_weights), counts
        ids, weights = targets[..., None], jnp.ones((*leading, 1), kind)
    else:
        if ignore_id is not None:
            raise ValueError("ignore_id is for class ids; give these rows weights of 0")
        ids, weights = _checked_sparse(targets, leading, v)
        weights = weights.astype(kind)
    ids, is_class = known_ids(ids, v)
    if class_weights is not None:
        weights = weights * class_weights[ids]
    weights = jnp.where(is_class, weights, jnp.nan)
    shape = (n, ids.shape[-1])
    return Targets(ids=ids.reshape(shape), weights=weights.reshape(shape)), counts


def _checked_sparse(
    targets: SparseTargets, leading: tuple[int, ...], v: int
) -> tuple[jax.Array, jax.Array]:
    ids = as_ids(targets.ids, v, "targets.ids")
    weights = as_real(targets.weights, "targets.weights")
    if ids.shape != weights.shape or ids.shape[:-1] != leading or ids.ndim == len(leading):
        raise ValueError(
            f"sparse targets need ids and weights of shape {(*leading, 't')}, got {ids.shape} and "
            f"{weights.shape}"
        )
    if ids.shape[-1] == 0:
        raise ValueError("sparse targets need at least one class a row")
    return ids, weights
