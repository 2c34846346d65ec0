import numpy as np
import pytest

from runs import reliability

pytestmark = pytest.mark.slow


def drawn(n=2000, q=4, sharper=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, q)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(q, p=row / row.sum()) for row in p.astype(float)])
    return sharper * logits, labels


def test_a_temperature_mends_logits_that_are_too_large():
    scores, pictures = reliability.calibrated(*drawn())
    assert scores["temperature"] == pytest.approx(3, rel=0.15)
    assert scores["scaled"]["nats"] < scores["as_trained"]["nats"]
    assert scores["as_trained"]["p_value"] < 0.01 < scores["scaled"]["p_value"]
    assert scores["examples"] == 1000
    assert list(pictures) == ["reliability", "reliability_scaled", "risk_coverage"]
    assert [len(line) for line in reliability.table(scores)] == [3] * 11
    share = f"{scores['coverage_at_risk']:.1%}"
    assert f"1% of the answers are wrong at most, and {share} of" in reliability.answers(scores)
    assert "No threshold" in reliability.answers({**scores, "threshold_of_risk": None})


def test_soft_targets_have_no_p_value():
    logits, labels = drawn()
    scores, _ = reliability.calibrated(logits, 0.9 * np.eye(4)[labels] + 0.025)
    assert scores["scaled"]["p_value"] is None
    # Data sets take targets that sum to a little more than one.
    assert reliability.calibrated(logits, np.eye(4, dtype=np.float32)[labels] * 1.0005)[0]
    assert "none" in {line[2] for line in reliability.table(scores)}


def test_logits_that_mislead_have_no_temperature():
    logits, labels = drawn()
    scores, _ = reliability.calibrated(-logits, labels)
    assert scores["temperature"] is None
    assert reliability.table(scores)[0][2] == "no temperature"


@pytest.mark.slow
def test_what_makes_a_temperature_meaningless_is_told():
    scores, _ = reliability.calibrated(50 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3)
    assert "not trained on" in reliability.diagnosis(scores)
    assert reliability.diagnosis(reliability.calibrated(*drawn())[0]) == ""


def test_of_few_examples_nothing_is_said():
    assert reliability.calibrated(*drawn(n=19)) == ({}, {})
    logits, labels = drawn(n=30)
    logits[3] = np.inf
    assert reliability.calibrated(logits, labels) == ({}, {})
