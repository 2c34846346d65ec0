"""Targets of whole data sets on the host: class ids ``[n]``, or probabilities ``[n, q]``.

They stay NumPy arrays, and are looked at row by row, by `checked_targets`. `are_ids` tells the two
kinds apart, for the functions after it and nobody else.
"""

from typing import Any, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Bool, Float, Integer, NDArray, Real
from softmax_jax.checks import (
    as_array,
    checked_count,
    checked_ids,
    is_real,
    refuse_ids_out_of_range,
    rounding_of_probabilities,
)

HostTargets: TypeAlias = Integer[NDArray, " n"] | Float[NDArray, "n q"]
"""Targets of a data set that `checked_targets` passed: class ids or probabilities, in NumPy."""


def checked_targets(
    targets: AnyArray, rows: int, where: str, dtype: type[np.floating[Any]] = np.float32
) -> Integer[NDArray, " {rows}"] | Float[NDArray, "{rows} q"]:
    """Returns class ids ``[rows]`` as int32, or probabilities ``[rows, q]`` as ``dtype``.

    One column, ``[rows, 1]``, are class ids too, as Keras ships them.

    Example:
      >>> checked_targets([[2], [0]], 2, "y")
      array([2, 0], dtype=int32)
    """
    targets = np.asarray(as_array(targets, where))
    if targets.shape == (rows, 1):
        targets = targets[:, 0]
    if targets.ndim not in (1, 2) or len(targets) != rows:
        raise ValueError(
            f"{where}: targets of shape {targets.shape} for {rows} rows; expected class ids "
            f"[{rows}] or probabilities [{rows}, q]"
        )
    if rows == 0:
        raise ValueError(f"{where}: there are no rows")
    if targets.ndim == 1:
        # A copy of them, as users may write to theirs.
        return np.array(checked_ids(targets, None, where))
    if not is_real(targets):
        raise ValueError(f"{where}: targets of type {targets.dtype}; expected probabilities")
    with np.errstate(over="ignore"):  # an infinity is refused below
        probabilities: np.ndarray = targets.astype(dtype)
    bad = ~(np.isfinite(probabilities) & (probabilities >= 0)).all(axis=1)
    sums = probabilities.sum(axis=1, dtype=np.float64)
    bad |= ~(np.abs(sums - 1) <= rounding_of_probabilities(targets.dtype))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{where}: the targets of row {row} are not probabilities: {targets[row]} with sum "
            f"{targets[row].sum()}; they must be non-negative and sum to 1"
        )
    return probabilities


def are_ids(y: HostTargets) -> bool:
    """Returns whether targets are class ids ``[n]``, and not probabilities ``[n, q]``.

    Example:
      >>> are_ids(np.array([2, 0]))
      True
    """
    return y.ndim == 1


def number_of_classes(y: HostTargets, num_classes: SupportsIndex | None, where: str) -> int:
    """Returns q for checked targets: one more than the largest class id unless it is given.

    Raises:
      ValueError: if ids go beyond ``num_classes``; or if it is not given and the largest id is not
        below the number of rows, as an id by mistake would cost memory and time for q classes.

    Example:
      >>> number_of_classes(np.array([2, 0, 1]), None, "y")
      3
    """
    rows = len(y)
    num_classes = None if num_classes is None else checked_count(num_classes, "num_classes")
    found = int(y.max()) + 1 if are_ids(y) else y.shape[1]
    if not are_ids(y):
        if num_classes not in (None, found):
            raise ValueError(
                f"{where}: probabilities of {found} classes, but there are {num_classes}"
            )
        return found
    if num_classes is None:
        if found > max(rows, 2):
            row = int(np.argmax(y))
            raise ValueError(
                f"{where}: row {row} has class id {y[row]}, which makes more classes than "
                f"the {rows} rows: give num_classes={found} if there are that many, or number the "
                "classes, with np.unique(labels, return_inverse=True) for example"
            )
        return found
    if num_classes > 2**31:
        raise ValueError(f"num_classes: {num_classes}; class ids are int32, so 2**31 at most")
    refuse_ids_out_of_range(y, num_classes, where)
    return num_classes


def checked_labels(
    labels: AnyArray, rows: int, num_classes: int, where: str = "labels"
) -> Integer[NDArray, " {rows}"]:
    """Returns class ids as int32, all of them below ``num_classes``.

    Example:
      >>> checked_labels([2, 0], rows=2, num_classes=3)
      array([2, 0], dtype=int32)
    """
    labels = np.asarray(as_array(labels, where))
    if labels.ndim != 1 and labels.shape != (rows, 1):
        raise ValueError(f"{where}: shape {labels.shape}; expected class ids [{rows}]")
    labels = checked_targets(labels, rows, where)
    number_of_classes(labels, num_classes, where)
    return labels


def refuse_single_class(
    mass: Real[NDArray, " q"], where: str, remedy: str = "give rows of two classes at least"
) -> None:
    """Raises a ValueError if no two classes of ``mass: [q]`` have any.

    Example:
      >>> refuse_single_class(np.array([0, 3]), "y")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: y: all of the weight is on a single class, 1; there is nothing to tell apart: ...
    """
    present = np.flatnonzero(mass > 0)
    if present.size < 2:
        classes = f"a single class, {present[0]}" if present.size else "no class"
        raise ValueError(
            f"{where}: all of the weight is on {classes}; there is nothing to tell apart: {remedy}"
        )


def mass_of_classes(
    y: HostTargets, weights: Float[NDArray, " n"] | None, q: int
) -> Real[NDArray, " {q}"]:
    """Returns the weight of each class in `checked_targets`: ``[q]``.

    Example:
      >>> mass_of_classes(np.array([2, 0, 2]), None, 3)
      array([1, 0, 2])
    """
    if are_ids(y):
        return np.bincount(y, weights, minlength=q)
    return y.sum(axis=0) if weights is None else weights @ y


def expected(
    values: Real[NDArray, "m q"] | Bool[NDArray, "m q"], y: HostTargets
) -> Real[NDArray, "m n"] | Bool[NDArray, "m n"]:
    """Returns the means of values of the classes under the targets of each row; ids pick one.

    Example:
      >>> expected(np.array([[1.0, 3.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])).tolist()
      [[2.0, 3.0]]
    """
    return values[:, y] if are_ids(y) else values @ y.T


def mean_entropy(y: HostTargets, weights: Float[NDArray, "m n"]) -> Float[NDArray, " m"]:
    """Returns the mean entropy of targets in nats under each weighting; class ids have none.

    Example:
      >>> mean_entropy(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[1.0, 0.0]])).round(4)
      array([0.6931])
    """
    if are_ids(y):
        return np.zeros(len(weights))
    of_rows = -np.sum(y * np.log(np.where(y > 0, y, 1)), axis=1)
    return np.sum(weights / weights.sum(axis=1, keepdims=True) * of_rows, axis=1)


def is_one_hot(y: HostTargets) -> bool:
    """Returns whether each row is of one class for certain.

    Example:
      >>> is_one_hot(np.array([[0.5, 0.5], [1.0, 0.0]]))
      False
    """
    return are_ids(y) or bool((y.max(axis=1) == 1).all())


def most_probable(y: HostTargets) -> Integer[NDArray, " n"]:
    """Returns the class that each row is of, or is of most probably.

    Example:
      >>> most_probable(np.array([[0.2, 0.8], [1.0, 0.0]]))
      array([1, 0])
    """
    return y if are_ids(y) else y.argmax(axis=1)


def normalized(y: HostTargets) -> HostTargets:
    """Returns targets whose probabilities sum to one to rounding, as they do roughly.

    Example:
      >>> normalized(np.array([[0.5, 0.25]])).sum()
      np.float64(1.0)
    """
    return y if are_ids(y) else y / y.sum(axis=1, keepdims=True)


def renumbered(
    y: HostTargets, classes: Integer[NDArray, " c"], q: int
) -> Integer[NDArray, " n"] | Float[NDArray, "n c"]:
    """Returns targets over these of ``q`` classes alone; ids of others become any number.

    Example:
      >>> renumbered(np.array([4, 2]), np.array([2, 4]), 5)
      array([1, 0], dtype=int32)
    """
    if not are_ids(y):
        return y[:, classes]
    number = np.zeros(q, np.int32)
    number[classes] = np.arange(classes.size)
    return number[y]


def with_more_classes(
    y: HostTargets, more: int
) -> Integer[NDArray, " n"] | Float[NDArray, "n q+{more}"]:
    """Returns targets with so many more classes behind the others, which no row is of.

    Example:
      >>> with_more_classes(np.array([[0.5, 0.5]]), 1)
      array([[0.5, 0.5, 0. ]])
    """
    return y if are_ids(y) else np.pad(y, ((0, 0), (0, more)))


def rows_last(blocks: AnyArray) -> AnyArray:
    """Returns ``[blocks, rows, q]`` as ``[blocks, q, rows]``, and ``[blocks, rows]`` as they are.

    So are targets laid out of which `by_class` takes a block.

    Example:
      >>> rows_last(np.zeros((2, 5, 3))).shape
      (2, 3, 5)
    """
    return blocks.swapaxes(1, 2) if blocks.ndim == 3 else blocks


def by_class(
    y: Integer[Array, " rows"] | Float[Array, "q rows"], q: int, dtype: jax.typing.DTypeLike
) -> Float[Array, "{q} rows"]:
    """Returns probabilities, rows last, given as such or as class ids.

    Example:
      >>> by_class(jnp.array([0, 2]), 3, jnp.float32).tolist()
      [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    """
    return y if y.ndim == 2 else (jnp.arange(q)[:, None] == y[None, :]).astype(dtype)
