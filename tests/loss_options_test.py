"""Options of a loss, which all functions that take them refuse alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import cross_entropy, linear_cross_entropy

LOGITS, LABELS = jnp.linspace(-1, 1, 12).reshape(4, 3), np.array([0, 2, 1, 1])


def by_logits(**options):
    return cross_entropy(LOGITS, LABELS, **options)


def by_head(**options):
    return linear_cross_entropy(LOGITS, jnp.eye(3), None, LABELS, **options).loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "median"}, "reduction: choose one of none, sum, mean, got 'median'"),
        ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\], got -0.1"),
        ({"label_smoothing": np.nan}, r"label_smoothing must lie in \[0, 1\], got nan"),
        ({"label_smoothing": np.zeros(4)}, r"label_smoothing must be a scalar, got shape \(4,\)"),
        ({"z_loss": np.zeros(1)}, r"z_loss must be a scalar, got shape \(1,\)"),
        ({"soft_cap": 0.0}, "soft_cap must be positive and finite, got 0.0"),
        ({"soft_cap": np.inf}, "soft_cap must be positive and finite, got inf"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": np.nan}, "temperature must be positive and finite, got nan"),
        ({"temperature": np.ones(4)}, r"temperature must be a scalar, got shape \(4,\)"),
        ({"class_weights": np.ones(4)}, r"class_weights of shape \(4,\) for 3 classes"),
        ({"ignore_id": 0.5}, "ignore_id: 0.5; expected a class id, an integer"),
        ({"weights": np.ones(3)}, r"weights of shape \(3,\) for \(4,\) examples"),
    ],
    ids=str,
)
@pytest.mark.parametrize("loss", [by_logits, by_head])
def test_bad_options_are_refused_alike(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)


@pytest.mark.parametrize("name", ["label_smoothing", "z_loss", "temperature"])
@pytest.mark.parametrize("loss", [by_logits, by_head])
def test_scalars_may_be_traced(loss, name):
    options = {name: jnp.float32(0.25), "reduction": "mean"}
    traced = jax.jit(lambda value: loss(**{**options, name: value}))(jnp.float32(0.25))
    np.testing.assert_allclose(traced, loss(**options), rtol=1e-6)
    np.testing.assert_allclose(traced, loss(**{**options, name: 0.25}), rtol=1e-6)
