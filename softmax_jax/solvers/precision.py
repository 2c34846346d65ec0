"""Limits of float32, which say where the work on a problem has to be in float64."""

import math

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.checks import exceeds_float32
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.sparse import SparseRows

LARGEST = 1e30
"""Largest number to work with in float32: it holds the sum of 3e8 of them, up to 3e38."""
LARGEST_OFFSET = math.sqrt(LARGEST)
"""Largest offset, whose square is such a number."""
LARGEST_FACTOR = 1e6
"""Largest factor of the penalty, and the inverse of the least: there is room for its fourth power,
and for strengths and curvatures beside it."""
LARGEST_RATIO = math.sqrt(2 / float(np.finfo(np.float32).eps))
"""Largest ratio of two such factors, 2**12. The penalties of equal gradients differ by its square,
above which gradients rounded to float32 are too coarse, for the feature penalised least, for a
certificate."""


def needs_float64(problem: Problem, offset: Float[NDArray, "n q"] | None) -> bool:
    """Returns whether float32 may not do: large offsets, or penalties that differ by orders."""
    factor = np.asarray(problem.factor)
    if problem.penalty.relative is not None:
        relative = np.asarray(problem.penalty.relative)
        factor = factor * np.sqrt(np.where(relative > 0, relative, 1))
    return bool(
        factor.max() > LARGEST_RATIO * factor.min()
        or not 1 / LARGEST_FACTOR < factor.min() <= factor.max() < LARGEST_FACTOR
        or (isinstance(problem.x, SparseRows) and not _holds_units(problem))
        or (offset is not None and np.abs(offset).max() > LARGEST_OFFSET)
    )


def holds_rows(problem: Problem, largest: float) -> bool:
    """Returns whether float32 holds all numbers of dense rows; see `Rows.largest`."""
    if isinstance(problem.x, SparseRows):
        return False
    return not exceeds_float32(problem.x.dtype) and largest < LARGEST


def _holds_units(problem: Problem) -> bool:
    """Returns whether float32 holds the units, with which sparse entries are multiplied there."""
    sizes = np.abs([problem.scale, problem.center])
    least = sizes[0].min(where=sizes[0] > 0, initial=1)
    return bool(sizes.max() < LARGEST and least > 1 / LARGEST)
