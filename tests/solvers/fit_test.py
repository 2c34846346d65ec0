"""`fit` and `fit_path`: against other solvers and one another, and what users may hand them."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression

from softmax_jax import conventions, losses, solvers
from softmax_jax.model import Params

METHODS = ["quasi-newton", "lbfgs"]
FLOAT32 = solvers.QuasiNewton(float64_below=0)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x.astype(np.uint8), y


def objective(params, x, y, **options):
    """Ours in float64, by way of `losses`."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        options = {name: jnp.asarray(value) for name, value in options.items()}
        return float(losses.objective(params, jnp.asarray(x), jnp.asarray(y), **options))


@pytest.mark.parametrize("method", METHODS)
def test_the_solution_is_that_of_scikit_learn(iris, method):
    x, y = iris
    # Half of the digits of the objective are digits of the weights.
    tol = {"quasi-newton": 1e-11, "lbfgs": 1e-9}[method]
    solution = solvers.fit(x, y, l2=1e-2, tol=tol, method=method)
    theirs = LogisticRegression(
        **conventions.to_sklearn(l2=1e-2, total_weight=len(x)), tol=1e-12, solver="newton-cg"
    ).fit(x, y)
    np.testing.assert_allclose(solution.params.w, theirs.coef_.T, atol=20 * tol**0.5)
    intercept = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose(solution.params.b, intercept, atol=50 * tol**0.5)
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.reason == ""
    assert solution.objective == pytest.approx(objective(solution.params, x, y, l2=1e-2), rel=1e-13)


@pytest.mark.slow
def test_float32_work_is_certified_and_continued_in_float64_where_needed(digits):
    x, y = digits
    exact = solvers.fit(x, y, l2=1e-3, scale=1 / 16, tol=1e-13)
    for tol in (1e-3, 1e-11):
        solution = solvers.fit(x, y, l2=1e-3, scale=1 / 16, tol=tol, method=FLOAT32)
        assert solution.status == solvers.Status.CERTIFIED
        assert -1e-13 <= solution.objective - exact.objective <= solution.gap
        assert solution.relative_gap <= tol


STORED = {
    "blocks": lambda x: (x, dict(block_size=100)),
    "a prime number of rows a block": lambda x: (x, dict(block_size=887)),
    "one block": lambda x: (x, dict(block_size=10**9)),
    "float64": lambda x: (x.astype(np.float64), {}),
    "bfloat16": lambda x: (x.astype(ml_dtypes.bfloat16), {}),
    "a JAX array": lambda x: (jnp.asarray(x), {}),
    "sparse": lambda x: (scipy.sparse.csr_array(x), {}),
    "sparse in blocks": lambda x: (scipy.sparse.coo_matrix(x), dict(block_size=500)),
}
# Each compiles anew.
LESS_LIKELY = ("blocks", "one block", "float64", "sparse")


@pytest.fixture(scope="module")
def reference(digits):
    x, y = digits
    return solvers.fit(x, y, l2=1e-3, scale=1 / 16, shift=-0.5, tol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [pytest.param(w, marks=[pytest.mark.slow] if w in LESS_LIKELY else []) for w in STORED],
)
def test_blocks_and_storage_change_nothing_but_rounding(digits, reference, way):
    x, y = digits
    stored, options = STORED[way](x)
    solution = solvers.fit(stored, y, l2=1e-3, scale=1 / 16, shift=-0.5, tol=1e-12, **options)
    assert solution.objective == pytest.approx(reference.objective, rel=1e-12)
    np.testing.assert_allclose(solution.params.w, reference.params.w, atol=1e-5)
    np.testing.assert_allclose(solution.params.b, reference.params.b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3])
def test_a_path_is_as_single_fits_within_the_gaps(digits, slots):
    x, y = digits
    l2 = np.array([[1e-1, 1e-2, 1e-3], [1e-4, 1e-5, 1e-6]])
    path = solvers.fit_path(x, y, l2=l2, scale=1 / 16, tol=1e-4, slots=slots)
    assert path.params.w.shape == (2, 3, 64, 10)
    assert path.params.b.shape == (2, 3, 10)
    assert path.history.shape == path.objective.shape == (2, 3)
    for at in np.ndindex(l2.shape):
        single = solvers.fit(x, y, l2=l2[at], scale=1 / 16, tol=1e-4)
        difference = path.objective[at] - single.objective
        assert -single.gap <= difference <= path.gap[at]
        assert path.status[at] == single.status == solvers.Status.CERTIFIED


@pytest.mark.slow
def test_weightings_share_passes(iris):
    x, y = iris
    weights = np.random.default_rng(0).integers(0, 3, size=(5, len(x))).astype(float)
    path = solvers.fit_path(x, y, l2=[1e-1, 1e-3], sample_weight=weights, tol=1e-9)
    assert path.objective.shape == (5, 2)
    for m, weight in enumerate(weights):
        single = solvers.fit(x, y, l2=1e-3, sample_weight=weight, tol=1e-9)
        assert path.objective[m, 1] == pytest.approx(single.objective, rel=2e-9)
    # A weight of two is a row that is there twice.
    repeated = np.repeat(np.arange(len(x)), weight.astype(int))
    expanded = solvers.fit(x[repeated], y[repeated], l2=1e-3, tol=1e-9)
    assert path.objective[-1, 1] == pytest.approx(expanded.objective, rel=2e-9)


@pytest.mark.slow
def test_class_weights(iris):
    x, y = iris
    x, y = x[25:], y[25:]
    balanced = solvers.fit(x, y, l2=1e-2, class_weight="balanced", tol=1e-10)
    factors = len(y) / (3 * np.bincount(y))
    for same in (
        solvers.fit(x, y, l2=1e-2, class_weight=factors, tol=1e-10),
        solvers.fit(x, y, l2=1e-2, sample_weight=factors[y], tol=1e-10),
        solvers.fit(x, np.eye(3)[y], l2=1e-2, class_weight="balanced", tol=1e-10),
    ):
        assert same.objective == pytest.approx(balanced.objective, rel=1e-9)


@pytest.mark.slow
def test_offsets_and_a_start(iris):
    x, y = iris
    first = solvers.fit(x[:, :2], y, l2=1e-2, tol=1e-10)
    offset = x[:, :2] @ first.params.w
    solution = solvers.fit(x[:, 2:], y, l2=1e-2, offset=offset, tol=1e-10)
    with jax.enable_x64(True):
        o = x[:, 2:] @ solution.params.w + solution.params.b + offset
        loss = losses.weighted_mean(losses.cross_entropy(jnp.asarray(o), jnp.asarray(y)))
        value = float(loss) + 0.005 * (solution.params.w**2).sum()
    assert solution.objective == pytest.approx(value, rel=1e-12)
    again = solvers.fit(x[:, 2:], y, l2=1e-2, offset=offset, tol=1e-8, initial=solution.params)
    assert again.passes <= 4


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("l2", "l1"), [(1e-3, 1e-2), (0.0, 2e-2), (1e-2, 1.0)])
def test_the_elastic_net_against_a_general_optimiser(iris, grouped, l2, l1):
    x, y = iris
    solution = solvers.fit(x, y, l2=l2, l1=l1, grouped=grouped, tol=1e-6)
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.relative_gap <= 1e-6
    eye, s = np.eye(3)[y], 1 / len(x)

    def loss(w, b):
        o = x @ w + b
        p = scipy.special.softmax(o, axis=1)
        value = s * np.sum(scipy.special.logsumexp(o, axis=1) - (eye * o).sum(1))
        g = s * (p - eye)
        return value + l2 / 2 * (w**2).sum(), x.T @ g + l2 * w, g.sum(0)

    def penalty(w):
        return l1 * (np.linalg.norm(w, axis=1) if grouped else np.abs(w)).sum()

    value = loss(*solution.params)[0] + penalty(solution.params.w)
    assert solution.objective == pytest.approx(value, rel=1e-12)

    if grouped:  # a smooth stand-in that is at most 1e-8 too large

        def smooth(v):
            w, b = v[:12].reshape(4, 3), v[12:]
            value, gw, gb = loss(w, b)
            norms = np.sqrt((w**2).sum(1) + (1e-9) ** 2)
            return value + l1 * norms.sum(), np.r_[(gw + l1 * w / norms[:, None]).ravel(), gb]

        start = np.r_[solution.params.w.ravel(), solution.params.b]
        least = scipy.optimize.minimize(smooth, start, jac=True, method="BFGS").fun
    else:

        def split(v):
            w, b = (v[:12] - v[12:24]).reshape(4, 3), v[24:]
            value, gw, gb = loss(w, b)
            return value + l1 * v[:24].sum(), np.r_[(gw + l1).ravel(), (l1 - gw).ravel(), gb]

        least = scipy.optimize.minimize(
            split,
            np.zeros(27),
            jac=True,
            bounds=[(0, None)] * 24 + [(None, None)] * 3,
            method="L-BFGS-B",
            options=dict(maxiter=10_000, maxfun=10_000, ftol=1e-15, gtol=1e-9),
        ).fun
    assert solution.objective - least <= solution.gap
    if l1 == 1.0:
        assert (solution.params.w == 0).all()


@pytest.mark.slow
def test_groups_are_kept_or_dropped_as_a_whole(digits):
    x, y = digits
    w = solvers.fit(x, y, l2=1e-4, l1=2e-2, grouped=True, scale=1 / 16, tol=1e-3).params.w
    kept = (w != 0).any(axis=1)
    assert 5 < kept.sum() < 40
    assert (w[kept] != 0).all()


@pytest.mark.slow
def test_an_l1_path(digits):
    x, y = digits
    l1 = np.array([1e-2, 1e-3])
    path = solvers.fit_path(x, y, l2=1e-3, l1=l1, scale=1 / 16, tol=1e-4)
    assert (path.status == solvers.Status.CERTIFIED).all()
    w = path.params.w
    nonzero = (w != 0).sum(axis=(1, 2))
    assert nonzero[0] < nonzero[1] < 640
    assert not np.signbit(w[w == 0]).any()


@pytest.mark.slow
def test_separated_classes_without_a_penalty_are_recognised(digits):
    x, y = digits
    solution = solvers.fit(x, y, l2=0.0, scale=1 / 16)
    assert solution.status == solvers.Status.AT_INFINITY
    assert "separated" in solution.reason
    assert solution.gap == solution.objective
    scores = x / 16 @ solution.params.w + solution.params.b
    assert (scores.argmax(axis=1) == y).all()


def test_without_a_penalty_nothing_is_certified(iris):
    x, y = iris
    solution = solvers.fit(x, y, l2=0.0, tol=1e-9)
    assert solution.status == solvers.Status.NOT_CERTIFIED
    assert "l2 = l1 = 0" in solution.reason
    theirs = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cg", max_iter=1000).fit(x, y)
    least = objective(Params(theirs.coef_.T, theirs.intercept_), x, y)
    assert solution.objective == pytest.approx(least, rel=1e-7)


@pytest.mark.slow
def test_a_falling_objective_is_progress_though_the_gap_does_not_fall():
    rng = np.random.default_rng(0)
    sizes = ((40, 60, 3), (60, 20, 5))
    _, (x, y) = [(rng.normal(size=(n, d)), rng.integers(q, size=n)) for n, d, q in sizes]
    assert solvers.fit(x, y, l2=1e-8).status == solvers.Status.CERTIFIED


def noise(n, d, q):
    """Labels that have nothing to do with the features, so that no penalty is needed."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.integers(q, size=n)


@pytest.mark.slow
def test_without_a_penalty_on_one_of_several_slots():
    x, y = noise(300, 4, 3)
    weights = np.stack([np.arange(300) % 3 != i for i in range(3)]).astype(float)
    paths = solvers.fit_path(x, y, l2=[1e-2, 0.0], sample_weight=weights, tol=1e-6)
    for i in range(3):
        for j, l2 in enumerate((1e-2, 0.0)):
            alone = solvers.fit(x, y, l2=l2, sample_weight=weights[i], tol=1e-6)
            assert alone.status == paths.status[i, j]
            assert paths.objective[i, j] == pytest.approx(alone.objective, rel=2e-6)
    assert (paths.objective[:, 1] < paths.objective[:, 0]).all()


@pytest.mark.slow
def test_without_a_penalty_and_with_many_features():
    x, y = noise(2000, 300, 3)
    least = scipy.optimize.minimize(
        lambda theta: losses_in_numpy(theta, x, y, 3),
        np.zeros(301 * 3),
        jac=True,
        method="L-BFGS-B",
    ).fun
    solution = solvers.fit(x, y, l2=0.0, tol=1e-5, method=FLOAT32)
    assert solution.objective == pytest.approx(least, rel=1e-5)


def losses_in_numpy(theta, x, y, q):
    """The mean loss and its gradient."""
    theta = theta.reshape(q, -1)
    o = x @ theta[:, 1:].T + theta[:, 0]
    p = scipy.special.softmax(o, axis=1)
    loss = np.mean(scipy.special.logsumexp(o, axis=1) - o[np.arange(len(y)), y])
    r = (p - np.eye(q)[y]) / len(y)
    return loss, np.concatenate([r.sum(0)[:, None], r.T @ x], axis=1).ravel()


@pytest.mark.slow
def test_rows_without_weight_are_as_if_they_were_not_there(digits):
    x, y = digits
    weights = np.zeros((2, len(x)))
    weights[0, -40:] = 1
    weights[1, 100:180] = 1e300
    options = {"l2": 1e-2, "scale": 1 / 16, "method": FLOAT32}
    both = solvers.fit_path(x, y, sample_weight=weights, block_size=64, **options)
    for i, rows in enumerate((slice(-40, None), slice(100, 180))):
        alone = solvers.fit(x[rows], y[rows], num_classes=10, **options)
        assert both.status[i] == alone.status == solvers.Status.CERTIFIED
        assert both.objective[i] == pytest.approx(alone.objective, rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e3, 1e5])
@pytest.mark.parametrize("method", METHODS)
def test_offsets_however_large_are_made_up_for_by_the_bias(size, method):
    x, y = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0, 0, 1, 1])
    offset = np.tile([0.0, size], (4, 1))
    solution = solvers.fit(x, y, l2=1.0, offset=offset, tol=1e-2, method=method)
    assert solution.objective - solution.gap <= np.log(2) * (1 + 1e-12)
    assert solution.status == solvers.Status.CERTIFIED
    assert solution.objective == pytest.approx(np.log(2), rel=1e-9)


@pytest.mark.slow
def test_features_too_large_for_float32(digits):
    x, y = digits
    x = x.astype(float) / 16
    x[:, 0] = 1e25 * np.arange(len(x))
    solution = solvers.fit(x, y, l2=1e-2, method=FLOAT32)
    assert np.log(10) > solution.objective > solution.objective - solution.gap >= 0


@pytest.mark.slow
def test_passes_that_run_out_are_said_to(digits):
    x, y = digits
    solution = solvers.fit(x, y, l2=1e-6, scale=1 / 16, tol=1e-12, max_passes=3)
    assert solution.status == solvers.Status.NOT_CERTIFIED
    assert "max_passes = 3" in solution.reason
    assert solution.gap > 1e-12 * solution.objective


def test_a_class_of_no_weight_gets_probability_zero(iris):
    x, y = iris
    solution = solvers.fit(x, y, l2=1e-2, num_classes=5, tol=1e-9)
    smaller = solvers.fit(x, y, l2=1e-2, tol=1e-9)
    assert solution.objective == pytest.approx(smaller.objective, rel=2e-9)
    assert (solution.params.b[3:] == -np.inf).all()
    assert (solution.params.w[:, 3:] == 0).all()
    np.testing.assert_allclose(solution.params.w[:, :3], smaller.params.w, atol=1e-4)


def test_the_second_fit_of_the_same_shapes_compiles_nothing(iris, count_compilations):
    x, y = iris
    solvers.fit_path(x, y, l2=np.logspace(-1, -4, 6))

    def again():
        return solvers.fit_path(2 * x, y, l2=np.logspace(-2, -5, 6), tol=1e-5)

    assert count_compilations(again) == 0


@pytest.mark.slow
def test_progress_and_history(digits):
    x, y = digits
    seen = []
    path = solvers.fit_path(x, y, l2=[1e-2, 1e-4], l1=[0, 1e-3], scale=1 / 16, callback=seen.append)
    assert seen[0].solved == 0
    assert seen[-1].solved == 2
    assert all(p.problems == 2 for p in seen)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(seen))
    assert all(a.solved <= b.solved for a, b in itertools.pairwise(seen))
    for at in range(2):
        history = path.history[at]
        assert len({len(column) for column in history}) == 1
        assert (np.diff(history.passes) >= 0).all()
        assert history.objective[-1] == pytest.approx(path.objective[at], rel=1e-3)


NAN_AT_3_1 = np.where(np.arange(8).reshape(4, 2) == 7, np.nan, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=NAN_AT_3_1), "row 3, feature 1 is nan"),
        (dict(x=np.full((4, 2), np.inf, np.float32)), "is inf"),
        (dict(x=scipy.sparse.csr_array(NAN_AT_3_1)), "nan"),
        (dict(x=np.zeros(4)), r"expected \[n, d\]"),
        (dict(x=np.zeros((0, 2))), "at least one row"),
        (dict(x=np.zeros((4, 2), complex)), "expected real numbers"),
        (dict(y=np.array([0, 1, 1])), "targets of shape"),
        (dict(y=np.array([0, -1, 1, 1])), "class id -1"),
        (dict(y=np.array([0.0, 1, 1, 0])), "expected integers"),
        (dict(num_classes=1), "but there are 1 classes"),
        (dict(y=np.zeros(4, int)), "1 class"),
        (dict(y=np.array([0, 1, 2, 1]), num_classes=2), "row 2 has class id 2"),
        (dict(y=np.full((4, 2), 0.7)), "must be non-negative and sum to 1"),
        (dict(y=np.array([1, 1, 1, 1])), "single class, 1"),
        (dict(sample_weight=np.array([1, 0, 0, 1.0])), "single class, 0"),
        (dict(sample_weight=np.array([1, 1, -2, 1.0])), "row 2 has weight -2"),
        (dict(sample_weight=np.array([1, 1, np.nan, 1.0])), "row 2 has weight nan"),
        (dict(sample_weight=np.zeros(4)), "total weight is zero"),
        (dict(sample_weight=np.full(4, 1e308)), "total weight is infinite"),
        (dict(sample_weight=np.ones(3)), r"expected \[4\]"),
        (dict(class_weight="equal"), "'balanced'"),
        (dict(class_weight=[1.0]), "one a class"),
        (dict(offset=np.zeros((4, 3))), r"expected \[4, 2\]"),
        (dict(offset=np.full((4, 2), np.nan)), "nan"),
        (dict(scale=np.zeros(3)), "2 of them"),
        (dict(shift=np.inf), "finite"),
        (dict(l2=-1.0), "l2: -1.0"),
        (dict(l2=np.nan), "l2: nan"),
        (dict(l1=-1.0), "l1: -1.0"),
        (dict(tol=0.0), "tol: 0.0"),
        (dict(max_passes=0), "max_passes: 0"),
        (dict(max_passes=np.nan), "max_passes: nan"),
        (dict(block_size=0), "block_size: 0"),
        (dict(l1=1.0, l1_method="lbfgs"), "l1_method: 'lbfgs'; expected one of orthant-newton"),
        (dict(l1=1.0, l1_method=solvers.LBFGS()), "smooth penalties"),
        (
            dict(l1=1.0, l1_method="proximal-newton", grouped=True),
            "takes no groups",
        ),
        (dict(method="bfgs"), "quasi-newton, newton, lbfgs"),
        (dict(initial=Params(np.zeros((3, 2)), np.zeros(2))), "initial: w of shape"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(change, message, count_compilations):
    good = dict(x=np.arange(8.0).reshape(4, 2), y=np.array([0, 1, 1, 0]), l2=1e-2)

    def refused():
        with pytest.raises(ValueError, match=message):
            solvers.fit(**(good | change))

    assert count_compilations(refused) == 0


@pytest.mark.slow
def test_weak_l1_that_proximal_gradients_do_not_solve_is_solved_by_newton():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) + 0.02 * rng.normal(size=(200, 5))
    y, l1 = rng.integers(3, size=200), 1e-4
    patient = solvers.Proximal(newton_after=100)
    solution = solvers.fit(x, y, l2=0, l1=l1, l1_method=patient)
    assert solution.status == solvers.Status.CERTIFIED
    assert patient.newton_after < solution.passes == solution.history.passes[-1] + 1
    # The conditions of Karush, Kuhn and Tucker, in NumPy.
    w, b = solution.params
    g = x.T @ (scipy.special.softmax(x @ w + b, axis=1) - np.eye(3)[y]) / 200
    assert 0 < (w != 0).sum() < w.size
    np.testing.assert_allclose(g[w != 0], -l1 * np.sign(w[w != 0]), rtol=1e-6)
    assert np.abs(g).max() < l1 * (1 + 1e-6)


@pytest.mark.slow
def test_proximal_newton_of_more_features_than_the_preconditioner_has_components():
    x, y = noise(60, 300, 2)
    l1 = 0.5 * solvers.fit_path(x, y, l2=0, l1="auto", max_passes=1).l1[0]
    newton = solvers.fit(x, y, l2=0, l1=l1, l1_method="proximal-newton")
    gradients = solvers.fit(x, y, l2=0, l1=l1, l1_method=solvers.Proximal(newton=None), tol=1e-7)
    assert newton.status == gradients.status == solvers.Status.CERTIFIED
    assert newton.objective == pytest.approx(gradients.objective, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_directions_in_which_features_do_not_vary(l2):
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=600)
    x = rng.normal(size=(3, 300))[kind]
    y = np.array([rng.choice(3, p=np.roll([0.7, 0.2, 0.1], i)) for i in kind])
    sizes = solvers.methods.Sizes(steps_for_all=0, leading=20)
    method = solvers.QuasiNewton(float64_below=0, sizes=sizes)
    solution = solvers.fit(x, y, l2=l2, method=method)
    if l2 == 0:
        means = np.array([np.bincount(y[kind == k], minlength=3) for k in range(3)]) / 600
        least = -np.sum(means * np.log(means / means.sum(axis=1, keepdims=True)))
    else:
        least = solvers.fit(x, y, l2=l2).objective
    assert solution.objective == pytest.approx(least, rel=1e-4)
