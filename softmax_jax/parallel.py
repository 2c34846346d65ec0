"""Meshes of devices: rows lie over one axis, classes over the other.

Inside ``with jax.set_mesh(make_mesh(data=4, classes=2))``, or any mesh with axes of these names,
the library's functions share their work: those that go over rows give each device of the axis
``"data"`` its own, and heads give each device of the axis ``"classes"`` its own columns of the
weights. Rows and classes need not divide evenly: what fills them up has no weight, and no result
sees it. Results are those of one device up to rounding.

Axes may be automatic or explicit. Inside `jax.shard_map`, axes that are manual there are left to
it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from softmax_jax import processes
from softmax_jax.checks import checked_count
from softmax_jax.data.stored import StoredRows, with_filling_rows
from softmax_jax.data.streams import Stream
from softmax_jax.data.types import Data
from softmax_jax.mesh import CLASSES as CLASSES
from softmax_jax.mesh import DATA as DATA
from softmax_jax.mesh import automatic_mesh as automatic_mesh
from softmax_jax.mesh import extent as extent
from softmax_jax.mesh import filled_up as filled_up
from softmax_jax.mesh import free_axes as free_axes
from softmax_jax.mesh import make_mesh as make_mesh
from softmax_jax.mesh import on_automatic_axes as on_automatic_axes
from softmax_jax.mesh import over_rows as over_rows
from softmax_jax.mesh import present_places as present_places
from softmax_jax.model import Params

Tree = TypeVar("Tree")


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
    numpy = jnp if isinstance(data.targets, jax.Array) else np

    def longer(a):
        if isinstance(a, StoredRows):
            return with_filling_rows(a, more)
        if isinstance(a, Stream):
            return a.part(0, n + more)
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
    x = data.x if isinstance(data.x, StoredRows) else None
    data = data._replace(x=None) if x is not None else data
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), _places(data))
    data = jax.tree.map(processes.put, data, places)
    return data if x is None else data._replace(x=x)


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
            return processes.put(a, NamedSharding(jax.sharding.get_mesh(), place))
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
        if isinstance(data.x, Stream):
            own = len(data.targets)
            data = data._replace(x=data.x.part(jax.lax.axis_index(DATA) * own, own))
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
        x=jax.tree.map(lambda _: everywhere if isinstance(data.x, Stream) else over, data.x),
        targets=jax.tree.map(lambda _: over, data.targets),
        weights=None if data.weights is None and len(data.x) % extent(DATA) == 0 else over,
        scale=None if data.scale is None else everywhere,
        shift=None if data.shift is None else everywhere,
    )
