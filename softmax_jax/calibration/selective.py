"""Selective prediction: risk against coverage (El-Yaniv and Wiener 2010).

A model that abstains where its confidence is below a threshold answers a share of all cases, the
coverage, and errs in a share of those, the risk. `threshold_for_risk` gives the threshold that
`model.predict` takes.
"""

from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import AnyArray, Float, NDArray
from softmax_jax.checks import (
    as_array,
    checked_weights,
    is_real,
    refuse_no_weight,
    refuse_other_than_probabilities,
)


class RiskCoverage(NamedTuple):
    """A point for each confidence that occurs, falling: ``[points]`` in float64."""

    threshold: Float[NDArray, " points"]
    """Answer if the confidence is this or more."""
    coverage: Float[NDArray, " points"]
    """Share of the cases answered: rising to 1."""
    risk: Float[NDArray, " points"]
    """Share of the answers that are wrong."""
    area: float
    """Mean risk over the coverage: 0 if every answer is right, and the lower, the better the
    confidence tells right from wrong."""


def risk_coverage(
    confidence: AnyArray, outcome: AnyArray, weights: AnyArray | None = None
) -> RiskCoverage:
    """Returns risk and coverage at each threshold.

    Args:
      confidence: ``[n]``, of `calibration.top_label` or any other that ranks the cases, in [0, 1]
        or not.
      outcome: ``[n]``: 1 if the answer is right, 0 if wrong, or a probability.
      weights: ``[n]``, None for 1.

    Raises:
      ValueError: on shapes that do not fit, NaN, outcomes outside [0, 1], or weights that are
        negative or all zero.

    Example:
      >>> curve = risk_coverage([0.9, 0.8, 0.6], [1, 1, 0])
      >>> curve.coverage.round(2).tolist(), curve.risk.round(2).tolist()
      ([0.33, 0.67, 1.0], [0.0, 0.0, 0.33])
    """
    c, y = np.asarray(as_array(confidence, "confidence")), np.asarray(as_array(outcome, "outcome"))
    if c.ndim != 1 or c.shape != y.shape:
        raise ValueError(
            f"confidence of shape {c.shape}, outcome of shape {y.shape}; expected [n] for both"
        )
    if not is_real(c):
        raise ValueError(f"confidence: type {c.dtype}; expected real numbers")
    s = checked_weights(weights, len(c))
    refuse_no_weight(s)
    refuse_other_than_probabilities(y, "outcome", s > 0)
    c, y, s = c[s > 0].astype(np.float64), y[s > 0].astype(np.float64), s[s > 0]
    if np.isnan(c).any():
        raise ValueError(f"confidence: {np.isnan(c).sum()} of {len(c)} rows with weight have NaN")
    y = np.clip(y, 0, 1)  # of probabilities that sum to a little more
    order = np.argsort(-c, kind="stable")
    c, y, s = c[order], y[order], s[order]
    # Equal confidences are answered together.
    last = np.append(c[1:] != c[:-1], True)
    answered, wrong = np.cumsum(s)[last], np.cumsum(s * (1 - y))[last]
    coverage, risk = answered / s.sum(), wrong / answered
    area = float(np.sum(risk * np.diff(coverage, prepend=0)))
    return RiskCoverage(c[last], coverage, risk, area)


def threshold_for_risk(curve: RiskCoverage, risk: float) -> float:
    """Returns the threshold with the largest coverage of those with at most this risk.

    It is chosen by these examples and so does somewhat better on them than on others.

    Returns:
      For ``model.predict(..., threshold=...)``; inf, which answers nothing, if there is none.

    Raises:
      ValueError: if ``risk`` is not in [0, 1].

    Example:
      >>> threshold_for_risk(risk_coverage([0.9, 0.8, 0.6], [1, 1, 0]), 0.0)
      0.8
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must be in [0, 1], got {risk}")
    good = np.flatnonzero(curve.risk <= risk * (1 + 1e-12))
    return float(curve.threshold[good[-1]]) if len(good) else float("inf")
