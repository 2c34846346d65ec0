"""Resampling: a test of calibration, and bands of what chance alone would do to bins."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Float, NDArray
from softmax_jax._dtypes import accumulation_type, at_least_float32
from softmax_jax.calibration.bins import (
    check_values,
    checked_edges,
    number_of_bin,
    sums_by_bin,
    sums_of_bins,
)
from softmax_jax.calibration.errors import expected_error
from softmax_jax.checks import as_real, checked_count, checked_weights, refuse_no_weight

DRAWS = 1000
"""Draws by default."""
LEVEL = 0.95
"""Share of the draws that a band holds by default."""


class Band(NamedTuple):
    """Range of mean outcomes of each bin, ``[bins]``; NaN where it is empty."""

    lower: Float[NDArray, " bins"]
    """Lower ends."""
    upper: Float[NDArray, " bins"]
    """Upper ends."""


class Consistency(NamedTuple):
    """Outcomes that a calibrated model with these confidences would show."""

    band: Band
    """Range of its mean outcomes (the consistency bars of Bröcker and Smith 2007)."""
    p_value: float
    """Share of draws whose `expected_error` is as large as the observed one or larger."""


@jax.transfer_guard("allow")
def consistency(
    key: Array,
    confidence: AnyArray,
    outcome: AnyArray,
    edges: AnyArray,
    weights: AnyArray | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Consistency:
    """Tests whether the gaps are more than chance, by drawing outcomes as the model says.

    Nothing is fitted, neither a kernel nor an isotonic curve, and the p-value is exact but for the
    number of draws: of a calibrated model it is below 0.05 in a twentieth of all cases.

    Args:
      key: of the draws.
      confidence: ``[n]``.
      outcome: ``[n]``, 0 or 1.
      edges: ``[bins + 1]``.
      weights: ``[n]``, None for 1.
      draws: how many times.
      level: the share of the draws that the band holds, in each bin.

    Raises:
      ValueError: on shapes that do not fit, what `reliability` refuses, or outcomes other than 0
        and 1.

    Example:
      >>> confidence, outcome = np.full(50, 0.9), np.arange(50) % 2  # half come true
      >>> edges = np.array([0.0, 0.5, 1.0])
      >>> consistency(jax.random.key(0), confidence, outcome, edges).p_value < 0.01
      True
    """
    draws = checked_count(draws, "draws")
    examples = _checked_examples(confidence, outcome, edges, weights)
    if not np.isin(examples.outcome, (0, 1)).all():
        raise ValueError("outcomes other than 0 and 1 are no draws: give class ids as targets")
    bins = sums_of_bins(examples.weights, examples.confidence, examples.outcome, examples.edges)
    gaps = np.asarray(_drawn(key, examples, draws), np.float64)
    weight, expected = (np.asarray(a, np.float64) for a in bins[:2])
    errors = np.abs(gaps).sum(axis=1) / weight.sum()
    # By as much as rounding may set equal errors apart.
    observed = expected_error(bins) - 1e-6
    p_value = (1 + np.count_nonzero(errors >= observed)) / (1 + draws)
    return Consistency(_band(expected + gaps, weight, level), float(p_value))


@jax.transfer_guard("allow")
def bootstrap_band(
    key: Array,
    confidence: AnyArray,
    outcome: AnyArray,
    edges: AnyArray,
    weights: AnyArray | None = None,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Band:
    """Returns a confidence band of the mean outcome of each bin, by drawing examples anew.

    Args:
      key: of the draws.
      confidence: ``[n]``.
      outcome: ``[n]``.
      edges: ``[bins + 1]``.
      weights: ``[n]``, None for 1.
      draws: how many times.
      level: the share of the draws that the band holds, in each bin; where all outcomes of a bin
        are the same, the band is that value.

    Raises:
      ValueError: on shapes that do not fit, and what `reliability` refuses.

    Example:
      >>> confidence, outcome = np.full(50, 0.9), np.arange(50) % 2  # half come true
      >>> edges = np.array([0.0, 0.5, 1.0])
      >>> band = bootstrap_band(jax.random.key(0), confidence, outcome, edges)
      >>> bool(band.lower[1] < 0.5 < band.upper[1] < 0.9)
      True
    """
    draws = checked_count(draws, "draws")
    examples = _checked_examples(confidence, outcome, edges, weights)
    weight, outcomes = (np.asarray(a, np.float64) for a in _resampled(key, examples, draws))
    return _band(outcomes, weight, level)


class _Examples(NamedTuple):
    """Checked."""

    confidence: jax.Array
    outcome: jax.Array
    edges: jax.Array
    weights: jax.Array


def _checked_examples(
    confidence: AnyArray, outcome: AnyArray, edges: AnyArray, weights: AnyArray
) -> _Examples:
    c, y = as_real(confidence, "confidence"), as_real(outcome, "outcome")
    if c.ndim != 1 or c.shape != y.shape:
        raise ValueError(
            f"confidences of shape {c.shape}, outcomes of shape {y.shape}; expected [n] of both"
        )
    checked = checked_weights(weights, len(c))
    refuse_no_weight(checked)
    s = jnp.asarray(checked, accumulation_type(c))
    check_values(c, y, s)
    c = at_least_float32(c)
    # Rows of weight zero take no part, whatever they hold.
    c, y = jnp.where(s == 0, 0, c), jnp.where(s == 0, 0, y).astype(c.dtype)
    return _Examples(c, y, checked_edges(edges, c), s)


@partial(jax.jit, static_argnames="draws")
def _drawn(key: jax.Array, examples: _Examples, draws: int) -> jax.Array:
    """``Σ s (y - c)`` of each bin, y drawn from the confidences: ``[draws, bins]``."""
    c, _, edges, s = examples
    bin_of = number_of_bin(c, edges)

    def draw(i):
        uniform = jax.random.uniform(jax.random.fold_in(key, i), c.shape, c.dtype)
        return sums_by_bin(s * ((uniform < c).astype(c.dtype) - c), bin_of, edges)

    return jax.lax.map(draw, jnp.arange(draws))


@partial(jax.jit, static_argnames="draws")
def _resampled(key: jax.Array, examples: _Examples, draws: int) -> tuple[jax.Array, ...]:
    """``Σ s`` and ``Σ s y`` of each bin over as many examples drawn: ``[draws, bins]`` each."""
    c, y, edges, s = examples
    bin_of = number_of_bin(c, edges)
    values = jnp.stack([s, s * y], axis=1)

    def draw(i):
        rows = jax.random.randint(jax.random.fold_in(key, i), c.shape, 0, len(c))
        return tuple(sums_by_bin(values[rows], bin_of[rows], edges).T)

    return jax.lax.map(draw, jnp.arange(draws))


def _band(sums: np.ndarray, weight: np.ndarray, level: float) -> Band:
    """Quantiles over the draws of the mean outcomes; those of empty bins are left out."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    weight = np.broadcast_to(weight, sums.shape)
    means = np.where(weight > 0, sums / np.where(weight > 0, weight, 1), np.nan)
    ends = np.full((2, sums.shape[1]), np.nan)
    some = (weight > 0).any(axis=0)
    tail = (1 - level) / 2
    ends[:, some] = np.nanquantile(means[:, some], [tail, 1 - tail], axis=0)
    return Band(*ends)
