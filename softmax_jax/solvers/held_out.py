"""Measures of many fits on rows that they have not seen, a block at a time, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import metrics
from softmax_jax._annotations import AnyArray
from softmax_jax.data.blocks import rows_within, slices
from softmax_jax.metrics import Metrics
from softmax_jax.model import Params
from softmax_jax.solvers import jax_settings


def rows_of_block(params: Params, test: np.ndarray, is_sparse: bool, block_size: int | None) -> int:
    """Returns one size for all blocks of all folds, so that they share a program."""
    numbers = params.w[0, ..., 0, :].size
    if not is_sparse:
        numbers = max(numbers, params.w.shape[-2])
    return min(int((test > 0).sum(axis=1).max()), block_size or rows_within(numbers))


def measured(
    x: AnyArray,
    y: np.ndarray,
    offset: AnyArray,
    size: int,
    weights: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
) -> Metrics:
    """Measures the rows with ``weights: [n]``, for parameters ``[*grid, d, q]``: sums ``[*grid]``.

    In blocks of ``size`` rows; the last one is filled up with rows of weight zero.
    """
    *grid, d, q = w.shape
    side_by_side = np.moveaxis(w, -2, 0).reshape(d, -1)
    rows = np.flatnonzero(weights)
    total = []
    with jax_settings.held():
        for at in slices(len(rows), size):
            block = rows[at]
            filling = (0, size - len(block))
            real = np.pad(weights[block], filling)
            block = np.pad(block, filling, mode="edge")
            part = _measure(
                x[block] @ side_by_side,
                b.reshape(-1, q),
                y[block],
                real,
                None if offset is None else np.asarray(offset, np.float64)[block],
            )
            total.append(jax.device_get(part))
    return jax.tree.map(lambda sums: np.reshape(sums, grid), functools.reduce(metrics.merge, total))


@jax.jit
def _measure(
    products: jax.Array, b: jax.Array, y: jax.Array, weights: jax.Array, offset: jax.Array | None
) -> Metrics:
    """Measures a block, given products ``[rows, grid * q]`` with weights, and ``b: [grid, q]``."""
    o = jnp.moveaxis(products.reshape(-1, *b.shape), 1, 0) + b[:, None, :]
    o = o if offset is None else o + offset[None]
    return jax.vmap(lambda logits: metrics.measure(logits, y, weights, k=1))(o)
