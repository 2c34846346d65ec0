r"""Meshes of devices: rows lie over one axis, classes over the other.

Inside ``with jax.set_mesh(make_mesh(data=4, classes=2))``, or any mesh with axes of these names,
the library's functions share their work: those that go over rows give each device of the axis
``"data"`` its own, and heads give each device of the axis ``"classes"`` its own columns of the
weights. Rows and classes need not divide evenly: what fills them up has no weight, and no result
sees it. Results are those of one device up to rounding.

Axes may be automatic or explicit. Inside `jax.shard_map`, axes that are manual there are left to
it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from softmax_jax._annotations import PyTree
from softmax_jax.checks import checked_count
from softmax_jax.data.types import Data
from softmax_jax.model import Params

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
      ...     print(jnp.ones(2).sum())
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
      >>> on_automatic_axes(jnp.sum, (jnp.ones(2),), PartitionSpec()).item()
      2.0
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return function(*arguments)
    return jax.sharding.auto_axes(function, out_sharding=places)(*arguments)


def present_places(arrays: PyTree) -> PyTree:
    """Returns where traced arrays lie, as far as axes are explicit.

    Example:
      >>> [tuple(place) for place in present_places([jnp.ones(2)])]
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


def with_filling(data: Data, parts: int) -> Data:
    """Returns examples with some of weight zero at the end, for parts to have equally many.

    Example:
      >>> with_filling(Data(jnp.eye(3), jnp.array([0, 1, 2])), parts=2).weights.tolist()
      [1.0, 1.0, 1.0, 0.0]
    """
    n = len(data.x)
    more = -n % parts
    if more == 0:
        return data
    numpy = jnp if isinstance(data.x, jax.Array) else np

    def longer(a):
        return numpy.pad(a, [(0, more)] + [(0, 0)] * (np.ndim(a) - 1))

    weights = numpy.ones(n, np.float32) if data.weights is None else data.weights
    targets = jax.tree.map(longer, data.targets)
    return data._replace(x=longer(data.x), targets=targets, weights=longer(weights))


def spread(data: Data, parts: int | None = None) -> Data:
    """Returns examples that lie over the rows' axis of the mesh that is set: each device has some.

    Args:
      data: examples on the host.
      parts: those of `training.make_epoch`, which gives the same results on all meshes whose
        devices divide them evenly; by default as many as devices. Each is filled up with examples
        of weight zero.

    Raises:
      ValueError: if the devices do not divide the parts evenly.

    Example:
      >>> import numpy as np
      >>> with jax.set_mesh(make_mesh()):
      ...     examples = spread(Data(np.eye(2, dtype=np.float32), np.array([0, 1])))
      >>> tuple(examples.x.sharding.spec)
      ('data',)
    """
    mesh = jax.sharding.get_mesh()
    parts = extent(DATA) if parts is None else checked_count(parts, "parts")
    if parts % extent(DATA):
        raise ValueError(f"parts: {extent(DATA)} devices do not divide {parts} parts evenly")
    data = with_filling(data._replace(targets=jax.tree.map(np.asarray, data.targets)), parts)
    if DATA not in mesh.axis_names:
        return data
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _places(data))
    return jax.tree.map(jax.device_put, data, places)


def laid_out(tree: Tree, num_classes: int) -> Tree:
    """Returns parameters, or a state of training, on the mesh that is set.

    Arrays whose last axis is that of the classes lie over theirs, if its devices divide them
    evenly. All others lie on each device.

    Args:
      tree: arrays; inside of `jax.jit`, where they lie is what XLA has to keep to.
      num_classes: q.

    Example:
      >>> with jax.set_mesh(make_mesh()):
      ...     params = laid_out(Params(jnp.zeros((4, 3)), jnp.zeros(3)), num_classes=3)
      >>> tuple(params.w.sharding.spec)
      (None, 'classes')
    """
    mesh = jax.sharding.get_abstract_mesh()
    if CLASSES not in mesh.axis_names:
        return tree
    is_automatic = mesh.axis_types[mesh.axis_names.index(CLASSES)] == AxisType.Auto

    def placed(a):
        place = PartitionSpec()
        if np.ndim(a) > 0 and a.shape[-1] == num_classes and num_classes % extent(CLASSES) == 0:
            place = PartitionSpec(*[None] * (np.ndim(a) - 1), CLASSES)
        if not isinstance(a, jax.core.Tracer):
            return jax.device_put(a, NamedSharding(jax.sharding.get_mesh(), place))
        return jax.lax.with_sharding_constraint(a, place) if is_automatic else a

    return jax.tree.map(placed, tree)


def on_rows(function: Callable[[Params, Data], Tree], params: Params, data: Data) -> Tree:
    """Returns what a function finds in the rows of each device, one after the other.

    Args:
      function: whose results have an axis in front along which those of other rows may be put.
      params: handed to it.
      data: examples, of which it gets those of a device.

    Example:
      >>> data = Data(jnp.eye(2), jnp.array([0, 1]))
      >>> on_rows(lambda params, data: data.x.sum(axis=1), Params(0.0, 0.0), data).tolist()
      [1.0, 1.0]
    """
    if extent(DATA) == 1:
        return function(params, data)

    def of_device(params, data):
        return jax.lax.all_gather(function(params, data), DATA, tiled=True)

    def of_all(params, data):
        data = with_filling(data, extent(DATA))
        return jax.shard_map(
            of_device,
            in_specs=(PartitionSpec(), _places(data)),
            out_specs=PartitionSpec(),
            axis_names={DATA},
            check_vma=False,
        )(params, data)

    return on_automatic_axes(of_all, (params, data), PartitionSpec())


def _places(data: Data) -> Data:
    """Returns where examples lie."""
    over, everywhere = PartitionSpec(DATA), PartitionSpec()
    return Data(
        x=over,
        targets=jax.tree.map(lambda _: over, data.targets),
        weights=None if data.weights is None and len(data.x) % extent(DATA) == 0 else over,
        scale=None if data.scale is None else everywhere,
        shift=None if data.shift is None else everywhere,
    )
