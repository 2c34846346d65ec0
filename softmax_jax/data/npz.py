"""NumPy's ``.npz`` files, read without belief in what they announce."""

import io
import math
import os
import pathlib
import zipfile
from collections.abc import Collection
from typing import IO, BinaryIO

import numpy as np

from softmax_jax._annotations import NDArray, Shaped

MAX_BYTES = 2**32
"""Bytes that a file may unpack to by default, if it is smaller itself."""

# A stream of deflate, as in zip and gzip, unpacks to no more for each of its bytes.
DEFLATE_RATIO = 1032

# A Python string takes as much, beside the characters in the array.
STRING_BYTES = 64
# Of the record at the end with the longest comment.
_END_BYTES = 22 + 2**16
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: str | os.PathLike[str],
    names: Collection[str] | None = None,
    *,
    required: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> dict[str, Shaped[NDArray, "..."]]:
    """Reads arrays of numbers and text from an ``.npz`` file, compressed or not.

    Sizes are compared with the directory of the file, and this with the file itself, before
    anything is allocated. What is read passes the file's checksums.

    Args:
      path: of the file.
      names: of the arrays to read, as far as they are there; by default all.
      required: which of them must be there.
      max_bytes: what the arrays may take in memory if it is more than the file has. An entry of
        text counts 64 bytes more, as it is going to be a Python string.

    Raises:
      OSError: if there is no such file, or it cannot be read.
      ValueError: names the file if it is damaged, lacks a required array, holds other things, or
        would take more than ``max_bytes``.
    """
    path = pathlib.Path(path)
    with path.open("rb") as stream:
        try:
            return _arrays(stream, path.stat().st_size, names, required, max_bytes)
        except Exception as e:  # whatever readers make of damaged bytes
            raise ValueError(f"{path} cannot be read as an .npz file of plain arrays: {e}") from e


def _arrays(
    stream: BinaryIO,
    size: int,
    names: Collection[str] | None,
    required: Collection[str],
    max_bytes: int,
) -> dict[str, Shaped[NDArray, "..."]]:
    left = max(size, max_bytes)
    arrays = {}
    with zipfile.ZipFile(stream) as file:
        entries = _entries(file, size)
        if min(len(entries), 2**16 - 1) != _count(stream, size):
            raise ValueError("its directory is incomplete")
        if missing := [name for name in required if name not in entries]:
            raise ValueError(
                f"it lacks {', '.join(missing)}, of the arrays {', '.join(required)}; it has "
                f"{', '.join(entries) or 'nothing'}"
            )
        for name, info in entries.items():
            if names is None or name in names:
                arrays[name], taken = _read(file, info, left)
                left -= taken
    return arrays


def _entries(file: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in file.infolist():
        name = info.filename.removesuffix(".npy")
        if name in entries:
            raise ValueError(f"it has two arrays {name!r}")
        packed, unpacked = info.compress_size, info.file_size
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO}
        if info.compress_type not in ratio:
            raise ValueError(f"{name!r} is compressed in a way that NumPy does not write")
        if packed > size or unpacked > packed * ratio[info.compress_type]:
            raise ValueError(f"{name!r} announces {unpacked:,} bytes, which are not there")
        entries[name] = info
    return entries


def _count(stream: BinaryIO, size: int) -> int:
    """Returns the number of entries by the record at the end, which zipfile does not look at."""
    stream.seek(max(0, size - _END_BYTES))
    tail = stream.read()
    start = tail.rindex(b"PK\x05\x06") + 10
    return int.from_bytes(tail[start : start + 2], "little")


def _read(
    file: zipfile.ZipFile, info: zipfile.ZipInfo, left: int
) -> tuple[Shaped[NDArray, "..."], int]:
    """Returns an array, and the bytes that it takes."""
    name = info.filename.removesuffix(".npy")
    with file.open(info) as entry:
        shape, dtype, _ = npy_header(entry)
        count = math.prod(shape)
        size = count * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds Python objects; save numbers or text")
        # Of text without a character, any number of entries takes no byte.
        if size != info.file_size - entry.tell() or (dtype.itemsize == 0 and count > 1):
            raise ValueError(f"{name!r} announces {shape} of {dtype}, which are not there")
        taken = size + (count * STRING_BYTES if dtype.kind in "SU" else 0)
        if taken > left:
            raise ValueError(
                f"{name!r} is {shape} of {dtype} and takes {taken:,} bytes, of {left:,} that are "
                "left; a larger max_bytes allows it"
            )
        entry.seek(0)
        return np.lib.format.read_array(entry, allow_pickle=False), taken


def npy_header(file: io.BufferedIOBase | IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Reads what an ``.npy`` file, or such an entry, says of its array.

    Returns:
      Shape and type, and whether it lies by columns.

    Raises:
      ValueError: if it is none.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"there is no format {version} of plain arrays")
    shape, is_transposed, dtype = _HEADER_READERS[version](file)
    return shape, dtype, is_transposed
