"""Rows as users give them, checked; nothing is compiled before all of it passed."""

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import checks, processes
from softmax_jax._annotations import AnyArray
from softmax_jax.checks import is_sparse, per_feature, refuse_not_finite
from softmax_jax.data import reading, stored
from softmax_jax.data.host_targets import (
    checked_targets,
    expected,
    mass_of_classes,
    normalized,
    number_of_classes,
    refuse_single_class,
    renumbered,
    with_more_classes,
)
from softmax_jax.data.npz import MAX_BYTES
from softmax_jax.data.stored import StoredRows
from softmax_jax.model import Params
from softmax_jax.solvers import cost
from softmax_jax.solvers.single import Single


class Rows(NamedTuple):
    """Rows, their targets and weights, all of them checked."""

    x: AnyArray
    """``[n, d]`` features as stored: CSR, JAX or NumPy array, or `StoredRows`."""
    largest: float
    """Size of the largest of them."""
    y: np.ndarray
    """Class ids ``[n]`` as int32, or probabilities ``[n, q]`` as float64 that sum to one."""
    weights: np.ndarray
    """``[m, n]``, of ``m`` weightings."""
    mass: np.ndarray
    """``[m, q]``: weight of each class under each weighting."""
    offset: np.ndarray | None
    """``[n, q]``, in float64."""
    scale: np.ndarray
    """``[d]``: features are ``x * scale + shift``."""
    shift: np.ndarray
    initial: np.ndarray | None
    """``[q, 1 + d]``: the bias as a column in front of the weights, for the features as given."""
    single: Single
    """How single weights are penalised and limited."""


def checked_rows(
    x: AnyArray,
    y: AnyArray,
    *,
    num_classes: SupportsIndex | None,
    sample_weight: AnyArray,
    class_weight: AnyArray,
    offset: AnyArray,
    scale: AnyArray,
    shift: AnyArray,
    initial: Params | None,
    single: Single | None = None,
    max_bytes: int = MAX_BYTES,
) -> Rows:
    """Checks what `fit_path` is given; see there for the arguments and errors."""
    x, largest = checked_x(x, max_bytes)
    n, d = x.shape
    y, q = checked_y(y, n, num_classes)
    y = normalized(y)
    weights = checked_weights(sample_weight, class_weight, y, n, q)
    mass = np.stack([mass_of_classes(y, w, q) for w in weights])
    for i, of_classes in enumerate(mass):
        refuse_single_class(of_classes, "y" if len(weights) == 1 else f"y under weighting {i}")
    return Rows(
        x=x,
        largest=largest,
        y=y,
        weights=weights,
        mass=mass,
        offset=_checked_offset(offset, n, q),
        scale=per_feature(scale, 1.0, d, "scale"),
        shift=per_feature(shift, 0.0, d, "shift"),
        initial=None if initial is None else _checked_initial(initial, d, q),
        single=(single or Single()).checked(d, q),
    )


def of_classes(rows: Rows, classes: np.ndarray) -> Rows:
    """Returns the rows with these classes alone, numbered anew.

    Rows of other classes must weigh nothing; they get any number.
    """
    return rows._replace(
        y=renumbered(rows.y, classes, rows.mass.shape[1]),
        mass=rows.mass[:, classes],
        offset=None if rows.offset is None else rows.offset[:, classes],
        initial=None if rows.initial is None else rows.initial[classes],
        single=rows.single.of_classes(classes),
    )


def of_features(rows: Rows, features: np.ndarray) -> Rows:
    """Returns the rows with these features alone."""
    return rows._replace(
        x=_columns(rows.x, features),
        scale=rows.scale[features],
        shift=rows.shift[features],
        initial=None
        if rows.initial is None
        else rows.initial[:, np.concatenate([[0], 1 + features])],
        single=rows.single.of_features(features),
    )


def _columns(x: AnyArray, features: np.ndarray) -> AnyArray:
    if isinstance(x, StoredRows):
        return stored.with_columns(x, features)
    if not is_sparse(x):
        return x[:, features]
    number = np.zeros(x.shape[1], x.indices.dtype)
    number[features] = np.arange(features.size)
    is_kept = np.isin(np.arange(x.shape[1]), features)[x.indices]
    kept = np.concatenate([[0], np.cumsum(is_kept)])[x.indptr]
    return type(x)(
        (x.data[is_kept], number[x.indices[is_kept]], kept), shape=(x.shape[0], features.size)
    )


def with_padding(rows: Rows, *, features: int, classes: int) -> Rows:
    """Returns dense rows with so many features of zeros, and classes of no weight, appended."""
    if features == classes == 0:
        return rows
    columns, more = ((0, 0), (0, features)), ((0, 0), (0, classes))
    return rows._replace(
        x=(jnp.pad if isinstance(rows.x, jax.Array) else np.pad)(rows.x, columns),
        y=with_more_classes(rows.y, classes),
        mass=np.pad(rows.mass, more),
        offset=None if rows.offset is None else np.pad(rows.offset, more),
        scale=np.pad(rows.scale, (0, features), constant_values=1),
        shift=np.pad(rows.shift, (0, features)),
        initial=None
        if rows.initial is None
        else np.pad(rows.initial, ((0, classes), (0, features))),
        single=rows.single.with_padding(features=features, classes=classes),
    )


def canonical(x: AnyArray) -> AnyArray:
    """Returns CSR rows with one entry a number, and none for zeros."""
    if not x.has_canonical_format:
        # Narrow integers may not hold the sum of their parts.
        x = x.astype(np.float64) if x.dtype.kind in "iub" else x.copy()
        x.sum_duplicates()
    if not x.data.all():
        x = x.copy()
        x.eliminate_zeros()
    return x


def checked_x(x: AnyArray, max_bytes: int = MAX_BYTES) -> tuple[AnyArray, float]:
    """Returns features as CSR, JAX or NumPy array, or stored ones, and the largest in size."""
    # Memory maps that are small stay arrays, and larger ones are in memory once, in blocks.
    most = min(max_bytes, np.float64().itemsize * cost.ON_HOST)
    if isinstance(x, np.memmap) and x.nbytes > most:
        x = stored.rows_of_array(x)
    if isinstance(x, StoredRows):
        return reading.unless_within(x, most), _largest_stored(x)
    x = checks.as_rows(x, "x")
    if 0 in x.shape:
        raise ValueError(
            f"x: shape {x.shape}; expected [n, d] with at least one row and one feature"
        )
    if is_sparse(x):
        largest = _largest(x.data, np)
        if not np.isfinite(largest):
            refuse_not_finite(x, "x")
    elif isinstance(x, jax.Array) and x.devices() != set(jax.devices("cpu")[:1]):
        # Looked at where it lies, as it may be large.
        largest = _largest(x, jnp)
        if not np.isfinite(largest):
            raise ValueError(
                "x: there are NaN or infinite values; drop these rows or fill the gaps"
            )
    else:
        largest = _largest(np.asarray(x), np)
        if not np.isfinite(largest):
            refuse_not_finite(np.asarray(x), "x")
    return x, largest


def _largest_stored(x: StoredRows) -> float:
    """Returns the largest number; each process looks at its share."""
    largest, bad = 0.0, len(x)
    share = {"part": jax.process_index(), "parts": jax.process_count()}
    for first, block in reading.slices_of(x, **share):
        largest = float(np.maximum(largest, _largest(block, np)))  # NaN if there is one
        if not np.isfinite(largest):
            bad = first + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            break
    bad = int(processes.gathered(np.int32(bad)).min())
    if bad < len(x):
        (row,) = x[bad : bad + 1]
        feature = np.flatnonzero(~np.isfinite(row))[0]
        raise ValueError(
            f"x: {x.place(bad)}: feature {feature} is {row[feature]} as {x.dtype}; drop such rows "
            "or fill the gaps"
        )
    return float(processes.gathered(np.float64(largest)).max())


def _largest(a: AnyArray, numpy: ModuleType) -> float:
    """Returns the largest number in size; NaN if there is one."""
    if a.size == 0:
        return 0.0
    return float(np.maximum(np.abs(float(numpy.min(a))), np.abs(float(numpy.max(a)))))


def checked_y(y: AnyArray, n: int, num_classes: SupportsIndex | None) -> tuple[np.ndarray, int]:
    """Returns class ids as int32, or probabilities as float64; and the number of classes."""
    y = checked_targets(y, n, "y", np.float64)
    q = number_of_classes(y, num_classes, "y")
    if q < 2:
        raise ValueError(
            f"y: {q} class; there is nothing to tell apart: give rows of two classes at least, or "
            "num_classes"
        )
    return y, q


def checked_weights(
    sample_weight: AnyArray, class_weight: AnyArray, y: np.ndarray, n: int, q: int
) -> np.ndarray:
    """Returns ``[m, n]``: both kinds of weights multiplied, for each weighting."""
    weights = checks.checked_weights(sample_weight, n, "sample_weight", several=True)
    if class_weight is not None:
        weights = weights * _class_weights(class_weight, y, weights, q)
    checks.refuse_no_weight(weights, "sample_weight")
    return weights


def _class_weights(
    class_weight: AnyArray, y: np.ndarray, weights: np.ndarray, q: int
) -> np.ndarray:
    """Returns factors ``[m, n]`` or ``[1, n]``."""
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight: {class_weight!r}; expected 'balanced' or {q} numbers")
        mass = np.stack([mass_of_classes(y, w, q) for w in weights])
        present = (mass > 0).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            factors = np.where(mass > 0, mass.sum(axis=1, keepdims=True) / (present * mass), 0)
    else:
        if isinstance(class_weight, Mapping):
            class_weight = [class_weight.get(c, 1.0) for c in range(q)]
        factors = np.asarray(class_weight, np.float64)[None]
        if factors.shape != (1, q) or not (np.isfinite(factors) & (factors >= 0)).all():
            raise ValueError(
                f"class_weight: {class_weight}; expected 'balanced', or {q} finite numbers, 0 or "
                "more, one a class"
            )
    return expected(factors, y)


def _checked_initial(initial: Params, d: int, q: int) -> np.ndarray:
    w, b = np.asarray(initial.w, np.float64), np.asarray(initial.b, np.float64)
    if w.shape != (d, q) or b.shape != (q,):
        raise ValueError(
            f"initial: w of shape {w.shape} and b of shape {b.shape}; expected {(d, q)} and {(q,)}"
        )
    b = np.where(np.isneginf(b), 0, b)
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        raise ValueError("initial: there are NaN or infinite values in it")
    return np.concatenate([b[:, None], w.T], axis=1)


def _checked_offset(offset: AnyArray, n: int, q: int) -> np.ndarray | None:
    if offset is None:
        return None
    offset = np.asarray(offset, np.float64)
    if offset.shape != (n, q):
        raise ValueError(
            f"offset: shape {offset.shape}; expected [{n}, {q}], a number a row and class"
        )
    refuse_not_finite(offset, "offset")
    return offset
