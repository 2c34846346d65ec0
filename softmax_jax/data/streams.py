"""Stored rows inside of compiled programs, which have the host read them when they come to them.

A program sees a `Stream`, which is a number and a shape, and calls the host for rows. While it
works on them, a thread reads those that it is going to ask for next.
"""

import dataclasses
import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from softmax_jax import mesh
from softmax_jax._annotations import Array, Integer, NDArray, Shaped
from softmax_jax.data.stored import StoredRows


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("number", "first"),
    meta_fields=("shape", "dtype"),
)
@dataclasses.dataclass(frozen=True)
class Stream:
    """``[n, d]`` rows that a program has the host read.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> with opened(rows_of_array(np.eye(4))) as stream:
      ...     print(len(stream), stream.part(1, 2).shape)
      4 (2, 4)
    """

    number: Integer[Array | NDArray, ""]
    """Which of the open ones these are; programs are the same for all of one shape and type."""
    first: Integer[Array | NDArray, ""]
    """Where they begin in these. Beyond the end there are copies of the last row."""
    shape: tuple[int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        """Returns n."""
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    def part(self, first: Integer[Array, ""] | int, rows: int) -> "Stream":
        """Returns so many rows from ``first`` on."""
        shape = rows, self.shape[1]
        return dataclasses.replace(self, first=self.first + first, shape=shape)


class _Reader:
    """Reads rows, some before they are asked for."""

    def __init__(self, x: StoredRows, kept: Mapping[bytes, NDArray]) -> None:
        self.x, self.kept = x, kept
        self.error: BaseException | None = None
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor(2, "rows")
        # The latest reads, of each device one that it has and one that it is going to ask for.
        devices = math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
        self._most = 2 * max(devices // jax.process_count(), 1)
        self._begun: dict[bytes, Future] = {}

    def read(self, rows: NDArray, following: NDArray) -> NDArray:
        last = len(self.x) - 1
        rows, following = np.minimum(rows, last), np.minimum(following, last)
        try:
            found = self._begin(rows)
            if len(following):
                self._begin(following)
            return self.kept[rows.tobytes()] if found is None else found.result()
        except BaseException as e:
            # Its type would be lost on the way through the program.
            self.error = self.error or e
            raise

    def _begin(self, rows: NDArray) -> Future | None:
        """Has rows read, unless they are kept, or another device has asked for them just now."""
        key = rows.tobytes()
        if key in self.kept:
            return None
        with self._lock:  # each device has a thread
            begun = self._begun.pop(key, None) or self._pool.submit(self.x.__getitem__, rows)
            self._begun[key] = begun
            while len(self._begun) > self._most:
                self._begun.pop(next(iter(self._begun)))
        return begun

    def close(self) -> None:
        self._begun.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)


_readers: dict[int, _Reader] = {}
_numbers = itertools.count()


@contextmanager
def opened(x: StoredRows, kept: Mapping[bytes, NDArray] = MappingProxyType({})) -> Iterator[Stream]:
    """Opens stored rows for programs that end before the block does.

    What reading raises is raised from the block as it was, whatever the program made of it.

    Args:
      x: the rows.
      kept: rows that are in memory, by what asks for them: numbers in int32, as bytes.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> with opened(rows_of_array(np.eye(2, dtype=np.float32))) as stream:
      ...     print(jax.jit(rows_at)(stream, np.array([1])))
      [[0. 1.]]
    """
    number, reader = next(_numbers), _Reader(x, kept)
    _readers[number] = reader
    try:
        yield Stream(np.array(number, np.int32), np.array(0, np.int32), x.shape, x.dtype)
        # What one device has found may be looked at while others are at work.
        jax.block_until_ready(_over_all_devices())
    except Exception as e:
        if reader.error is None or e is reader.error:
            raise
        raise reader.error from None
    finally:
        del _readers[number]
        reader.close()


def _over_all_devices() -> Array:
    """Returns what each device of the mesh has a part in, after all that it was asked for."""
    if mesh.extent(mesh.DATA) == 1:
        return jnp.zeros(())
    return jax.jit(
        jax.shard_map(
            lambda: jax.lax.psum(jnp.ones(()), mesh.DATA),
            in_specs=(),
            out_specs=PartitionSpec(),
            axis_names=mesh.free_axes(),
        )
    )()


def _read(
    number: Integer[Array | NDArray, ""],
    rows: Integer[Array | NDArray, " rows"],
    following: Integer[Array | NDArray, " following"],
) -> Shaped[NDArray, "rows d *halves"]:
    """Is what programs call."""
    reader = _readers.get(int(number))
    if reader is None:
        raise RuntimeError("stored rows: they were closed while a program asked for some")
    x = reader.read(np.asarray(rows), np.asarray(following))
    # JAX would make 32 bits of 64, as the threads of programs do not know of `jax.enable_x64`.
    return x.view(np.uint32).reshape(*x.shape, 2) if x.dtype.itemsize == 8 else x


def rows_at(
    stream: Stream,
    rows: Integer[Array, " rows"],
    following: Integer[Array, " following"] | None = None,
) -> Shaped[Array, "rows d"]:
    """Returns rows of a stream, in a compiled program.

    On a mesh each device has those that it is asked for read, by its own process.

    Args:
      stream: an open one.
      rows: their numbers, in any order; over the axis of rows, where they divide evenly.
      following: the numbers that are going to be asked for next; the same if none are.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> with opened(rows_of_array(np.eye(3, dtype=np.float32))) as stream:
      ...     print(jax.jit(rows_at)(stream, np.array([2, 0]), np.array([1])).tolist())
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    following = rows[:0] if following is None else following
    rows, following = ((a + stream.first).astype(np.int32) for a in (rows, following))
    d, dtype = stream.shape[1], stream.dtype
    is_wide = dtype.itemsize == 8

    def read(number, rows, following):
        found = jax.ShapeDtypeStruct((len(rows), d), dtype)
        if is_wide:
            found = jax.ShapeDtypeStruct((len(rows), d, 2), np.uint32)
        x = jax.pure_callback(_read, found, number, rows, following, vmap_method="sequential")
        return jax.lax.bitcast_convert_type(x, dtype) if is_wide else x

    axes = mesh.free_axes()
    if not axes:
        return read(stream.number, rows, following)
    # Programs call the host from axes that are manual alone.
    places = [
        mesh.over_rows(len(numbers)) if mesh.DATA in axes else PartitionSpec()
        for numbers in (rows, following)
    ]
    return jax.shard_map(
        read,
        in_specs=(PartitionSpec(), *places),
        out_specs=places[0],
        axis_names=axes,
        check_vma=False,
    )(stream.number, rows, following)
