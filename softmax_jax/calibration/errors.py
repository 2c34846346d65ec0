"""Calibration errors and the parts of the Brier score, from the sums of bins; in NumPy float64."""

import math
from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.calibration.bins import Bins


class _Means(NamedTuple):
    """Means of each bin in NumPy float64; 0 where it is empty."""

    share: np.ndarray
    confidence: np.ndarray
    outcome: np.ndarray
    gap: np.ndarray


def _means(bins: Bins) -> _Means:
    weight, *sums = (np.asarray(a, np.float64) for a in bins[:4])
    total = weight.sum(axis=-1, keepdims=True)
    if (total == 0).any():
        raise ValueError("the examples in these bins have a total weight of zero: nothing to judge")
    some = np.where(weight > 0, weight, 1)
    return _Means(weight / total, *(a / some * (weight > 0) for a in sums))


def expected_error(bins: Bins) -> Float[NDArray, "*classes"] | np.floating:
    r"""Returns the expected calibration error of Naeini et al. (2015).

    .. math:: \sum_b w_b |\bar y_b - \bar c_b|

    ``w_b`` is the share of the weight that is in the bin. Of class-wise bins one for each class,
    whose mean is the class-wise error of Kull et al. (2019). Biased upwards, as chance alone sets
    the two means apart: see `debiased_expected_error` and `consistency`.

    Raises:
      ValueError: if the total weight is zero.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> bins = reliability(np.array([0.75, 0.75]), np.array([1, 0]), equal_width_edges(4))
      >>> float(expected_error(bins))  # half come true, of three in four
      0.25
    """
    means = _means(bins)
    return np.sum(means.share * np.abs(means.gap), axis=-1)


def maximum_error(bins: Bins) -> Float[NDArray, "*classes"] | np.floating:
    r"""Returns the maximum calibration error, :math:`\max_b |\bar y_b - \bar c_b|`.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> bins = reliability(np.array([0.25, 0.75]), np.array([1, 1]), equal_width_edges(2))
      >>> float(maximum_error(bins))  # of the gaps 0.75 and 0.25
      0.75
    """
    means = _means(bins)
    return np.max(np.abs(means.gap), axis=-1)


def rms_error(bins: Bins) -> Float[NDArray, "*classes"] | np.floating:
    r"""Returns the root mean square error, :math:`\sqrt{\sum_b w_b (\bar y_b - \bar c_b)^2}`.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> bins = reliability(np.array([0.25, 0.75]), np.array([1, 1]), equal_width_edges(2))
      >>> f"{rms_error(bins):.4f}"  # of the gaps 0.75 and 0.25
      '0.5590'
    """
    means = _means(bins)
    return np.sqrt(np.sum(means.share * means.gap**2, axis=-1))


def debiased_squared_error(bins: Bins) -> Float[NDArray, "*classes"] | np.floating:
    r"""Returns the mean square calibration error without the part of chance; may be negative.

    .. math:: \sum_b w_b \, \frac{(\sum_i s_i d_i)^2 - \sum_i s_i^2 d_i^2}
        {(\sum_i s_i)^2 - \sum_i s_i^2}, \qquad d_i = y_i - c_i,

    in each bin the mean of ``d_i d_j`` over pairs of different examples, which has no bias, as
    their outcomes are independent: of a calibrated model the mean is zero. (The estimator of Kumar
    et al. 2019 takes the confidences of a bin to be equal; this one does not.) Bins of a single
    example have no pairs and count as zero.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> outcome = np.arange(100) % 5 < 3  # 60 of 100 come true
      >>> bins = reliability(np.full(100, 0.75), outcome, equal_width_edges(4))
      >>> f"{rms_error(bins) ** 2:.4f}", f"{debiased_squared_error(bins):.4f}"
      ('0.0225', '0.0201')
    """
    squares, has_pairs = _squared_gaps(bins)
    return np.sum(_means(bins).share * np.where(has_pairs, squares, 0), axis=-1)


def _squared_gaps(bins: Bins) -> tuple[np.ndarray, np.ndarray]:
    """Returns the unbiased square of the gap of each bin, and whether it has pairs for that."""
    weight, gap, weight_squared, gap_squared = (
        np.asarray(a, np.float64)
        for a in (bins.weight, bins.gap, bins.weight_squared, bins.gap_squared)
    )
    pairs = weight**2 - weight_squared
    has_pairs = pairs > 1e-6 * weight**2
    return (gap**2 - gap_squared) / np.where(has_pairs, pairs, 1), has_pairs


def debiased_expected_error(bins: Bins) -> Float[NDArray, "*classes"] | np.floating:
    r"""Returns `expected_error` less an estimate of its bias; may be negative.

    In each bin the observed gap is taken as the true one, and chance as normal: the error then
    expected is the mean of a folded normal variable, and by how much it is above the gap is what is
    taken off (the resampling of Kumar et al. 2019, in closed form). Some bias remains: of a
    calibrated model, with many examples a bin, 2 - √2 of that of `expected_error`, with few more.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> outcome = np.arange(10) < 6  # 6 of 10 come true, as chance alone often does
      >>> bins = reliability(np.full(10, 0.5), outcome, equal_width_edges(4))
      >>> f"{expected_error(bins):.3f}", f"{debiased_expected_error(bins):.3f}"
      ('0.100', '0.046')
    """
    means = _means(bins)
    gap = means.gap
    squares, has_pairs = _squared_gaps(bins)
    # The square of the observed gap is above that of the true one by the variance.
    sigma = np.sqrt(np.maximum(np.where(has_pairs, gap**2 - squares, 0), 0))
    z = gap / np.where(sigma > 0, sigma, 1)
    folded = sigma * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + gap * _erf(z / np.sqrt(2))
    expected = np.where(sigma > 0, folded, np.abs(gap))
    return np.sum(means.share * (2 * np.abs(gap) - expected), axis=-1)


_erf = np.vectorize(math.erf, otypes=[np.float64])


class Brier(NamedTuple):
    """The Brier score and its parts: reliability - resolution + uncertainty + within_bins."""

    score: float
    """``Σ s (c - y)² / Σ s``, of class-wise bins summed over the classes."""
    reliability: float
    """Mean square of the gaps of the bins: what calibration would save."""
    resolution: float
    """Variance of the outcomes from bin to bin: what telling cases apart saves."""
    uncertainty: float
    """Variance of the outcomes: the score of a model that knows their shares and no more."""
    within_bins: float
    """Part within bins: variance of confidences less twice their covariance with the outcomes."""


def brier(bins: Bins) -> Brier:
    """Returns the decomposition of Murphy (1973), with the terms that make it exact.

    Those are of confidences that differ within a bin (Stephenson et al. 2008). From class-wise bins
    it is that of the Brier score of all classes, `metrics.Metrics.squared_error`.

    Raises:
      ValueError: if the total weight is zero.

    Example:
      >>> from softmax_jax.calibration import equal_width_edges, reliability
      >>> bins = reliability(np.array([0.75, 0.75]), np.array([1, 0]), equal_width_edges(4))
      >>> parts = brier(bins)
      >>> parts.score, parts.reliability, parts.uncertainty
      (0.3125, 0.0625, 0.25)
    """
    means = _means(bins)
    weight, _, outcome, _, c_squared, y_squared, product, _, _ = (
        np.asarray(a, np.float64) for a in bins
    )
    total = weight.sum(axis=-1)

    def mean(a):
        return a.sum(axis=-1) / total

    share, c, y, gap = means
    overall = mean(outcome)
    variance = mean(c_squared) - np.sum(share * c * c, axis=-1)
    covariance = mean(product) - np.sum(share * c * y, axis=-1)
    parts = (
        mean(c_squared - 2 * product + y_squared),
        np.sum(share * gap**2, axis=-1),
        np.sum(share * (y - overall[..., None]) ** 2, axis=-1),
        mean(y_squared) - overall**2,
        variance - 2 * covariance,
    )
    return Brier(*(float(np.sum(part)) for part in parts))
