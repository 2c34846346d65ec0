"""All of softmax_jax is imported such that its annotations are checked, on calls that return."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from softmax_jax import model, normalizer
from softmax_jax.model import Params
from softmax_jax.solvers.methods import line_search


@pytest.mark.parametrize("wrong", [np.zeros(3), jnp.zeros(3, jnp.int32)], ids=["NumPy", "integers"])
def test_arguments_that_are_not_as_annotated_are_found(wrong):
    with pytest.raises(jaxtyping.TypeCheckError, match=r"softmax_jax\.normalizer\.softmax"):
        normalizer.softmax(wrong)


def test_axes_of_one_name_have_one_size():
    with pytest.raises(jaxtyping.TypeCheckError, match=r"softmax_jax\.model\.committed"):
        model.committed(jnp.zeros(1, jnp.int32), jnp.ones(3), 0.5)


def test_a_call_that_refuses_its_arguments_has_its_own_error():
    with pytest.raises(ValueError, match="the last axis must hold"):
        model.logits(Params(jnp.zeros((2, 2)), jnp.zeros(2)), jnp.zeros((1, 3)))


def test_private_packages_are_checked_too():
    assert hasattr(line_search.search, "__wrapped__")
