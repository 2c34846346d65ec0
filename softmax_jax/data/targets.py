"""Targets of examples: class ids, probabilities of all classes, or weights of a few classes.

What users give is parsed once, at the door, against the shape ``[..., q]`` of the logits; after
that its type says which of the three it is, and no function looks at numbers of axes::

    parsed = targets.parse(labels, logits.shape)
    y = targets.distribution(parsed, q, logits.dtype)

Those of whole data sets on the host are in `host_targets`.
"""

from functools import partial
from types import ModuleType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Bool, Float, Integer, Real
from softmax_jax.checks import (
    as_array,
    checked_ids,
    checked_real,
    is_known,
    known_ids,
    on_device,
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
