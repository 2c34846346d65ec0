"""Spread of the numbers of each feature over the rows, found on the host."""

from typing import Any, NamedTuple

import numpy as np

from softmax_jax._annotations import Float, NDArray


class Spread(NamedTuple):
    """Numbers of each feature, as stored, in the rows that have weight."""

    first: Float[NDArray, " d"]
    """One of them."""
    mean: Float[NDArray, " d"]
    """Mean of the differences from it."""
    reach: Float[NDArray, " d"]
    """The largest of these in size."""
    deviation: Float[NDArray, " d"]
    """Standard deviation."""


def of_rows(x: Any, shares: Float[NDArray, " n"]) -> Spread:
    """Finds how dense features are spread.

    Args:
      x: ``[n, d]``.
      shares: weights that sum to one.
    """
    counts = shares > 0
    s, x = shares[counts], x[counts].astype(np.float64)
    # Differences are exactly zero where nothing varies.
    first = x[0]
    x = x - first
    mean, reach = s @ x, np.abs(x).max(axis=0)
    unit = np.where(reach > 0, reach, 1)
    return Spread(first, mean, reach, unit * np.sqrt(s @ ((x - mean) / unit) ** 2))


def of_entries(x: Any, shares: Float[NDArray, " n"]) -> Spread:
    """Finds how sparse features are spread.

    Args:
      x: CSR rows, without duplicates.
      shares: weights that sum to one.
    """
    counts = np.repeat(shares > 0, np.diff(x.indptr))
    s = np.repeat(shares, np.diff(x.indptr))[counts]
    column, value = x.indices[counts], x.data[counts].astype(np.float64)
    d = x.shape[1]

    def summed(terms: Float[NDArray, " entries"]) -> Float[NDArray, " d"]:
        return np.bincount(column, terms, minlength=d)

    # A feature with an entry in every row that counts has no zeros among them.
    is_full = np.bincount(column, minlength=d) == np.count_nonzero(shares > 0)
    least, most = np.where(is_full, np.inf, 0), np.where(is_full, -np.inf, 0)
    np.minimum.at(least, column, value)
    np.maximum.at(most, column, value)
    first = np.where(is_full, least, 0)
    mean = summed(s * (value - first[column]))
    # As a sum of squares of differences from the mean, in which nothing cancels.
    center = first + mean
    zeros = np.where(is_full, 0, np.maximum(1 - summed(s), 0))
    squares = summed(s * (value - center[column]) ** 2) + zeros * center**2
    return Spread(first, mean, np.maximum(most - first, first - least), np.sqrt(squares))
