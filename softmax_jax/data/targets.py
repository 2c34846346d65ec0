"""Targets of examples: class ids, probabilities of all classes, or weights of a few classes.

What users give is parsed once, at the door, against the shape ``[..., q]`` of the logits; after
that its type says which of the three it is, and no function looks at numbers of axes::

    parsed = targets.parse(labels, logits.shape)
    y = targets.distribution(parsed, q, logits.dtype)

Whole data sets on the host are looked at row by row, by `checked_targets`. They stay NumPy arrays;
`are_ids` tells the two kinds apart, for the functions after it and nobody else.
"""

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Bool, Float, Integer, NDArray, Real
from softmax_jax.checks import (
    as_array,
    checked_count,
    checked_ids,
    checked_real,
    is_known,
    is_real,
    known_ids,
    on_device,
    refuse_ids_out_of_range,
    rounding_of_probabilities,
)


class Ids(NamedTuple):
    """One class for each example."""

    ids: Integer[Array, "*batch"]
    """``[...]`` integers; in NumPy where `checked` leaves them on the host. Under a transformation
    they may lie outside [0, q)."""


class Dense(NamedTuple):
    """Probabilities of all classes."""

    probabilities: Real[Array, "*batch q"] | Bool[Array, "*batch q"]
    """``[..., q]``; in NumPy where `checked` leaves them on the host. They need not sum to one."""


class SparseTargets(NamedTuple):
    """Soft labels over few classes of a row, such as the largest probabilities of a teacher."""

    ids: AnyArray
    """``[..., t]`` integers. The weights of a class that is named twice are added."""
    weights: AnyArray
    """``[..., t]``; they need not sum to one."""


Targets: TypeAlias = Ids | Dense | SparseTargets

HostTargets: TypeAlias = Integer[NDArray, " n"] | Float[NDArray, "n q"]
"""Targets of a data set that `checked_targets` passed: class ids or probabilities, in NumPy."""


def parse(targets: AnyArray | Targets, shape: tuple[int, ...]) -> Targets:
    """Returns targets of any kind, checked, as JAX arrays; those that are parsed already as such.

    Args:
      targets: class ids ``[...]``, or ``[..., 1]`` as Keras ships them; probabilities ``[..., q]``;
        or `SparseTargets`.
      shape: ``[..., q]`` of the logits.

    Raises:
      ValueError: if they are none of these, or if known class ids lie outside [0, q).

    Example:
      >>> import numpy as np
      >>> parse(np.array([2, 0]), (2, 3))
      Ids(ids=Array([2, 0], dtype=int32))
    """
    return jax.tree.map(on_device, checked(targets, shape))


def checked(targets: AnyArray | Targets, shape: tuple[int, ...]) -> Targets:
    """Does as `parse` for arguments of a jitted function: host arrays stay there, as is quicker.

    Example:
      >>> checked([2, 0], (2, 3))
      Ids(ids=array([2, 0], dtype=int32))
    """
    if isinstance(targets, Ids | Dense):
        return targets
    if not shape or shape[-1] == 0:
        raise ValueError(f"logits need a last axis of classes, got shape {shape}")
    *rows, q = shape
    if isinstance(targets, SparseTargets):
        return _checked_sparse(targets, tuple(rows), q)
    targets = as_array(targets, "targets")
    if targets.shape == shape:
        return Dense(checked_real(targets, "targets"))
    if targets.shape == (*rows, 1) and jnp.issubdtype(targets.dtype, jnp.integer):
        targets = targets.reshape(rows)
    if targets.shape != tuple(rows):
        raise ValueError(
            f"targets of shape {targets.shape} fit logits of shape {shape} neither as class ids, of"
            f" shape {tuple(rows)}, nor as probabilities, of shape {shape}"
        )
    return Ids(checked_ids(targets, q, "targets"))


def raw(targets: Targets) -> AnyArray:
    """Returns the arrays of targets as users give them, the inverse of `parse`.

    Example:
      >>> raw(parse([2, 0], (2, 3))).tolist()
      [2, 0]
    """
    return targets if isinstance(targets, SparseTargets) else targets[0]


def _checked_sparse(targets: SparseTargets, rows: tuple[int, ...], q: int) -> SparseTargets:
    ids = checked_ids(targets.ids, q, "targets.ids")
    weights = checked_real(targets.weights, "targets.weights")
    if ids.shape != weights.shape or ids.shape[:-1] != rows or ids.ndim == len(rows):
        raise ValueError(
            f"sparse targets need ids and weights of shape {(*rows, 't')}, got {ids.shape} and "
            f"{weights.shape}"
        )
    if ids.shape[-1] == 0:
        raise ValueError("sparse targets need at least one class a row")
    return SparseTargets(ids, weights)


def parse_counted(
    targets: AnyArray | Targets, shape: tuple[int, ...], ignore_id: int | None
) -> tuple[Targets, Bool[Array, "*batch"] | None]:
    """Returns `parse` with a 0 for class ids to ignore, and which rows ``[...]`` count.

    Where no id is to be ignored, None stands for all rows.

    Raises:
      ValueError: as `parse`; or if an id is to be ignored and the targets are no class ids.

    Example:
      >>> parsed, counts = parse_counted([2, -1], (2, 3), ignore_id=-1)
      >>> parsed.ids.tolist(), counts.tolist()
      ([2, 0], [True, False])
    """
    if ignore_id is None:
        return parse(targets, shape), None
    if isinstance(ignore_id, bool) or not hasattr(ignore_id, "__index__"):
        raise ValueError(f"ignore_id: {ignore_id!r}; expected a class id, an integer")
    if isinstance(targets, SparseTargets):
        raise ValueError("ignore_id is for class ids; give these rows weights of 0")
    ids, rank = as_array(targets, "targets"), len(shape) - 1
    if ids.ndim > rank and not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError("ignore_id is a class id; these targets are probabilities")
    numpy: ModuleType = jnp
    if is_known(ids):
        # By NumPy: under a transformation of something else, jnp would trace them.
        numpy, ids = np, np.asarray(ids)
    if ids.ndim > rank and ids.shape[-1] == 1:
        ids = ids.reshape(ids.shape[:-1])
    dtype = ids.dtype if jnp.issubdtype(ids.dtype, jnp.integer) else jnp.int32
    # JAX would wrap a number that the type of the ids does not hold.
    can_be = jnp.iinfo(dtype).min <= ignore_id <= jnp.iinfo(dtype).max
    counts = ids != ignore_id if can_be else numpy.ones(ids.shape, bool)
    kept = numpy.where(counts, ids, numpy.zeros_like(ids))
    return parse(kept, shape), jnp.asarray(counts)


@partial(jax.jit, static_argnames=("num_classes", "dtype"))
def distribution(
    targets: Targets, num_classes: int, dtype: jax.typing.DTypeLike
) -> Float[Array, "*batch {num_classes}"]:
    """Returns the weight of each class: ``[..., q]``, one-hot for class ids.

    A class id out of range makes its row NaN: under a transformation it could not raise.

    Example:
      >>> import jax.numpy as jnp
      >>> distribution(Ids(jnp.array([2, 0])), 3, jnp.float32).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if isinstance(targets, Dense):
        return targets.probabilities.astype(dtype)
    ids, valid = known_ids(targets.ids, num_classes)
    one_hot = jax.nn.one_hot(ids, num_classes, dtype=dtype)
    one_hot = jnp.where(valid[..., None], one_hot, jnp.nan)
    if isinstance(targets, Ids):
        return one_hot
    return jnp.sum(targets.weights[..., None].astype(dtype) * one_hot, axis=-2)


def hits(chosen: Integer[Array, "*batch k"], targets: Targets) -> Float[Array, "*batch"]:
    """Returns the weight that targets give to the chosen classes: ``[...]`` float32.

    It is 1 or 0 for a class id.

    Args:
      chosen: ``[..., k]`` class ids; a negative one, such as `model.ABSTAIN`, hits nothing.
      targets: parsed.

    Example:
      >>> hits(jnp.array([[2, 1], [2, 1]]), parse([1, 0], (2, 3))).tolist()
      [1.0, 0.0]
    """
    if isinstance(targets, Dense):
        given = jnp.take_along_axis(targets.probabilities, jnp.maximum(chosen, 0), axis=-1)
        return jnp.sum(jnp.where(chosen >= 0, given, 0), axis=-1, dtype=jnp.float32)
    if isinstance(targets, Ids):
        return jnp.any(_same(chosen, targets.ids[..., None]), axis=-1).astype(jnp.float32)
    is_hit = jnp.any(_same(chosen[..., None, :], targets.ids[..., None]), axis=-1)
    return jnp.sum(jnp.where(is_hit, targets.weights, 0), axis=-1, dtype=jnp.float32)


def _same(
    chosen: Integer[Array, "*#batch"], ids: Integer[Array, "*#batch"]
) -> Bool[Array, "*#batch"]:
    """Returns where the chosen classes are those of the ids; negative ones are none."""
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # small types cannot hold what they are compared with
    return (chosen.astype(ids.dtype) == ids) & (chosen >= 0)


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
    """Returns whether targets are class ids ``[n]``, and not probabilities ``[n, q]``."""
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
    """Returns the mean entropy of targets in nats under each weighting; class ids have none."""
    if are_ids(y):
        return np.zeros(len(weights))
    of_rows = -np.sum(y * np.log(np.where(y > 0, y, 1)), axis=1)
    return np.sum(weights / weights.sum(axis=1, keepdims=True) * of_rows, axis=1)


def is_one_hot(y: HostTargets) -> bool:
    """Returns whether each row is of one class for certain."""
    return are_ids(y) or bool((y.max(axis=1) == 1).all())


def most_probable(y: HostTargets) -> Integer[NDArray, " n"]:
    """Returns the class that each row is of, or is of most probably."""
    return y if are_ids(y) else y.argmax(axis=1)


def normalized(y: HostTargets) -> HostTargets:
    """Returns targets whose probabilities sum to one to rounding, as they do roughly."""
    return y if are_ids(y) else y / y.sum(axis=1, keepdims=True)


def renumbered(
    y: HostTargets, classes: Integer[NDArray, " c"], q: int
) -> Integer[NDArray, " n"] | Float[NDArray, "n c"]:
    """Returns targets over these of ``q`` classes alone; ids of others become any number."""
    if not are_ids(y):
        return y[:, classes]
    number = np.zeros(q, np.int32)
    number[classes] = np.arange(classes.size)
    return number[y]


def with_more_classes(
    y: HostTargets, more: int
) -> Integer[NDArray, " n"] | Float[NDArray, "n q+{more}"]:
    """Returns targets with so many more classes behind the others, which no row is of."""
    return y if are_ids(y) else np.pad(y, ((0, 0), (0, more)))


def rows_last(blocks: AnyArray) -> AnyArray:
    """Returns ``[blocks, rows, q]`` as ``[blocks, q, rows]``, and ``[blocks, rows]`` as they are.

    So are targets laid out of which `by_class` takes a block.
    """
    return blocks.swapaxes(1, 2) if blocks.ndim == 3 else blocks


def by_class(
    y: Integer[Array, " rows"] | Float[Array, "q rows"], q: int, dtype: jax.typing.DTypeLike
) -> Float[Array, "{q} rows"]:
    """Returns probabilities, rows last, given as such or as class ids."""
    return y if y.ndim == 2 else (jnp.arange(q)[:, None] == y[None, :]).astype(dtype)
