"""The part of a run's report on calibration: scores and pictures, before and after a temperature.

The temperature is fitted to one half of the test examples, drawn at random, and all is measured on
the other half, so that nothing is judged by what it was fitted to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from runs import files
from softmax_jax import calibration, figures, losses
from softmax_jax.calibration import Bins, scaling, selective

EDGES: Any = calibration.equal_width_edges(15)
DRAWS = 500
LEAST = 20
"""Number of examples below which nothing is said."""
MOST_LOGITS = 2**26
RISK = 0.01
"""Share of wrong answers for which the report gives the coverage."""

Pair = tuple[jax.Array, jax.Array]


class Calibration(NamedTuple):
    """Scores and pictures; both are empty for too few examples or logits that are not finite."""

    scores: dict[str, Any]
    pictures: dict[str, Figure]


def calibrated(logits: Any, targets: Any) -> Calibration:
    """Measures logits ``[n, q]`` against class ids ``[n]`` or probabilities ``[n, q]``."""
    if len(logits) < LEAST or not np.isfinite(logits).all():
        return Calibration({}, {})
    if targets.ndim == 2:
        targets = targets / targets.sum(axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(logits))
    fitted, judged_by = np.sort(order[::2]), np.sort(order[1::2])
    found = scaling.fit_temperature(logits[fitted], targets[fitted])
    logits, targets = jnp.asarray(logits[judged_by]), jnp.asarray(targets[judged_by])
    before, first = judged(logits, targets, "as trained")
    gaps = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    scaled = np.maximum(gaps * found.inverse, -1e30).astype(np.float32)
    after, second = judged(jnp.asarray(scaled), targets, "after scaling")
    curve = selective.risk_coverage(*measured(logits, targets)[1])
    threshold = selective.threshold_for_risk(curve, RISK)
    scores = {
        "examples": len(logits),
        "temperature": files.finite_or_none(found.temperature),
        "temperature_status": found.status,
        "temperature_reason": found.reason,
        "as_trained": before,
        "scaled": after,
        "area_of_risk": curve.area,
        "risk": RISK,
        "threshold_of_risk": files.finite_or_none(threshold),
        "coverage_at_risk": float(curve.coverage[curve.risk <= RISK].max(initial=0)),
    }
    pictures = {
        "reliability": first,
        "reliability_scaled": second,
        "risk_coverage": figures.risk_coverage_curve(curve),
    }
    return Calibration(scores, pictures)


def judged(logits: Any, targets: Any, title: str) -> tuple[dict[str, Any], Figure]:
    """Returns scores of the predicted class and of all classes, and the diagram."""
    nats, (confidence, outcome), bins, each = measured(logits, targets)
    band = calibration.bootstrap_band(jax.random.key(0), confidence, outcome, EDGES, draws=DRAWS)
    chance, p_value = None, None
    if targets.ndim == 1:
        chance, p_value = calibration.consistency(
            jax.random.key(1), confidence, outcome, EDGES, draws=DRAWS
        )
    scores = {
        "nats": float(nats),
        "expected_error": float(calibration.expected_error(bins)),
        "debiased_expected_error": float(calibration.debiased_expected_error(bins)),
        "debiased_squared_error": float(calibration.debiased_squared_error(bins)),
        "maximum_error": float(calibration.maximum_error(bins)),
        "class_wise_error": float(np.mean(calibration.expected_error(each))),
        "p_value": p_value,
        **{f"brier_{key}": value for key, value in calibration.brier(each)._asdict().items()},
    }
    title = f"{title}: expected error {scores['expected_error']:.3f}"
    diagram = figures.reliability_diagram(bins, EDGES, chance=chance, band=band, title=title)
    return scores, diagram


@jax.jit
def measured(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Pair, Bins, Bins]:
    """Returns mean loss; confidence and outcome of the predicted class, their bins, all bins."""
    top = calibration.top_label(logits, targets)
    return (
        jnp.mean(losses.cross_entropy(logits, targets)),
        top,
        calibration.reliability(*top, EDGES),
        calibration.reliability(*calibration.class_wise(logits, targets), EDGES),
    )


def diagnosis(scores: dict[str, Any]) -> str:
    """Says why the temperature is none to trust; empty if it is."""
    reason = scores["temperature_reason"]
    return f"{scores['temperature_status']}: {reason}" if reason else ""


def answers(scores: dict[str, Any]) -> str:
    """Says how many answers are left if those below a threshold are withheld."""
    risk, threshold = scores["risk"], scores["threshold_of_risk"]
    if threshold is None:
        return f"No threshold of confidence has {risk:.0%} of wrong answers at most."
    return (
        f"Answering only above a confidence of {threshold:.3f}, {risk:.0%} of the answers are "
        f"wrong at most, and {scores['coverage_at_risk']:.1%} of the cases are answered."
    )


def table(scores: dict[str, Any]) -> list[list[str]]:
    """Returns the scores as a table, heads first."""
    names = {
        "nats": "loss (nats)",
        "expected_error": "expected error",
        "debiased_expected_error": "less its bias",
        "maximum_error": "maximum error",
        "class_wise_error": "class-wise error",
        "p_value": "chance of that, if calibrated",
        "brier_score": "Brier score",
        "brier_reliability": "reliability",
        "brier_resolution": "resolution",
        "brier_uncertainty": "uncertainty",
    }
    temperature = scores["temperature"]
    scaled = "no temperature" if temperature is None else f"temperature {temperature:.3f}"
    lines = [["", "as trained", scaled]]
    for key, name in names.items():
        values = (scores[which][key] for which in ("as_trained", "scaled"))
        lines.append([name, *("none" if value is None else f"{value:.4f}" for value in values)])
    return lines
