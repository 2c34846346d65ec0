"""Rows laid out in blocks, as the solvers take them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import checks
from softmax_jax._annotations import AnyArray
from softmax_jax.data.blocks import CACHED, rows_within
from softmax_jax.penalty import Penalty
from softmax_jax.solvers.problem import Problem, SparseBlocks
from softmax_jax.solvers.rows import Rows, is_sparse, of_classes, with_padding
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
    given: Rows, *, block_size: int | None, fit_intercept: bool, standardize: bool, grouped: bool
) -> Inputs:
    """Lays out rows; see `fit_path` for the arguments."""
    num_classes = given.mass.shape[1]
    has_weight = (given.mass > 0).any(axis=0)
    classes = np.flatnonzero(has_weight | (not fit_intercept))
    rows = of_classes(given, classes) if classes.size < num_classes else given
    (n, d), q = given.x.shape, classes.size
    rows = with_padding(rows, _padding(n, d, num_classes))
    layout = _layout(rows.weights, max(rows.x.shape[1], q), block_size)
    problem, units = of_their_own(
        jax.device_put(_stored(rows, layout, fit_intercept, grouped)),
        rows.scale,
        rows.shift,
        rows.largest,
        standardize=standardize,
    )
    share = rows.mass / rows.mass.sum(axis=1, keepdims=True)
    return Inputs(
        problem=problem,
        classes=classes,
        absent=(rows.mass == 0) & fit_intercept,
        baseline=-np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1),
        units=units,
        initial=rows.initial,
        one_hot=_is_one_hot(rows),
        is_wide=_is_wide(problem, rows.offset),
        n=n,
        q=q,
        num_classes=num_classes,
        d=d,
    )


def _is_one_hot(rows: Rows) -> bool:
    counts = np.any(rows.weights > 0, axis=0)
    return rows.y.ndim == 1 or bool((rows.y[counts].max(axis=1) == 1).all())


def _padding(n: int, d: int, q: int) -> int:
    """Returns how many features of zeros to append."""
    columns = _power_of_two(d)
    is_small = n * columns <= _SMALL and (1 + columns) * q <= _FEW_PARAMETERS
    return columns - d if is_small else 0


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


def _stored(rows: Rows, layout: _Layout, fit_intercept: bool, grouped: bool) -> Problem:
    """Returns the problem with features as they are stored, and no strengths."""
    (n, d), weights = rows.x.shape, rows.weights
    shares: Any = np.array(layout.of((weights / weights.sum(axis=1, keepdims=True)).T))
    shares.reshape(len(layout.order), -1)[n:] = 0
    targets = layout.of(rows.y)
    per_column: Any = np.ones(d)
    return Problem(
        x=_sparse_blocks(rows.x, layout) if is_sparse(rows.x) else layout.of(rows.x),
        center=0 * per_column,
        scale=per_column,
        intercept=jnp.asarray(fit_intercept, jnp.float64),
        targets=np.moveaxis(targets, 2, 1) if rows.y.ndim == 2 else targets,
        weights=np.moveaxis(shares, 2, 1),
        offset=None if rows.offset is None else np.moveaxis(layout.of(rows.offset), 2, 1),
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


def _power_of_two(n: int) -> int:
    """Returns the least one from ``n`` on."""
    return 2 ** (n - 1).bit_length()


def _rounded_up(n: int) -> int:
    """Rounds up by an eighth at most, so that data of nearly one size share a program."""
    step = 2 ** max(n.bit_length() - 4, 0)
    return -(-n // step) * step


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
