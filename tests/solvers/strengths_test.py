"""Automatic paths of strengths: the strongest against closed forms in NumPy, and what it means."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special

from softmax_jax import solvers


def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)) + 2, rng.integers(3, size=80)
    x[:, 0] += y
    return x, y


def at_zero(x, y, weights=None, offset=None, fit_intercept=True):
    """Loss and gradient ``[d, q]`` at W = 0 with the best bias, or none."""
    weights = np.ones(len(x)) if weights is None else weights
    s, offset = weights / weights.sum(), 0 if offset is None else offset
    y = np.eye(3)[y] if y.ndim == 1 else y

    def of_bias(b):
        o = offset + np.broadcast_to(b, y.shape)
        p = scipy.special.softmax(o, axis=1)
        loss = s @ (scipy.special.logsumexp(o, axis=1) - (y * o).sum(axis=1))
        return loss, s @ (p - y), p

    bias = np.zeros(3)
    if fit_intercept:
        options = {"jac": True, "method": "BFGS", "options": {"gtol": 1e-12}}
        bias = scipy.optimize.minimize(lambda b: of_bias(b)[:2], bias, **options).x
        # Where the line search of that ends, two steps of Newton's method go on to rounding.
        for _ in range(2):
            _, slope, p = of_bias(bias)
            bias = bias - np.linalg.pinv(np.diag(s @ p) - (s[:, None] * p).T @ p) @ slope
    loss, _, p = of_bias(bias)
    return loss, x.T @ (s[:, None] * (p - y))


def planned(**options):
    """The l2 and l1 that `fit_path` solves for; passes for the certificate alone are the fewest."""
    path = solvers.fit_path(**options, max_passes=1)
    return np.ravel(path.l2), np.ravel(path.l1)


INPUTS = {
    "ids": lambda x, y: {},
    "probabilities": lambda x, y: {"y": np.random.default_rng(1).dirichlet(np.ones(3), len(y))},
    "weights": lambda x, y: {"sample_weight": np.arange(80.0)},
    "an offset": lambda x, y: {"offset": np.random.default_rng(1).normal(size=(80, 3))},
    "no bias": lambda x, y: {"fit_intercept": False},
    "standardized": lambda x, y: {"standardize": True},
    "blocks": lambda x, y: {"block_size": 30},
    "sparse": lambda x, y: {"x": scipy.sparse.csr_array(x)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS)
def test_the_strongest_is_the_closed_form(kind):
    x, y = problem()
    given = {"x": x, "y": y} | INPUTS[kind](x, y)
    loss, g = at_zero(
        x,
        given["y"],
        given.get("sample_weight"),
        given.get("offset"),
        given.get("fit_intercept", True),
    )
    if "standardize" in given:
        g = g / x.std(axis=0)[:, None]
    l2, l1 = planned(**given, l2=0, l1="auto")
    assert l1[0] == pytest.approx(np.abs(g).max(), rel=1e-10)
    assert (l2 == 0).all()
    l2, l1 = planned(**given, l2=1e-2, l1="auto", grouped=True)
    assert l1[0] == pytest.approx(np.linalg.norm(g, axis=1).max(), rel=1e-10)
    assert (l2 == 1e-2).all()
    l2, l1 = planned(**given, l2="auto")
    assert l2[0] == pytest.approx(50 * (g**2).sum() / loss, rel=1e-7)
    assert (l1 == 0).all()


@pytest.mark.slow
def test_no_weight_is_of_use_at_the_strongest_l1_and_one_is_below_it():
    x, y = problem()
    for grouped in (False, True):
        path = solvers.fit_path(x, y, l2=0, l1="auto", grouped=grouped, tol=1e-6)
        assert (path.params.w[0] == 0).all()
        below = solvers.fit(x, y, l2=0, l1=0.99 * path.l1[0], grouped=grouped, tol=1e-9)
        assert (below.params.w != 0).any()
        # The conditions of Karush, Kuhn and Tucker there, in NumPy.
        w, b = below.params
        g = x.T @ (scipy.special.softmax(x @ w + b, axis=1) - np.eye(3)[y]) / len(y)
        used = w != 0
        slope = w / np.linalg.norm(w[used]) if grouped else np.sign(w)
        np.testing.assert_allclose(g[used], -0.99 * path.l1[0] * slope[used], rtol=1e-3)
        assert (np.linalg.norm(g, axis=1) if grouped else np.abs(g)).max() < path.l1[0]


def test_features_explain_a_hundredth_of_the_loss_at_most_at_the_strongest_l2():
    x, y = problem()
    path = solvers.fit_path(x, y, l2="auto")
    assert (path.status == solvers.Status.CERTIFIED).all()
    nothing = at_zero(x, y)[0]
    assert 0.99 * nothing <= path.objective[0] <= nothing
    # Not by much too strong either: the bound is close where weights are small.
    assert path.objective[0] < 0.995 * nothing


@pytest.mark.slow
def test_the_strongest_keeps_its_meaning_in_other_units():
    x, y = problem()
    for options, power in (({"l2": "auto"}, 2), ({"l2": 0, "l1": "auto"}, 1)):
        l2, l1 = planned(x=x, y=y, **options)
        for other in (
            {"x": 1000 * x},
            {"x": x, "scale": 1000},
            {"x": 1000 * x + 5, "shift": np.arange(5)},
        ):
            again = planned(**({"y": y} | other), **options)
            np.testing.assert_allclose(again, np.array([l2, l1]) * 1000**power, rtol=1e-9)


@pytest.mark.slow
def test_paths_are_even_and_end_at_a_share_of_their_start():
    x, y = problem()
    for options, which, share in (
        ({"l2": "auto"}, 0, 1e-7),
        ({"l2": 0, "l1": "auto"}, 1, 1e-3),
        ({"x": x[:4], "y": y[:4], "l2": 0, "l1": "auto"}, 1, 1e-2),
    ):
        path = planned(**({"x": x, "y": y} | options))[which]
        assert path.shape == (22,)
        np.testing.assert_allclose(path[1:] / path[:-1], share ** (1 / 21))


@pytest.mark.slow
def test_a_grid_of_numbers_and_a_path():
    x, y = problem()
    l2, l1 = planned(x=x, y=y, l2=[1e-2, 1e-1], l1="auto")
    np.testing.assert_array_equal(l2, np.repeat([1e-2, 1e-1], 22))
    np.testing.assert_array_equal(l1[:22], l1[22:])


@pytest.mark.slow
def test_weightings_share_the_path_of_the_largest():
    x, y = problem()
    weights = np.stack([np.arange(80) < 60, np.arange(80) >= 20]) * 1.0
    _, l1 = planned(x=x, y=y, l2=0, l1="auto", sample_weight=weights)
    largest = max(np.abs(at_zero(x, y, w)[1]).max() for w in weights)
    np.testing.assert_allclose(l1.reshape(2, 22)[:, 0], largest, rtol=2e-6)


@pytest.mark.slow
def test_cross_validation_of_a_path():
    x, y = problem()
    found = solvers.cross_validate(x, y, l2="auto", folds=3)
    assert found.l2.shape == found.loss.shape == (22,)
    np.testing.assert_array_equal(found.l2, found.path.l2)
    chosen = found.l2[found.best]
    again = solvers.cross_validate(x, y, l2=chosen, folds=3)
    assert again.loss == pytest.approx(found.loss[found.best], rel=1e-5)
    # The best is neither end.
    assert 0 < found.best[0] < 21


@pytest.mark.slow
def test_features_that_tell_nothing_have_a_path_too():
    x, y = np.ones((6, 2)), np.arange(6) % 2
    for options in ({"l2": "auto"}, {"l2": 0, "l1": "auto"}):
        path = solvers.fit_path(x, y, **options)
        assert (path.params.w == 0).all()
        np.testing.assert_allclose(path.objective, np.log(2))


@pytest.mark.slow
def test_solutions_know_their_strengths():
    x, y = problem()
    single = solvers.fit(x, y, l2=1e-2)
    assert (single.l2, single.l1) == (1e-2, 0)
    weights = np.stack([np.arange(80) < 60, np.ones(80)])
    path = solvers.fit_path(x, y, l2=[1e-2, 1e-3], sample_weight=weights)
    np.testing.assert_array_equal(path.l2, [[1e-2, 1e-3]] * 2)
    np.testing.assert_array_equal(path.l1, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"l2": "auto", "l1": "auto"}, "give numbers for one of them"),
        ({"l2": "automatic"}, "l2: automatic; expected finite numbers"),
        ({"l2": 0, "l1": "auto "}, "l1: auto ; expected finite numbers"),
        ({"l2": [1, "auto"]}, "l2: .* expected finite numbers"),
        ({"l2": None}, "l2: None; expected finite numbers"),
        ({"l2": -1}, "l2: -1; expected finite numbers, 0 or more"),
    ],
)
def test_what_is_no_strength(strengths, message):
    for door in (solvers.fit_path, solvers.cross_validate):
        with pytest.raises(ValueError, match=message):
            door(*problem(), **strengths)


@pytest.mark.parametrize("l2", ["auto", [1e-2], np.array([1e-2, 1e-3])])
def test_a_single_fit_has_a_single_strength(l2):
    with pytest.raises(ValueError, match=r"l2: .* expected a number; fit_path takes several"):
        solvers.fit(*problem(), l2=l2)


@pytest.mark.parametrize("weightings", [1, 3])
def test_a_path_of_a_small_problem_goes_on_from_its_neighbours(weightings):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(90, 4))
    y = np.argmax(x @ rng.normal(size=(4, 3)) + rng.gumbel(size=(90, 3)), axis=1)
    weights = rng.integers(1, 4, size=(weightings, 90))
    l2 = np.geomspace(1, 1e-5, 6)
    path = solvers.fit_path(x, y, l2=l2, sample_weight=weights, tol=1e-12)
    alone = [[solvers.fit(x, y, l2=s, sample_weight=w, tol=1e-12) for s in l2] for w in weights]
    np.testing.assert_allclose(
        path.objective, [[one.objective for one in row] for row in alone], rtol=1e-12
    )
    assert (path.passes <= [[one.passes + 1 for one in row] for row in alone]).all()
    assert path.passes.sum() < sum(one.passes for row in alone for one in row)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l2", "l1"])
def test_as_many_strengths_as_asked_for_down_to_the_weakest(name):
    x, y = problem()
    other = {"l1": {"l2": 0.0}, "l2": {}}[name]
    default = planned(x=x, y=y, **other, **{name: "auto"})[name == "l1"]
    path = planned(x=x, y=y, **other, **{name: "auto"}, strengths=5, weakest=0.01)[name == "l1"]
    np.testing.assert_allclose(path, default[0] * np.geomspace(1, 0.01, 5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strengths": 0}, "strengths: 0"),
        ({"strengths": 2.5}, "strengths: 2.5"),
        ({"weakest": 0.0}, "weakest: 0.0; expected a share between 0 and 1"),
        ({"weakest": 2.0}, "weakest: 2.0"),
    ],
    ids=str,
)
def test_a_path_of_no_strengths_is_refused(options, words):
    x, y = problem()
    with pytest.raises(ValueError, match=words):
        solvers.fit_path(x, y, l2="auto", **options)
