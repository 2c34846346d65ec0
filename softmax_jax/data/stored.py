"""Features that stay where they are stored: rows of them are read when they are asked for.

`StoredRows` is the one thing that solvers, training and evaluation read from; `shards` opens files
as one, and the functions here make one of whatever gives rows.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from softmax_jax._annotations import AnyArray, Integer, NDArray, Shaped
from softmax_jax.checks import is_real


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
    """``[n, d]`` features in files, or wherever else, of which rows can be read.

    Example:
      >>> x = rows_of_array(np.eye(3))
      >>> x.shape, x[np.array([2, 0, 2])].tolist()
      ((3, 3), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    """

    shape: tuple[int, int]
    dtype: np.dtype
    read: Callable[[Integer[NDArray, " rows"]], Shaped[NDArray, "rows d"]]
    """Returns rows by their numbers, which ascend and do not repeat. Any thread may call it."""
    place: Callable[[int], str] = "row {}".format
    """Returns where a row lies, for messages."""
    together: int = 1
    """Rows that are read at once, whether all of them are asked for or not."""

    def __len__(self) -> int:
        """Returns n."""
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all of them would take in memory."""
        n, d = self.shape
        return n * d * self.dtype.itemsize

    def __getitem__(self, rows: slice | AnyArray) -> Shaped[NDArray, "rows d"]:
        """Reads rows in any order, as NumPy takes them: a slice, numbers, or a mask ``[n]``.

        Raises:
          IndexError: if there is no such row.
          ValueError: if what is read is not what shape and type say; names where.
        """
        numbers = _numbers(rows, len(self))
        ascending, place = np.unique(numbers, return_inverse=True)
        if len(ascending) == 0:
            return np.empty((0, self.shape[1]), self.dtype)
        found = np.asarray(self.read(ascending))
        expected = len(ascending), self.shape[1]
        if found.shape != expected or found.dtype != self.dtype:
            raise ValueError(
                f"{self.place(int(ascending[0]))} and on: {found.shape} of {found.dtype} was read; "
                f"expected {expected} of {self.dtype}"
            )
        is_ascending = len(numbers) == len(ascending) and (np.diff(numbers) > 0).all()
        return found if is_ascending else found[place]

    def __array__(self, *_: object, **__: object) -> NDArray:
        """Refuses to be read as a whole by accident.

        Raises:
          ValueError: always.
        """
        raise ValueError("stored rows are read where they are asked for: x[:] has them in memory")


def _numbers(rows: slice | AnyArray, n: int) -> Integer[NDArray, " rows"]:
    """Returns numbers of rows, from 0 on."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    numbers = np.asarray(rows)
    if numbers.dtype == bool and numbers.shape == (n,):
        return np.flatnonzero(numbers)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise IndexError(
            f"rows: {numbers.dtype} of shape {numbers.shape}; expected a slice, numbers of rows, "
            f"or a mask of {n}"
        )
    numbers = numbers.astype(np.int64)
    wrong = (numbers < -n) | (numbers >= n)
    if wrong.any():
        raise IndexError(f"rows: there is no row {numbers[wrong][0]} of {n}")
    return np.where(numbers < 0, numbers + n, numbers)


@runtime_checkable
class Records(Protocol):
    """Anything that gives records by their numbers, such as a ``data_source`` of TFDS."""

    def __len__(self) -> int:
        """Returns their number."""

    def __getitem__(self, number: Any, /) -> Mapping[str, Any]:
        """Returns one of them."""


def rows_of_array(a: AnyArray) -> StoredRows:
    """Returns rows of an array that gives them by number: `np.memmap`, h5py, zarr and the like.

    Raises:
      ValueError: if it is not ``[n, d]`` of real numbers.

    Example:
      >>> len(rows_of_array(np.zeros((5, 2))))
      5
    """
    if len(a.shape) != 2 or 0 in a.shape or not is_real(a):
        raise ValueError(
            f"stored rows: shape {a.shape} of {a.dtype}; expected [n, d] real numbers, of one row "
            "and one feature at least"
        )
    dtype = np.dtype(a.dtype).newbyteorder("=")

    def read(rows):
        return np.asarray(a[rows]).astype(dtype, copy=False)

    return StoredRows((int(a.shape[0]), int(a.shape[1])), dtype, read)


def rows_of_records(records: Records, feature: str) -> StoredRows:
    """Returns rows that are a feature of records, flattened: pixels of images, for example.

    Args:
      records: see `Records`; of a ``data_source`` of TFDS or grain's.
      feature: its name.

    Raises:
      ValueError: if there are no records, or they have no such feature of real numbers.

    Example:
      >>> records = [{"image": np.eye(2, dtype=np.uint8), "label": 0}]
      >>> rows_of_records(records, "image")[:1].tolist()
      [[1, 0, 0, 1]]
    """
    if len(records) == 0:
        raise ValueError("stored rows: there are no records")
    first = records[0]
    if feature not in first:
        raise ValueError(f"stored rows: records have {', '.join(first)}, but no {feature!r}")
    example = np.asarray(first[feature])
    if example.size == 0 or not is_real(example):
        raise ValueError(
            f"stored rows: {feature!r} is {example.shape} of {example.dtype}; expected real numbers"
        )

    def read(rows):
        found = _records(records, rows.tolist())
        x = np.empty((len(rows), example.size), example.dtype)
        for i, (number, record) in enumerate(zip(rows, found, strict=True)):
            if feature not in record:
                raise ValueError(f"record {number}: it has {', '.join(record)}, no {feature!r}")
            row = np.asarray(record[feature])
            if row.shape != example.shape or row.dtype != example.dtype:
                raise ValueError(
                    f"record {number}: {feature!r} is {row.shape} of {row.dtype}; in the first it "
                    f"is {example.shape} of {example.dtype}"
                )
            x[i] = row.ravel()
        return x

    return StoredRows((len(records), example.size), example.dtype, read, "record {}".format)


def _records(records: Records, numbers: Sequence[int]) -> Sequence[Mapping[str, Any]]:
    # Many at a time, where they can be had so.
    if hasattr(records, "__getitems__"):
        return records.__getitems__(numbers)
    return [records[number] for number in numbers]


def concatenated(parts: Sequence[StoredRows]) -> StoredRows:
    """Returns the rows of several, one after the other.

    Raises:
      ValueError: if there are none, or they differ in features or type; names where.

    Example:
      >>> concatenated([rows_of_array(np.eye(2)), rows_of_array(np.zeros((1, 2)))])[1:].tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    if not parts:
        raise ValueError("stored rows: there are none")
    d, dtype = parts[0].shape[1], parts[0].dtype
    for part in parts:
        if part.shape[1] != d or part.dtype != dtype:
            raise ValueError(
                f"{part.place(0)}: {part.shape[1]} features of {part.dtype}; those of "
                f"{parts[0].place(0)} are {d} of {dtype}"
            )
    ends = np.cumsum([len(part) for part in parts])
    starts = ends - [len(part) for part in parts]

    def read(rows):
        x = np.empty((len(rows), d), dtype)
        for number, own in _by_part(rows, ends):
            x[own] = parts[number].read(rows[own] - starts[number])
        return x

    def place(row):
        number = int(np.searchsorted(ends, row, side="right"))
        return parts[number].place(row - int(starts[number]))

    together = max(part.together for part in parts)
    return StoredRows((int(ends[-1]), d), dtype, read, place, together)


def _by_part(
    rows: Integer[NDArray, " rows"], ends: Integer[NDArray, " parts"]
) -> Iterator[tuple[int, slice]]:
    """Yields the parts that ascending rows lie in, and which rows these are."""
    first = 0
    while first < len(rows):
        number = int(np.searchsorted(ends, rows[first], side="right"))
        last = int(np.searchsorted(rows, ends[number]))
        yield number, slice(first, last)
        first = last


def with_columns(x: StoredRows, columns: Integer[NDArray, " columns"]) -> StoredRows:
    """Returns these features of the rows.

    Example:
      >>> with_columns(rows_of_array(np.eye(3)), np.array([2]))[1:].tolist()
      [[0.0], [1.0]]
    """
    return dataclasses.replace(
        x, shape=(len(x), len(columns)), read=lambda rows: x.read(rows)[:, columns]
    )


def with_filling_rows(x: StoredRows, more: int) -> StoredRows:
    """Returns the rows with copies of the last one behind them.

    Example:
      >>> with_filling_rows(rows_of_array(np.eye(2)), 2)[1:].tolist()
      [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    n, d = x.shape
    return dataclasses.replace(x, shape=(n + more, d), read=lambda rows: x[np.minimum(rows, n - 1)])
