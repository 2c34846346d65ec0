"""Examples at the door of compiled programs."""

import jax
import jax.numpy as jnp

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import as_array, checked_real
from softmax_jax.data.targets import SparseTargets, checked, raw
from softmax_jax.data.types import Data, formed_on_host


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
    x, targets = checked_real(data.x, "x"), data.targets
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
