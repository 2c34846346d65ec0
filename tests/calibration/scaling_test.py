import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax

from softmax_jax.calibration import scaling
from softmax_jax.status import Status

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


def mean_loss(logits, targets, weights=None):
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    y = np.asarray(targets)
    y = np.eye(log_p.shape[1])[y] if y.ndim == 1 else y / y.sum(axis=1, keepdims=True)
    each = -np.sum(np.where(y > 0, y * log_p, 0), axis=1)
    return np.average(each, weights=weights)


def drawn(seed, n=40, q=3, kind="labels", spread=3.0):
    """Logits that are too sure of themselves, by a factor of three, and have errors."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.normal(size=(n, q))
    p = np.exp(log_softmax(logits / 3, axis=1))
    targets = np.array([rng.choice(q, p=row) for row in p])
    if kind == "soft":
        targets = np.array([rng.dirichlet(5 * row + 0.1) for row in p])
    return logits, targets, rng.uniform(size=n)


@SETTINGS
@hypothesis.given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([3, 40]),
    kind=st.sampled_from(["labels", "soft"]),
    spread=st.sampled_from([1e-3, 3.0, 1e4]),
    weighted=st.booleans(),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_the_loss_never_rises_and_the_gradient_is_zero(seed, n, kind, spread, weighted, offset):
    logits, targets, weights = drawn(seed, n, 3, kind, spread)
    weights = weights if weighted else None
    found = scaling.fit_temperature(logits + offset, targets, weights)
    assert found.nats <= found.nats_before
    assert found.nats_before == pytest.approx(mean_loss(logits, targets, weights), rel=1e-6)
    assert found.nats == pytest.approx(
        mean_loss(logits * found.inverse, targets, weights), rel=1e-6, abs=1e-12
    )
    if found.status == Status.NO_INFORMATION:
        assert found.inverse == found.gradient == 0
    else:
        assert abs(found.gradient) < 1e-6
        assert found.temperature == pytest.approx(1 / found.inverse, rel=1e-15)
    if found.status == Status.OPTIMAL:
        least = min(mean_loss(logits * found.inverse * r, targets, weights) for r in (0.99, 1.01))
        assert least >= found.nats - 1e-9


def test_the_optimum_is_that_of_a_general_optimizer():
    logits, targets, weights = drawn(0, 500, 5)
    found = scaling.fit_temperature(logits, targets, weights)
    expected = scipy.optimize.minimize_scalar(
        lambda beta: mean_loss(beta * logits, targets, weights), (0.1, 1.0), tol=1e-12
    )
    assert found.status == Status.OPTIMAL
    assert found.inverse == pytest.approx(expected.x, rel=1e-6)
    assert found.temperature == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("factor", [1e-200, 1e-10, 1.0, 1e12, 1e150])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_units_and_offsets_of_the_logits_change_nothing(factor, offset):
    logits, targets, weights = drawn(1, 200)
    expected = scaling.fit_temperature(logits, targets, weights)
    found = scaling.fit_temperature((logits + offset) * factor, targets, weights)
    assert found.status == Status.OPTIMAL
    assert found.temperature == pytest.approx(expected.temperature * factor, rel=1e-6)
    assert found.nats == pytest.approx(expected.nats, rel=1e-9)
    assert abs(found.gradient) < 1e-6


@pytest.mark.parametrize("factor", [1e-10, np.array([1e-6, 1.0, 1e6]), 1e100])
@pytest.mark.parametrize("offset", [0.0, 1e6, np.array([0.0, 5.0, -1e4])])
def test_vector_scaling_is_the_same_in_all_units(factor, offset):
    logits, targets, weights = drawn(1, 200)
    expected = scaling.fit_vector_scaling(logits, targets, weights)
    found = scaling.fit_vector_scaling((logits + offset) * factor, targets, weights)
    assert found.status == Status.OPTIMAL
    assert found.nats == pytest.approx(expected.nats, rel=1e-9)
    np.testing.assert_allclose(found.factor * factor, expected.factor, rtol=1e-4)


def test_where_every_label_has_the_largest_logit_the_temperature_falls_to_zero():
    logits = np.array([[1.0, 0.0], [-0.5, 0.0], [3.0, 3.0]])
    found = scaling.fit_temperature(logits, np.array([0, 1, 0]))
    assert found.status == Status.SEPARABLE
    assert "not trained on" in found.reason
    assert 0 < found.temperature < 0.1
    assert -1e-6 <= found.gradient <= 0
    assert found.nats <= found.nats_before


def test_logits_that_mislead_get_an_infinite_temperature():
    found = scaling.fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))
    assert (found.status, found.temperature, found.inverse) == (Status.NO_INFORMATION, np.inf, 0)
    assert found.nats == pytest.approx(np.log(2))


@pytest.mark.parametrize("value", [0.0, -7.0, 1e6])
def test_logits_that_say_nothing_keep_their_temperature(value):
    logits = np.array([[value] * 3, [value + 1] * 3])
    found = scaling.fit_temperature(logits, np.array([1, 2]))
    assert (found.status, found.temperature) == (Status.ALL_THE_SAME, 1)
    assert found.nats == found.nats_before == pytest.approx(np.log(3))


@pytest.mark.slow
def test_impossible_classes_take_no_part():
    logits, targets, _ = drawn(3, 60)
    found = scaling.fit_temperature(logits, targets)
    wider = np.concatenate([logits, np.full((60, 1), -np.inf)], axis=1)
    assert scaling.fit_temperature(wider, targets).inverse == pytest.approx(found.inverse)
    ours, theirs = (scaling.fit_vector_scaling(o, targets) for o in (logits, wider))
    assert theirs.nats == pytest.approx(ours.nats, rel=1e-6)


def test_rows_without_weight_take_no_part():
    logits, targets, weights = drawn(4, 60)
    weights[::3] = 0
    found = scaling.fit_temperature(logits, targets, weights)
    logits[::3], targets[::3] = np.nan, 99
    assert scaling.fit_temperature(logits, targets, weights) == found


def test_more_classes_than_a_hessian_has_room_for_are_refused():
    with pytest.raises(ValueError, match="5,000 classes; vector scaling takes up to 4,096"):
        scaling.fit_vector_scaling(np.zeros((2, 5000)), np.array([0, 1]))


def test_blocks_change_nothing_but_rounding():
    logits, targets, weights = drawn(5, 50)
    whole = scaling.fit_temperature(logits, targets, weights)
    both = scaling.fit_vector_scaling(logits, targets, weights)
    one = scaling.fit_temperature(logits, targets, weights, block_size=20)
    assert one.inverse == pytest.approx(whole.inverse)
    again = scaling.fit_vector_scaling(logits, targets, weights, block_size=20)
    np.testing.assert_allclose(again.factor, both.factor, rtol=1e-6)


@SETTINGS
@hypothesis.given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["labels", "soft"]),
    spread=st.sampled_from([1e-3, 3.0, 1e4]),
    weighted=st.booleans(),
)
def test_vector_scaling_is_never_above_temperature_scaling(seed, kind, spread, weighted):
    logits, targets, weights = drawn(seed, 40, 3, kind, spread)
    weights = weights if weighted else None
    found = scaling.fit_vector_scaling(logits, targets, weights)
    one = scaling.fit_temperature(logits, targets, weights)
    assert found.nats <= one.nats + 1e-12
    scaled = logits * found.factor + found.offset
    assert found.nats == pytest.approx(mean_loss(scaled, targets, weights), rel=1e-6, abs=1e-9)
    assert found.status in (Status.OPTIMAL, Status.AT_INFINITY)
    assert found.gradient < 1e-6


def test_vector_scaling_finds_the_factors_that_were_put_in():
    logits, targets, _ = drawn(0, 4000, 4)
    factor, offset = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.0, 0.0, -2.0, 1.0])
    found = scaling.fit_vector_scaling(logits * factor + offset, targets)
    assert found.status == Status.OPTIMAL
    np.testing.assert_allclose(found.factor * factor, 1 / 3, rtol=0.3)
    plain = scaling.fit_vector_scaling(logits, targets)
    assert found.nats == pytest.approx(plain.nats, rel=1e-9)
    np.testing.assert_allclose(found.factor * factor, plain.factor, rtol=1e-4)


def test_vector_scaling_says_where_a_class_does_not_occur():
    logits, _, _ = drawn(0, 300)
    targets = np.arange(300) % 2
    found = scaling.fit_vector_scaling(logits, targets)
    assert found.status == Status.AT_INFINITY
    assert "occurs never" in found.reason
    assert found.nats <= found.nats_before


def test_vector_scaling_says_where_classes_are_told_apart():
    rng = np.random.default_rng(0)
    logits = np.concatenate(
        [np.where(np.arange(90) < 30, 1.0, -1.0)[:, None], rng.normal(size=(90, 2))], 1
    )
    targets = np.where(np.arange(90) < 30, 0, rng.integers(1, 3, size=90))
    found = scaling.fit_vector_scaling(logits, targets)
    assert found.status == Status.AT_INFINITY


def test_confidence_without_bounds_is_brought_back():
    logits, targets, _ = drawn(0, 100, spread=3e6)
    assert not np.isinf(scaling.fit_temperature(logits, targets).nats)
    assert scaling.fit_vector_scaling(logits, targets).status == Status.OPTIMAL


@pytest.mark.parametrize("fit", [scaling.fit_temperature, scaling.fit_vector_scaling])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": [1.0, 2.0]}, r"expected numbers \[n, q\]"),
        ({"logits": [["a", "b"]] * 2}, r"expected numbers \[n, q\]"),
        ({"logits": [[np.nan, 0.0]] * 2}, "NaN"),
        ({"logits": [[np.inf, 0.0]] * 2}, "NaN, "),
        ({"logits": [[-np.inf, -np.inf]] * 2}, "-inf only"),
        ({"logits": [[1e308, -1e308]] * 2}, "the largest gap is inf"),
        ({"logits": [[1e-310, 0.0]] * 2}, "expected 1e-290 to 1e290"),
        ({"logits": [[-np.inf, 0.0]] * 2}, "a class whose logit is -inf"),
        ({"targets": [0, 2]}, "row 1 has class id 2, but there are 2"),
        ({"targets": [0, 2**32]}, "above 2"),
        ({"targets": [50, 50]}, "row 0 has class id 50, but there are 2"),
        ({"targets": [[50, 50]] * 2}, "not probabilities"),
        ({"weights": [np.nan, 1.0]}, "0 or more"),
        ({"targets": [0]}, "for 2 rows"),
        ({"targets": [[0.5, 0.6]] * 2}, "not probabilities"),
        ({"weights": [0.0, 0.0]}, "the total weight is zero"),
        ({"weights": [-1.0, 2.0]}, "0 or more"),
        ({"weights": [1e308, 1e308]}, "the total weight is infinite"),
        ({"weights": [1.0]}, r"weights: shape \(1,\) for 2 rows"),
        ({"tol": 0.0}, "expected a positive number"),
    ],
)
def test_bad_input_is_refused(fit, changes, message):
    inputs = {"logits": [[0.0, 1.0], [1.0, 0.0]], "targets": [0, 1], "weights": None} | changes
    with pytest.raises(ValueError, match=message):
        fit(**inputs)


@pytest.mark.parametrize("given", [np.ndarray.tolist, lambda a: a.astype(">f8"), np.longdouble])
def test_arrays_of_any_kind_are_taken(given):
    logits, targets, weights = drawn(6)
    expected = scaling.fit_temperature(logits, targets, weights)
    found = scaling.fit_temperature(given(logits), targets[:, None].astype(">i8"), given(weights))
    assert found == expected


def test_probabilities_sum_to_one_as_their_type_rounds_them():
    logits, targets, _ = drawn(3, 400, q=7, kind="soft")
    rounded = targets.astype(jnp.bfloat16)
    sums = rounded.astype(np.float64).sum(axis=1)
    assert np.abs(sums - 1).max() > 1e-3
    found = scaling.fit_temperature(logits, rounded)
    exact = rounded.astype(np.float64) / sums[:, None]
    assert found.temperature == pytest.approx(scaling.fit_temperature(logits, exact).temperature)


@pytest.mark.parametrize("fit", [scaling.fit_temperature, scaling.fit_vector_scaling])
def test_guards_of_transfers_and_promotion_let_arrays_through(fit):
    logits, targets, weights = drawn(6)
    expected = fit(logits, targets, weights)
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        found = fit(logits, targets, weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
