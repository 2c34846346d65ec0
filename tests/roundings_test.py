"""Logits that XLA forms more than once, and rounds otherwise each time.

Without optimisations its CPU backend keeps ``a s + b`` as one rounding or as two, by the loop that
it is in. Backends that fuse more, as those of accelerators do, may do so at any level.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from softmax_jax import cross_entropy, head, metrics, model, normalizer

pytestmark = pytest.mark.exact

FORMED = {
    "product and sum": lambda o, s: o * s + 1.3,
    "capped": lambda o, s: 3 * jnp.tanh(o * s / 3 + 0.1),
}
unoptimized = {"xla_backend_optimization_level": 0}


def case(shape):
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(shape[-1], size=shape[:-1]))
    return jnp.asarray(rng.normal(size=shape), jnp.float32), labels, jnp.float32(1.7)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(64, 3), (64, 10), (7, 1000)], ids=str)
@pytest.mark.parametrize("formed", FORMED.values(), ids=FORMED)
def test_losses_of_logits_formed_beside_them(shape, formed):
    o, labels, s = case(shape)

    def values(o):
        o = formed(o, s)
        p, below, r = normalizer.softmax_and_normalizer(o)
        measured = metrics.measure(o, labels)
        return cross_entropy(o, labels), model.confidence(o), p, below, r, measured

    def losses(o):
        return jnp.sum(cross_entropy(formed(o, s), labels))

    loss, confidence, p, below, r, measured = jax.jit(values, compiler_options=unoptimized)(o)
    logits = np.asarray(formed(o, s), np.float64)
    exact = scipy.special.log_softmax(logits, axis=-1)
    each, own = np.arange(len(labels)), np.asarray(labels)
    np.testing.assert_allclose(loss, -exact[each, own], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(confidence, np.exp(exact.max(axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(p, np.exp(exact), rtol=1e-5)
    np.testing.assert_allclose(below - np.asarray(r)[:, None], exact, rtol=1e-5, atol=1e-6)
    assert float(measured.correct) == np.sum(logits.argmax(axis=-1) == own)
    gradient = jax.jit(jax.grad(losses), compiler_options=unoptimized)(o)
    np.testing.assert_allclose(gradient, jax.grad(losses)(o), atol=1e-5)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_a_target_is_never_before_itself(soft_cap):
    labels = case((7, 1000))[1]
    rng = np.random.default_rng(1)
    x, w, b = (rng.normal(size=size).astype(np.float32) for size in ((7, 5), (5, 1000), (1000,)))

    def ranks(x):
        options = {"soft_cap": soft_cap, "block_rows": 8, "block_classes": 4}
        return head.linear_cross_entropy(x * 1.3 + 0.1, w, b, labels, extras=("rank",), **options)

    logits = (x * 1.3 + 0.1).astype(np.float64) @ w + b
    own = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=1)
    found = jax.jit(ranks, compiler_options=unoptimized)(x).rank
    np.testing.assert_array_equal(found, np.sum(logits > own, axis=1))


@pytest.mark.slow
def test_fits_without_optimisations_of_xla():
    code = """
from sklearn.datasets import load_iris
from softmax_jax import solvers
x, y = load_iris(return_X_y=True)
print(*(solvers.fit(x, y, l2=l2).status for l2 in (0.1, 1e-3)))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == "certified certified\n"
