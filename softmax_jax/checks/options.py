"""Counts, strengths, units, names and paths that users choose."""

import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np

from softmax_jax._annotations import AnyArray, Scalar


def checked_count(value: SupportsIndex, name: str, at_least: int = 1) -> int:
    """Returns an integer of any type as int.

    Raises:
      ValueError: if it is none, such as 2.5, 2.0, True or "2", or is less than ``at_least``.

    Example:
      >>> checked_count(np.int64(3), "k")
      3
    """
    is_integer = not isinstance(value, bool | np.bool_) and hasattr(value, "__index__")
    if not is_integer or getattr(value, "ndim", 0) > 0 or operator.index(value) < at_least:
        raise ValueError(f"{name}: {value!r}; expected an integer, {at_least} or more")
    return operator.index(value)


def checked_strength(value: Scalar, name: str) -> float:
    """Returns the strength of a penalty as a float.

    Raises:
      ValueError: if it is negative or not finite.

    Example:
      >>> checked_strength(np.float32(0.5), "l2")
      0.5
    """
    strength = float(value)
    if not 0 <= strength < np.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {strength}: 0 is no penalty")
    return strength


def per_feature(value: AnyArray, default: float, d: int, name: str) -> np.ndarray:
    """Returns ``[d]`` finite float64, of one number or of one a feature.

    Example:
      >>> per_feature(2, 1.0, 3, "scale"), per_feature(None, 1.0, 2, "scale")
      (array([2., 2., 2.]), array([1., 1.]))
    """
    value = np.asarray(default if value is None else value, np.float64)
    if value.shape not in ((), (d,)) or not np.isfinite(value).all():
        raise ValueError(f"{name}: expected a finite number, or {d} of them, one a feature")
    return np.array(np.broadcast_to(value, (d,)))


def checked_names(names: Iterable[object], where: str) -> tuple[str, ...]:
    """Returns names as text; bytes, as NumPy's type S and HDF5 have them, are read as UTF-8.

    Raises:
      ValueError: if bytes are not UTF-8.

    Example:
      >>> checked_names([b"cat", "dog", 3], "class_names")
      ('cat', 'dog', '3')
    """
    found = []
    for name in names:
        try:
            found.append(name.decode() if isinstance(name, bytes) else str(name))
        except UnicodeDecodeError as e:
            raise ValueError(f"{where}: {name!r} is not UTF-8; give text") from e
    return tuple(found)


def refuse_other_than_utf8(path: os.PathLike[str]) -> None:
    """Raises a ValueError if a path cannot be written as UTF-8, as writers of files need it.

    Example:
      >>> import pathlib
      >>> refuse_other_than_utf8(pathlib.Path("runs"))
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{os.fspath(path)!a}: the path is not UTF-8; give another one") from e
