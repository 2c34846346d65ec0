from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from softmax_jax import metrics


@pytest.fixture
def logits():
    return 2 * jax.random.normal(jax.random.key(0), (200, 6))


@pytest.fixture
def labels():
    return jax.random.randint(jax.random.key(1), (200,), 0, 6)


@pytest.fixture
def weights():
    return jax.random.uniform(jax.random.key(2), (200,))


def test_scores_agree_with_scikit_learn(logits, labels, weights):
    measured = metrics.measure(logits, labels, weights, k=3, confusion=True)
    summary = metrics.summarize(measured)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    p /= p.sum(axis=1, keepdims=True)
    predicted = p.argmax(axis=1)
    options = {"sample_weight": np.asarray(weights, np.float64)}
    expected = {
        "nats": sklearn.metrics.log_loss(labels, p, **options),
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted, **options),
        "top_k_accuracy": sklearn.metrics.top_k_accuracy_score(labels, p, k=3, **options),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(summary[name], value, rtol=1e-5)
    one_hot = np.eye(6)[np.asarray(labels)]
    brier = np.average(((p - one_hot) ** 2).sum(axis=1), weights=options["sample_weight"])
    np.testing.assert_allclose(summary["brier"], brier, rtol=1e-5)
    np.testing.assert_allclose(
        measured.confusion,
        sklearn.metrics.confusion_matrix(labels, predicted, **options),
        rtol=1e-5,
    )


def test_units_of_the_summary(logits, labels):
    summary = metrics.summarize(metrics.measure(logits, labels))
    np.testing.assert_allclose(summary["bits"], summary["nats"] / np.log(2))
    assert summary["examples"] == 200


@pytest.mark.parametrize("soft", [False, True])
def test_merged_batches_equal_the_whole(logits, labels, weights, soft):
    targets = jax.nn.softmax(logits[::-1]) if soft else labels
    measure = jax.jit(partial(metrics.measure, confusion=True))
    whole = measure(logits, targets, weights)
    parts = [
        measure(logits[rows], targets[rows], weights[rows])
        for rows in (slice(0, 50), slice(50, 51), slice(51, 200))
    ]
    merged = metrics.merge(metrics.merge(parts[0], parts[1]), parts[2])
    other_order = metrics.merge(parts[2], metrics.merge(parts[1], parts[0]))
    for a, b, c in zip(whole, merged, other_order, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        np.testing.assert_allclose(b, c, rtol=1e-5)


def test_total_adds_in_float64():
    # The second addend is below half an ulp of the first in float32.
    sums = metrics.Metrics(*[jnp.array([2.0**25, 1.0])] * 5, confusion=None)
    assert metrics.total(sums).weight == 2.0**25 + 1


def test_one_hot_targets_score_as_labels(logits, labels):
    from_labels = metrics.measure(logits, labels, confusion=True)
    from_one_hot = metrics.measure(logits, jax.nn.one_hot(labels, 6), confusion=True)
    for a, b in zip(from_labels, from_one_hot, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_soft_targets_score_their_expectation():
    logits = jnp.array([[3.0, 2.0, 1.0]])
    targets = jnp.array([[0.1, 0.2, 0.7]])
    np.testing.assert_allclose(metrics.accuracy(logits, targets), 0.1)
    np.testing.assert_allclose(metrics.accuracy(logits, targets, k=2), 0.3, rtol=1e-6)
    np.testing.assert_allclose(metrics.accuracy(logits, targets, k=3), 1.0, rtol=1e-6)


def test_of_equal_logits_the_lower_class_comes_first():
    logits = jnp.zeros((4, 4))
    labels = jnp.arange(4)
    np.testing.assert_array_equal(metrics.correct(logits, labels), [1, 0, 0, 0])
    np.testing.assert_array_equal(metrics.correct(logits, labels, k=2), [1, 1, 0, 0])


def test_more_than_all_classes_is_all_classes(logits, labels):
    assert metrics.accuracy(logits, labels, k=100) == 1


@pytest.mark.slow
def test_rows_of_weight_zero_take_no_part(logits, labels):
    weights = jnp.ones(200).at[7].set(0)
    with_nan = logits.at[7].set(jnp.nan)
    for a, b in zip(
        metrics.measure(with_nan, labels, weights)[:-1],
        metrics.measure(jnp.delete(logits, 7, axis=0), jnp.delete(labels, 7))[:-1],
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_nan_logits_predict_nothing():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(metrics.correct(logits, jnp.array([0, 1])), [0, 1])


def test_zeros_of_either_sign_are_equal_logits():
    logits = jnp.array([[-0.0, 0.0, -0.0]])
    for k in (1, 2, 3):
        assert metrics.correct(logits, jnp.array([0]), k=k) == 1


def test_nan_logits_are_in_no_column_of_the_confusion_matrix():
    logits = jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])
    measured = metrics.measure(logits, jnp.array([0, 1]), confusion=True)
    np.testing.assert_array_equal(measured.confusion, [[0, 0], [0, 1]])


@pytest.mark.parametrize("shape", [(), (1,), (200, 1)])
def test_weights_that_do_not_fit_are_refused(logits, labels, shape):
    with pytest.raises(ValueError, match="one weight each"):
        metrics.measure(logits, labels, jnp.ones(shape))


def test_k_must_be_positive(logits, labels):
    with pytest.raises(ValueError, match="k: 0; expected an integer, 1 or more"):
        metrics.correct(logits, labels, k=0)


def test_nothing_measured_has_no_mean(logits, labels):
    with pytest.raises(ValueError, match="total weight of zero"):
        metrics.summarize(metrics.measure(logits, labels, jnp.zeros(200)))


@pytest.mark.slow
def test_metrics_are_sums_under_psum(logits, labels):
    parts = jax.vmap(lambda o, y: jax.lax.psum(metrics.measure(o, y), "hosts"), axis_name="hosts")(
        logits.reshape(4, 50, 6), labels.reshape(4, 50)
    )
    whole = metrics.measure(logits, labels)
    np.testing.assert_allclose(parts.correct[0], whole.correct)
