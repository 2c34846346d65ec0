"""The targets of a head: class ids, distributions, or a few weighted classes a row."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from softmax_jax._head_sweeps import Targets
from softmax_jax.checks import known_ids
from softmax_jax.data.targets import Dense, Ids, parse_counted


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
    parsed, counts = parse_counted(targets, (*leading, v), ignore_id)
    counts = jnp.ones(leading, bool) if counts is None else counts
    if isinstance(parsed, Dense):
        dense = parsed.probabilities.reshape(n, v)
        return Targets(dense=dense, class_weights=class_weights), counts
    if isinstance(parsed, Ids):
        ids, weights = parsed.ids[..., None], jnp.ones((*leading, 1), kind)
    else:
        ids, weights = parsed.ids, parsed.weights.astype(kind)
    ids, is_class = known_ids(ids, v)
    if class_weights is not None:
        weights = weights * class_weights[ids]
    weights = jnp.where(is_class, weights, jnp.nan)
    shape = (n, ids.shape[-1])
    return Targets(ids=ids.reshape(shape), weights=weights.reshape(shape)), counts
