"""The IDX format of MNIST and its relatives."""

import gzip
import math
import os
import pathlib
import zlib

import numpy as np

_UINT8 = 0x08


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an array of uint8 from an IDX file, gzipped or not.

    The layout is two zero bytes, the element type (8 for uint8), the number of axes, each axis as
    a big-endian uint32, and the elements in C order.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged, is no IDX file, or holds elements other than uint8.
    """
    content = pathlib.Path(path).read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as e:
            raise ValueError(f"{path}: the gzip file is damaged ({e}); fetch it again") from e
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path}: not an IDX file, it starts with {content[:4].hex(' ')!r}")
    kind, axes = content[2], content[3]
    if kind != _UINT8:
        raise ValueError(f"{path}: elements of IDX type {kind:#04x}, but only uint8 (0x08) is read")
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{path}: the header of {axes} axes is cut short; the file is damaged")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path}: the header announces {shape}, {math.prod(shape):,} bytes, but "
            f"{len(content) - start:,} follow it; the file is incomplete or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
