"""The targets of a head: class ids, distributions, or a few weighted classes a row."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses
from softmax_jax._head_sweeps import Targets


class SparseTargets(NamedTuple):
    """Soft labels over few classes of a row, from a teacher's largest probabilities for example."""

    ids: jax.Array
    """``[..., t]`` integers; of a class that is named twice, the weights are added."""
    weights: jax.Array
    """``[..., t]``; they need not sum to one."""


def are_ids(targets: Any, leading: tuple[int, ...]) -> bool:
    """Whether they are class ids, one for each row: of the shape that rows have."""
    return not isinstance(targets, SparseTargets) and jnp.shape(targets) == leading


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
        logits = jax.ShapeDtypeStruct((*leading, v), kind)
        ids = targets = (
            _as_array(targets) if jnp.shape(targets) == leading else jnp.asarray(targets)
        )
        if ignore_id is not None and targets.shape == leading:
            numpy = jnp if isinstance(targets, jax.core.Tracer) else np
            counts = targets != ignore_id
            ids = numpy.where(counts, targets, 0)
        if not losses.are_labels(logits, ids):
            if ignore_id is not None:
                raise ValueError("ignore_id is a class id; these targets are probabilities")
            return Targets(dense=targets.reshape(n, v), class_weights=class_weights), counts
        ids, weights = jnp.asarray(ids)[..., None], jnp.ones((*leading, 1), kind)
    else:
        if ignore_id is not None:
            raise ValueError("ignore_id is for class ids; give these rows weights of 0")
        ids, weights = _checked_sparse(targets, leading, v)
        ids, weights = jnp.asarray(ids), jnp.asarray(weights, kind)
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # small types cannot hold the v that they are compared with
    is_class = (ids >= 0) & (ids < v)
    ids = jnp.where(is_class, ids, 0).astype(jnp.int32)
    if class_weights is not None:
        weights = weights * class_weights[ids]
    weights = jnp.where(is_class, weights, jnp.nan)
    return Targets(ids=ids.reshape(n, -1), weights=weights.reshape(n, -1)), jnp.asarray(counts)


def _as_array(a: Any) -> Any:
    """Concrete ones by NumPy: under a transformation of something else, jnp would trace them."""
    return a if isinstance(a, jax.core.Tracer) else np.asarray(a)


def _checked_sparse(targets: SparseTargets, leading: tuple[int, ...], v: int) -> tuple[Any, Any]:
    ids, weights = _as_array(targets.ids), targets.weights
    if ids.shape != jnp.shape(weights) or ids.shape[:-1] != leading or ids.ndim == len(leading):
        raise ValueError(
            f"sparse targets need ids and weights of shape {(*leading, 't')}, got {ids.shape} and "
            f"{jnp.shape(weights)}"
        )
    if ids.shape[-1] == 0:
        raise ValueError("sparse targets need at least one class a row")
    # Each column is one of class ids.
    losses.are_labels(jax.ShapeDtypeStruct((*ids.shape, v), jnp.float32), ids)
    return ids, weights
