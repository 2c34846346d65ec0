r"""Is 0.5 really half? Reliability bins, calibration errors, and what chance alone would do.

A model is calibrated if, of all cases to which it gives probability c, the share c comes true.
Cases are compared in bins of similar confidence, and of each bin only sums are kept (`Bins`): they
merge over batches and hosts by `metrics.merge` and `metrics.total`, and every error here is
computed from them::

    confidence, outcome = calibration.top_label(logits, labels)
    bins = calibration.reliability(confidence, outcome, calibration.equal_width_edges(15))
    calibration.expected_error(bins), calibration.debiased_squared_error(bins)

A confidence and its outcome may be those of the predicted class (`top_label`), of a given class
(`of_class`), or of each class (`class_wise`); then all have an axis of classes.

Bins are [lower, upper), the last one with its upper end, so that 0 and 1 have their place; equal
confidences are always in one bin. Empty bins take no part in anything.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses, metrics, model
from softmax_jax._dtypes import accumulation_type, at_least_float32
from softmax_jax.checks import (
    as_array,
    as_real,
    checked_count,
    checked_row_weights,
    checked_targets,
    is_known,
    refuse_other_than_probabilities,
)
from softmax_jax.data import blocks
from softmax_jax.data.targets import Dense, Targets, distribution, parse
from softmax_jax.normalizer import softmax


class Bins(NamedTuple):
    """Sums over the examples of each bin, ``[bins]`` or ``[classes, bins]``.

    With weight ``s``, confidence ``c`` and outcome ``y`` of an example.
    """

    weight: jax.Array
    """``Σ s``; the number of examples where they are not weighted."""
    confidence: jax.Array
    """``Σ s c``"""
    outcome: jax.Array
    """``Σ s y``"""
    gap: jax.Array
    """``Σ s (y - c)``, which the two above have by rounding only."""
    confidence_squared: jax.Array
    """``Σ s c²``"""
    outcome_squared: jax.Array
    """``Σ s y²``"""
    product: jax.Array
    """``Σ s c y``"""
    weight_squared: jax.Array
    """``Σ s²``"""
    gap_squared: jax.Array
    """``Σ s² (y - c)²``; of weights beyond 1e±15 float32 holds neither this nor the one above."""


@jax.transfer_guard("allow")
def top_label(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Confidence in the predicted class, and whether it is right: ``[n]`` each.

    The confidence is `model.confidence`, so that a threshold taken from it, see `selective`, means
    the same in `model.predict`.

    Args:
      logits: ``[n, q]``.
      targets: class ids ``[n]``, or probabilities ``[n, q]``, of which the outcome is that of the
        predicted class.

    Raises:
      ValueError: as `data.targets.parse`, or if rows of probabilities do not sum to 1.
    """
    logits, parsed = _checked(logits, targets)
    confidence = model.confidence(logits)
    return confidence, metrics.correct(logits, parsed).astype(confidence.dtype)


@jax.transfer_guard("allow")
def class_wise(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probability of each class, and whether it is the one: ``[n, q]`` each.

    Raises:
      ValueError: as `top_label`.
    """
    logits, parsed = _checked(logits, targets)
    y = distribution(parsed, logits.shape[-1], logits.dtype)
    return softmax(logits, axis=-1), y


@jax.transfer_guard("allow")
def of_class(logits: jax.Array, targets: jax.Array, j: int) -> tuple[jax.Array, jax.Array]:
    """The probability of class ``j``, and whether it is the one: ``[n]`` each.

    Raises:
      ValueError: as `top_label`, or if there is no class ``j``.
    """
    p, y = class_wise(logits, targets)
    if checked_count(j, "j", at_least=0) >= p.shape[1]:
        raise ValueError(f"there is no class {j} of {p.shape[1]}")
    return p[:, j], y[:, j]


def _checked(logits: Any, targets: Any) -> tuple[jax.Array, Targets]:
    logits = at_least_float32(as_real(logits, "logits"))
    if logits.ndim != 2:
        raise ValueError(f"logits of shape {logits.shape}; expected [n, q]")
    parsed = parse(targets, logits.shape)
    if isinstance(parsed, Dense) and is_known(targets) and len(logits):
        checked_targets(targets, len(logits), "targets")
    return logits, parsed


def equal_width_edges(bins: int) -> np.ndarray:
    """``[0, 1 / bins, ..., 1]``."""
    return np.linspace(0, 1, checked_count(bins, "bins") + 1)


@jax.transfer_guard("allow")
def equal_mass_edges(confidence: np.typing.ArrayLike, bins: int) -> np.ndarray:
    """Edges that put equally many of the confidences in each bin, up to ties.

    Edges are confidences, the first and the last 0 and 1. Equal ones, of many equal confidences,
    make bins that stay empty.

    Args:
      confidence: ``[n]``, or ``[n, q]`` for edges of each class; of all the data, or of a sample.
      bins: how many.

    Returns:
      ``[bins + 1]`` or ``[q, bins + 1]``.

    Raises:
      ValueError: if there are no confidences, or what is none among them.
    """
    bins = checked_count(bins, "bins")
    values = np.asarray(as_array(confidence, "confidence"))
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"there are no confidences to take edges from: shape {values.shape}; expected [n] or "
            "[n, q]"
        )
    refuse_other_than_probabilities(values, "confidence")
    if values.dtype.kind not in "f":
        values = values.astype(np.float32)  # integers, and bfloat16
    values = np.sort(values, axis=0)
    first = -(-np.arange(1, bins) * len(values) // bins)
    inner = np.moveaxis(values[np.minimum(first, len(values) - 1)], 0, -1)
    zero = np.zeros((*values.shape[1:], 1), values.dtype)
    return np.concatenate([zero, inner, zero + 1], axis=-1)


@jax.transfer_guard("allow")
def reliability(
    confidence: jax.Array,
    outcome: jax.Array,
    edges: np.typing.ArrayLike,
    weights: jax.Array | None = None,
) -> Bins:
    """The sums of a batch, in the type of the confidences, float32 at least.

    Args:
      confidence: ``[n]``, or ``[n, classes]``; probabilities, in [0, 1] up to rounding. Those of
        `class_wise` sum to 1 over the classes, those of a classifier for each class need not.
      outcome: of the same shape: 0 or 1, or probabilities where targets are.
      edges: ``[bins + 1]``, rising, or ``[classes, bins + 1]``.
      weights: ``[n]`` example weights, 0 or more, None for 1; rows of weight zero take no part.

    Raises:
      ValueError: if the shapes do not fit, the edges do not rise, confidences or outcomes of rows
        with weight are no probabilities, or weights are negative or not finite. Under a jax
        transformation values cannot raise: there, a confidence of NaN makes the sums of the last
        bin NaN.
    """
    confidence, outcome = as_real(confidence, "confidence"), as_real(outcome, "outcome")
    if confidence.shape != outcome.shape or confidence.ndim not in (1, 2):
        raise ValueError(
            f"confidences of shape {confidence.shape} and outcomes of shape {outcome.shape}; "
            "expected [n] or [n, classes], both the same"
        )
    rows = jax.ShapeDtypeStruct(confidence.shape[:1], accumulation_type(confidence))
    weights = losses.weights_of(rows, weights)
    _check_values(confidence, outcome, weights)
    confidence = at_least_float32(confidence)
    edges = _checked_edges(edges, confidence)
    return _reliability(confidence, outcome.astype(confidence.dtype), edges, weights)


def _check_values(confidence: jax.Array, outcome: jax.Array, weights: jax.Array) -> None:
    """Raises a ValueError, as `reliability`, for what is known."""
    counts = None
    if is_known(weights):
        s = np.asarray(weights)
        bad = ~((s >= 0) & (s < np.inf))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"weights: row {row} has {s[row]}; expected finite numbers, 0 or more")
        counts = s > 0
    for a, where in ((confidence, "confidence"), (outcome, "outcome")):
        if counts is not None and is_known(a):
            refuse_other_than_probabilities(np.asarray(a), where, counts)


def _checked_edges(edges: Any, confidence: jax.Array) -> jax.Array:
    edges = as_real(edges, "edges")
    shape = edges.shape
    if shape[:-1] not in ((), confidence.shape[1:]) or shape[-1:] < (2,):
        raise ValueError(
            f"edges of shape {shape} for confidences of shape {confidence.shape}; expected "
            "[bins + 1] or [classes, bins + 1]"
        )
    if is_known(edges):
        values = np.asarray(edges).astype(np.float64)
        inner = values[..., 1:-1]
        if not (
            (values[..., 1:] >= values[..., :-1]).all() and ((inner >= 0) & (inner <= 1)).all()
        ):
            raise ValueError(f"edges: {values}; expected to rise from 0 to 1, as confidences do")
    return edges.astype(confidence.dtype)


@jax.jit
def _reliability(confidence: Any, outcome: Any, edges: Any, weights: Any) -> Bins:
    one = partial(_sums, weights)
    if confidence.ndim == 1:
        return one(confidence, outcome, edges)
    in_axes = (1, 1, 0 if edges.ndim == 2 else None)
    return jax.vmap(one, in_axes=in_axes)(confidence, outcome, edges)


def _sums(s: jax.Array, c: jax.Array, y: jax.Array, edges: jax.Array) -> Bins:
    c, y = jnp.where(s == 0, 0, c), jnp.where(s == 0, 0, y)
    d = y - c
    terms = (s, s * c, s * y, s * d, s * c * c, s * y * y, s * c * y, s * s, (s * d) ** 2)
    return Bins(*_by_bin(jnp.stack(terms, axis=1), _bin_of(c, edges), edges).T)


def _bin_of(c: jax.Array, edges: jax.Array) -> jax.Array:
    """``[n]``; what is beyond the ends, by rounding, is in the bin of that end."""
    return jnp.searchsorted(edges[1:-1], c, side="right")


def _by_bin(values: jax.Array, bin_of: jax.Array, edges: jax.Array) -> jax.Array:
    """Sums over the rows of each bin, a block at a time, which keeps their rounding small."""

    def of_block(start: Any, is_new: jax.Array) -> jax.Array:
        own, place = blocks.rows_of((values, bin_of), start, len(is_new))
        own = jnp.where(is_new.reshape(-1, *[1] * (own.ndim - 1)), own, 0)
        return jax.ops.segment_sum(own, place, num_segments=edges.shape[-1] - 1)

    return blocks.total(of_block, len(values), blocks.ROWS)


class _Means(NamedTuple):
    """Of each bin, in NumPy float64; 0 where it is empty."""

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


def expected_error(bins: Bins) -> np.ndarray:
    r"""Expected calibration error, :math:`\sum_b w_b |\bar y_b - \bar c_b|` (Naeini et al. 2015).

    ``w_b`` is the share of the weight that is in the bin. Of class-wise bins one for each class,
    whose mean is the class-wise error of Kull et al. (2019). Biased upwards, as chance alone sets
    the two means apart: see `debiased_expected_error` and `consistency`.

    Raises:
      ValueError: if the total weight is zero.
    """
    means = _means(bins)
    return np.sum(means.share * np.abs(means.gap), axis=-1)


def maximum_error(bins: Bins) -> np.ndarray:
    r"""Maximum calibration error, :math:`\max_b |\bar y_b - \bar c_b|`, see `expected_error`."""
    means = _means(bins)
    return np.max(np.abs(means.gap), axis=-1)


def rms_error(bins: Bins) -> np.ndarray:
    r"""Root mean square error, :math:`\sqrt{\sum_b w_b (\bar y_b - \bar c_b)^2}`."""
    means = _means(bins)
    return np.sqrt(np.sum(means.share * means.gap**2, axis=-1))


def debiased_squared_error(bins: Bins) -> np.ndarray:
    r"""Mean square calibration error without the part that is chance; may be negative.

    .. math:: \sum_b w_b \, \frac{(\sum_i s_i d_i)^2 - \sum_i s_i^2 d_i^2}
        {(\sum_i s_i)^2 - \sum_i s_i^2}, \qquad d_i = y_i - c_i,

    in each bin the mean of ``d_i d_j`` over pairs of different examples, which has no bias, as
    their outcomes are independent: of a calibrated model the mean is zero. (The estimator of Kumar
    et al. 2019 takes the confidences of a bin to be equal; this one does not.) Bins of a single
    example have no pairs and count as zero.
    """
    squares, has_pairs = _squared_gaps(bins)
    return np.sum(_means(bins).share * np.where(has_pairs, squares, 0), axis=-1)


def _squared_gaps(bins: Bins) -> tuple[np.ndarray, np.ndarray]:
    """Of each bin the square of its true gap, without bias, and whether it has pairs for that."""
    weight, gap, weight_squared, gap_squared = (
        np.asarray(a, np.float64)
        for a in (bins.weight, bins.gap, bins.weight_squared, bins.gap_squared)
    )
    pairs = weight**2 - weight_squared
    has_pairs = pairs > 1e-6 * weight**2
    return (gap**2 - gap_squared) / np.where(has_pairs, pairs, 1), has_pairs


def debiased_expected_error(bins: Bins) -> np.ndarray:
    r"""`expected_error` less an estimate of its bias; may be negative.

    In each bin the observed gap is taken as the true one, and chance as normal: the error then
    expected is the mean of a folded normal variable, and by how much it is above the gap is what is
    taken off (the resampling of Kumar et al. 2019, in closed form). Some bias remains: of a
    calibrated model, with many examples a bin, 2 - √2 of that of `expected_error`, with few more.
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
    """What bins hide: variance of confidences less twice their covariance with the outcomes."""


def brier(bins: Bins) -> Brier:
    """The decomposition of Murphy (1973), with the terms that make it exact.

    Those are of confidences that differ within a bin (Stephenson et al. 2008). From class-wise bins
    it is that of the Brier score of all classes, `metrics.Metrics.squared_error`.

    Raises:
      ValueError: if the total weight is zero.
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


class Band(NamedTuple):
    """Between which mean outcomes of each bin, ``[bins]``; NaN where it is empty."""

    lower: np.ndarray
    upper: np.ndarray


class Consistency(NamedTuple):
    """What a calibrated model with these confidences would show."""

    band: Band
    """Of its mean outcomes (the consistency bars of Bröcker and Smith 2007)."""
    p_value: float
    """How often its `expected_error` would be as large as the observed one or larger."""


@jax.transfer_guard("allow")
def consistency(
    key: jax.Array,
    confidence: jax.Array,
    outcome: jax.Array,
    edges: jax.Array,
    weights: jax.Array | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
) -> Consistency:
    """Whether the gaps are more than chance: outcomes are drawn as the model says, many times.

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
    """
    draws = checked_count(draws, "draws")
    examples = _checked_examples(confidence, outcome, edges, weights)
    if not np.isin(examples.outcome, (0, 1)).all():
        raise ValueError("outcomes other than 0 and 1 are no draws: give class ids as targets")
    bins = _sums(examples.weights, examples.confidence, examples.outcome, examples.edges)
    gaps = np.asarray(_drawn(key, examples, draws), np.float64)
    weight, expected = (np.asarray(a, np.float64) for a in bins[:2])
    errors = np.abs(gaps).sum(axis=1) / weight.sum()
    # By as much as rounding may set equal errors apart.
    observed = expected_error(bins) - 1e-6
    p_value = (1 + np.count_nonzero(errors >= observed)) / (1 + draws)
    return Consistency(_band(expected + gaps, weight, level), float(p_value))


@jax.transfer_guard("allow")
def bootstrap_band(
    key: jax.Array,
    confidence: jax.Array,
    outcome: jax.Array,
    edges: jax.Array,
    weights: jax.Array | None = None,
    *,
    draws: int = 1000,
    level: float = 0.95,
) -> Band:
    """Confidence band of the mean outcome of each bin, by drawing examples with replacement.

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


def _checked_examples(confidence: Any, outcome: Any, edges: Any, weights: Any) -> _Examples:
    c, y = as_real(confidence, "confidence"), as_real(outcome, "outcome")
    if c.ndim != 1 or c.shape != y.shape:
        raise ValueError(
            f"confidences of shape {c.shape}, outcomes of shape {y.shape}; expected [n] of both"
        )
    s = jnp.asarray(checked_row_weights(weights, len(c)), accumulation_type(c))
    _check_values(c, y, s)
    c = at_least_float32(c)
    # Rows of weight zero take no part, whatever they hold.
    c, y = jnp.where(s == 0, 0, c), jnp.where(s == 0, 0, y).astype(c.dtype)
    return _Examples(c, y, _checked_edges(edges, c), s)


@partial(jax.jit, static_argnames="draws")
def _drawn(key: jax.Array, examples: _Examples, draws: int) -> jax.Array:
    """``Σ s (y - c)`` of each bin, y drawn from the confidences: ``[draws, bins]``."""
    c, _, edges, s = examples
    bin_of = _bin_of(c, edges)

    def draw(i):
        uniform = jax.random.uniform(jax.random.fold_in(key, i), c.shape, c.dtype)
        return _by_bin(s * ((uniform < c).astype(c.dtype) - c), bin_of, edges)

    return jax.lax.map(draw, jnp.arange(draws))


@partial(jax.jit, static_argnames="draws")
def _resampled(key: jax.Array, examples: _Examples, draws: int) -> tuple[jax.Array, ...]:
    """``Σ s`` and ``Σ s y`` of each bin over as many examples drawn: ``[draws, bins]`` each."""
    c, y, edges, s = examples
    bin_of = _bin_of(c, edges)
    values = jnp.stack([s, s * y], axis=1)

    def draw(i):
        rows = jax.random.randint(jax.random.fold_in(key, i), c.shape, 0, len(c))
        return tuple(_by_bin(values[rows], bin_of[rows], edges).T)

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
