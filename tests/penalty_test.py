"""The penalty against NumPy in float64, and by what defines each of its maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax.penalty import Penalty

D, Q = 4, 3
STRENGTHS = [(0.7, 0.0), (0.0, 0.4), (0.7, 0.4)]
FACTORS = {"plain": None, "factors": np.array([0.5, 1.0, 2.0, 3.0])}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=FACTORS)
def factor(request):
    return FACTORS[request.param]


def penalty_of(l2, l1, factor, grouped):
    return Penalty(l2, l1, None if factor is None else jnp.asarray(factor), grouped)


def drawn(seed, scale=1.0):
    w = scale * np.random.default_rng(seed).normal(size=(D, Q))
    w[1] = 0
    w[2, 0] = 0
    return w


def in_numpy(w, l2, l1, factor, grouped):
    f = np.ones(D) if factor is None else factor
    sizes = np.linalg.norm(w, axis=1) if grouped else np.abs(w).sum(axis=1)
    return np.sum(l2 / 2 * f**2 * (w**2).sum(axis=1) + l1 * f * sizes)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("l2", "l1"), STRENGTHS)
def test_value_and_gradient(l2, l1, factor, grouped):
    w = drawn(0)
    penalty = penalty_of(l2, l1, factor, grouped)
    expected = in_numpy(w, l2, l1, factor, grouped)
    assert float(penalty.value(jnp.asarray(w))) == pytest.approx(expected, rel=1e-14)
    squared = in_numpy(w, l2, 0.0, factor, grouped)
    assert float(penalty.smooth_value(jnp.asarray(w))) == pytest.approx(squared, rel=1e-14)
    gradient = jax.grad(penalty.smooth_value)(jnp.asarray(w))
    np.testing.assert_allclose(penalty.gradient(jnp.asarray(w)), gradient, rtol=1e-14)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_subgradient_of_the_absolute_part(factor, grouped):
    w = drawn(0)
    penalty = penalty_of(0.0, 0.4, factor, grouped)
    f = np.ones(D) if factor is None else factor
    sizes = np.linalg.norm(w, axis=1, keepdims=True) if grouped else np.abs(w)
    expected = 0.4 * f[:, None] * w / np.where(sizes > 0, sizes, 1)
    np.testing.assert_allclose(penalty.subgradient(jnp.asarray(w)), expected, rtol=1e-14)


@pytest.mark.parametrize("grouped", [False, True])
def test_numpy_arrays_stay_in_numpy(grouped, count_compilations):
    w = drawn(0)
    assert count_compilations(lambda: Penalty(0.7, 0.4, grouped=grouped).value(w)) == 0
    value = Penalty(0.7, 0.4, grouped=grouped).value(w)
    assert value.dtype == np.float64
    assert value == pytest.approx(in_numpy(w, 0.7, 0.4, None, grouped), rel=1e-14)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("l2", "l1"), STRENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_the_proximal_map_is_the_minimiser(l2, l1, factor, grouped, seed):
    v, strength = drawn(seed), 1.0 + np.arange(D)[:, None]
    penalty = penalty_of(l2, l1, factor, grouped)
    w = np.asarray(penalty.prox(jnp.asarray(v), strength))

    def objective(w):
        return np.sum(strength / 2 * (w - v) ** 2) + in_numpy(w, l2, l1, factor, grouped)

    rng = np.random.default_rng(seed)
    for size in (1.0, 1e-2, 1e-4):
        for _ in range(30):
            assert objective(w) <= objective(w + size * rng.normal(size=w.shape))
    # There, strength (v - w) is a subgradient; a little less of it is one for certain.
    g = -strength * (v - w) * (1 - 1e-12)
    distance = float(penalty.fenchel_young(jnp.asarray(w), jnp.asarray(g)))
    assert distance == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_conjugate_is_the_largest_difference(factor, grouped):
    l2, l1 = 0.7, 0.4
    penalty, g = penalty_of(l2, l1, factor, grouped), drawn(5)
    w = penalty.prox(jnp.asarray(g) / 1e-9, 1e-9)  # all but the maximiser of <g, w> - penalty(w)
    reached = np.sum(g * np.asarray(w)) - in_numpy(np.asarray(w), l2, l1, factor, grouped)
    assert float(penalty.conjugate(jnp.asarray(g))) == pytest.approx(reached, rel=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("l2", "l1"), STRENGTHS)
def test_the_distance_of_fenchel_and_young_is_never_negative(l2, l1, factor, grouped):
    penalty = penalty_of(l2, l1, factor, grouped)
    for seed in range(20):
        w, g = jnp.asarray(drawn(seed)), jnp.asarray(drawn(seed + 100, 10.0 ** (seed % 5 - 3)))
        distance = float(penalty.fenchel_young(w, g))
        assert distance >= 0
        if np.isfinite(distance):
            direct = penalty.value(w) + jnp.sum(w * g) + penalty.conjugate(-g)
            assert distance == pytest.approx(float(direct), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_without_the_squared_part_the_conjugate_is_finite_within_the_dual_ball(factor, grouped):
    penalty, g = penalty_of(0.0, 0.4, factor, grouped), jnp.asarray(drawn(1))
    norm = float(penalty.dual_norm(g))
    assert float(penalty.dual_norm(3 * g)) == pytest.approx(3 * norm)
    assert float(penalty.conjugate(g / norm * (1 - 1e-9))) == 0
    assert float(penalty.conjugate(g / norm * (1 + 1e-9))) == np.inf
    # No subgradient of the absolute part is longer.
    w = jnp.asarray(drawn(2))
    assert float(jnp.sum(w * g)) <= norm * float(penalty.value(w))


def test_the_dual_norm_without_an_absolute_part():
    assert Penalty(1.0).dual_norm(jnp.ones((D, Q))) == jnp.inf
    assert Penalty(1.0).dual_norm(jnp.zeros((D, Q))) == 0


def test_inner_products(factor):
    penalty = penalty_of(0.7, 0.0, factor, False)
    a, b = jnp.asarray(drawn(0)), jnp.asarray(drawn(1))
    np.testing.assert_allclose(penalty.smooth_inner(a, b), jnp.sum(penalty.gradient(a) * b))
    np.testing.assert_allclose(penalty.dual_inner(penalty.gradient(a), b), jnp.sum(a * b))
    np.testing.assert_allclose(penalty.dual_inner(a, a) / 2, penalty.conjugate(a), rtol=1e-12)
    assert Penalty(0.0).dual_inner(a, b) == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_stacked_problems_with_the_classes_first_are_as_single_ones(grouped):
    factor, strengths = FACTORS["factors"], np.array(STRENGTHS)
    stacked = Penalty(
        jnp.asarray(strengths[:, 0]),
        jnp.asarray(strengths[:, 1]),
        jnp.asarray(factor),
        grouped,
        class_axis=-2,
    )
    w = np.stack([drawn(seed) for seed in range(3)])
    g = np.stack([0.1 * drawn(seed + 10) for seed in range(3)])
    first, second = (jnp.asarray(a.swapaxes(1, 2)) for a in (w, g))
    for i, (l2, l1) in enumerate(STRENGTHS):
        one = penalty_of(l2, l1, factor, grouped)
        for name, alone, both in (
            ("value", (w[i],), (first,)),
            ("conjugate", (g[i],), (second,)),
            ("dual_norm", (g[i],), (second,)),
            ("fenchel_young", (w[i], g[i]), (first, second)),
        ):
            expected = getattr(one, name)(*map(jnp.asarray, alone))
            np.testing.assert_allclose(getattr(stacked, name)(*both)[i], expected, rtol=1e-13)
        prox = stacked.prox(first, 2.0)[i].T
        np.testing.assert_allclose(prox, one.prox(jnp.asarray(w[i]), 2.0), rtol=1e-13)


def test_a_new_strength_compiles_nothing(count_compilations):
    value = jax.jit(lambda penalty, w: penalty.value(w))
    w = jnp.asarray(drawn(0))
    value(Penalty(jnp.float64(1.0), jnp.float64(0.5)), w)
    again = Penalty(jnp.float64(2.0), jnp.float64(0.1))
    assert count_compilations(lambda: value(again, w)) == 0


def single_weights(seed, strengths):
    """A penalty with factors and limits of single weights, and these."""
    rng = np.random.default_rng(seed)
    relative = rng.choice([0.5, 1.0, 2.0], size=(D, Q))
    lower = np.where(rng.random((D, Q)) < 0.5, -np.inf, -0.5 * rng.random((D, Q)))
    upper = np.where(rng.random((D, Q)) < 0.5, np.inf, 0.5 * rng.random((D, Q)))
    factor = FACTORS["factors"]
    penalty = Penalty(*strengths, jnp.asarray(factor), relative=relative, lower=lower, upper=upper)

    def value(w):
        f = factor[:, None]
        return relative * (strengths[0] / 2 * (f * w) ** 2 + strengths[1] * f * np.abs(w))

    return penalty, value, lower, upper


@pytest.mark.parametrize("strengths", STRENGTHS)
@pytest.mark.parametrize("seed", range(3))
def test_single_weights_on_a_fine_grid(strengths, seed):
    penalty, value, lower, upper = single_weights(seed, strengths)
    v, g = drawn(seed), np.random.default_rng(seed).normal(size=(D, Q))
    kept = np.clip(v, lower, upper)
    assert float(penalty.value(jnp.asarray(kept))) == pytest.approx(value(kept).sum(), rel=1e-14)

    grid = np.linspace(-40, 40, 400_001)[:, None, None]
    allowed = (grid >= lower) & (grid <= upper)
    terms = np.where(allowed, grid * g - value(grid), -np.inf)
    is_finite = np.abs(grid[terms.argmax(axis=0), 0, 0]) < 40  # others rise up to its end
    terms = terms.max(axis=0)
    each = np.eye(D * Q).reshape(-1, D, Q) * g
    ours = np.array([float(penalty.conjugate(jnp.asarray(one))) for one in each]).reshape(D, Q)
    np.testing.assert_allclose(ours[is_finite], terms[is_finite], atol=1e-3)
    assert (ours[~is_finite] >= terms[~is_finite] - 1e-3).all()

    w = np.asarray(penalty.prox(jnp.asarray(v), 1.5))
    reached = 0.75 * (w - v) ** 2 + value(w)
    best = np.where(allowed, 0.75 * (grid - v) ** 2 + value(grid), np.inf).min(axis=0)
    assert (w >= lower).all()
    assert (w <= upper).all()
    assert (reached <= best + 1e-12).all()
    distance = float(penalty.fenchel_young(jnp.asarray(kept), jnp.asarray(g)))
    assert distance >= 0


def test_limits_leave_the_dual_ball_open_to_their_side():
    g = jnp.asarray([[0.9, -0.2]])
    assert float(Penalty(0.0, 0.1).dual_norm(g)) == pytest.approx(9)
    bounded = Penalty(0.0, 0.1, upper=jnp.ones((1, 2)))
    assert float(bounded.dual_norm(g)) == pytest.approx(2)
    assert float(bounded.conjugate(g / 2)) == pytest.approx(0.9 / 2 - 0.1)


def test_weights_that_have_to_have_no_gradient():
    w, g = jnp.asarray([[0.0, 0.3, 0.0, 0.0]]), jnp.asarray([[1.0, 1.0, 1.0, -1.0]])
    assert Penalty(1.0).is_free(w, g) is None
    free = Penalty(1.0, relative=jnp.asarray([[0.0, 0.0, 1.0, 0.0]]))
    assert free.is_free(w, g).tolist() == [[True, True, False, True]]
    positive = Penalty(1.0, relative=jnp.asarray([[0.0]]), lower=jnp.zeros((1, 1)))
    # The first cannot fall, and the others can: the second, which is above zero, and the last.
    assert positive.is_free(w, g).tolist() == [[False, True, False, True]]
