"""Rows of a problem that stay where they are stored, of which the host reads a block at a time.

The first blocks are rows drawn at random, as those in memory are: samples are made of them, and as
many as there is room for are kept. The others are read in each pass. So that this goes through
files from front to back, a block has rows that lie one after the other.
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
    """Returns how many blocks are kept, of features that may take so many bytes."""
    block = rows * x.shape[1] * x.dtype.itemsize
    return max(max_bytes // block - _MOVING, 0)


def in_stored_order(
    order: Integer[NDArray, " n"], rows: int, kept: int, has_weight: Bool[NDArray, " n"]
) -> Integer[NDArray, " n"]:
    """Returns the rows with those beyond the blocks that are kept as they lie in their files.

    Args:
      order: all rows, shuffled; those of no weight at the end.
      rows: of a block.
      kept: number of blocks that stay as they are.
      has_weight: of all rows.
    """
    first, end = kept * rows, int(np.count_nonzero(has_weight))
    read = np.sort(order[first:end])
    whole = len(read) // rows * rows
    # Any number of blocks is a sample of what the files have, though not of single rows.
    shuffled = np.random.default_rng(0).permutation(read[:whole].reshape(-1, rows)).ravel()
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
    order = order.astype(np.int32)
    numbers = order[:kept].ravel()
    kept_rows = filled(np.empty((len(numbers), x.shape[1]), x.dtype), x, numbers)
    # Each device asks for its own rows of a block.
    requests = numbers.reshape(-1, order.shape[1] // parallel.extent(parallel.DATA))
    by_request = zip(requests, kept_rows.reshape(*requests.shape, x.shape[1]), strict=True)
    stream = streams.enter_context(
        opened(x, {request.tobytes(): found for request, found in by_request})
    )
    return StreamedRows(stream, order)
