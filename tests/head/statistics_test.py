"""Statistics that the library does not know, given as extras."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from softmax_jax import head, losses, model
from softmax_jax.head import linear_cross_entropy
from softmax_jax.model import Params


def logits_of(tile):
    return tile.unscaled * tile.scale


SECOND_MOMENT = head.Statistic(
    name="second_moment",
    empty=jnp.zeros,
    of_tile=lambda tile: jnp.sum(tile.p * logits_of(tile) ** 2, axis=1),
    merge=lambda a, b, part_a, part_b: part_a.shrink * a + part_b.shrink * b,
    finish=lambda state, whole: state / whole.total,
    value=lambda saved, normalizer: saved,
    factor=lambda tile, saved, cotangent: (
        cotangent[:, None] * (logits_of(tile) ** 2 - saved[:, None] + 2 * logits_of(tile))
    ),
)
# Mean squared distance below the largest logit, which must be known first, and the number of logits
# less than 1 below it; a value of two arrays, constant to derivatives.
NEAR_THE_MODE = head.Statistic(
    name="near_the_mode",
    empty=lambda size, dtype: (),
    of_tile=lambda tile: (),
    merge=lambda a, b, part_a, part_b: (),
    again=lambda tile, state: {
        "mean": jnp.sum(tile.p * tile.gap**2, axis=1),
        "count": jnp.sum(tile.gap < 1, axis=1, dtype=jnp.int32),
    },
    finish=lambda state, whole: state[1],
    value=lambda saved, normalizer: saved,
)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["recompute", "fused"])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_statistic_of_ones_own(small, strategy, classes):
    x, w, b, labels = small

    def ours(w):
        out = linear_cross_entropy(
            x, w, b, labels, extras=["entropy", SECOND_MOMENT, NEAR_THE_MODE], soft_cap=3.0,
            temperature=0.7, strategy=strategy, block_classes=classes, block_rows=4,
        )  # fmt: skip
        return out.loss, out.entropy, out.others["second_moment"]

    def expected(w):
        o = 3 * jnp.tanh(model.logits(Params(w, b), x) / 3) / 0.7
        p = jax.nn.softmax(o)
        entropy = -jnp.sum(p * jnp.log(p), axis=1)
        return losses.cross_entropy(o, labels), entropy, jnp.sum(p * o**2, axis=1)

    cotangents = tuple(jax.random.normal(jax.random.key(i), (6,)) for i in range(3))
    for of in (
        lambda f: f(w),
        lambda f: jax.vjp(f, w)[1](cotangents),
        lambda f: jax.jvp(jax.grad(lambda w: jnp.sum(jnp.sin(f(w)[2]))), (w,), (jnp.cos(w),))[1],
    ):
        for actual, exact in zip(*map(jax.tree.leaves, (of(ours), of(expected))), strict=True):
            np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-5)

    o = np.asarray(model.logits(Params(w, b), x))
    out = linear_cross_entropy(
        x, w, b, labels, extras=[NEAR_THE_MODE, NEAR_THE_MODE], block_classes=classes
    )
    gap = o.max(axis=1, keepdims=True) - o
    near = out.others["near_the_mode"]
    np.testing.assert_array_equal(near["count"], (gap < 1).sum(axis=1))
    p = scipy.special.softmax(o, axis=1)
    np.testing.assert_allclose(near["mean"], (p * gap**2).sum(axis=1), rtol=1e-5, atol=1e-6)


def test_the_second_call_with_a_statistic_of_ones_own_compiles_nothing(small, count_compilations):
    def run():
        return linear_cross_entropy(*small, extras=[SECOND_MOMENT, "top_k"], k=2).loss

    assert count_compilations(run) > 0
    assert count_compilations(run) == 0


@pytest.mark.parametrize("name", ["entropy", "spread", "top"])
def test_a_statistic_needs_a_name_of_its_own(small, name):
    own = SECOND_MOMENT._replace(name=name)
    with pytest.raises(ValueError, match=f"'{name}' is the name of another statistic"):
        linear_cross_entropy(*small, extras=[own])
    others = [SECOND_MOMENT, NEAR_THE_MODE._replace(name="second_moment")]
    with pytest.raises(ValueError, match="'second_moment' is the name of another statistic"):
        linear_cross_entropy(*small, extras=others)


def test_an_entry_of_the_table_is_asked_for_by_its_name(small, monkeypatch):
    own = SECOND_MOMENT._replace(name="named")
    monkeypatch.setitem(head.table.TABLE, "named", lambda k: own)
    named = linear_cross_entropy(*small, extras=["entropy", "named"])
    given = linear_cross_entropy(*small, extras=["entropy", SECOND_MOMENT])
    assert named.others.keys() == {"named"}
    np.testing.assert_array_equal(named.others["named"], given.others["second_moment"])
    np.testing.assert_array_equal(named.entropy, given.entropy)
