"""Fixtures that tests of the head share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(6, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    x, w, b = (jnp.asarray(a, jnp.float32) for a in (x, w, b))
    return x, w, b, jnp.asarray(rng.integers(5, size=6))


@pytest.fixture
def temporary_memory():
    """A function that returns the temporary bytes of another, compiled for ``(shape, dtype)``s."""

    def measured(function, *shapes):
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return measured
