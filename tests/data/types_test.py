import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import model
from softmax_jax.data import Data, features
from softmax_jax.data.types import for_stored
from softmax_jax.model import Params

UNITS = [
    (None, None),
    (0.5, None),
    (None, 3.0),
    (np.array([2.0, 0.5, 1.0]), np.array([1.0, 0, -3])),
]


@pytest.mark.parametrize(("scale", "shift"), UNITS)
def test_parameters_for_stored_features_give_the_same_logits(scale, shift):
    rng = np.random.default_rng(0)
    x, params = rng.normal(size=(5, 3)), Params(rng.normal(size=(3, 4)), rng.normal(size=4))
    stored = for_stored(params, scale, shift)
    with jax.enable_x64(True):
        seen = features(Data(jnp.asarray(x), jnp.zeros(5, int), scale=scale, shift=shift))
        np.testing.assert_allclose(
            x @ stored.w + stored.b, model.logits(params, seen), rtol=1e-12, atol=1e-12
        )


def test_stacked_parameters_are_for_stored_features_too():
    rng = np.random.default_rng(0)
    stacked = Params(rng.normal(size=(2, 6, 3, 4)), rng.normal(size=(2, 6, 4)))
    found = for_stored(stacked, *UNITS[-1])
    for at in np.ndindex(2, 6):
        one = for_stored(Params(stacked.w[at], stacked.b[at]), *UNITS[-1])
        np.testing.assert_array_equal(found.w[at], one.w)
        np.testing.assert_array_equal(found.b[at], one.b)


@pytest.mark.parametrize(("scale", "shift"), [([1.0, 2.0], None), (None, np.nan)])
def test_units_of_other_features_are_refused(scale, shift):
    with pytest.raises(ValueError, match="expected a finite number, or 3 of them"):
        for_stored(Params(np.ones((3, 2)), np.ones(2)), scale, shift)
