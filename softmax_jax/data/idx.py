"""The IDX format of MNIST and its relatives."""

import contextlib
import gzip
import io
import math
import os
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np

from softmax_jax._annotations import Integer, NDArray
from softmax_jax.data.npz import DEFLATE_RATIO, MAX_BYTES

_UINT8 = 0x08
_MOST_AXES = 64  # of an array of NumPy
_PIECE = 2**18


def read_idx(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES
) -> Integer[NDArray, "..."]:
    """Reads an array of uint8 from an IDX file, gzipped or not.

    The layout is two zero bytes, the element type (8 for uint8), the number of axes, each axis as
    a big-endian uint32, and the elements in C order.

    Args:
      path: of the file.
      max_bytes: what a gzipped file may unpack to; it is not unpacked any further.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, is no IDX file, or holds elements other than uint8; or if
        it is gzipped and announces more than ``max_bytes``.
    """
    path = pathlib.Path(path)
    with _unpacked(path) as (stream, zipped):
        shape = _shape(path, stream)
        size = math.prod(shape)
        announced = f"{path}: the header announces {shape}, {size:,} bytes"
        on_disk = path.stat().st_size
        if size > on_disk * (DEFLATE_RATIO if zipped else 1):
            raise ValueError(
                f"{announced}, but the file has {on_disk:,}; it is incomplete or damaged"
            )
        if size > max(max_bytes, on_disk):
            raise ValueError(f"{announced}; with max_bytes={size} they are unpacked")
        array = np.empty(shape, np.uint8)
        found = _fill(array, stream)
        if found < size or stream.read(1):
            follow = "more follow it" if found == size else f"{found:,} follow it"
            raise ValueError(f"{announced}, but {follow}; the file is incomplete or damaged")
        return array


@contextlib.contextmanager
def _unpacked(path: pathlib.Path) -> Iterator[tuple[io.BufferedIOBase, bool]]:
    """Opens the content as a stream, and says whether the file is gzipped."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            yield file, False
            return
        try:
            with gzip.open(file) as stream:
                yield stream, True
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise ValueError(f"{path}: the gzip file is damaged ({e}); fetch it again") from e


def _shape(path: pathlib.Path, stream: io.BufferedIOBase) -> tuple[int, ...]:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"{path}: not an IDX file, it starts with {start.hex(' ')!r}")
    kind, axes = start[2], start[3]
    if kind != _UINT8:
        raise ValueError(f"{path}: elements of IDX type {kind:#04x}, but only uint8 (0x08) is read")
    sizes = stream.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"{path}: the header of {axes} axes is cut short; the file is damaged")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    # Of no elements, too, the other axes must have sizes that NumPy can hold.
    if axes > _MOST_AXES or math.prod(size for size in shape if size) >= 2**63:
        raise ValueError(
            f"{path}: the header announces {axes} axes, {shape[:4]} ..., more than an array can "
            "have; the file is damaged"
        )
    return shape


def _fill(array: Integer[NDArray, "..."], stream: io.BufferedIOBase) -> int:
    """Reads into the array, and returns how many bytes there were."""
    view, filled = memoryview(array.reshape(-1)), 0  # type: ignore[arg-type]
    # A piece at a time, for gzip unpacks into memory of its own first.
    while read := stream.readinto(view[filled : filled + _PIECE]):
        filled += read
    return filled
