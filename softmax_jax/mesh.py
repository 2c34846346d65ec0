"""The present mesh of devices, and its axes: rows lie over one, classes over the other.

`parallel` lays data and parameters out on it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from softmax_jax._annotations import PyTree
from softmax_jax.checks import checked_count

DATA = "data"
"""Name of the axis that rows lie over."""
CLASSES = "classes"
"""Name of the axis that classes lie over."""

Tree = TypeVar("Tree")


def make_mesh(data: int | None = None, classes: int = 1) -> Mesh:
    """Returns a mesh of all devices, or of the first ones, of all processes.

    Args:
      data: devices that rows lie over; None for all there are, divided by ``classes``.
      classes: devices that classes lie over.

    Raises:
      ValueError: if there are not as many devices.

    Example:
      >>> with jax.set_mesh(make_mesh(data=1)):
      ...     print(extent("data"), extent("classes"))
      1 1
    """
    devices = jax.devices()
    classes = checked_count(classes, "classes")
    data = max(len(devices) // classes, 1) if data is None else checked_count(data, "data")
    if data * classes > len(devices):
        raise ValueError(
            f"a mesh of {data} x {classes} takes {data * classes} devices; there are {len(devices)}"
        )
    return jax.make_mesh(
        (data, classes),
        (DATA, CLASSES),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: data * classes],
    )


def extent(axis: str) -> int:
    """Returns how many devices the present mesh has along an axis, 1 if it has no such axis.

    Axes that are manual here count as 1, as the code around has divided the work already.

    Example:
      >>> extent("data")  # no mesh is set
      1
    """
    return jax.sharding.get_abstract_mesh().shape[axis] if axis in free_axes() else 1


def free_axes() -> set[str]:
    """Returns the names of the axes of the present mesh that are not manual here.

    Example:
      >>> free_axes()
      set()
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


@contextlib.contextmanager
def automatic_mesh() -> Iterator[None]:
    """Sets the present mesh with automatic axes in the place of explicit ones.

    For work that is begun on the host, whose programs XLA is to partition.

    Example:
      >>> with automatic_mesh():
      ...     print(jax.numpy.ones(2).sum())
      2.0
    """
    mesh = jax.sharding.get_mesh()
    if AxisType.Explicit not in mesh.axis_types:
        yield
        return
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    with jax.set_mesh(automatic):
        yield


def on_automatic_axes(
    function: Callable[..., Tree], arguments: tuple[PyTree, ...], places: PyTree
) -> Tree:
    """Returns ``function(*arguments)``, inside of which no axis of the mesh is explicit.

    Args:
      function: of arrays.
      arguments: these.
      places: where its results lie, if axes are explicit.

    Example:
      >>> on_automatic_axes(jax.numpy.sum, (jax.numpy.ones(2),), PartitionSpec()).item()
      2.0
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return function(*arguments)
    return jax.sharding.auto_axes(function, out_sharding=places)(*arguments)


def present_places(arrays: PyTree) -> PyTree:
    """Returns where traced arrays lie, as far as axes are explicit.

    Example:
      >>> [tuple(place) for place in present_places([jax.numpy.ones(2)])]
      [(None,)]
    """
    return jax.tree.map(lambda a: jax.typeof(a).sharding.spec, arrays)


def over_rows(rows: int) -> PartitionSpec:
    """Returns where so many rows lie: over their axis, if its devices divide them evenly.

    Example:
      >>> tuple(over_rows(4))
      ('data',)
    """
    return PartitionSpec(DATA) if rows % extent(DATA) == 0 else PartitionSpec()


def filled_up(number: int, axis: str) -> int:
    """Returns the least multiple of the devices along an axis that is not below a number.

    Example:
      >>> filled_up(10, "data")
      10
    """
    return -(-number // extent(axis)) * extent(axis)
