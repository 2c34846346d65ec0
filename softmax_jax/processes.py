"""Several processes that work on one mesh, by JAX's distributed runtime.

Each process runs the same program with the same arguments, on devices of its own. What it has on
its host is the same in all, but for rows that it alone reads.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from softmax_jax._annotations import AnyArray, PyTree

Tree = TypeVar("Tree")

SECONDS = 20
"""Seconds without a sign of life of one process after which the others end."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: int = SECONDS,
) -> None:
    """Joins this process to the others, before JAX is used for anything else.

    All ends where one of them does: after ``seconds`` without a sign of life of it, the runtime
    stops the others.

    Args:
      coordinator: address of the first process, ``"HOST:PORT"``. By default this and the others are
        found in the environment of Slurm, Open MPI, Kubernetes or Cloud TPU.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      seconds: see above.

    Raises:
      RuntimeError: if JAX was used already, or the others do not come within five minutes.
      ValueError: if nothing was given and the environment is that of no cluster.

    Example:
      >>> if jax.devices():  # which is a use of JAX
      ...     start("first-host:1234", num_processes=2, process_id=0)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      RuntimeError: jax.distributed.initialize() must be called before any JAX calls ...
    """
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=seconds,
        shutdown_timeout_seconds=seconds,
    )


def is_first() -> bool:
    """Returns whether this process is the one that writes.

    Example:
      >>> is_first()  # there is no other
      True
    """
    return jax.process_index() == 0


def put(a: AnyArray, place: Sharding) -> jax.Array:
    """Returns an array that all processes have where its parts are to lie; none is sent.

    Example:
      >>> put(np.ones(2), jax.sharding.SingleDeviceSharding(jax.devices()[0])).tolist()
      [1.0, 1.0]
    """
    if place.is_fully_addressable:
        return jax.device_put(a, place)
    if isinstance(a, jax.Array) and a.sharding == place:
        return a
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(a), place)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, place, lambda part: a[part])


def on_host(tree: Tree) -> Tree:
    """Returns arrays of NumPy; all processes have to ask for those that lie over several.

    Example:
      >>> on_host({"w": jax.numpy.ones(2)})["w"]
      array([1., 1.], dtype=float32)
    """

    def whole(a):
        if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
            return a
        assert isinstance(a.sharding, NamedSharding)
        everywhere = NamedSharding(a.sharding.mesh, PartitionSpec())
        return jax.jit(lambda a: a, out_shardings=everywhere)(a)

    return jax.device_get(jax.tree.map(whole, tree))


def from_first(tree: PyTree) -> PyTree:
    """Returns arrays, or numbers, that the first process has, in all processes.

    Example:
      >>> from_first(3.0)
      3.0
    """
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def gathered(a: AnyArray) -> np.ndarray:
    """Returns the arrays of all processes, of one shape, with an axis of them in front.

    Example:
      >>> gathered(np.ones(2)).shape
      (1, 2)
    """
    if jax.process_count() == 1:
        return np.asarray(a)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(a)))


def agreed(number: Callable[[], int]) -> Callable[[], int]:
    """Returns a function that returns the largest number that any process has.

    Example:
      >>> agreed(lambda: 3)()
      3
    """
    if jax.process_count() == 1:
        return number
    return lambda: int(gathered(np.int32(number())).max())


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Has the first process do something before the others do it too.

    Example:
      >>> with first_before_others():
      ...     print("download")
      download
    """
    several = jax.process_count() > 1
    if several and not is_first():
        multihost_utils.sync_global_devices("first_before_others")
    try:
        yield
    finally:
        if several and is_first():
            multihost_utils.sync_global_devices("first_before_others")
