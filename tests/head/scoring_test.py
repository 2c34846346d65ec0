"""Predictions without targets, held to those of all the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import calibration, head, model
from softmax_jax.calibration import selective
from softmax_jax.head import linear_cross_entropy
from softmax_jax.model import Params


def test_scoring_many_rows_holds_few_logits(temporary_memory):
    n, d, v = 1_000_000, 16, 800
    shapes = ((n, d), jnp.uint8), ((d, v), jnp.float32), ((v,), jnp.float32)
    for function in (
        lambda x, w, b: head.predict(Params(w, b), x),
        lambda x, w, b: head.top_k(Params(w, b), x),
        lambda x, w, b: linear_cross_entropy(x, w, b, jnp.zeros(n, int)).loss,
    ):
        # The logits would be 3,052 MiB.
        assert temporary_memory(function, *shapes) <= 128 * 2**20


def test_predictions_are_those_of_the_model(small):
    x, w, b, _ = small
    params = Params(w, b)
    p = model.probabilities(params, x)
    np.testing.assert_array_equal(head.predict(params, x), model.predict(params, x))
    np.testing.assert_array_equal(
        head.predict(params, x, threshold=0.6), model.predict(params, x, threshold=0.6)
    )
    best = head.top_k(params, x.reshape(2, 3, 4), k=3)
    values, ids = jax.lax.top_k(p, 3)
    np.testing.assert_array_equal(best.ids, ids.reshape(2, 3, 3))
    np.testing.assert_allclose(best.probabilities, values.reshape(2, 3, 3), rtol=1e-5)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\]"):
        head.top_k(params, x, k=6)


@pytest.mark.slow
def test_rows_commit_at_their_own_confidence_in_any_blocks():
    rng = np.random.default_rng(0)
    params = Params(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 11), 11)))
    x = jnp.asarray(rng.normal(size=(120, 7)), jnp.float32)
    classes = np.asarray(model.predict(params, x))
    confidence, _ = calibration.top_label(model.logits(params, x), classes)
    curve = selective.risk_coverage(confidence, np.ones(120))
    np.testing.assert_array_equal(curve.threshold, np.sort(np.asarray(confidence, float))[::-1])
    thresholds = jnp.asarray(curve.threshold, jnp.float32)
    predictors = {"eager": model.predict, "jit": jax.jit(model.predict)}
    for memory in (None, 8 * 120 * 3, 1):
        predictors[f"head {memory}"] = functools.partial(head.predict, memory=memory)
    for name, predict in predictors.items():
        at_own = predict(params, x, threshold=jnp.asarray(confidence))
        np.testing.assert_array_equal(at_own, classes, err_msg=name)
        for t in thresholds[::10]:
            answered = np.asarray(predict(params, x, threshold=t)) != model.ABSTAIN
            np.testing.assert_array_equal(answered, np.asarray(confidence) >= t, err_msg=name)


@pytest.mark.slow
def test_uniform_rows_are_at_one_over_q():
    params, x = Params(jnp.zeros((1, 50)), jnp.zeros(50)), jnp.ones((1, 1))
    scored = jax.jit(model.predict)
    for q in range(2, 51):
        uniform = params._replace(b=jnp.where(jnp.arange(50) < q, 0, -np.inf))
        above = np.float32(1 / q) * np.float32(1 + 1e-4)
        for predict in (model.predict, scored, head.predict):
            assert predict(uniform, x, threshold=1 / q) == 0
            assert predict(uniform, x, threshold=above) == model.ABSTAIN
