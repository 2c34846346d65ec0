"""Evaluation: the metrics of a model on a data set, a block of rows at a time.

`evaluate` waits for them. `measure_blocks` leaves them on the device.
"""

from functools import partial

import jax
import jax.numpy as jnp

from softmax_jax import head, metrics, model, parallel
from softmax_jax._annotations import Array, Bool
from softmax_jax.checks import checked_count, checked_real
from softmax_jax.data import blocks
from softmax_jax.data.admission import admitted, number_of_examples, on_stream
from softmax_jax.data.streams import Stream
from softmax_jax.data.targets import Ids, checked
from softmax_jax.data.types import Data, features, formed_on_host
from softmax_jax.metrics import Metrics
from softmax_jax.model import Params


@jax.transfer_guard("allow")
def evaluate(
    params: Params,
    data: Data,
    *,
    block_size: int = blocks.ROWS,
    k: int = metrics.TOP_K,
    confusion: bool = False,
    most_logits: int = head.MOST_LOGITS,
) -> Metrics:
    """Measures ``params`` on all of ``data``, a block of rows at a time.

    Arrays on the host are read as the numbers they are, see `features` and `model.centred`.

    Each block is summed on the device in float32, and the blocks on the host in float64. Metrics
    of further data, on this host or another, are added by `metrics.merge`.

    Args:
      params: the model.
      data: ``n`` examples, on the device, the host, or in files (`StoredRows`).
      block_size: rows at a time, of which as many are floating-point features at once. The result
        depends on it by rounding only.
      k: see `metrics.measure`.
      confusion: see `metrics.measure`.
      most_logits: logits that are held at a time. If a block has more, class ids are scored
        without them, see `metrics.measure_head`, and all else in smaller blocks.

    Returns:
      `Metrics` of NumPy float64 sums.

    Raises:
      ValueError: if the arrays of ``data`` have no rows or not equally many, class ids are outside
        [0, q), or ``block_size`` is not a positive integer.

    Example:
      >>> import numpy as np
      >>> data = Data(x=np.eye(2, dtype=np.float32), targets=np.array([0, 1]))
      >>> metrics.summarize(evaluate(Params(np.eye(2), np.zeros(2)), data))["accuracy"]
      1.0
    """
    return metrics.total(
        measure_blocks(
            params,
            data,
            block_size=block_size,
            k=k,
            confusion=confusion,
            most_logits=most_logits,
        )
    )


@jax.transfer_guard("allow")
def measure_blocks(
    params: Params,
    data: Data,
    *,
    block_size: int = blocks.ROWS,
    k: int = metrics.TOP_K,
    confusion: bool = False,
    most_logits: int = head.MOST_LOGITS,
) -> Metrics:
    """Does the part of `evaluate` on the device, which need not be waited for.

    Returns:
      `Metrics` with a leading axis of blocks, for `metrics.total`.

    Example:
      >>> params, data = Params(jnp.eye(2), jnp.zeros(2)), Data(jnp.eye(2), jnp.array([0, 1]))
      >>> measure_blocks(params, data, block_size=1).correct.tolist()
      [1.0, 1.0]
    """
    block_size, k = checked_count(block_size, "block_size"), checked_count(k, "k")
    measured = partial(
        _measured_blocks, block_size=block_size, k=k, confusion=confusion, most_logits=most_logits
    )

    def of(data: Data) -> Metrics:
        data, centred = formed_on_host(data), params
        if data.scale is None and data.shift is None and not isinstance(data.x, Stream):
            centred, x = model.centred(params, data.x)
            data = data._replace(x=x)
        checked = Params(checked_real(centred.w, "params.w"), checked_real(centred.b, "params.b"))
        return measured(checked, admitted(data, jnp.shape(checked.w)[-1], look=True))

    return on_stream(of, data)


@partial(jax.jit, static_argnames=("block_size", "k", "confusion", "most_logits"))
def _measured_blocks(
    params: Params, data: Data, *, block_size: int, k: int, confusion: bool, most_logits: int
) -> Metrics:
    measured = partial(
        _measured_here, block_size=block_size, k=k, confusion=confusion, most_logits=most_logits
    )
    number_of_examples(data)
    return parallel.on_rows(measured, params, data)


def _measured_here(
    params: Params, data: Data, *, block_size: int, k: int, confusion: bool, most_logits: int
) -> Metrics:
    n = number_of_examples(data)
    q = params.w.shape[1]
    block_size = min(block_size, n)
    by_head = block_size * q > most_logits and not confusion
    by_head = by_head and isinstance(checked(data.targets, (n, q)), Ids)
    if not by_head:
        block_size = min(block_size, max(most_logits // q, 1))

    def measured(
        _: None, start: blocks.Index, is_new: Bool[Array, " rows"]
    ) -> tuple[None, Metrics]:
        block = blocks.block_of(data, start, is_new)
        x, targets, weights = features(block), block.targets, block.weights
        if by_head:
            return None, metrics.measure_head(params, x, targets, weights, k=k)
        scores = model.logits(params, x)
        return None, metrics.measure(scores, targets, weights, k=k, confusion=confusion)

    return blocks.scan(measured, None, n, block_size)[1]
