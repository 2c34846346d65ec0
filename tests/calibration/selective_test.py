import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import calibration, model
from softmax_jax.calibration import selective
from softmax_jax.data import targets
from softmax_jax.model import Params


def test_a_point_for_each_confidence_with_ties_together():
    curve = selective.risk_coverage([0.9, 0.5, 0.5, 0.3], [1, 1, 0, 0])
    np.testing.assert_array_equal(curve.threshold, [0.9, 0.5, 0.3])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx(0.5 / 3 + 0.25 / 2)


def test_ties_do_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    confidence, outcome = rng.integers(1, 5, size=50) / 5, rng.integers(2, size=50)
    order = rng.permutation(50)
    ours = selective.risk_coverage(confidence, outcome)
    theirs = selective.risk_coverage(confidence[order], outcome[order])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)


def test_weights_count_as_repetition():
    rng = np.random.default_rng(1)
    confidence, outcome = rng.uniform(size=20), rng.integers(2, size=20)
    weights = rng.integers(0, 4, size=20)
    ours = selective.risk_coverage(confidence, outcome, weights)
    theirs = selective.risk_coverage(np.repeat(confidence, weights), np.repeat(outcome, weights))
    assert ours.area == pytest.approx(theirs.area)
    assert ours.risk[-1] == pytest.approx(theirs.risk[-1])
    for risk in (0.1, 0.4, 0.6):
        assert selective.threshold_for_risk(ours, risk) == selective.threshold_for_risk(
            theirs, risk
        )


@pytest.mark.parametrize("risk", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_the_threshold_is_the_one_predict_needs(risk):
    rng = np.random.default_rng(0)
    params = Params(*(jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(3, 4)), np.zeros(4))))
    x = jnp.asarray(rng.normal(size=(400, 3)), jnp.float32)
    noisy = model.logits(params, x) + jnp.asarray(rng.gumbel(size=(400, 4)), jnp.float32)
    labels = jnp.argmax(noisy, axis=1)
    confidence, outcome = calibration.top_label(model.logits(params, x), labels)
    curve = selective.risk_coverage(confidence, outcome)
    threshold = selective.threshold_for_risk(curve, risk)
    predicted = model.predict(params, x, threshold=threshold)
    answered = np.asarray(predicted != model.ABSTAIN)
    errors = answered.sum() - float(targets.hits(predicted[:, None], targets.Ids(labels)).sum())
    assert errors <= risk * answered.sum() + 1e-9
    # The next lower threshold would err too often, or there is none, or it is beyond a hump.
    best = curve.coverage[curve.risk <= risk].max(initial=0)
    assert answered.mean() == pytest.approx(best)


def test_confidences_may_be_of_any_type_and_shares_are_rounded():
    curve = selective.risk_coverage(np.array([0, 5, 6], np.uint8), [0, 1, 1])
    np.testing.assert_array_equal(curve.threshold, [6, 5, 0])
    tenth = selective.risk_coverage(np.arange(10) / 10, [1] * 3 + [0] * 3 + [1] * 4, [0.1] * 10)
    assert selective.threshold_for_risk(tenth, 0.3) == 0


def test_where_no_threshold_is_good_enough_nothing_is_answered():
    curve = selective.risk_coverage([0.9, 0.8], [0, 1])
    assert selective.threshold_for_risk(curve, 0.3) == np.inf
    assert selective.threshold_for_risk(curve, 0.5) == 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2], [1]), "expected"),
        (([0.1], [1], [1, 2]), r"weights: shape \(2,\) for 1 rows"),
        (([np.nan], [1]), "NaN"),
        (([0.1], [2]), "outcome: row 0 has 2, which is no probability"),
        (([0.1, 0.2], [0.5, np.nan]), "outcome: row 1 has nan"),
        ((["a"], [1]), "confidence: type"),
        (([0.1], [1], [0]), "the total weight is zero"),
        (([0.1, 0.2], [1, 1], [-1, 2]), "0 or more"),
        (([], []), "there are no examples"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        selective.risk_coverage(*arguments)
    with pytest.raises(ValueError, match="risk must be"):
        selective.threshold_for_risk(selective.risk_coverage([1.0], [1]), 1.5)
