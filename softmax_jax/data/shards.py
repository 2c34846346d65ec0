"""Files of features, opened as `StoredRows`: ``.npy``, ``.npz``, Parquet and Arrow.

Files are opened anew for each read, so that any number of them may make up a data set. That of an
array is compared in size with what its header announces before anything is read.
"""

import glob
import io
import itertools
import math
import os
import pathlib
import re
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import Integer, NDArray, Shaped
from softmax_jax.checks import is_real
from softmax_jax.data.npz import npy_header
from softmax_jax.data.stored import StoredRows, concatenated

_PAGE = 4096
"""Bytes that take no longer to read than to leave out."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Header of an entry of a zip file: its signature, the lengths of its name and what follows it."""


class _Latest(NamedTuple):
    """The group of rows that was read last, of the files of a data set."""

    groups: dict[tuple[pathlib.Path, int], NDArray]
    lock: threading.Lock


def open_rows(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    name: str | None = None,
    dtype: DTypeLike | None = None,
) -> StoredRows:
    """Opens files whose rows, one file after the other, are the features of a data set.

    ``.npy`` files, arrays of ``.npz`` files that are not compressed, and columns of lists, of
    Parquet files or those of Arrow (``.arrow``, ``.feather``), for which pyarrow is needed. Of
    Parquet and Arrow a group of rows, as they were written, is read at a time, and kept until
    another is.

    Args:
      paths: of the files, in order; or one, which may be a pattern, such as ``"features/*.npy"``.
      name: of the array or column; by default the only one that there is.
      dtype: what ``.npy`` files have that name no type, as those of bfloat16.

    Raises:
      FileNotFoundError: if there is no such file, or a pattern matches none.
      ValueError: names the file that is damaged or shorter than it says, has no rows of real
        numbers, or other features than the first; or two that a pattern puts in an order that
        their numbers do not have.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> for i in range(2):
      ...     np.save(folder / f"part-{i}.npy", np.full((3, 2), i, np.float16))
      >>> x = open_rows(folder / "part-*.npy")
      >>> x.shape, x.dtype, x[2:4].tolist()
      ((6, 2), dtype('float16'), [[0.0, 0.0], [1.0, 1.0]])
    """
    found = _matching(os.fspath(paths)) if isinstance(paths, str | os.PathLike) else paths
    latest = _Latest({}, threading.Lock())
    return concatenated([_opened(pathlib.Path(path), name, dtype, latest) for path in found])


def _matching(pattern: str) -> Sequence[str]:
    if os.path.exists(pattern):
        return [pattern]
    paths = sorted(glob.glob(pattern, recursive=True))
    if not paths:
        raise FileNotFoundError(f"{pattern}: there is no such file")
    if paths != (by_number := sorted(paths, key=_numbers)):
        first = next(i for i, path in enumerate(paths) if path != by_number[i])
        raise ValueError(
            f"{paths[first]} comes before {by_number[first]} by name, but after it by number; give "
            "the paths as a list, in the order of the targets"
        )
    return paths


def _numbers(path: str) -> list[tuple[int, int | str]]:
    """Returns what sorts paths by the numbers in them."""
    parts = filter(None, re.split(r"(\d+)", path))
    return [(1, int(part)) if part.isdecimal() else (2, part) for part in parts]


def _opened(path: pathlib.Path, name: str | None, dtype: Any, latest: _Latest) -> StoredRows:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.is_file():
        raise ValueError(f"{path}: it is no file; a pattern names those in a folder")
    openers = {
        ".npy": partial(_npy, dtype=dtype),
        ".npz": partial(_npz, name=name, dtype=dtype),
        ".parquet": partial(_parquet, name=name, latest=latest),
        ".arrow": partial(_arrow, name=name, latest=latest),
        ".feather": partial(_arrow, name=name, latest=latest),
    }
    kind = path.suffix.lower()
    if kind not in openers:
        raise ValueError(f"{path}: unknown kind of file; expected {', '.join(openers)}")
    try:
        return openers[kind](path)
    except Exception as e:  # whatever readers make of damaged bytes
        if str(path) in str(e):
            raise
        kind_of_error = OSError if isinstance(e, OSError) else ValueError
        raise kind_of_error(f"{path}: {str(e) or type(e).__name__}") from e


def _npy(path: pathlib.Path, dtype: Any) -> StoredRows:
    with path.open("rb") as file:
        return _array(path, file, path.stat().st_size, dtype)


def _npz(path: pathlib.Path, name: str | None, dtype: Any) -> StoredRows:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        info = entries[_chosen(name, list(entries))]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{info.filename} is compressed, so that rows cannot be read alone; write it with "
                "np.savez"
            )
        file.seek(info.header_offset)
        signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise ValueError("its directory names a place where there is no entry")
        file.seek(sum(lengths), os.SEEK_CUR)
        return _array(path, file, file.tell() + info.file_size, dtype)


def _chosen(name: str | None, names: Sequence[str]) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        wanted = "name one of them" if name is None else f"there is no {name!r}"
        raise ValueError(f"it has {', '.join(names) or 'nothing'}; {wanted}")
    return name


def _array(path: pathlib.Path, file: io.BufferedIOBase, end: int, named: Any) -> StoredRows:
    """Opens the array that begins here and goes to ``end``."""
    shape, dtype, is_transposed = npy_header(file)
    start = file.tell()
    if dtype.kind == "V" and named is not None and np.dtype(named).itemsize == dtype.itemsize:
        dtype = np.dtype(named)
    if len(shape) != 2 or is_transposed or not is_real(np.empty(0, dtype)):
        order = ", by columns" if is_transposed else ""
        hint = "; give its dtype" if dtype.kind == "V" else ""
        raise ValueError(f"{shape} of {dtype}{order}; expected [n, d] real numbers, by rows{hint}")
    if 0 in shape:
        raise ValueError(f"{shape}; expected at least one row and one feature")
    announced = math.prod(shape) * dtype.itemsize
    if announced != end - start:
        raise ValueError(
            f"it announces {shape} of {dtype}, {announced:,} bytes, and has {end - start:,}"
        )
    n, d = shape
    return StoredRows(
        (n, d),
        dtype.newbyteorder("="),
        partial(_read_array, path, start, d, dtype),
        f"{path}, row {{}}".format,
    )


def _read_array(
    path: pathlib.Path, start: int, d: int, dtype: np.dtype, rows: Integer[NDArray, " rows"]
) -> Shaped[NDArray, "rows d"]:
    x = np.empty((len(rows), d), dtype)
    row_bytes = d * dtype.itemsize
    with open(path, "rb", buffering=0) as file:
        for own in _runs(rows, max(_PAGE // row_bytes, 1)):
            first, last = int(rows[own.start]), int(rows[own.stop - 1])
            is_whole = last - first == own.stop - own.start - 1
            found = x[own] if is_whole else np.empty((last - first + 1, d), dtype)
            _fill(path, file, start + first * row_bytes, found)
            if not is_whole:
                x[own] = found[rows[own] - first]
    return x.astype(dtype.newbyteorder("="), copy=False)


def _runs(rows: Integer[NDArray, " rows"], gap: int) -> Iterator[slice]:
    """Yields which ascending rows are to be read at once: none is further than this off the next.

    Example:
      >>> list(_runs(np.array([0, 1, 3, 9]), gap=2))
      [slice(0, 3, None), slice(3, 4, None)]
    """
    breaks = np.flatnonzero(np.diff(rows) > gap) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    return (slice(a, b) for a, b in itertools.pairwise(edges) if b > a)


def _fill(path: pathlib.Path, file: io.RawIOBase, offset: int, a: NDArray) -> None:
    """Reads an array from a place in a file."""
    left = memoryview(a.view(np.uint8).data).cast("B")
    file.seek(offset)
    while left:
        read = file.readinto(left)
        if not read:
            raise OSError(f"{path}: it ends {len(left):,} bytes early; it was longer when opened")
        left = left[read:]


def _parquet(path: pathlib.Path, name: str | None, latest: _Latest) -> StoredRows:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        column = _column(name, file.schema_arrow)
        lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        first = next(file.iter_batches(batch_size=1, columns=[column]), None)

    def read_group(i):
        with parquet.ParquetFile(path) as file:
            return file.read_row_group(i, columns=[column]).column(column).combine_chunks()

    return _in_groups(path, lengths, first and first.column(column), read_group, latest)


def _arrow(path: pathlib.Path, name: str | None, latest: _Latest) -> StoredRows:
    """Opens record batches, in a file of Arrow or, as Hugging Face writes it, in a stream."""
    import pyarrow

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    # Lengths are looked at in a map of the file, of which little is touched. Reading goes without:
    # where a mapped file gets shorter, the process ends.
    with pyarrow.memory_map(os.fspath(path)) as source:
        if is_file:
            found = pyarrow.ipc.open_file(source)
            schema = found.schema
            batches = [found.get_batch(i) for i in range(found.num_record_batches)]
            lengths, first = [batch.num_rows for batch in batches], batches[:1]
        else:
            schema, places, lengths, first = _messages(source)
        column = _column(name, schema)
        number = schema.get_field_index(column)
        head = first[0].column(number)[:1] if first else None
        head = None if head is None else pyarrow.array(head.to_pylist(), head.type)
        del first

    def read_group(i):
        options = pyarrow.ipc.IpcReadOptions(included_fields=[number])
        with pyarrow.OSFile(os.fspath(path)) as source:
            if is_file:
                return pyarrow.ipc.open_file(source, options=options).get_batch(i).column(0)
            source.seek(places[i])
            message = pyarrow.ipc.read_message(source)
            return pyarrow.ipc.read_record_batch(message, schema).column(number)

    return _in_groups(path, lengths, head, read_group, latest)


def _messages(source: Any) -> tuple[Any, list[int], list[int], list[Any]]:
    """Returns the schema of a stream, where its batches are, their lengths, and the first one."""
    import pyarrow

    schema = pyarrow.ipc.read_schema(source)
    places: list[int] = []
    lengths: list[int] = []
    first: list[Any] = []
    while True:
        place = source.tell()
        if place + 8 > source.size():
            raise ValueError("it ends without the mark of its end; it was cut")
        try:
            message = pyarrow.ipc.read_message(source)
        except EOFError:
            return schema, places, lengths, first
        if message.type != "record batch":
            raise ValueError(f"it has a message of type {message.type!r}; expected record batches")
        batch = pyarrow.ipc.read_record_batch(message, schema)
        places.append(place)
        lengths.append(batch.num_rows)
        first = first or [batch]


def _column(name: str | None, schema: Any) -> str:
    from pyarrow import types

    kinds = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    lists = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    if not lists:
        raise ValueError(
            f"no column is of lists of numbers; it has {', '.join(map(str, schema)) or 'none'}"
        )
    return _chosen(name, lists)


def _in_groups(
    path: pathlib.Path,
    lengths: Sequence[int],
    head: Any,
    read_group: Callable[[int], Any],
    latest: _Latest,
) -> StoredRows:
    """Returns rows that are read in groups.

    Args:
      path: of the file.
      lengths: rows of the groups.
      head: the first row.
      read_group: reads one.
      latest: has the group that was read last, of all files.
    """
    if head is None or len(head) == 0:
        raise ValueError("there are no rows")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    example = _matrix(path, head, 0)
    d, dtype = example.shape[1], example.dtype

    def group(i):
        if (path, i) not in latest.groups:
            latest.groups.clear()
            try:
                lists = read_group(i)
            except Exception as e:  # whatever readers make of damaged bytes
                raise OSError(f"{path}: {str(e) or type(e).__name__}") from e
            latest.groups[path, i] = _matrix(path, lists, int(starts[i]), d, dtype)
        return latest.groups[path, i]

    def read(rows):
        x = np.empty((len(rows), d), dtype)
        of_group = np.searchsorted(starts, rows, side="right") - 1
        with latest.lock:
            for own in _runs(of_group, gap=0):
                i = int(of_group[own.start])
                x[own] = group(i)[rows[own] - starts[i]]
        return x

    shape = int(starts[-1]), d
    return StoredRows(shape, dtype, read, f"{path}, row {{}}".format, max(lengths))


def _matrix(
    path: pathlib.Path,
    lists: Any,
    first: int,
    d: int | None = None,
    dtype: np.dtype | None = None,
) -> Shaped[NDArray, "rows d"]:
    """Returns lists of Arrow as rows, without a copy."""
    lengths = np.asarray(lists.value_lengths().fill_null(-1))
    d = int(lengths[0]) if d is None else d
    bad = np.flatnonzero((lengths != d) | (lengths < 0))
    if bad.size:
        count = int(lengths[bad[0]])
        has = "is null" if count < 0 else f"has {count} numbers; the first has {d}"
        raise ValueError(f"{path}, row {first + bad[0]}: it {has}")
    numbers = lists.flatten()
    if numbers.null_count:
        place = int(np.argmax(np.asarray(numbers.is_null())))
        raise ValueError(f"{path}, row {first + place // d}: feature {place % d} is null")
    x = numbers.to_numpy(zero_copy_only=False).reshape(len(lists), d)
    if not is_real(x) or (dtype is not None and x.dtype != dtype) or d == 0:
        raise ValueError(f"{path}: lists of {d} {x.dtype}; expected real numbers of one type")
    return x
