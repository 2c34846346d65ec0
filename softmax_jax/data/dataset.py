"""A data set in memory, and the checks it passes at the door."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import AnyArray, Float, NDArray, Real, Shaped
from softmax_jax.checks import as_array, checked_names, is_real, refuse_not_finite
from softmax_jax.data.host_targets import (
    checked_targets,
    mass_of_classes,
    number_of_classes,
    refuse_single_class,
)
from softmax_jax.data.types import Data

_COMPACT = ("uint8", "float16", "bfloat16", "float32")  # stay as they are
# float32 has all integers up to this.
_LARGEST_EXACT = 2**24
# What float32 may change of a feature, of its spread; 8 bits of it stay, as many as pixels have.
_MOST_CHANGE = 2.0**-8
# Beyond this, the spread itself is no more than rounding of float64.
_ROUNDING = 2.0**-48


class Dataset(NamedTuple):
    """Train and test examples with what is needed to read and to name them."""

    train: Data
    test: Data
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None = None
    """Height and width if the features are the pixels of a grey image, row by row."""


def from_arrays(
    train_x: AnyArray,
    train_targets: AnyArray,
    test_x: AnyArray,
    test_targets: AnyArray,
    *,
    class_names: Sequence[str | bytes] | Shaped[NDArray, " q"] | None = None,
    num_classes: int | None = None,
    scale: float = 1.0,
) -> Dataset:
    """Checks four arrays and makes them a `Dataset`.

    Lists, data frames, other byte orders and arrays of Python numbers are taken as NumPy has them.

    Args:
      train_x: ``[n, d]`` features, or ``[n, height, width]`` images; uint8, float16, bfloat16,
        float32 stay as they are, other numbers become float32.
      train_targets: class ids ``[n]`` or ``[n, 1]``, integers from 0; or probabilities ``[n, q]``.
      test_x: as ``train_x``.
      test_targets: as ``train_targets``.
      class_names: one name a class; by default as many numbers as there are classes.
      num_classes: by default the number of names, or one more than the largest class id, which
        then must be below the number of rows of its split.
      scale: the model sees ``x * scale``; 1/255 takes 8-bit pixels to [0, 1].

    Raises:
      ValueError: on any defect; the message names the split, the first row at fault and a remedy.
        One is a feature of which float32 loses more than 2^-8 of its spread (the standard
        deviation, or the interquartile range where that is smaller and not zero), such as a time
        of day in seconds since 1970.

    Example:
      >>> from softmax_jax import data
      >>> x = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]
      >>> data.from_arrays(x, [0, 1, 1], x, [0, 1, 1], class_names=["cat", "dog"]).train.targets
      array([0, 1, 1], dtype=int32)
    """
    limits = np.finfo(np.float32)
    if not float(limits.smallest_normal) <= scale <= float(limits.max):
        raise ValueError(f"scale must be positive and finite in float32, got {scale}")
    train_x, test_x = _checked_shape(train_x, "train"), _checked_shape(test_x, "test")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"train has {_counted(train_x)} a row and test {_counted(test_x)}; both splits must be "
            "cut from the same table"
        )
    image_shape = (train_x.shape[1], train_x.shape[2]) if train_x.ndim == 3 else None
    splits = []
    for name, x, targets in (("train", train_x, train_targets), ("test", test_x, test_targets)):
        x = stored_features(x.reshape(len(x), -1), name)
        splits.append(Data(x, checked_targets(targets, len(x), name), scale=scale))
    train, test = splits
    if train.x.dtype != test.x.dtype:
        raise ValueError(
            f"train features are {train.x.dtype} and test features {test.x.dtype}; give both the "
            "same type, and so the same scale"
        )
    if train.targets.ndim != test.targets.ndim:
        raise ValueError("one split has class ids and the other probabilities; give both the same")
    names = _checked_class_names(class_names, num_classes, train, test)
    return Dataset(train, test, names, image_shape=image_shape)


def _counted(x: Shaped[NDArray, "n ..."]) -> str:
    return f"{x.shape[1]} features" if x.ndim == 2 else f"{x.shape[1]} x {x.shape[2]} pixels"


def _checked_shape(x: AnyArray, split: str) -> Shaped[NDArray, "n ..."]:
    x = np.asarray(as_array(x, split))
    if x.ndim not in (2, 3) or x.size == 0:
        raise ValueError(
            f"{split}: features of shape {x.shape}; expected [n, d], or images [n, height, width], "
            "with at least one row and one feature"
        )
    if not is_real(x):
        raise ValueError(f"{split}: features of type {x.dtype}; expected real numbers")
    return x


def stored_features(x: Shaped[NDArray, "n d"], split: str) -> Real[NDArray, "n d"]:
    """Returns real ``[n, d]`` as it is if its type is compact, or in float32.

    Raises:
      ValueError: if numbers are not finite, or float32 loses digits of a feature; see
        `from_arrays`.
    """
    if x.dtype.name in _COMPACT:
        refuse_not_finite(x, split)
        return x
    with np.errstate(over="ignore"):
        stored = x.astype(np.float32)
    if x.size == 0:
        return stored
    if x.dtype.kind not in "biu" or max(-int(x.min()), int(x.max())) > _LARGEST_EXACT:
        ends = stored.min(axis=0), stored.max(axis=0)
        if not np.isfinite(ends).all():
            refuse_not_finite(x, split)
            refuse_not_finite(stored, split)
        _refuse_lost_digits(x, stored, *ends, split)
    return stored


def _refuse_lost_digits(
    x: Real[NDArray, "n d"],
    stored: Float[NDArray, "n d"],
    lowest: Float[NDArray, " d"],
    highest: Float[NDArray, " d"],
    split: str,
) -> None:
    """Raises a ValueError if float32 cannot tell the values of a feature apart."""
    lowest, highest = lowest.astype(np.float64), highest.astype(np.float64)
    largest = np.maximum(-lowest, highest)
    # Some rows, and a lower bound of the standard deviation, tell which features need a look at
    # all rows.
    some = x[:: len(x) // 256 + 1].astype(np.float64)
    between = np.subtract(*np.quantile(some, (0.75, 0.25), axis=0))
    spread = np.where(
        between > 0,
        np.minimum(between, some.std(axis=0)) / 4,
        (highest - lowest) / np.sqrt(2 * len(x)),
    )
    # Rounding moves a number by 2^-24 of it at most, and XLA takes the smallest for 0.
    smallest = np.finfo(np.float32).smallest_normal
    rounding = np.maximum(2.0**-24 * largest, smallest)
    for column in np.flatnonzero(rounding > _MOST_CHANGE * spread):
        exact, kept = x[:, column].astype(np.float64), stored[:, column]
        change = np.abs(exact - np.where(np.abs(kept) < smallest, 0, kept)).max()
        if change == 0:
            continue
        deviation, between = exact.std(), np.subtract(*np.quantile(exact, (0.75, 0.25)))
        varies = min(deviation, between) if between > 0 else deviation
        if varies > _ROUNDING * largest[column] and change > _MOST_CHANGE * varies:
            raise ValueError(
                f"{split}: feature {column} varies by {varies:.3g} around "
                f"{np.median(exact):.10g}, of which float32 changes {change:.1g}; subtract its "
                "mean, or standardise the features, first"
            )


def _checked_class_names(
    class_names: Sequence[str | bytes] | Shaped[NDArray, " q"] | None,
    num_classes: int | None,
    train: Data,
    test: Data,
) -> tuple[str, ...]:
    if class_names is not None:
        if num_classes not in (None, len(class_names)):
            raise ValueError(f"{len(class_names)} class_names, but num_classes is {num_classes}")
        num_classes = len(class_names)
    q = number_of_classes(train.targets, num_classes, "train")
    if num_classes is None and test.targets.ndim == 1 and test.targets.max() >= q:
        q = number_of_classes(test.targets, None, "test")
    else:
        number_of_classes(test.targets, q, "test")
    refuse_single_class(mass_of_classes(train.targets, None, q), "train")
    return checked_names(range(q) if class_names is None else class_names, "class_names")
