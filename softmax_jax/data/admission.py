"""Examples at the door of compiled programs."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import as_array, checked_real, exceeds_float32
from softmax_jax.data.stored import StoredRows
from softmax_jax.data.streams import Stream, opened
from softmax_jax.data.targets import SparseTargets, checked, raw
from softmax_jax.data.types import Data, formed_on_host

Tree = TypeVar("Tree")


def admitted(data: Data, num_classes: int, *, look: bool) -> Data:
    """Returns the examples as arguments of a jitted function, for which JAX reads them rightly.

    Args:
      data: examples, on the host or the device.
      num_classes: q.
      look: whether class ids on the device are checked too, which waits for them.

    Raises:
      ValueError: on features and weights that are no real numbers, or class ids outside [0, q).
    """
    data = formed_on_host(data)
    x, targets = data.x, data.targets
    x = x if isinstance(x, Stream) else checked_real(x, "x")
    arrays = targets if isinstance(targets, SparseTargets) else (targets,)
    if look or not all(isinstance(a, jax.Array) for a in arrays):
        if not isinstance(targets, SparseTargets):
            targets = as_array(targets, "targets")
        if x.shape[:1] == jnp.shape(arrays[0])[:1]:  # others are told of by `number_of_examples`
            targets = raw(checked(targets, (*x.shape[:-1], num_classes)))
    return Data(
        x,
        targets,
        None if data.weights is None else checked_real(data.weights, "weights"),
        *(_checked_unit(unit) for unit in (data.scale, data.shift)),
    )


def _checked_unit(unit: AnyArray | None) -> AnyArray | None:
    return unit if unit is None or jnp.isscalar(unit) else checked_real(unit, "scale, shift")


def on_stream(function: Callable[[Data], Tree], data: Data) -> Tree:
    """Returns a function of examples; where their features are stored, it is waited for.

    Those of a type that float32 does not hold are formed in float64 before they become float32.

    Args:
      function: runs programs, which have rows read.
      data: examples, which it gets with a `Stream` of their features.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> data = Data(rows_of_array(np.eye(2)), np.array([0, 1]))
      >>> on_stream(lambda data: data.x.dtype, data)
      dtype('float32')
    """
    if not isinstance(data.x, StoredRows):
        return function(data)
    with opened(_of_width_of_jax(data)) as stream:
        units = (None, None) if exceeds_float32(data.x.dtype) else (data.scale, data.shift)
        scale, shift = units
        result = function(data._replace(x=stream, scale=scale, shift=shift))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(result)):
            raise ValueError(
                "stored rows: epochs and evaluation read them while they run; call these outside "
                "of jax.jit"
            )
        return jax.block_until_ready(result)


def _of_width_of_jax(data: Data) -> StoredRows:
    x = data.x
    if not exceeds_float32(x.dtype):
        return x
    dtype = jax.dtypes.canonicalize_dtype(np.float64)

    def read(rows):
        formed = formed_on_host(data._replace(x=x.read(rows)))
        return np.asarray(formed.x).astype(dtype)

    return dataclasses.replace(x, dtype=np.dtype(dtype), read=read)


def number_of_examples(data: Data) -> int:
    """Returns the number of examples.

    Raises:
      ValueError: if there are no examples, or the arrays have not equally many.
    """
    if isinstance(data.targets, SparseTargets):
        raise ValueError("targets: epochs and evaluation take no SparseTargets; make_update does")
    arrays = {"x": data.x, "targets": data.targets, "weights": data.weights}
    rows = {name: a.shape[0] for name, a in arrays.items() if a is not None}
    if 0 in rows.values() or len(set(rows.values())) > 1:
        raise ValueError(f"x, targets and weights need equally many rows, and some: got {rows}")
    return rows["x"]
