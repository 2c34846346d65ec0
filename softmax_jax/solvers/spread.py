"""Spread of the numbers of each feature over the rows, found on the host."""

from functools import partial
from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import AnyArray, Float, NDArray, Num


class Spread(NamedTuple):
    """Numbers of each feature, as stored, in the rows that have weight."""

    first: Float[NDArray, "*p d"]
    """One of them."""
    mean: Float[NDArray, "*p d"]
    """Mean of the differences from it."""
    reach: Float[NDArray, "*p d"]
    """The largest of these in size."""
    deviation: Float[NDArray, "*p d"]
    """Standard deviation."""


def of_rows(x: Num[NDArray, "*p n d"], shares: Float[NDArray, "*p n"]) -> Spread:
    """Finds how dense features are spread, those of several problems at once.

    Args:
      x: ``[..., n, d]``.
      shares: ``[..., n]`` weights that sum to one.
    """
    counts = shares > 0
    # Differences are exactly zero where nothing varies.
    first = np.take_along_axis(x, counts.argmax(axis=-1)[..., None, None], axis=-2)
    first = first.astype(np.float64)
    z = np.where(counts[..., None], x - first, 0)
    weigh = partial(np.matmul, shares[..., None, :])
    mean, reach = weigh(z)[..., 0, :], np.abs(z).max(axis=-2)
    unit = np.where(reach > 0, reach, 1)
    z = (z - mean[..., None, :]) / unit[..., None, :]
    deviation = unit * np.sqrt(weigh(z * z)[..., 0, :])
    return Spread(first[..., 0, :], mean, reach, deviation)


def of_entries(x: AnyArray, shares: Float[NDArray, " n"]) -> Spread:
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
