"""A data set in memory, and the checks it passes at the door."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from softmax_jax._checks import checked_targets, is_real, refuse_not_finite

# More would be a mistake, an id of another table for example, and exhaust the memory.
_MOST_UNNAMED_CLASSES = 2**24


class Split(NamedTuple):
    """``x: [n, d]`` raw features, and class ids ``[n]`` or probabilities ``[n, q]``."""

    x: np.ndarray
    targets: np.ndarray


class Dataset(NamedTuple):
    """Train and test examples with what is needed to read and to name them."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    scale: float = 1.0
    """The model sees ``x * scale``: 1/255 takes 8-bit pixels to [0, 1]."""
    image_shape: tuple[int, int] | None = None
    """Height and width if the features are the pixels of a grey image, row by row."""


def from_arrays(
    train_x: np.ndarray,
    train_targets: np.ndarray,
    test_x: np.ndarray,
    test_targets: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Dataset:
    """Checks four arrays and makes them a `Dataset`.

    Args:
      train_x: ``[n, d]`` features, or ``[n, height, width]`` images; uint8, float16, bfloat16,
        float32 stay as they are, other numbers become float32.
      train_targets: class ids ``[n]``, integers from 0; or probabilities ``[n, q]``.
      test_x: as ``train_x``.
      test_targets: as ``train_targets``.
      class_names: one name a class; by default as many numbers as there are classes.
      scale: see `Dataset`.

    Raises:
      ValueError: on any defect; the message names the split, the first row at fault and a remedy.
    """
    if not 0 < scale < np.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    train_x, test_x = np.asarray(train_x), np.asarray(test_x)
    image_shape = None
    if train_x.ndim == 3:
        image_shape = (train_x.shape[1], train_x.shape[2])
    splits = []
    for name, x, targets in (("train", train_x, train_targets), ("test", test_x, test_targets)):
        x = _checked_features(x, name)
        splits.append(Split(x, checked_targets(np.asarray(targets), len(x), name)))
    train, test = splits
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"train has {_counted(train_x)} a row and test {_counted(test_x)}; both splits must be "
            "cut from the same table"
        )
    if train.x.dtype != test.x.dtype:
        raise ValueError(
            f"train features are {train.x.dtype} and test features {test.x.dtype}; give both the "
            "same type, and so the same scale"
        )
    if train.targets.ndim != test.targets.ndim:
        raise ValueError("one split has class ids and the other probabilities; give both the same")
    names = _checked_class_names(class_names, train, test)
    return Dataset(train, test, names, scale=scale, image_shape=image_shape)


def _counted(x: np.ndarray) -> str:
    return f"{x.shape[1]} features" if x.ndim == 2 else f"{x.shape[1]} x {x.shape[2]} pixels"


def _checked_features(x: np.ndarray, split: str) -> np.ndarray:
    if x.ndim not in (2, 3) or x.size == 0:
        raise ValueError(
            f"{split}: features of shape {x.shape}; expected [n, d], or images [n, height, width], "
            "with at least one row and one feature"
        )
    if not is_real(x):
        raise ValueError(f"{split}: features of type {x.dtype}; expected real numbers")
    x = x.reshape(len(x), -1)
    if x.dtype.name not in ("uint8", "float16", "bfloat16", "float32"):
        refuse_not_finite(x, split)
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
    refuse_not_finite(x, split)
    return x


def _checked_class_names(
    class_names: Sequence[str] | None, train: Split, test: Split
) -> tuple[str, ...]:
    counts = []
    for split in (train, test):
        ids = split.targets.ndim == 1
        counts.append(int(split.targets.max()) + 1 if ids else split.targets.shape[1])
    if class_names is None and max(counts) > _MOST_UNNAMED_CLASSES:
        raise ValueError(
            f"the largest class id is {max(counts) - 1}; number the classes from 0 without gaps, "
            "with np.unique(labels, return_inverse=True) for example, or give class_names"
        )
    if class_names is None:
        class_names = [str(i) for i in range(max(counts))]
    q = len(class_names)
    if q < 2:
        raise ValueError("there is a single class, so there is nothing to tell apart")
    for split, count, name in ((train, counts[0], "train"), (test, counts[1], "test")):
        if split.targets.ndim == 2 and count != q:
            raise ValueError(f"{name}: probabilities of {count} classes, but there are {q}")
        if count > q:
            row = int(np.argmax(split.targets >= q))
            raise ValueError(
                f"{name}: row {row} has class id {split.targets[row]}, but there are {q} classes, "
                f"with ids 0 to {q - 1}"
            )
    if train.targets.ndim == 1 and np.all(train.targets == train.targets[0]):
        raise ValueError(
            f"train: all {len(train.targets)} rows are of class {train.targets[0]}; training needs "
            "rows of two classes at least"
        )
    return tuple(class_names)
