"""Sharing out the work of a head: each device of a mesh has its own rows, and its own classes.

What is of rows lies over the axis `parallel.DATA`, what is of classes over `parallel.CLASSES`. A
device passes over its classes alone. What it finds is some numbers a row, see `statistics`, which
are gathered and merged in the order of the devices; logits stay where they are.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from softmax_jax import parallel
from softmax_jax._annotations import PyTree
from softmax_jax.head.plan import Spec
from softmax_jax.head.targets import TargetWeights

OF_ROWS = PartitionSpec(parallel.DATA)
"""Where arrays with an axis of rows in front lie."""
EVERYWHERE = PartitionSpec()
"""Where scalars lie: on each device."""
_COLUMNS = PartitionSpec(None, parallel.CLASSES)
_CLASSES = PartitionSpec(parallel.CLASSES)
_BOTH = PartitionSpec(parallel.DATA, parallel.CLASSES)


def of_operands(operands: PyTree) -> PyTree:
    """Returns where `tiles.Operands` lie, or their gradients; None for those that are None."""
    places = (OF_ROWS, _COLUMNS, _CLASSES, EVERYWHERE)
    return type(operands)(*_but_none(operands, places))


def of_targets(targets: TargetWeights) -> PyTree:
    """Returns where target weights lie."""
    is_scalar = targets.uniform is None or targets.uniform.ndim == 0
    places = (OF_ROWS, OF_ROWS, _BOTH, _CLASSES, EVERYWHERE if is_scalar else _CLASSES)
    return TargetWeights(*_but_none(targets, places))


def _but_none(arrays: Any, places: Any) -> list[Any]:
    return [None if a is None else p for a, p in zip(arrays, places, strict=True)]


def shared_out(
    spec: Spec,
    function: Callable[..., PyTree],
    arguments: tuple[PyTree, ...],
    places: tuple[PyTree, ...],
    places_of_results: PyTree,
) -> PyTree:
    """Returns ``function(*arguments)``, which each device calls with its own part of each.

    Args:
      spec: whose `Spec.shards` says whether there are several devices.
      function: of the parts of one device.
      arguments: whole arrays.
      places: where they lie.
      places_of_results: where the parts of the results that devices return lie.
    """
    if spec.shards.number == 1:
        return function(*arguments)
    # Inside of a map over the rows, the classes alone are left.
    names = parallel.free_axes()

    def without_taken(place):
        return PartitionSpec(*(name if name in names else None for name in place))

    places, places_of_results = jax.tree.map(
        without_taken, (places, places_of_results), is_leaf=lambda p: isinstance(p, PartitionSpec)
    )
    return jax.shard_map(
        function,
        in_specs=places,
        out_specs=places_of_results,
        axis_names=names,
        check_vma=False,
    )(*arguments)


def first_class(spec: Spec, width: int) -> int | jax.Array:
    """Returns the first class of this device, which has so many."""
    if spec.shards.classes == 1:
        return 0
    return jax.lax.axis_index(parallel.CLASSES) * width


def over_classes(spec: Spec, tree: PyTree) -> PyTree:
    """Returns the sums over the devices that the classes lie over."""
    return jax.lax.psum(tree, parallel.CLASSES) if spec.shards.classes > 1 else tree


def over_rows(spec: Spec, tree: PyTree) -> PyTree:
    """Returns the sums over the devices that the rows lie over."""
    return jax.lax.psum(tree, parallel.DATA) if spec.shards.rows > 1 else tree


def merged(spec: Spec, part: PyTree, merge: Callable[[PyTree, PyTree], PyTree]) -> PyTree:
    """Merges the parts of the devices that classes lie over, those of the first classes first."""
    if spec.shards.classes == 1:
        return part
    parts = jax.lax.all_gather(part, parallel.CLASSES)
    first = jax.tree.map(lambda a: a[0], parts)
    others = jax.tree.map(lambda a: a[1:], parts)
    return jax.lax.scan(lambda seen, part: (merge(seen, part), None), first, others)[0]
