"""Rows of a problem that stay where they are stored, of which the host reads a block at a time.

The first blocks are rows drawn at random, as those in memory are: samples are made of them, and as
many as there is room for are kept. The others are read in each pass, a block of rows that lie one
after the other at a time.
"""

import dataclasses
from contextlib import ExitStack
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import parallel
from softmax_jax._annotations import Array, Bool, Integer, NDArray, Shaped
from softmax_jax.data.reading import filled
from softmax_jax.data.stored import StoredRows
from softmax_jax.data.streams import Stream, opened, rows_at
from softmax_jax.mesh import DATA

# Beside those that are kept: one that is worked on, one that is read, and one on its way.
_MOVING = 3


@partial(jax.tree_util.register_dataclass, data_fields=("stream", "order"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class StreamedRows:
    """Rows ``[blocks, rows, d]`` that a program has the host read."""

    stream: Stream
    order: Integer[Array | NDArray, "blocks rows"]
    """Which rows these are."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers as stored."""
        return self.stream.dtype


def block_at(
    x: StreamedRows, j: Integer[Array, ""], active: Integer[Array | NDArray, ""]
) -> Shaped[Array, "rows d"]:
    """Returns block ``j``; the next of the active ones is going to be read meanwhile."""
    following = jnp.where(j + 1 < active, j + 1, 0)
    return rows_at(x.stream, x.order[j], x.order[following])


def number_kept(x: StoredRows, rows: int, max_bytes: int) -> int:
    """Returns how many blocks are kept, of features that may take so many bytes in a process."""
    block = rows * x.shape[1] * x.dtype.itemsize * len(_own_parts()) // parallel.extent(DATA)
    return max(max_bytes // block - _MOVING, 0)


def _own_parts() -> list[int]:
    """Returns which parts of each block devices of this process ask for."""
    extent = parallel.extent(DATA)
    if jax.process_count() == 1 or extent == 1:
        return list(range(extent))
    mesh = jax.sharding.get_mesh()
    of_parts = np.moveaxis(mesh.devices, mesh.axis_names.index(DATA), 0).reshape(extent, -1)
    own = jax.process_index()
    return [i for i, part in enumerate(of_parts) if any(d.process_index == own for d in part)]


def in_stored_order(
    order: Integer[NDArray, " n"],
    rows: int,
    kept: int,
    has_weight: Bool[NDArray, " n"],
    together: int = 1,
) -> Integer[NDArray, " n"]:
    """Returns the rows with those beyond the blocks that are kept as they lie in their files.

    Args:
      order: all rows, shuffled; those of no weight at the end.
      rows: of a block.
      kept: number of blocks that stay as they are.
      has_weight: of all rows.
      together: rows that files are read in; as many stay together.
    """
    first, end = kept * rows, int(np.count_nonzero(has_weight))
    read = np.sort(order[first:end])
    whole = len(read) // rows * rows
    blocks = np.arange(whole // rows)
    # Any number of blocks is a sample of what the files have, though not of single rows.
    runs = np.array_split(blocks, max(whole // max(rows, together), 1))
    number = np.random.default_rng(0).permutation(len(runs))
    shuffled = read[:whole].reshape(-1, rows)[np.concatenate([runs[i] for i in number])].ravel()
    return np.concatenate([order[:first], shuffled, read[whole:], order[max(first, end) :]])


def streamed(
    x: StoredRows, order: Integer[NDArray, "blocks rows"], kept: int, streams: ExitStack
) -> StreamedRows:
    """Reads the blocks that are kept, and opens the rest.

    Args:
      x: the rows.
      order: which rows make up which blocks.
      kept: how many blocks are kept.
      streams: closes them.
    """
    if len(x) >= 2**31:
        raise ValueError(f"x: {len(x):,} stored rows; there may be 2**31 - 1")
    order = order.astype(np.int32)
    # Each device asks for its own rows of a block.
    size, d = order.shape[1] // parallel.extent(DATA), x.shape[1]
    requests = order[:kept].reshape(kept, -1, size)[:, _own_parts()] if kept else order[:0, :size]
    requests = requests.reshape(-1, size)
    rows = filled(np.empty((requests.size, d), x.dtype), x, requests.ravel())
    by_request = zip(requests, rows.reshape(-1, size, d), strict=True)
    stream = streams.enter_context(
        opened(x, {request.tobytes(): found for request, found in by_request})
    )
    return StreamedRows(stream, order)
