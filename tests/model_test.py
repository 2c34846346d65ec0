import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import softmax_jax
from softmax_jax import calibration, head, model
from softmax_jax.calibration import selective
from softmax_jax.model import ABSTAIN, Params

pytestmark = pytest.mark.exact


@pytest.fixture
def params():
    return model.init(jax.random.key(0), num_features=4, num_classes=3, scale=1.0)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (10, 4))


def test_the_textbook_example_has_12_weights_and_3_biases(params):
    assert params.w.size == 12
    assert params.b.size == 3


def test_init_is_normal_with_the_given_scale_and_no_bias():
    params = model.init(jax.random.key(0), num_features=300, num_classes=200, scale=0.5)
    np.testing.assert_allclose(np.std(params.w), 0.5, rtol=0.02)
    np.testing.assert_allclose(np.mean(params.w), 0.0, atol=0.01)
    assert not params.b.any()


def test_init_takes_a_dtype():
    params = model.init(jax.random.key(0), num_features=2, num_classes=2, dtype=jnp.bfloat16)
    assert params.w.dtype == params.b.dtype == jnp.bfloat16


@pytest.mark.parametrize(("features", "classes"), [(0, 3), (3, 0), (-1, 2)])
def test_init_refuses_no_features_or_classes(features, classes):
    with pytest.raises(ValueError, match="at least 1"):
        model.init(jax.random.key(0), num_features=features, num_classes=classes)


def test_logits_are_the_affine_map(params, x):
    expected = np.asarray(x, np.float64) @ np.asarray(params.w, np.float64) + np.asarray(params.b)
    np.testing.assert_allclose(model.logits(params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [model.logits, model.probabilities, model.predict])
def test_vmap_over_examples_equals_the_matrix_form(params, x, function):
    one_by_one = jax.vmap(lambda row: function(params, row))(x)
    np.testing.assert_allclose(one_by_one, function(params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [model.logits, model.probabilities, model.predict])
def test_leading_axes_are_batch_axes(params, x, function):
    blocks = function(params, x.reshape(2, 5, 4))
    assert blocks.shape[:2] == (2, 5)
    np.testing.assert_allclose(
        blocks.reshape(10, *blocks.shape[2:]), function(params, x), rtol=1e-5, atol=1e-6
    )


def test_narrow_inputs_are_summed_in_float32(x):
    params = model.init(jax.random.key(0), num_features=4096, num_classes=2, dtype=jnp.bfloat16)
    ones = jnp.ones((4096,), jnp.bfloat16)
    scores = model.logits(params, ones)
    assert scores.dtype == jnp.float32
    exact = np.asarray(params.w, np.float64).sum(axis=0)
    np.testing.assert_allclose(scores, exact, atol=1e-4)


def test_integer_features_are_read_as_numbers(params):
    pixels = jnp.array([[0, 255, 3, 1]], jnp.uint8)
    np.testing.assert_array_equal(
        model.logits(params, pixels), model.logits(params, pixels.astype(jnp.float32))
    )


@pytest.mark.parametrize("shape", [(), (3,), (10, 5)])
def test_features_that_do_not_fit_are_refused(params, shape):
    with pytest.raises(ValueError, match="4 features"):
        model.logits(params, jnp.zeros(shape))


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 6)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_probabilities_are_non_negative_and_sum_to_one(logits):
    params = Params(w=jnp.eye(logits.shape[1]), b=jnp.zeros(logits.shape[1]))
    p = np.asarray(model.probabilities(params, jnp.asarray(logits)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)


def test_the_prediction_is_the_most_probable_class(params, x):
    np.testing.assert_array_equal(
        model.predict(params, x), np.argmax(model.probabilities(params, x), axis=-1)
    )


def test_prediction_abstains_below_the_threshold(params, x):
    confidence = np.max(model.probabilities(params, x), axis=-1)
    threshold = float(np.median(confidence))
    abstained = np.asarray(model.predict(params, x, threshold=threshold)) == ABSTAIN
    np.testing.assert_array_equal(abstained, confidence < threshold)
    assert 0 < abstained.sum() < len(abstained)


def test_a_prediction_at_the_threshold_is_given():
    params = Params(w=jnp.zeros((2, 4)), b=jnp.zeros(4))
    assert model.predict(params, jnp.ones(2), threshold=0.25) == 0


@pytest.mark.slow
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize(("d", "q"), [(5, 3), (40, 10), (7, 1000)])
def test_rows_commit_at_their_own_confidence(d, q, uniform):
    params = model.init(jax.random.key(q), num_features=d, num_classes=q, scale=1.0)
    if uniform:
        params = jax.tree.map(jnp.zeros_like, params)
    x = jax.random.normal(jax.random.key(1), (120, d))
    jitted = jax.jit(model.predict)
    scores = model.logits(params, x)
    expected = np.argmax(scores, axis=1)
    p = scipy.special.softmax(np.asarray(scores, np.float64), axis=1).max(axis=1)
    np.testing.assert_allclose(model.confidence(scores), p, rtol=3e-7)
    top = calibration.top_label(scores, jnp.asarray(expected))[0]
    for confidence in (model.confidence(scores), top, np.full(120, 1 / q) if uniform else p):
        confidence = np.asarray(confidence)
        curve = selective.risk_coverage(confidence, np.ones(120))
        assert set(curve.threshold) <= set(confidence.astype(np.float64))
        for predict in (model.predict, jitted, head.predict):
            ids = predict(params, x, threshold=confidence.astype(np.float32))
            np.testing.assert_array_equal(ids, expected)
    # And one at a time, while rows clearly below abstain.
    for i in range(0, 120, 20):
        t = float(p[i])
        for predict in (model.predict, jitted, head.predict):
            ids = np.asarray(predict(params, x, threshold=t))
            np.testing.assert_array_equal(ids != ABSTAIN, p >= t * (1 - 1e-6))
    assert model.predict(params, x[0], threshold=1.001 * p[0]) == ABSTAIN


def test_the_confidence_is_the_same_to_the_bit_in_any_program():
    logits = 5 * jax.random.normal(jax.random.key(0), (300, 11))
    eager = model.confidence(logits)
    np.testing.assert_array_equal(jax.jit(model.confidence)(logits), eager)
    two = jax.jit(lambda o: (model.confidence(2 * o), jnp.sum(jax.nn.softmax(o))))(logits / 2)
    np.testing.assert_array_equal(two[0], eager)
    np.testing.assert_array_equal(jax.vmap(model.confidence)(logits), eager)
    one_by_one = jnp.stack([model.confidence(row) for row in logits[:5]])
    np.testing.assert_array_equal(one_by_one, eager[:5])


def test_the_confidence_has_the_slope_of_the_largest_probability():
    logits = jax.random.normal(jax.random.key(0), (4, 3))
    slope = jax.grad(lambda o: jnp.sum(model.confidence(o)))(logits)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    top = np.eye(3)[p.argmax(axis=1)]
    np.testing.assert_allclose(slope, p.max(axis=1, keepdims=True) * (top - p), atol=1e-6)


def test_nothing_reaches_an_infinite_threshold():
    params = Params(w=jnp.zeros((2, 1)), b=jnp.zeros(1))
    assert model.predict(params, jnp.ones(2), threshold=1.0) == 0
    assert model.predict(params, jnp.ones(2), threshold=np.inf) == ABSTAIN


def test_prediction_abstains_where_there_is_none(params):
    assert model.predict(params, jnp.full((4,), jnp.nan)) == ABSTAIN


def test_the_first_of_equally_probable_classes_is_predicted():
    params = Params(w=jnp.zeros((2, 3)), b=jnp.zeros(3))
    assert model.predict(params, jnp.ones(2)) == 0


def test_every_public_function_has_a_docstring():
    for name in dir(softmax_jax):
        value = getattr(softmax_jax, name)
        if callable(value) and not name.startswith("_"):
            assert value.__doc__, name
