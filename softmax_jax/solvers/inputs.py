"""Arrays of users, checked and laid out in blocks; nothing is compiled before all of it passed."""

from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import checks
from softmax_jax._annotations import AnyArray
from softmax_jax.checks import per_feature, refuse_not_finite
from softmax_jax.data.blocks import CACHED, rows_within
from softmax_jax.data.targets import (
    checked_targets,
    mass_of_classes,
    number_of_classes,
    refuse_single_class,
)
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty
from softmax_jax.solvers.problem import Problem, SparseBlocks
from softmax_jax.solvers.units import Units, of_their_own

# Above this offset, work is in float64: sums of squares stay below 3e38, float32's largest number.
_WIDE = 1e15
# Where penalties of equal gradients differ by more than the square of this, float32 gradients of
# the least penalised feature are too coarse for a certificate.
_UNEVEN = 2.0**12
# Features are filled up to a power of two in number, with zeros, while there are at most so many
# numbers in them and so many parameters. Loops over numbers of features, as in recursive
# elimination, then share programs. With more, passes and a Hessian of that order would take longer.
_SMALL = 2**14
_FEW_PARAMETERS = 2**7


class Inputs(NamedTuple):
    """Rows as the solvers take them, and facts about them."""

    problem: Problem
    """Rows in float64, with weights ``[blocks, m, rows]`` of ``m`` weightings; no strengths."""
    classes: np.ndarray
    """``[q]``: ids of the classes that have weight under some weighting; the problem has no other.
    """
    absent: np.ndarray
    """``[m, q]``: which of them have none under weighting ``m``, where there is a bias: without
    one, such a class is like any other.
    """
    baseline: np.ndarray
    """``[m]``, in nats: the loss without features and offsets, the entropy of the classes."""
    units: Units
    """Units of the problem's features."""
    initial: np.ndarray | None
    """``[q, 1 + d]``: the bias as a column in front of the weights, for the features as given."""
    one_hot: bool
    """Whether each row of weight is of one class for certain."""
    is_wide: bool
    """Whether float32 may not do: large offsets, or penalties that differ by orders."""
    n: int
    q: int
    num_classes: int
    """Number of classes, with those of no weight."""
    d: int
    """Number of features, without those of padding."""


def arrange(
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
    block_size: int | None,
    fit_intercept: bool,
    standardize: bool,
    grouped: bool,
) -> Inputs:
    """Checks and lays out what `fit_path` is given; see there for the arguments and errors."""
    x, largest = checked_x(x)
    n, d = x.shape
    y, q = checked_y(y, n, num_classes)
    if y.ndim == 2:
        y = y / y.sum(axis=1, keepdims=True)
    weights = checked_weights(sample_weight, class_weight, y, n, q)
    class_mass = np.stack([mass_of_classes(y, w, q) for w in weights])
    for i, mass in enumerate(class_mass):
        refuse_single_class(mass, "y" if len(weights) == 1 else f"y under weighting {i}")
    offset = _checked_offset(offset, n, q)
    scale, shift = per_feature(scale, 1.0, d, "scale"), per_feature(shift, 0.0, d, "shift")
    start = None if initial is None else _checked_initial(initial, d, q)
    padding = _padding(n, d, q)
    if padding:
        x = _widened(x, padding)
        scale, shift = np.pad(scale, (0, padding), constant_values=1), np.pad(shift, (0, padding))
        start = None if start is None else np.pad(start, ((0, 0), (0, padding)))
    num_classes, classes = q, np.flatnonzero((class_mass > 0).any(axis=0) | (not fit_intercept))
    if classes.size < num_classes:
        q = classes.size
        y, class_mass = _of_classes(y, classes, num_classes), class_mass[:, classes]
        offset = None if offset is None else offset[:, classes]
        start = None if start is None else start[classes]
    stored = _stored(
        x, y, weights, offset, _layout(weights, max(d, q), block_size), fit_intercept, grouped
    )
    problem, units = of_their_own(
        jax.device_put(stored), scale, shift, largest, standardize=standardize
    )
    counts = np.any(weights > 0, axis=0)
    share = class_mass / class_mass.sum(axis=1, keepdims=True)
    return Inputs(
        problem=problem,
        classes=classes,
        absent=(class_mass == 0) & fit_intercept,
        baseline=-np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1),
        units=units,
        initial=start,
        one_hot=y.ndim == 1 or bool((y[counts].max(axis=1) == 1).all()),
        is_wide=_is_wide(problem, offset),
        n=n,
        q=q,
        num_classes=num_classes,
        d=d,
    )


def _padding(n: int, d: int, q: int) -> int:
    """Returns how many features of zeros to append."""
    columns = _power_of_two(d)
    is_small = n * columns <= _SMALL and (1 + columns) * q <= _FEW_PARAMETERS
    return columns - d if is_small else 0


def _widened(x: AnyArray, padding: int) -> AnyArray:
    """Appends features that are zero."""
    n, d = x.shape
    if _is_sparse(x):
        return type(x)((x.data, x.indices, x.indptr), shape=(n, d + padding))
    pad = jnp.pad if isinstance(x, jax.Array) else np.pad
    return pad(x, ((0, 0), (0, padding)))


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


class _Layout(NamedTuple):
    """Blocks of rows."""

    order: np.ndarray
    """``[blocks rows]``: rows in the order of the blocks, filled up with copies of the first."""
    blocks: int
    rows: int
    active: int
    """Blocks that have a row of positive weight."""

    def of(self, a: AnyArray) -> AnyArray:
        """Returns an array over rows as ``[blocks, rows, ...]``."""
        a = a if np.array_equal(self.order, np.arange(len(a))) else a[self.order]
        return a.reshape(self.blocks, self.rows, *a.shape[1:])


def _layout(weights: np.ndarray, width: int, block_size: int | None) -> _Layout:
    """Lays out rows of ``width`` numbers, with ``weights: [m, n]``, in blocks."""
    n = weights.shape[1]
    if block_size is None:
        block_size = max(rows_within(width, numbers=CACHED), 256)
    else:
        block_size = checks.checked_count(block_size, "block_size")
    blocks = -(-n // min(block_size, n))
    rows = _rounded_up(-(-n // blocks))
    order = np.random.default_rng(0).permutation(n) if blocks > 1 else np.arange(n)
    # Put rows of no weight last. Leading blocks are then a fair sample, trailing empty ones are
    # skipped, and all subsets of the rows reuse one compiled program.
    counts = np.any(weights > 0, axis=0)
    order = order[np.argsort(~counts[order], kind="stable")]
    order = np.concatenate([order, np.full(blocks * rows - n, order[0])])
    return _Layout(order, blocks, rows, -(-int(np.count_nonzero(counts)) // rows))


def _stored(
    x: AnyArray,
    y: np.ndarray,
    weights: np.ndarray,
    offset: np.ndarray | None,
    layout: _Layout,
    fit_intercept: bool,
    grouped: bool,
) -> Problem:
    """Returns the problem with features as they are stored, and no strengths."""
    n, d = x.shape
    shares: Any = np.array(layout.of((weights / weights.sum(axis=1, keepdims=True)).T))
    shares.reshape(len(layout.order), -1)[n:] = 0
    targets = layout.of(y)
    per_column: Any = np.ones(d)
    return Problem(
        x=_sparse_blocks(x, layout) if _is_sparse(x) else layout.of(x),
        center=0 * per_column,
        scale=per_column,
        intercept=jnp.asarray(fit_intercept, jnp.float64),
        targets=np.moveaxis(targets, 2, 1) if y.ndim == 2 else targets,
        weights=np.moveaxis(shares, 2, 1),
        offset=None if offset is None else np.moveaxis(layout.of(offset), 2, 1),
        penalty=Penalty(np.zeros(0), np.zeros(0), per_column, grouped, class_axis=-2),
        active=np.asarray(layout.active, np.int32),
    )


def _is_wide(problem: Problem, offset: np.ndarray | None) -> bool:
    """Returns whether the work must be in float64."""
    factor = np.asarray(problem.factor)
    return bool(
        factor.max() > _UNEVEN * factor.min()
        or not 1e-6 < factor.min() <= factor.max() < 1e6
        or (offset is not None and np.abs(offset).max() > _WIDE)
    )


def _of_classes(y: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Numbers the classes anew; rows that weigh nothing get any number."""
    if y.ndim == 2:
        return y[:, classes]
    number = np.zeros(num_classes, np.int32)
    number[classes] = np.arange(classes.size)
    return number[y]


def _power_of_two(n: int) -> int:
    """Returns the least one from ``n`` on."""
    return 2 ** (n - 1).bit_length()


def _rounded_up(n: int) -> int:
    """Rounds up by an eighth at most, so that data of nearly one size share a program."""
    step = 2 ** max(n.bit_length() - 4, 0)
    return -(-n // step) * step


def _is_sparse(x: AnyArray) -> bool:
    return hasattr(x, "tocsr")


def checked_x(x: AnyArray) -> tuple[AnyArray, float]:
    """Returns features as CSR, JAX or NumPy array, and the largest of them in size."""
    x = checks.as_rows(x, "x")
    if 0 in x.shape:
        raise ValueError(
            f"x: shape {x.shape}; expected [n, d] with at least one row and one feature"
        )
    if _is_sparse(x):
        largest = _largest(x.data, np)
        if not np.isfinite(largest):
            refuse_not_finite(x.data[:, None], "x, stored values")
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


def _largest(a: AnyArray, numpy: Any) -> float:
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
    return factors[:, y] if y.ndim == 1 else factors @ y.T


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


def _sparse_blocks(x: AnyArray, layout: _Layout) -> SparseBlocks:
    blocks, rows = layout.blocks, layout.rows
    x = x[layout.order]
    parts = [x[j * rows : (j + 1) * rows].tocoo() for j in range(blocks)]
    entries = max(max(part.nnz for part in parts), 1)
    entries = _power_of_two(entries) if entries <= _SMALL else _rounded_up(entries)

    def padded(arrays, dtype):
        out = np.zeros((blocks, entries), dtype)
        for row, a in zip(out, arrays, strict=True):
            row[: len(a)] = a
        return out

    return SparseBlocks(
        row=padded((part.row for part in parts), np.int32),
        column=padded((part.col for part in parts), np.int32),
        value=padded((part.data for part in parts), x.dtype),
    )
