"""All of some stored rows: a block at a time, or in memory."""

from collections.abc import Iterator

import numpy as np

from softmax_jax._annotations import AnyArray, NDArray, Shaped
from softmax_jax.data import blocks
from softmax_jax.data.stored import StoredRows, rows_of


def unless_within(x: AnyArray, max_bytes: int) -> AnyArray:
    """Returns stored rows as they are if they take more memory than this, and else in memory.

    Memory maps become stored rows. Whatever else there is stays what it is.

    Example:
      >>> unless_within(rows_of(np.eye(2)), max_bytes=32).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
      >>> type(unless_within(rows_of(np.eye(2)), max_bytes=31)).__name__
      'StoredRows'
    """
    if isinstance(x, np.memmap) and x.nbytes > max_bytes:
        x = rows_of(x)
    return in_memory(x) if isinstance(x, StoredRows) and x.nbytes <= max_bytes else x


def slices_of(
    x: StoredRows, *, numbers: int = blocks.NUMBERS
) -> Iterator[tuple[int, Shaped[NDArray, "rows d"]]]:
    """Yields all rows in order, as many at a time as have so many numbers, and their first one's.

    Example:
      >>> [(first, len(block)) for first, block in slices_of(rows_of(np.eye(3)), numbers=6)]
      [(0, 2), (2, 1)]
    """
    for rows in blocks.slices(len(x), blocks.rows_within(x.shape[1], numbers=numbers)):
        yield rows.start, x[rows]


def in_memory(x: StoredRows) -> Shaped[NDArray, "n d"]:
    """Reads all rows.

    Example:
      >>> in_memory(rows_of(np.eye(2))).tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    a = np.empty(x.shape, x.dtype)
    for first, block in slices_of(x):
        a[first : first + len(block)] = block
    return a
