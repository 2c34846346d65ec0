"""Penalties and limits of single weights, against SciPy's L-BFGS-B in float64."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from softmax_jax import solvers
from softmax_jax.solvers import Proximal

CERTIFIED = solvers.Status.CERTIFIED
N, D, Q = 120, 7, 4


def problem(seed=0, n=N, d=D, q=Q):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.3, 3, d)
    w = rng.normal(size=(d, q)) * (rng.random((d, 1)) < 0.7)
    y = np.argmax(x @ w + rng.gumbel(size=(n, q)), axis=1)
    y[:q] = np.arange(q)
    return x, y


def reference(x, y, l2, l1, factor=1.0, lower=-np.inf, upper=np.inf, weights=None):
    """The least objective, and its weights: the positive and the negative parts are variables."""
    (n, d), q = x.shape, y.max() + 1
    s = np.ones(n) if weights is None else weights
    s = s / s.sum()
    shape = (d, q)
    factor, lower, upper = (
        np.broadcast_to(a[:, None] if np.ndim(a) == 1 else a, shape) for a in (factor, lower, upper)
    )
    left_out = np.isinf(factor)
    factor = np.where(left_out, 0, factor)
    lower, upper = np.where(left_out, 0, lower), np.where(left_out, 0, upper)
    one_hot = np.eye(q)[y]
    size = d * q

    def objective(v):
        plus, minus, b = v[:size].reshape(shape), v[size : 2 * size].reshape(shape), v[2 * size :]
        w = plus - minus
        o = x @ w + b
        highest = o.max(axis=1, keepdims=True)
        z = np.exp(o - highest)
        log_z = np.log(z.sum(axis=1)) + highest[:, 0]
        r = s[:, None] * (z / z.sum(axis=1, keepdims=True) - one_hot)
        value = s @ (log_z - (o * one_hot).sum(axis=1))
        value += np.sum(factor * (l2 / 2 * w**2 + l1 * (plus + minus)))
        g = x.T @ r + factor * l2 * w
        parts = [(g + factor * l1).ravel(), (factor * l1 - g).ravel(), r.sum(axis=0)]
        return value, np.concatenate(parts)

    bounds = [
        *zip(np.zeros(size), upper.ravel(), strict=True),
        *zip(np.zeros(size), -lower.ravel(), strict=True),
        *[(-np.inf, np.inf)] * q,
    ]
    options = {"maxiter": 50_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 50}
    v = np.zeros(2 * size + q)
    for _ in range(3):
        found = scipy.optimize.minimize(
            objective, v, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        v = found.x
    return found.fun, (v[:size] - v[size : 2 * size]).reshape(shape)


PER_FEATURE = np.array([0.0, 0.5, 1.0, 2.0, np.inf, 1.0, 0.0])
PER_WEIGHT = np.random.default_rng(5).choice([0.0, 0.5, 2.0, np.inf], size=(D, Q))
CASES = {
    "a factor a feature": {"factor": PER_FEATURE},
    "positive factors": {"factor": np.geomspace(0.1, 10, D)},
    "a factor a weight": {"factor": PER_WEIGHT},
    "not negative": {"lower": 0.0},
    "limits": {"lower": np.full(D, -0.2), "upper": np.linspace(0, 0.5, D)},
    "limits of weights": {"lower": -np.abs(np.sin(np.arange(D * Q))).reshape(D, Q) / 3},
    "both": {"factor": PER_FEATURE, "lower": -0.3, "upper": np.full((D, Q), 0.4)},
    "one side of what is not penalised": {"factor": PER_FEATURE, "lower": 0.0},
}
STRENGTHS = [(0.02, 0.0), (0.0, 0.02), (0.01, 0.01)]
QUICK = [("not negative", 0.02, 0.0), ("both", 0.01, 0.01)]


def options(factor=None, lower=None, upper=None):
    return {"penalty_factor": factor, "lower": lower, "upper": upper}


@pytest.mark.parametrize(
    ("case", "l2", "l1"),
    [
        pytest.param(case, *pair, marks=[] if (case, *pair) in QUICK else pytest.mark.slow)
        for case in CASES
        for pair in STRENGTHS
    ],
)
def test_against_the_reference(case, l2, l1):
    x, y = problem()
    solution = solvers.fit(x, y, l2=l2, l1=l1, tol=1e-9, **options(**CASES[case]))
    least, w = reference(x, y, l2, l1, **CASES[case])
    assert solution.status == CERTIFIED
    assert solution.objective <= least + 1e-10
    assert solution.objective - solution.gap <= least
    within = {"lower": -np.inf, "upper": np.inf} | CASES[case]
    columns = {k: v[:, None] if np.ndim(v) == 1 else v for k, v in within.items()}
    assert (solution.params.w >= columns["lower"]).all()
    assert (solution.params.w <= columns["upper"]).all()
    left_out = np.broadcast_to(np.isinf(columns.get("factor", 1.0)), w.shape)
    assert (solution.params.w[left_out] == 0).all()
    if l1 > 0 and l2 > 0:
        # Where a feature has no penalty, a number may be added to its weights.
        is_unique = np.broadcast_to(columns.get("factor", np.ones((D, 1))) > 0, w.shape)
        np.testing.assert_allclose(solution.params.w[is_unique], w[is_unique], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_path_is_certified_and_first_order_methods_agree(case):
    x, y = problem(1)
    single = options(**CASES[case])
    path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=12, **single)
    assert (path.status == CERTIFIED).all()
    first_order = solvers.fit_path(x, y, l2=0.0, l1=path.l1[::4], l1_method=Proximal(), **single)
    assert (first_order.status == CERTIFIED).all()
    assert (first_order.objective >= path.objective[::4] - path.gap[::4] - 1e-12).all()
    assert (path.objective[::4] >= first_order.objective - first_order.gap - 1e-12).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_path_begins_where_penalised_weights_leave_zero(case):
    x, y = problem(2)
    single = options(**CASES[case])
    path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=3, tol=1e-10, **single)
    factor = CASES[case].get("factor", np.ones(D))
    factor = np.broadcast_to(factor[:, None] if factor.ndim == 1 else factor, (D, Q))
    counts = (factor > 0) & np.isfinite(factor)
    assert not path.params.w[0][counts].any()
    below = solvers.fit(x, y, l2=0.0, l1=0.999 * path.l1[0], tol=1e-10, **single)
    assert below.params.w[counts].any()


@pytest.mark.slow
def test_unpenalised_features_and_weights_of_examples():
    x, y = problem(3)
    weights = np.random.default_rng(0).random((2, N)) + 0.1
    factor = np.array([0, 0, 1, 1, 1, 1, 1.0])
    path = solvers.fit_path(
        x, y, l2=0.0, l1=[0.05, 0.01], sample_weight=weights, penalty_factor=factor, tol=1e-9
    )
    for m, at in itertools.product(range(2), range(2)):
        least, _ = reference(x, y, 0.0, path.l1[m, at], factor, weights=weights[m])
        assert path.objective[m, at] <= least + 1e-10
        assert path.objective[m, at] - path.gap[m, at] <= least


@pytest.mark.slow
def test_nothing_penalised_is_certified_by_factors_of_zero():
    x, y = problem(4)
    solution = solvers.fit(x, y, l2=1.0, penalty_factor=np.zeros(D), tol=1e-8)
    least, _ = reference(x, y, 0.0, 0.0)
    assert solution.status == CERTIFIED
    assert solution.objective <= least + 1e-10
    assert solution.gap < 1e-8


@pytest.mark.slow
def test_factors_of_groups():
    x, y = problem(5)
    factor = np.array([0.0, 1, 1, 2, np.inf, 1, 1])
    path = solvers.fit_path(
        x, y, l2=0.0, l1="auto", strengths=6, grouped=True, penalty_factor=factor
    )
    assert (path.status == CERTIFIED).all()
    kept = (path.params.w != 0).any(axis=-1)
    assert kept[:, 0].all()
    assert not kept[:, 4].any()
    assert not kept[0, 1:].any()
    ones = solvers.fit_path(x, y, l2=0.0, l1=0.02, grouped=True, penalty_factor=np.full(D, 3.0))
    plain = solvers.fit_path(x, y, l2=0.0, l1=0.06, grouped=True)
    assert ones.objective == pytest.approx(plain.objective, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_sparse_rows_wide_ones_and_features_with_units(seed):
    rng = np.random.default_rng(seed)
    x, y = problem(seed, n=40, d=90, q=3)
    x = x * (rng.random(x.shape) < 0.3) * 10.0 ** rng.integers(-2, 3, size=90)
    single = options(
        factor=rng.choice([0.3, 1.0, np.inf], size=90),
        lower=-np.abs(rng.normal(size=90)),
        upper=2.0,
    )
    path = solvers.fit_path(x, y, l2=1e-3, l1="auto", strengths=6, **single)
    sparse = solvers.fit_path(scipy.sparse.csr_array(x), y, l2=1e-3, l1=path.l1, **single)
    assert (path.status == CERTIFIED).all()
    assert (sparse.status == CERTIFIED).all()
    np.testing.assert_allclose(sparse.objective, path.objective, rtol=1e-3)
    assert (path.params.w <= 2.0).all()
    assert not path.params.w[:, np.isinf(single["penalty_factor"])].any()


@pytest.mark.slow
def test_limits_are_kept_to_the_last_digit_where_work_is_in_float32():
    x, y = problem(11, n=3000, d=40, q=4)
    solution = solvers.fit(x, y, l2=1e-3, l1=1e-3, lower=-0.1, upper=0.1)
    assert solution.status == CERTIFIED
    assert solution.plan.dtype == "float32"
    assert solution.params.w.max() == 0.1
    assert solution.params.w.min() == -0.1


@pytest.mark.slow
def test_standardized_features_keep_their_limits():
    x, y = problem(6)
    solution = solvers.fit(x, y, l2=0.01, upper=0.1, standardize=True, tol=1e-9)
    least, _ = reference(x, y, 0.01, 0.0, factor=x.std(axis=0) ** 2, upper=0.1)
    assert solution.objective == pytest.approx(least, abs=1e-10)
    assert solution.params.w.max() == 0.1
    found = solvers.cross_validate(x, y, l2=[0.1, 0.01], upper=0.1, standardize=True, folds=3)
    assert found.path.params.w.max() <= 0.1 + 1e-12


@pytest.mark.slow
def test_cross_validation_takes_them_all():
    x, y = problem(12)
    factor, upper = np.array([0, 1, 1, 2, np.inf, 1, 1.0]), np.full((D, Q), 0.4)
    found = solvers.cross_validate(
        x, y, l2=0.0, l1="auto", strengths=20, weakest=1e-4, least_gain=0.05, relax=True, folds=3,
        penalty_factor=factor, upper=upper, standardize=True
    )  # fmt: skip
    assert len(found.l1) == len(found.loss) < 20
    assert found.path.params.w.max() <= 0.4 + 1e-12
    assert not found.path.params.w[:, 4].any()
    assert (found.path.params.w[:, 0] != 0).any(axis=-1).all()
    with pytest.raises(ValueError, match=r"upper: shape \(3,\); expected \[7\]"):
        solvers.cross_validate(x, y, l2=0.0, l1=0.1, upper=np.ones(3), standardize=True)


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_relaxed_fits(l2):
    x, y = problem(7)
    path = solvers.fit_path(x, y, l2=l2, l1=[0.05, 0.02])
    relaxed = solvers.fit_path(x, y, l2=l2, l1=[0.05, 0.02], relax=True, tol=1e-8)
    assert (relaxed.status == CERTIFIED).all()
    for at in range(2):
        kept = path.params.w[at] != 0
        least, _ = reference(x, y, l2, 0.0, np.where(kept, 1.0, np.inf))
        assert relaxed.objective[at] == pytest.approx(least, abs=1e-9)
        assert not relaxed.params.w[at][~kept].any()
    assert (relaxed.loss < path.loss).all()


def test_deviance_and_counts():
    x, y = problem(8)
    path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=5)
    share = np.bincount(y) / N
    null = -np.sum(share * np.log(share))
    assert path.deviance_explained[0] == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(
        path.deviance_explained, 1 - path.loss / null, rtol=1e-12, atol=1e-15
    )
    penalties = path.l1 * np.abs(path.params.w).sum(axis=(1, 2))
    np.testing.assert_allclose(path.loss + penalties, path.objective, rtol=1e-12)
    assert (np.diff(path.deviance_explained) > 0).all()
    assert path.nonzeros.shape == (5, Q)
    assert not path.nonzeros[0].any()
    sparse = path.sparse_weights()
    assert sparse[3].nnz == path.nonzeros[3].sum()
    np.testing.assert_array_equal(sparse[3].toarray(), path.params.w[3])


@pytest.mark.slow
def test_the_deviance_of_probabilities_and_of_no_intercept():
    x, y = problem(9)
    soft = 0.9 * np.eye(Q)[y] + 0.1 / Q
    solution = solvers.fit(x, soft, l2=1e-3)
    entropy = -np.mean(np.sum(soft * np.log(soft), axis=1))
    share = soft.mean(axis=0)
    null = -np.sum(share * np.log(share))
    expected = (null - solution.loss) / (null - entropy)
    assert solution.deviance_explained == pytest.approx(expected, rel=1e-9)
    without = solvers.fit(x, y, l2=1e-3, fit_intercept=False)
    assert without.deviance_explained == pytest.approx(1 - without.loss / np.log(Q), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(penalty_factor=np.ones(3)), r"penalty_factor: shape \(3,\); expected \[7\]"),
        (dict(penalty_factor=-np.ones(D)), "penalty_factor: -1.0 at .*0 or more"),
        (dict(penalty_factor=np.full(D, np.nan)), "penalty_factor: nan"),
        (dict(penalty_factor=np.full(D, np.inf)), "all are inf"),
        (dict(lower=0.1), "lower: 0.1 at .*0 or less"),
        (dict(upper=np.full((D, Q), -1.0)), r"upper: -1.0 at \[0, 0\]"),
        (dict(lower=0.0, grouped=True), "groups have no limits"),
        (dict(lower=0.0, l1_method="proximal-newton"), "takes none of them"),
        (dict(relax=True, l1_method="proximal-newton"), "takes none of them"),
        (dict(penalty_factor=np.ones((D, Q)), grouped=True), "of groups, a number a feature"),
    ],
)
def test_refusals(change, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        solvers.fit(x, y, l2=0.0, l1=0.1, **change)


@pytest.mark.slow
def test_a_path_ends_where_nothing_is_gained():
    x, y = problem(10)
    whole = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=40, weakest=1e-5)
    path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=40, weakest=1e-5, least_gain=1e-2)
    number = len(path.l1)
    assert 8 < number < 40
    np.testing.assert_array_equal(path.l1, whole.l1[:number])
    np.testing.assert_allclose(path.objective, whole.objective[:number], rtol=2e-3)
    gains = np.diff(path.deviance_explained) / path.deviance_explained[1:]
    assert (gains[:-1] >= 1e-2).all()
    assert gains[-1] < 1e-2
    with pytest.raises(ValueError, match="least_gain"):
        solvers.fit_path(x, y, l2=0.0, l1=[0.1], least_gain=1e-2)


# Rows, features, classes, what is given, and for what. Problems of one kind share their programs.
KINDS = [
    (70, 20, 3, "nothing", "features"),
    (110, 3, 2, "factors", "features"),
    (40, 39, 4, "factors", "features"),
    (80, 5, 5, "factors", "weights"),
    (35, 25, 3, "factors", "weights"),
    (60, 2, 5, "limits", "features"),
    (50, 30, 5, "limits", "features"),
    (25, 38, 2, "limits", "weights"),
    (90, 4, 2, "both", "features"),
    (20, 10, 2, "both", "features"),
    (115, 15, 4, "both", "weights"),
    (30, 35, 3, "both", "weights"),
]


def random_problem(kind, seed):
    """Few rows or many, near copies of columns, units, weights of zero, factors and limits."""
    n, d, q, what, of = kind
    rng = np.random.default_rng(seed)
    x, y = problem(seed, n, d, q)
    if d > 3:
        x[:, -1] = x[:, 0] + 1e-3 * rng.normal(size=n)
    x = x * 10.0 ** rng.integers(-1, 2, size=d)
    weights = rng.integers(0, 3, size=n) / 2
    weights[:q] = 1
    shape = (d, q) if of == "weights" else (d,)
    given = {}
    if what in ("factors", "both"):
        given["factor"] = rng.choice([0.3, 1.0, 3.0], size=shape)
        given["factor"][: 1 + d // 4] = 0.0 if n > 6 * d else 1.0
        given["factor"][-2:] = np.inf if d > 4 else 1.0
    if what in ("limits", "both"):
        given["lower"] = -rng.choice([0.0, 0.1, np.inf], size=shape)
        given["upper"] = rng.choice([0.05, 0.5, np.inf], size=shape)
    l2, l1 = rng.choice([0.0, 1e-3, 1e-2]), rng.choice([1e-3, 1e-2, 5e-2])
    return x, y, l2, l1, given, weights


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_problems_are_never_falsely_certified(kind):
    for seed in range(6):
        x, y, l2, l1, given, weights = random_problem(kind, seed)
        solution = solvers.fit(
            x, y, l2=l2, l1=l1, sample_weight=weights, tol=1e-8, max_passes=5000, **options(**given)
        )
        least, _ = reference(x, y, l2, l1, weights=weights, **given)
        assert solution.status == CERTIFIED, seed
        assert solution.objective - solution.gap <= least + 1e-13, seed
        assert solution.objective <= least + 1e-9, seed
