"""Predictions of a head of any size, a tile of logits at a time."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax import parallel
from softmax_jax._annotations import AnyArray, Array, ArrayLike, Float, Integer
from softmax_jax._dtypes import accumulation_type
from softmax_jax.checks import checked_count
from softmax_jax.head import table, tiles
from softmax_jax.head.derivative import measured
from softmax_jax.head.operands import checked_operands, filled_up
from softmax_jax.head.plan import Spec, Tiling, checked_tiling, make_plan, present_shards
from softmax_jax.head.targets import TargetWeights
from softmax_jax.model import Params, committed

TOP_K = 5
"""``k`` of the top-k accuracy by default."""


class TopK(NamedTuple):
    """Most probable classes, the most probable one first, of equals the lower class."""

    probabilities: Float[Array, "*batch k"]
    """``[..., k]``."""
    ids: Integer[Array, "*batch k"]
    """``[..., k]`` int32."""


@jax.transfer_guard("allow")
def top_k(params: Params, x: AnyArray, *, k: int = TOP_K, memory: int | None = None) -> TopK:
    """Returns the ``k`` most probable classes of each row, a tile of logits at a time.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features.
      k: how many, at most ``q``.
      memory: see `linear_cross_entropy`.

    Raises:
      ValueError: on shapes that do not fit, and a ``k`` below 1 or above ``q``.

    Example:
      >>> import jax.numpy as jnp
      >>> from softmax_jax import Params, head
      >>> params = Params(w=jnp.array([[1.0, 3.0, 2.0]]), b=jnp.zeros(3))
      >>> head.top_k(params, jnp.array([[1.0], [-1.0]]), k=2).ids.tolist()
      [[1, 2], [0, 2]]
    """
    q, k = jnp.shape(params.w)[-1], checked_count(k, "k")
    if k > q:
        raise ValueError(f"k must lie in [1, {q}] for {q} classes, got {k}")
    row, leading = _measured(params, x, k, memory)
    normalizer, best = row.normalizer, row.saved["top"]
    probabilities = jnp.exp((best.values - normalizer.m[:, None]) - normalizer.r[:, None])
    return TopK(probabilities.reshape(*leading, k), best.ids.reshape(*leading, k))


@jax.transfer_guard("allow")
def predict(
    params: Params,
    x: AnyArray,
    *,
    threshold: ArrayLike = 0.0,
    memory: int | None = None,
) -> jax.Array:
    """Predicts as `model.predict`, a tile of logits at a time; the arguments are the same.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features.
      threshold: least probability on which to commit.
      memory: see `linear_cross_entropy`.

    Example:
      >>> import jax.numpy as jnp
      >>> from softmax_jax import Params, head
      >>> params = Params(w=jnp.array([[1.0, 3.0, 2.0]]), b=jnp.zeros(3))
      >>> head.predict(params, jnp.array([[1.0], [0.0]]), threshold=0.6).tolist()
      [1, -1]
    """
    row, leading = _measured(params, x, 1, memory)
    # The largest probability is exp(m - m - r).
    confidence = jnp.exp(-row.normalizer.r).reshape(leading)
    return committed(row.saved["top"].ids[:, 0].reshape(leading), confidence, threshold)


def _measured(
    params: Params, x: AnyArray, k: int, memory: int | None
) -> tuple[tiles.Row, tuple[int, ...]]:
    """Returns the normaliser and the largest logits of each row, and the leading axes."""
    x, w, b = checked_operands(x, params.w, params.b)
    leading = x.shape[:-1]
    n = math.prod(leading)
    spec = Spec(
        rows=0,
        classes=0,
        statistics=(table.top(k),),
        num_classes=w.shape[1],
        shards=present_shards(),
    )
    tiling = checked_tiling(Tiling("recompute", memory))

    def measured_rows(x, w, b):
        operands, targets = filled_up(tiles.Operands(x, w, b, jnp.ones(())), TargetWeights())
        sizes = len(operands.x), operands.w.shape[0], operands.w.shape[1]
        plan = make_plan(sizes, spec, accumulation_type(x, w), tiling)
        return jax.tree.map(lambda a: a[:n], measured(plan.spec, operands, targets))

    arguments = (x.reshape(n, x.shape[-1]), w, b)
    return parallel.on_automatic_axes(measured_rows, arguments, parallel.over_rows(n)), leading
