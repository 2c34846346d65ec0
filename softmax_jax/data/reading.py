"""All of some stored rows: a block at a time, or in memory."""

import itertools
from collections.abc import Iterator

import numpy as np

from softmax_jax._annotations import Integer, NDArray, Shaped
from softmax_jax.data import blocks
from softmax_jax.data.stored import StoredRows


def unless_within(x: StoredRows, max_bytes: int) -> StoredRows | Shaped[NDArray, "n d"]:
    """Returns stored rows as they are if they take more memory than this, and else in memory.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> unless_within(rows_of_array(np.eye(2)), max_bytes=32).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
      >>> type(unless_within(rows_of_array(np.eye(2)), max_bytes=31)).__name__
      'StoredRows'
    """
    return in_memory(x) if x.nbytes <= max_bytes else x


def slices_of(
    x: StoredRows, *, numbers: int = blocks.NUMBERS, part: int = 0, parts: int = 1
) -> Iterator[tuple[int, Shaped[NDArray, "rows d"]]]:
    """Yields rows in order, as many at a time as have so many numbers, and their first one's.

    Args:
      x: the rows.
      numbers: how many at a time.
      part: of all blocks, that which is yielded: each ``parts``-th from this one on.
      parts: see there.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> [(first, len(block)) for first, block in slices_of(rows_of_array(np.eye(3)), numbers=6)]
      [(0, 2), (2, 1)]
    """
    rows = blocks.rows_within(x.shape[1], numbers=numbers)
    for own in itertools.islice(blocks.slices(len(x), rows), part, None, parts):
        yield own.start, x[own]


def in_memory(x: StoredRows) -> Shaped[NDArray, "n d"]:
    """Reads all rows.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> in_memory(rows_of_array(np.eye(2))).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    a = np.empty(x.shape, x.dtype)
    for first, block in slices_of(x):
        a[first : first + len(block)] = block
    return a


def filled(
    a: Shaped[NDArray, "rows d"], x: StoredRows, rows: Integer[NDArray, " rows"]
) -> Shaped[NDArray, "rows d"]:
    """Reads rows in any order into an array, from front to back, and returns it.

    Example:
      >>> from softmax_jax.data.stored import rows_of_array
      >>> filled(np.empty((2, 3)), rows_of_array(np.eye(3)), np.array([2, 0])).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    ascending = np.argsort(rows, kind="stable")
    for at in blocks.slices(len(rows), blocks.rows_within(x.shape[1])):
        a[ascending[at]] = x[rows[ascending[at]]]
    return a
