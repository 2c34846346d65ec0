"""Held-out logits with their labels, and sums over their rows in float64."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from softmax_jax import checks
from softmax_jax._annotations import AnyArray
from softmax_jax.data import blocks
from softmax_jax.data.host_targets import checked_targets
from softmax_jax.data.targets import Dense, Ids, SparseTargets, checked


class HeldOut(NamedTuple):
    """Checked logits, targets and weights: the rows that have weight."""

    logits: np.ndarray
    targets: Ids | Dense
    """Parsed targets of NumPy arrays; probabilities sum to one."""
    weights: np.ndarray
    """Their sum is one."""
    block_size: int
    """Rows at a time."""

    @classmethod
    def of(
        cls,
        logits: AnyArray,
        targets: AnyArray,
        weights: AnyArray,
        block_size: int | None,
    ) -> "HeldOut":
        """Checks what `fit_temperature` is given; see there for the arguments and errors."""
        logits = np.asarray(checks.as_array(logits, "logits"))
        targets = np.asarray(checks.as_array(targets, "targets"))
        if logits.ndim != 2 or 0 in logits.shape or not checks.is_real(logits):
            raise ValueError(
                f"logits of shape {logits.shape} and type {logits.dtype}; expected numbers [n, q]"
            )
        if targets.shape[:1] != logits.shape[:1]:
            raise ValueError(f"targets of shape {targets.shape} for {len(logits)} rows of logits")
        weights = checks.checked_weights(weights, len(logits))
        checks.refuse_no_weight(weights)
        # Rows without weight take no part, whatever they hold.
        counts = weights > 0
        logits, targets, weights = logits[counts], targets[counts], weights[counts]
        targets = checked_targets(targets, len(logits), "targets", np.float64)
        parsed = checked(targets, logits.shape)
        assert not isinstance(parsed, SparseTargets)
        if isinstance(parsed, Dense):
            y: AnyArray = targets / targets.sum(axis=1, keepdims=True)
            parsed = Dense(y)
        impossible = logits == -np.inf
        if not (np.isfinite(logits) | impossible).all() or impossible.all(axis=1).any():
            raise ValueError(
                "logits: NaN, +inf, or a row of -inf only, of which there is no softmax"
            )
        if block_size is None:
            block_size = blocks.rows_within(logits.shape[1])
        problem = cls(logits, parsed, weights / weights.sum(), block_size)
        if any((np.isneginf(o) & (y > 0)).any() for o, y, _ in problem.blocks()):
            raise ValueError(
                "targets: there are examples of a class whose logit is -inf, which no scaling "
                "makes possible"
            )
        return problem

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields logits, probabilities and weights of some rows."""
        q = self.logits.shape[1]
        for at in blocks.slices(len(self.logits), self.block_size):
            if isinstance(self.targets, Ids):
                ids = np.asarray(self.targets.ids[at])
                y = (ids[:, None] == np.arange(q)).astype(np.float64)
            else:
                y = np.asarray(self.targets.probabilities[at])
            yield self.logits[at].astype(np.float64), y, self.weights[at]

    def mean(self, function: Callable[..., tuple[jax.Array, ...]], *args: AnyArray) -> AnyArray:
        """Returns the means over the rows, of what a function sums for a block."""
        with jax.enable_x64(True):
            sums = [function(*block, *args) for block in self.blocks()]
            return tuple(np.sum(part, axis=0) for part in zip(*sums, strict=True))

    def largest_gap(self) -> tuple[float, bool]:
        """Returns the largest gap of logits in a row, and whether a label is not the largest."""
        largest, misses = 0.0, False
        for o, y, _ in self.blocks():
            with np.errstate(over="ignore"):  # an infinite gap is refused
                below = np.where(np.isfinite(o), o.max(axis=1, keepdims=True) - o, 0)
            largest = max(largest, float(below.max()))
            misses = misses or bool((below[y > 0] > 0).any())
        return largest, misses

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of each class, of what is finite: ``[q]`` each."""
        logits = self.logits.astype(np.float64)
        finite = np.isfinite(logits)
        number = np.maximum(finite.sum(axis=0), 1)
        center = np.where(finite, logits, 0).sum(axis=0) / number
        deviation = np.where(finite, logits - center, 0)
        largest = np.abs(deviation).max(axis=0)
        largest = np.where(largest > 0, largest, 1)
        # Squares of what is at most one, lest they overflow.
        unit = largest * np.sqrt(((deviation / largest) ** 2).sum(axis=0) / number)
        return center, np.where(unit > 0, unit, 1)

    def largest_move(
        self, a: np.ndarray, c: np.ndarray, center: np.ndarray, unit: np.ndarray
    ) -> float:
        """Returns by how much logits of a row move against each other if factors and offsets do."""
        largest = 0.0
        for o, _, _ in self.blocks():
            finite = np.isfinite(o)
            moves = np.where(finite, (o - center) / unit, 0) * a + c
            high, low = np.where(finite, moves, -np.inf), np.where(finite, moves, np.inf)
            largest = max(largest, float(np.max(high.max(axis=1) - low.min(axis=1))))
        return largest
