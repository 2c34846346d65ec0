"""Paths with l1 > 0, walked in one program by Newton's method in the orthant."""

import numpy as np
import pytest
import scipy.sparse

from softmax_jax import solvers
from softmax_jax.solvers import OrthantNewton, Proximal

CERTIFIED = solvers.Status.CERTIFIED


def problem(n=150, d=6, q=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    w = rng.normal(size=(d, q)) * (rng.random((d, 1)) < 0.5)
    y = np.argmax(x @ w + rng.gumbel(size=(n, q)), axis=1)
    y[:q] = np.arange(q)
    return x, y


def strengths(x, y, number, ratio):
    q = y.max() + 1
    share = np.bincount(y, minlength=q) / len(y)
    g = (x - x.mean(axis=0)).T @ (share - np.eye(q)[y]) / len(y)
    return np.abs(g).max() * np.geomspace(1, ratio, number)


def assert_equally_good(ours, theirs):
    assert (ours.status == CERTIFIED).all()
    assert (theirs.status == CERTIFIED).all()
    # Neither is below what the other proves to be the least.
    assert (ours.objective >= theirs.objective - theirs.gap - 1e-12).all()
    assert (theirs.objective >= ours.objective - ours.gap - 1e-12).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"l2": 0.01}, marks=pytest.mark.slow),
        pytest.param({"fit_intercept": False}, marks=pytest.mark.slow),
        pytest.param({"standardize": True}, marks=pytest.mark.slow),
        pytest.param(
            {"offset": np.random.default_rng(1).normal(size=(150, 4))}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"sample_weight": np.random.default_rng(2).integers(0, 3, size=150)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"sample_weight": 1.0 * (np.arange(150) % 3 != np.arange(3)[:, None])},
            marks=pytest.mark.slow,
        ),
        pytest.param({"block_size": 40}, marks=pytest.mark.slow),
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_a_path_is_as_good_as_that_of_proximal_gradients(options):
    x, y = problem()
    options = {"l2": 0.0, "l1": strengths(x, y, 12, 1e-2), "tol": 1e-5} | options
    ours = solvers.fit_path(x, y, **options)
    assert type(ours.plan.flat[-1].method) is OrthantNewton
    theirs = solvers.fit_path(x, y, **options, l1_method=Proximal())
    assert_equally_good(ours, theirs)


@pytest.mark.slow
def test_correlated_columns_take_a_fraction_of_the_passes_of_proximal_gradients():
    # Columns that are nearly dependent, and weak penalties, are hard for gradients.
    x, y = problem(n=300)
    x = x + 3 * x[:, :1]
    options = {"l2": 0.0, "l1": strengths(x, y, 20, 1e-3), "tol": 1e-3}
    ours = solvers.fit_path(x, y, **options)
    theirs = solvers.fit_path(x, y, **options, l1_method=Proximal(newton=None))
    assert_equally_good(ours, theirs)
    assert 3 * ours.passes.sum() < theirs.passes.sum(), (ours.passes.sum(), theirs.passes.sum())


@pytest.mark.slow
def test_probabilities_as_targets():
    x, y = problem()
    soft = 0.9 * np.eye(4)[y] + 0.025
    options = {"l2": 0.0, "l1": [0.05, 0.01]}
    ours = solvers.fit_path(x, soft, **options)
    assert_equally_good(ours, solvers.fit_path(x, soft, **options, l1_method=Proximal()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_same_weights_are_zero_as_at_the_minimum(seed):
    rng = np.random.default_rng(seed)
    x, y = problem(n=80, d=10, q=3, seed=seed)
    if seed % 2:
        x = x * 10.0 ** rng.uniform(-3, 3, size=10)
    l1 = strengths(x / x.std(axis=0), y, 5, 0.05)[1:]
    options = {"l2": 0.0, "l1": l1, "standardize": True, "tol": 1e-10}
    ours = solvers.fit_path(x, y, **options)
    theirs = solvers.fit_path(x, y, **options, l1_method="proximal-newton")
    assert_equally_good(ours, theirs)
    size = x.std(axis=0)[:, None]
    np.testing.assert_allclose(ours.params.w * size, theirs.params.w * size, atol=2e-4)
    # Where the gap decides it.
    clear = np.abs(theirs.params.w * size) > 1e-3
    assert (ours.params.w[clear] != 0).all()
    assert ((ours.params.w == 0) == (theirs.params.w == 0)).mean() > 0.98


@pytest.mark.slow
def test_two_copies_of_a_column_and_a_constant_one():
    x, y = problem()
    x = np.concatenate([x, x[:, :1], np.full((len(x), 1), 3.0)], axis=1)
    solution = solvers.fit_path(x, y, l2=0.0, l1=[0.05, 0.01, 0.002])
    plain = solvers.fit_path(x[:, :6], y, l2=0.0, l1=[0.05, 0.01, 0.002])
    assert_equally_good(solution, plain)
    assert (solution.params.w[:, -1] == 0).all()


@pytest.mark.slow
def test_more_features_than_rows_are_solved_on_some_of_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 900))
    y = np.argmax(x[:, :3] * 2 + rng.gumbel(size=(60, 3)), axis=1)
    l1 = strengths(x, y, 10, 0.1)
    ours = solvers.fit_path(x, y, l2=0.0, l1=l1)
    theirs = solvers.fit_path(x, y, l2=0.0, l1=l1, l1_method=Proximal())
    assert_equally_good(ours, theirs)
    number = np.any(ours.params.w != 0, axis=2).sum(axis=1)
    assert number[0] == 0
    assert 3 <= number[-1] < 60


@pytest.mark.slow
def test_a_weak_strength_alone_is_approached_from_strong_ones():
    x, y = problem()
    (l1,) = strengths(x, y, 2, 1e-3)[1:]
    alone = solvers.fit(x, y, l2=0.0, l1=l1)
    path = solvers.fit_path(x, y, l2=0.0, l1=strengths(x, y, 8, 1e-3))
    assert alone.status == CERTIFIED
    assert alone.objective >= path.objective[-1] - path.gap[-1]
    again = solvers.fit(x, y, l2=0.0, l1=l1, initial=alone.params)
    assert again.status == CERTIFIED
    assert again.passes < alone.passes


@pytest.mark.slow
def test_what_float32_leaves_is_walked_in_float64():
    x, y = problem(n=400)
    l1 = strengths(x, y, 6, 1e-2)
    method = OrthantNewton(float64_below=0, most_in_float32=1, fallback=None)
    solution = solvers.fit_path(x, y, l2=0.0, l1=l1, l1_method=method)
    assert (solution.status == CERTIFIED).all()
    types = [plan.dtype for plan in solution.plan]
    assert "float64" in types
    # Once it does not suffice, it does not for weaker strengths.
    assert types == sorted(types)


@pytest.mark.parametrize(
    "most", [1, 2, 3, *(pytest.param(most, marks=pytest.mark.slow) for most in (7, 12, 30))]
)
def test_no_more_passes_are_taken_than_allowed(most):
    x, y = problem()
    x = np.concatenate([x, x + 0.1 * x[::-1]], axis=1)
    path = solvers.fit_path(x, y, l2=0.0, l1=strengths(x, y, 4, 1e-3), max_passes=most)
    assert (path.passes <= most).all()
    assert (path.objective >= path.gap - 1e-12).all()
    uncertified = path.status != CERTIFIED
    assert all("pass" in reason for reason in path.reason[uncertified])


@pytest.mark.slow
def test_blocks_and_diagonals_precondition_to_the_same_end():
    x, y = problem()
    l1 = strengths(x, y, 6, 1e-3)
    blocks = solvers.fit_path(x, y, l2=0.0, l1=l1, l1_method=OrthantNewton())
    diagonals = OrthantNewton(steps_for_blocks=0)
    assert_equally_good(blocks, solvers.fit_path(x, y, l2=0.0, l1=l1, l1_method=diagonals))


@pytest.mark.slow
def test_sparse_rows():
    scipy = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    x = scipy.random(2000, 1500, density=0.01, random_state=0, format="csr")
    y = np.argmax(x[:, :3].toarray() * 9 + rng.gumbel(size=(2000, 3)) / 3, axis=1)
    l1 = strengths(x.toarray(), y, 4, 0.2)
    ours = solvers.fit_path(x, y, l2=0.0, l1=l1)
    assert_equally_good(ours, solvers.fit_path(x, y, l2=0.0, l1=l1, l1_method=Proximal()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"l2": 0.01, "standardize": True},
        {"fit_intercept": False},
        {"penalty_factor": np.array([0, 1, 2, 1, 0.5, np.inf])},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("sparse", [False, True])
def test_groups_leave_zero_as_a_whole(options, sparse):
    x, y = problem()
    given = scipy.sparse.csr_array(x) if sparse else x
    options = {"l2": 0.0, "grouped": True} | options
    path = solvers.fit_path(given, y, l1="auto", strengths=15, **options)
    theirs = solvers.fit_path(x, y, l1=path.l1, l1_method=Proximal(), **options)
    assert_equally_good(path, theirs)
    assert {type(plan.method) for plan in path.plan} == {OrthantNewton}
    kept = (path.params.w != 0).any(axis=-1)
    assert (kept == (path.params.w != 0).all(axis=-1)).all()
    counts = np.arange(6) if "penalty_factor" not in options else np.array([1, 2, 3, 4, 5])
    assert not kept[0, counts].any()
    assert kept[-1].sum() > kept[1].sum()


@pytest.mark.slow
def test_groups_of_more_features_than_rows():
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(60, 700)), np.zeros((700, 3))
    w[:10] = rng.normal(size=(10, 3))
    y = np.argmax(x @ w + rng.gumbel(size=(60, 3)), axis=1)
    path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=10, grouped=True)
    assert_equally_good(
        path, solvers.fit_path(x, y, l2=0.0, l1=path.l1, grouped=True, l1_method=Proximal())
    )


def test_the_callback_hears_of_each_part_of_a_path():
    x, y = problem()
    heard = []
    solvers.fit_path(x, y, l2=0.0, l1=strengths(x, y, 12, 1e-2), callback=heard.append)
    assert heard[-1].solved == heard[-1].problems == 12
    assert heard[-1].relative_gap <= 1e-4
