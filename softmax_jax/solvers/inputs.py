"""Rows laid out in blocks, as the solvers take them."""

import dataclasses
import math
from contextlib import ExitStack
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from softmax_jax import checks, parallel
from softmax_jax._annotations import AnyArray
from softmax_jax.checks import is_sparse
from softmax_jax.data.blocks import CACHED, rows_within
from softmax_jax.data.host_targets import is_one_hot, mean_entropy, rows_last
from softmax_jax.data.npz import MAX_BYTES
from softmax_jax.data.reading import filled
from softmax_jax.data.stored import StoredRows
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import buckets, cost, sparse, spread
from softmax_jax.solvers.buckets import rounded_up
from softmax_jax.solvers.placement import placed
from softmax_jax.solvers.precision import needs_float64
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.rows import (
    Rows,
    canonical,
    of_classes,
    of_features,
    with_padding,
)
from softmax_jax.solvers.single import Single
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.spread import Spread
from softmax_jax.solvers.streamed import StreamedRows, in_stored_order, number_kept, streamed
from softmax_jax.solvers.units import Units, of_their_own


class Inputs(NamedTuple):
    """Rows as the solvers take them, and facts about them."""

    problem: Problem
    """Rows in float64, with weights ``[blocks, m, rows]`` of ``m`` weightings; no strengths."""
    classes: np.ndarray
    """Ids of the classes that have weight under some weighting: the first ones of the problem."""
    absent: np.ndarray
    """``[m, q]``: which classes have none under weighting ``m``, where there is a bias: without
    one, such a class is like any other. Those of padding have none.
    """
    baseline: np.ndarray
    """``[m]``, in nats: the loss without features and offsets, the entropy of the classes."""
    entropy: np.ndarray
    """``[m]``, in nats: the mean entropy of the targets, a loss that nothing is below."""
    units: Units
    """Units of the problem's features."""
    initial: np.ndarray | None
    """``[q, 1 + d]``: the bias as a column in front of the weights, for the features as given."""
    one_hot: bool
    """Whether each row of weight is of one class for certain."""
    needs_float64: bool
    """Whether float32 may not do: large offsets, or penalties that differ by orders."""
    n: int
    q: int
    """Number of classes in the problem, with those of padding."""
    num_classes: int
    """Number of classes, with those of no weight."""
    d: int
    """Number of features in the problem, without those of padding."""
    features: np.ndarray
    """``[d]``: which of all features these are."""
    shift: np.ndarray
    """Shifts of all features, which are the values of the others."""


def arrange(
    given: Rows,
    *,
    block_size: int | None,
    fit_intercept: bool,
    standardize: bool,
    grouped: bool,
    is_smooth: bool = True,
    max_bytes: int = MAX_BYTES,
    streams: ExitStack | None = None,
) -> Inputs:
    """Lays out rows; see `fit_path` for the arguments.

    Where not all of the problems are smooth, the shape is not rounded up: they take many steps.
    Stored rows stay open until ``streams`` is closed.
    """
    if block_size is not None:
        block_size = checks.checked_count(block_size, "block_size")
    has_weight = (given.mass > 0).any(axis=0)
    classes = np.flatnonzero(has_weight | (not fit_intercept))
    rows, features = _needed(given, classes, fit_intercept)
    n, d = rows.x.shape
    if is_sparse(rows.x):
        least = rounded_up(n)
        layout = _layout(rows.weights, block_size or _rows_of_sparse(classes.size), least)
    else:
        shape = buckets.Shape(rounded_up(n), d, classes.size)
        is_stored = isinstance(rows.x, StoredRows)
        if is_smooth and not rows.single.is_given and not is_stored:
            shape = buckets.rounded(*shape._replace(rows=n), classes_may_grow=fit_intercept)
        rows = with_padding(rows, features=shape.features - d, classes=shape.classes - classes.size)
        cached = rows_within(max(shape.features, shape.classes), numbers=CACHED)
        layout = _layout(rows.weights, block_size or max(cached, 256), shape.rows)
    on_host = isinstance(rows.x, np.ndarray) and rows.x.size <= cost.ON_HOST
    x: AnyArray
    if not isinstance(rows.x, StoredRows):
        x = _sparse_rows(rows.x, layout) if is_sparse(rows.x) else layout.of(rows.x)
    elif rows.x.nbytes <= max_bytes * jax.process_count():
        x = _read(rows.x, layout)
    else:
        assert streams is not None
        layout, x = _streamed(rows, layout, max_bytes, streams)
    stored = _problem_of(rows, x, layout, fit_intercept, grouped)
    problem, units = of_their_own(
        stored if on_host else placed(stored),
        rows.scale,
        rows.shift,
        rows.largest,
        standardize=standardize,
        spread=_spread_of(rows) if on_host or is_sparse(rows.x) else None,
    )
    if is_smooth:
        problem = problem._replace(penalty=_with_factors_merged(problem.penalty))
    share = rows.mass / rows.mass.sum(axis=1, keepdims=True)
    return Inputs(
        problem=problem if on_host else placed(problem),
        classes=classes,
        absent=(rows.mass == 0) & fit_intercept,
        baseline=-np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1),
        entropy=mean_entropy(rows.y, rows.weights),
        units=units,
        initial=None if rows.initial is None else _limited(rows.initial, rows.single),
        one_hot=is_one_hot(rows.y[np.any(rows.weights > 0, axis=0)]),
        needs_float64=needs_float64(problem, rows.offset),
        n=n,
        q=rows.mass.shape[1],
        num_classes=given.mass.shape[1],
        d=d,
        features=features,
        shift=given.shift,
    )


def _with_factors_merged(penalty: Penalty) -> Penalty:
    """Returns the penalty without factors on its strengths, if a squared one needs none.

    For l1 = 0 a factor v is one of its root on the weights, which all methods know of.
    """
    relative = penalty.relative
    if relative is None or not penalty.is_same_for_classes or not np.all(np.asarray(relative) > 0):
        return penalty
    factor = np.asarray(penalty.factor) * np.sqrt(np.asarray(relative)[0])
    return dataclasses.replace(penalty, factor=factor, relative=None)


def _needed(given: Rows, classes: np.ndarray, fit_intercept: bool) -> tuple[Rows, np.ndarray]:
    """Returns the rows with these classes, and the features that tell something; and which."""
    rows = of_classes(given, classes) if classes.size < given.mass.shape[1] else given
    left_out = rows.single.left_out(rows.x.shape[1])
    features = np.flatnonzero(~left_out)
    if not is_sparse(rows.x):
        return (of_features(rows, features) if left_out.any() else rows), features
    rows = rows._replace(x=canonical(rows.x))
    features = _used(rows, fit_intercept, left_out)
    rows = of_features(rows, features)
    n, d = rows.x.shape
    if cost.is_better_dense(n, d, rows.x.nnz):
        rows = rows._replace(x=_dense(rows.x))
    return rows, features


def _limited(initial: np.ndarray, single: Single) -> np.ndarray:
    """Returns parameters ``[q, 1 + d]`` whose weights are within the limits."""
    if not single.has_limits:
        return initial
    w = np.clip(initial[:, 1:], single.lower, single.upper)
    return np.concatenate([initial[:, :1], w], axis=1)


def _spread_of(rows: Rows) -> Spread:
    shares = np.mean(_shares(rows.weights), axis=0)
    return (spread.of_entries if is_sparse(rows.x) else spread.of_rows)(rows.x, shares)


_ALIGNMENT = 64


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
        if not np.array_equal(self.order, np.arange(len(a))):
            a = _taken(a, self.order) if isinstance(a, np.ndarray) else a[self.order]
        return a.reshape(self.blocks, self.rows, *a.shape[1:])


def _aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Returns an empty array that begins at a multiple of 64 bytes.

    Such a one JAX takes over as it lies, without a copy on a CPU.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _taken(a: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns ``a[order]``, `_aligned`."""
    rows = _aligned((len(order), *a.shape[1:]), a.dtype)
    # Half the time of indexing. Modes other than the default, "raise", write without a buffer.
    return a.take(order, axis=0, out=rows, mode="clip")


def _layout(weights: np.ndarray, block_size: int, least: int) -> _Layout:
    """Lays out rows with ``weights: [m, n]`` in blocks; a single one has ``least`` at least.

    A block has so many rows of each device that shares them.
    """
    n = weights.shape[1]
    blocks = -(-n // min(block_size * parallel.extent(parallel.DATA), n))
    rows = rounded_up(-(-n // blocks)) if blocks > 1 else max(least, n)
    rows = parallel.filled_up(rows, parallel.DATA)
    order = np.random.default_rng(0).permutation(n) if blocks > 1 else np.arange(n)
    # Put rows of no weight last. Leading blocks are then a fair sample, trailing empty ones are
    # skipped, and all subsets of the rows reuse one compiled program.
    counts = np.any(weights > 0, axis=0)
    order = order[np.argsort(~counts[order], kind="stable")]
    order = np.concatenate([order, np.full(blocks * rows - n, order[0])])
    return _Layout(order, blocks, rows, -(-int(np.count_nonzero(counts)) // rows))


def _read(x: StoredRows, layout: _Layout) -> AnyArray:
    """Reads all rows into blocks; each process those of its devices."""
    order = layout.order.reshape(layout.blocks, layout.rows)

    def rows_at(own):
        rows = filled(_aligned((own.size, x.shape[1]), x.dtype), x, own.ravel())
        return rows.reshape(*own.shape, x.shape[1])

    if jax.process_count() == 1:
        return rows_at(order)
    shape = (*order.shape, x.shape[1])
    place = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(None, parallel.DATA))

    def part(at):
        return rows_at(order[at[:2]])

    return jax.make_array_from_callback(shape, place, part, dtype=x.dtype)


def _streamed(
    rows: Rows, layout: _Layout, max_bytes: int, streams: ExitStack
) -> tuple[_Layout, StreamedRows]:
    """Opens rows of which so many bytes are kept; and their layout."""
    kept = number_kept(rows.x, layout.rows, max_bytes)
    n, has_weight = len(rows.x), np.any(rows.weights > 0, axis=0)
    together = rows.x.together
    order = in_stored_order(layout.order[:n], layout.rows, kept, has_weight, together)
    layout = layout._replace(order=np.concatenate([order, layout.order[n:]]))
    order = layout.order.reshape(layout.blocks, layout.rows)
    return layout, streamed(rows.x, order, kept, streams)


def _problem_of(
    rows: Rows,
    x: AnyArray,
    layout: _Layout,
    fit_intercept: bool,
    grouped: bool,
) -> Problem:
    """Returns the problem with features as they are stored, in blocks, and no strengths."""
    n, d = rows.x.shape
    shares = np.array(layout.of(_shares(rows.weights).T))
    shares.reshape(len(layout.order), -1)[n:] = 0
    per_column = np.ones(d)
    single = rows.single.finite()
    return Problem(
        x=x,
        center=0 * per_column,
        scale=per_column,
        intercept=np.asarray(fit_intercept, np.float64),
        targets=rows_last(layout.of(rows.y)),
        weights=rows_last(shares),
        offset=None if rows.offset is None else rows_last(layout.of(rows.offset)),
        penalty=Penalty(
            np.zeros(0),
            np.zeros(0),
            per_column,
            grouped,
            class_axis=-2,
            relative=single.penalty_factor,
            lower=single.lower,
            upper=single.upper,
        ),
        active=np.asarray(layout.active, np.int32),
    )


def _shares(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(axis=1, keepdims=True)


def _used(rows: Rows, fit_intercept: bool, left_out: np.ndarray) -> np.ndarray:
    """Returns the features that are in the problem: the others are zero in all rows.

    Such features tell nothing, and have no weight. One with a shift is an intercept of a kind, and
    stays where there is no other.
    """
    is_used = np.bincount(rows.x.indices, minlength=rows.x.shape[1]) > 0
    if not fit_intercept:
        is_used |= rows.shift != 0
    is_used &= ~left_out
    return np.flatnonzero(is_used) if is_used.any() else np.flatnonzero(~left_out)[:1]


def _dense(x: AnyArray) -> np.ndarray:
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    dense = np.zeros(x.shape, x.dtype)
    dense[row, x.indices] = x.data
    return dense


def _rows_of_sparse(q: int) -> int:
    """Returns how many sparse rows make a block: few blocks, as each adds to all parameters."""
    return min(max(rows_within(q), cost.LEAST_SPARSE_ROWS), cost.MOST_SPARSE_ROWS)


def _sparse_rows(x: AnyArray, layout: _Layout) -> SparseRows:
    n = x.shape[0]
    x = x[layout.order[:n]]
    # Those that fill up the last block are empty.
    x.resize(layout.blocks * layout.rows, x.shape[1])
    blocks = [x[j * layout.rows : (j + 1) * layout.rows] for j in range(layout.blocks)]
    return sparse.stored(blocks, rounded_up)
