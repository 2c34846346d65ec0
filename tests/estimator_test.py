import math
import pickle

import array_api_strict
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import scipy.special
import scipy.stats
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import (
    ConvergenceWarning,
    DataConversionWarning,
    NotFittedError,
    UnsetMetadataPassedError,
)
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from softmax_jax import conventions, solvers
from softmax_jax.estimator import SoftmaxRegression, SoftmaxRegressionCV

N = 150
IDS = np.arange(N) % 3
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2, N)


def without_a_minimum(estimator):
    """Checks on data whose classes are separated, by reason."""
    if estimator.l2 != 0:
        return {}
    reason = "the classes are separated: without a penalty there is no minimum, as status_ says"
    kinds = ("dense", "sparse")
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in kinds}


# Fewer strengths and folds than by default, to save time.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        SoftmaxRegression(),
        SoftmaxRegression(l2=0),
        SoftmaxRegressionCV(l2=(1e-3, 1e-1), cv=3),
        SoftmaxRegressionCV(l2=0, cv=3),
    ],
    expected_failed_checks=without_a_minimum,
)
def test_scikit_learns_checks(estimator, check, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # or those of the array API are skipped
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    """Iris with labels in words, of which some are wrong, so that the classes differ in size."""
    x, y = load_iris(return_X_y=True)
    y = np.where(np.arange(N) % 7 == 0, 1, y)
    return x, np.array(["setosa", "versicolor", "virginica"])[y]


@pytest.fixture(params=[np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
def store(request):
    return request.param


def scikit_learns_solution(x, y, l2, *, total_weight, sample_weight=None, class_weight=None):
    """Within 1e-10 of the optimum."""
    peer = LogisticRegression(
        **conventions.to_sklearn(l2, total_weight=total_weight),
        class_weight=class_weight,
        solver="newton-cholesky",
        tol=1e-12,
    )
    return peer.fit(x, y, sample_weight=sample_weight)


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_weights(iris, store, l2):
    x, y = iris
    peer = scikit_learns_solution(x, y, l2, total_weight=WEIGHTS.sum(), sample_weight=WEIGHTS)
    ours = SoftmaxRegression(l2=l2, tol=1e-10).fit(store(x), y, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(ours.classes_, peer.classes_)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.decision_function(store(x)).mean(axis=1).std(), 0, atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(store(x)), peer.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(store(x)), peer.predict(x))
    assert ours.status_ == solvers.Status.CERTIFIED
    assert 0 <= ours.gap_ <= 1e-10 * ours.objective_


@pytest.mark.parametrize(
    "class_weight", ["balanced", {"virginica": 5.0}, {"virginica": 5, "setosa": 0.1}]
)
def test_class_weights(iris, store, class_weight):
    x, y = iris
    total = N if class_weight == "balanced" else sum(class_weight.get(label, 1.0) for label in y)
    peer = scikit_learns_solution(x, y, 1e-2, total_weight=total, class_weight=class_weight)
    ours = SoftmaxRegression(l2=1e-2, tol=1e-10, class_weight=class_weight).fit(store(x), y)
    np.testing.assert_allclose(ours.predict_proba(x), peer.predict_proba(x), atol=1e-5)


def test_two_classes(iris):
    x, y = iris
    y = y == "virginica"
    sigmoid = conventions.to_sigmoid(1e-2)
    peer = scikit_learns_solution(x, y, sigmoid.l2, total_weight=N)
    ours = SoftmaxRegression(l2=1e-2, tol=1e-10).fit(x, y)
    assert ours.coef_.shape == (2, 4)
    log_odds = ours.decision_function(x)
    np.testing.assert_allclose(log_odds, peer.decision_function(x), atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(x), peer.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(x), peer.predict(x))
    np.testing.assert_allclose(np.subtract(*ours.predict_log_proba(x).T[::-1]), log_odds)


def test_the_gap_bounds_the_distance_from_the_optimum(iris):
    x, y = iris
    peer = scikit_learns_solution(x, y, 1e-2, total_weight=N)
    ours = SoftmaxRegression(l2=1e-2).fit(x, y)
    assert np.linalg.norm(ours.coef_ - peer.coef_) <= np.sqrt(2 * ours.gap_ / 1e-2)
    np.testing.assert_allclose(ours.predict_proba(x), peer.predict_proba(x), atol=1e-3)


def test_sparse_features_are_not_densified(iris, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("densified")

    x, y = iris
    expected = SoftmaxRegression().fit(x, y).predict_log_proba(x)
    x = scipy.sparse.csc_matrix(x)
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.coo_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
        monkeypatch.setattr(kind, "todense", refuse)
    found = SoftmaxRegression().fit(x, y).predict_log_proba(x)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_features_of_narrow_types_and_of_many_rows(iris):
    x = np.tile(np.round(10 * iris[0]).astype(np.uint8), (70, 1))
    model = SoftmaxRegression(l2=1e-3).fit(10 * iris[0], iris[1])
    np.testing.assert_allclose(model.predict_proba(x), model.predict_proba(x.astype(float)))
    assert x.dtype == np.uint8


def test_a_class_without_weight_is_never_predicted(iris):
    x, y = iris
    model = SoftmaxRegression(l2=1e-2).fit(x, y, sample_weight=(y != "setosa").astype(float))
    np.testing.assert_array_equal(model.classes_, ["setosa", "versicolor", "virginica"])
    assert model.intercept_[0] == -np.inf
    assert (model.predict_proba(x)[:, 0] == 0).all()
    assert "setosa" not in model.predict(x)


@pytest.mark.slow
def test_what_is_not_certified_warns_with_the_reason(iris):
    x, y = iris
    with pytest.warns(ConvergenceWarning, match=r"the solution: not certified \(max_passes"):
        SoftmaxRegression(tol=1e-12, max_passes=3).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="infimum at infinity .the classes are separated"):
        model = SoftmaxRegression(l2=0).fit(x, x[:, 2] > 2.5)
    assert model.status_ == solvers.Status.AT_INFINITY
    with pytest.warns(ConvergenceWarning, match="7 of 7 solutions: not certified"):
        SoftmaxRegressionCV(l2=(1e-3, 1e-1), cv=IDS, tol=1e-12, max_passes=3).fit(x, y)


def overlapping(n=400, seed=0):
    """Three classes that no plane separates."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 10, 0.1, 3] + [0, 5, 1, -2]
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    return x, (z @ rng.normal(size=(4, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)


def minimum(x, y, penalty, *, bias=True):
    """The least objective and its b and W, ``[1 + d, q]``, by Newton's method in float64."""
    x, onehot = np.c_[np.full(len(x), float(bias)), x], np.eye(3)[y]
    h = np.kron(np.diag(np.r_[0, penalty]), np.eye(3))

    def value(t):
        o = x @ t.reshape(-1, 3)
        return (
            scipy.special.logsumexp(o, axis=1) - (onehot * o).sum(axis=1)
        ).mean() + t @ h @ t / 2

    def slope(t):
        p = scipy.special.softmax(x @ t.reshape(-1, 3), axis=1)
        return (x.T @ (p - onehot) / len(x)).ravel() + h @ t

    t = np.zeros(3 * x.shape[1])
    for _ in range(30):
        p = scipy.special.softmax(x @ t.reshape(-1, 3), axis=1)
        curvature = np.einsum("na,nb->nab", p, -p)
        curvature[:, range(3), range(3)] += p
        hessian = np.einsum("ni,nab,nj->iajb", x, curvature, x).reshape(t.size, -1) / len(x) + h
        t = t - np.linalg.pinv(hessian, rcond=1e-12, hermitian=True) @ slope(t)
    assert np.abs(slope(t)).max() < 1e-12
    return value(t), t.reshape(-1, 3)


@pytest.mark.slow
def test_no_penalty_warns_only_where_the_gradient_is_not_small():
    x, y = overlapping()
    value, t = minimum(x, y, np.zeros(4))
    model = SoftmaxRegression(l2=0).fit(x, y)  # warnings are errors
    np.testing.assert_allclose(model.objective_, value, rtol=1e-9)
    np.testing.assert_allclose(model.coef_, t[1:].T, rtol=1e-4, atol=1e-6)
    assert model.status_ == solvers.Status.NOT_CERTIFIED
    SoftmaxRegressionCV(l2=(0, 1e-3), cv=3).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="the solution: not certified"):
        SoftmaxRegression(l2=0, max_passes=3).fit(x, y)


@pytest.mark.slow
def test_no_intercept(store):
    x, y = overlapping()
    value, t = minimum(x, y, np.full(4, 1e-2), bias=False)
    for model in (
        SoftmaxRegression(l2=1e-2, tol=1e-10, fit_intercept=False),
        SoftmaxRegressionCV(l2=1e-2, tol=1e-10, fit_intercept=False, cv=3),
    ):
        model.fit(store(x), y)
        np.testing.assert_array_equal(model.intercept_, np.zeros(3))
        np.testing.assert_allclose(model.objective_, value, rtol=1e-9)
        np.testing.assert_allclose(model.coef_, t[1:].T, rtol=1e-5, atol=1e-7)
        assert model.status_ == solvers.Status.CERTIFIED
        narrow = clone(model).set_params(tol=1e-6).fit(x.astype(np.float32), y)
        assert narrow.status_ == solvers.Status.CERTIFIED
        np.testing.assert_array_equal(narrow.intercept_, np.zeros(3))


@pytest.mark.slow
def test_standardize(store):
    x, y = overlapping()
    sd = x.std(axis=0)
    value, t = minimum(x, y, 1e-2 * sd**2)
    for model in (
        SoftmaxRegression(l2=1e-2, tol=1e-10, standardize=True),
        SoftmaxRegressionCV(l2=1e-2, tol=1e-10, standardize=True, cv=3),
    ):
        model.fit(store(x), y)
        np.testing.assert_allclose(model.objective_, value, rtol=1e-9)
        np.testing.assert_allclose(model.coef_, t[1:].T, rtol=1e-5, atol=1e-7)
        # Whose weights are rounded, so that the objective is evaluated here.
        narrow = clone(model).set_params(tol=1e-6).fit(store(x.astype(np.float32)), y)
        assert narrow.status_ == solvers.Status.CERTIFIED
        np.testing.assert_allclose(narrow.objective_, value, rtol=1e-6)


@pytest.mark.parametrize("choice", ["best", "one_standard_error"])
def test_strengths_are_those_that_cross_validation_chose(iris, choice):
    x, y = iris
    strengths = (1e-5, 1e-3, 1e-2, 1e-1)
    options = {"class_weight": "balanced", "tol": 1e-10}
    model = SoftmaxRegressionCV(l2=strengths, cv=3, choice=choice, random_state=1, **options)
    model.fit(x, y, sample_weight=WEIGHTS)
    ids = np.unique(y, return_inverse=True)[1]
    found = solvers.cross_validate(
        x, ids, l2=strengths, folds=3, seed=1, sample_weight=WEIGHTS, **options
    )
    chosen = getattr(found, choice)
    assert (model.l2_, model.l1_) == (found.l2[chosen], 0)
    np.testing.assert_array_equal(model.cross_validation_.loss, found.loss)
    alone = SoftmaxRegression(l2=model.l2_, **options).fit(x, y, sample_weight=WEIGHTS)
    np.testing.assert_allclose(model.objective_, alone.objective_, rtol=2e-10)
    np.testing.assert_allclose(model.predict_proba(x), alone.predict_proba(x), atol=1e-4)


def test_kinds_of_folds(iris):
    x, y = iris
    options = {"l2": (1e-3, 1e-1)}
    splitter = StratifiedKFold(3)
    ids = np.zeros(N, int)
    for fold, (_, held_out) in enumerate(splitter.split(x, y)):
        ids[held_out] = fold
    losses = [
        SoftmaxRegressionCV(cv=cv, **options).fit(x, y).cross_validation_.fold_loss
        for cv in (splitter, list(splitter.split(x, y)), ids)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


def test_copies(iris):
    x, y = iris
    model = SoftmaxRegressionCV(l2=(1e-3, 1e-1), cv=IDS).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_log_proba(x), model.predict_log_proba(x))
    assert again.cross_validation_.best == model.cross_validation_.best
    with pytest.raises(NotFittedError):
        clone(model).predict(x)


@pytest.mark.slow
def test_grid_search(iris):
    x, y = iris
    search = GridSearchCV(
        SoftmaxRegression(), {"l2": [1e-3, 1.0]}, cv=StratifiedKFold(3), scoring="neg_log_loss"
    ).fit(x, y)
    ours = SoftmaxRegressionCV(l2=(1e-3, 1.0), cv=StratifiedKFold(3)).fit(x, y)
    np.testing.assert_allclose(
        -search.cv_results_["mean_test_score"], ours.cross_validation_.fold_loss.mean(0), rtol=1e-3
    )
    assert search.best_params_ == {"l2": ours.l2_}


def test_a_single_strength(iris):
    one = SoftmaxRegressionCV(l2=1e-2, cv=IDS).fit(*iris)
    several = SoftmaxRegressionCV(l2=[1e-2], cv=IDS).fit(*iris)
    alone = SoftmaxRegression(l2=1e-2).fit(*iris)
    assert (one.l2_, one.l1_, one.cross_validation_.best) == (1e-2, 0, ())
    assert one.status_ == solvers.Status.CERTIFIED
    np.testing.assert_array_equal(one.scores_, several.scores_[:, 0])
    np.testing.assert_allclose(one.coef_, alone.coef_, atol=1e-3)


def test_labels_in_a_column(iris):
    x, y = iris
    with pytest.warns(DataConversionWarning, match="column-vector"):
        column = SoftmaxRegression().fit(x, y[:, None])
    np.testing.assert_array_equal(column.coef_, SoftmaxRegression().fit(x, y).coef_)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_bfloat16_features(iris, asarray):
    x, y = iris
    narrow = x.astype(ml_dtypes.bfloat16)
    model = SoftmaxRegression(l2=1e-2).fit(asarray(narrow), y)
    expected = SoftmaxRegression(l2=1e-2).fit(narrow.astype(np.float32), y)
    assert model.coef_.dtype == np.float32
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    found, wanted = model.predict_proba(asarray(narrow)), expected.predict_proba(narrow)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_float32_is_kept(iris, store, dtype):
    if dtype is np.float16 and store is not np.asarray:
        pytest.skip("SciPy has no sparse float16")
    x, y = (10 * iris[0]).astype(dtype), iris[1]
    out = np.float32 if dtype in (np.float16, np.float32) else np.float64
    model = SoftmaxRegression(l2=1e-2).fit(store(x), y)
    wide = SoftmaxRegression(l2=1e-2).fit(x.astype(np.float64), y)
    assert model.coef_.dtype == model.intercept_.dtype == out
    for method in ("decision_function", "predict_proba", "predict_log_proba"):
        found, expected = (getattr(m, method)(store(x)) for m in (model, wide))
        assert found.dtype == out
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def objective(model, x, y, l2, l1=0.0):
    """Returns the objective of the weights as they are, in float64."""
    w, b = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    o = np.asarray(x, np.float64) @ w.T + b
    losses = scipy.special.logsumexp(o, axis=1) - o[np.arange(len(o)), y]
    return losses.mean() + l2 / 2 * (w * w).sum() + l1 * np.abs(w).sum()


@pytest.mark.slow
def test_the_certificate_is_of_the_weights_in_float32():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 3))
    y = (z @ [1, 2, -1] + rng.logistic(size=300) > 0).astype(int)
    near, far = (np.float32(mean + 10 * z) for mean in (1e3, 1e6))
    optimum = SoftmaxRegression(l2=1e-4, tol=1e-10).fit(near.astype(np.float64), y).objective_
    model = SoftmaxRegression(l2=1e-4).fit(near, y)
    assert model.status_ == solvers.Status.CERTIFIED
    np.testing.assert_allclose(model.objective_, objective(model, near, y, 1e-4), rtol=1e-12)
    assert 0 <= model.objective_ - optimum <= model.gap_ <= 1e-6 * optimum
    with pytest.warns(ConvergenceWarning, match="weights in float32.*centre the features"):
        model = SoftmaxRegression(l2=1e-4).fit(far, y)
    np.testing.assert_allclose(model.objective_, objective(model, far, y, 1e-4), rtol=1e-12)
    assert model.gap_ > 1e-6 * model.objective_


def test_no_passes_leave_the_start(iris):
    x, y = iris
    with pytest.warns(ConvergenceWarning, match="max_passes = 0"):
        model = SoftmaxRegression(max_passes=0).fit(x, y)
    np.testing.assert_array_equal(model.predict_proba(x), np.full((N, 3), 1 / 3))
    np.testing.assert_allclose([model.objective_, model.gap_], math.log(3))
    assert (model.n_iter_, model.status_) == (0, solvers.Status.NOT_CERTIFIED)
    before = SoftmaxRegression(warm_start=True).fit(x, y)
    coef, value = before.coef_, before.objective_
    with pytest.warns(ConvergenceWarning, match="max_passes = 0"):
        before.set_params(max_passes=0).fit(x, y)
    np.testing.assert_array_equal(before.coef_, coef)
    np.testing.assert_allclose(before.objective_, value, rtol=1e-12)


def test_warm_start(iris):
    x, y = iris
    cold = SoftmaxRegression(l2=1e-3).fit(x, y)
    warm = SoftmaxRegression(l2=1.1e-3, warm_start=True).fit(x, y).set_params(l2=1e-3)
    assert warm.fit(x, y).n_iter_ < cold.n_iter_
    np.testing.assert_allclose(warm.objective_, cold.objective_, rtol=1e-6)
    # Other classes, or other features, have a start of their own.
    for features, labels in ((x, y == "setosa"), (x[:, :2], y)):
        again, alone = warm.fit(features, labels), SoftmaxRegression(l2=1e-3).fit(features, labels)
        np.testing.assert_array_equal(again.coef_, alone.coef_)


def adam(x, y, steps, l2, rate=0.01):
    """Returns W and b of Adam in float64, with all rows in each step."""
    x, onehot = np.c_[x, np.ones(len(x))], np.eye(3)[y]
    w, first, second = np.zeros((3, x.shape[1], 3))
    for step in range(1, steps + 1):
        slope = x.T @ (scipy.special.softmax(x @ w, axis=1) - onehot) / len(x)
        slope[:-1] += l2 * w[:-1]
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        w -= rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return w


def test_partial_fit_takes_steps_of_adam(iris, store):
    x, y = iris
    classes, ids = np.unique(y, return_inverse=True)
    model = SoftmaxRegression(l2=0.1, batch_size=N)
    for calls in (1, 2, 3):
        model.partial_fit(store(x), y, classes=classes if calls == 1 else None)
        w = np.c_[model.coef_, model.intercept_].T
        np.testing.assert_allclose(w, adam(x, ids, calls, 0.1), atol=2e-5)
        model = pickle.loads(pickle.dumps(model))
    assert model.n_iter_ == 3
    assert not hasattr(model, "objective_")


@pytest.mark.slow
def test_partial_fit_comes_near_the_optimum(iris):
    x, y = scipy.stats.zscore(iris[0]), iris[1]
    best = SoftmaxRegression(l2=0.01, tol=1e-8).fit(x, y)
    ids = np.unique(y, return_inverse=True)[1]
    model = SoftmaxRegression(l2=0.01, learning_rate=0.03, batch_size=50)
    for _ in range(200):
        model.partial_fit(x, y, classes=best.classes_)
    assert objective(model, x, ids, 0.01) < 1.01 * best.objective_
    # Weights of rows and classes count as often as they say.
    twice = SoftmaxRegression(class_weight={"setosa": 2.0}, batch_size=1000)
    copies = np.arange(N).repeat(np.where(y == "setosa", 2, 1))
    once = SoftmaxRegression(batch_size=1000).partial_fit(x[copies], y[copies], best.classes_)
    np.testing.assert_allclose(
        twice.partial_fit(x, y, best.classes_).coef_, once.coef_, rtol=1e-4, atol=1e-6
    )


def test_partial_fit_without_intercept(iris):
    x, y = iris
    model = SoftmaxRegression(fit_intercept=False, batch_size=N).partial_fit(x, y, np.unique(y))
    w = adam(x, np.unique(y, return_inverse=True)[1], 1, 1e-4)
    np.testing.assert_allclose(model.coef_.T, w[:-1], atol=2e-5)
    np.testing.assert_array_equal(model.intercept_, np.zeros(3))


def test_partial_fit_goes_on_from_a_fit(iris):
    x, y = iris
    model = SoftmaxRegression(l2=0.1).fit(x, y)
    coef = model.coef_
    model.set_params(learning_rate=1e-4).partial_fit(x, y)
    np.testing.assert_allclose(model.coef_, coef, atol=3e-4)
    assert (model.coef_ != coef).any()


def test_partial_fit_that_diverges(iris):
    x, y = iris
    with pytest.warns(ConvergenceWarning, match=r"step 1 of partial_fit led to no finite number"):
        model = SoftmaxRegression(learning_rate=3e38, batch_size=100).partial_fit(
            x, y, np.unique(y)
        )
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SoftmaxRegression(l1=0.1), {}, "partial_fit takes l2 only"),
        (SoftmaxRegression(class_weight="balanced"), {}, "'balanced' needs all rows"),
        (SoftmaxRegression(standardize=True), {}, "standardize needs all rows"),
        (SoftmaxRegression(), {}, "classes must be passed on the first call"),
        (SoftmaxRegression(), {"classes": ["setosa", "versicolor"]}, "row 100 is .*virginica"),
    ],
)
def test_errors_of_partial_fit(iris, model, options, message):
    x, y = load_iris().data, np.array(["setosa", "versicolor", "virginica"])[load_iris().target]
    with pytest.raises(ValueError, match=message):
        model.partial_fit(x, y, **options)


@pytest.mark.slow
def test_sparse_weights(iris, store):
    x, y = iris
    model = SoftmaxRegression(l2=0, l1=0.1).fit(x, y)
    dense, expected = model.coef_, model.predict_log_proba(x)
    assert scipy.sparse.issparse(model.sparsify().coef_)
    assert model.coef_.nnz < dense.size
    np.testing.assert_allclose(model.predict_log_proba(store(x)), expected)
    np.testing.assert_array_equal(model.densify().coef_, dense)


@pytest.mark.slow
def test_select_from_model_keeps_what_l1_keeps(iris):
    x, y = iris
    for l1_model in (
        SoftmaxRegression(l2=0, l1=0.05),
        SoftmaxRegressionCV(l2=0, l1=[0.05, 0.1], cv=IDS),
    ):
        selector = SelectFromModel(l1_model).fit(x, y)
        assert selector.threshold_ == 1e-5
        np.testing.assert_array_equal(
            selector.get_support(), (selector.estimator_.coef_ != 0).any(axis=0)
        )
    by_mean = SelectFromModel(SoftmaxRegression()).fit(x, y)
    np.testing.assert_allclose(by_mean.threshold_, np.abs(by_mean.estimator_.coef_).sum(0).mean())


@pytest.mark.slow
@pytest.mark.parametrize("scoring", ["accuracy", "roc_auc_ovr", get_scorer("neg_brier_score")])
def test_any_score(iris, scoring):
    x, y = iris
    strengths, splitter = (1e-3, 1e-1, 10.0), StratifiedKFold(3)
    model = SoftmaxRegressionCV(l2=strengths, cv=splitter, scoring=scoring, tol=1e-8).fit(x, y)
    expected = [
        cross_val_score(SoftmaxRegression(l2=l2, tol=1e-8), x, y, cv=splitter, scoring=scoring)
        for l2 in strengths
    ]
    np.testing.assert_allclose(model.scores_, np.transpose(expected), rtol=1e-4)
    assert model.l2_ == strengths[np.argmax(np.mean(expected, axis=1))]
    np.testing.assert_allclose(model.score(x, y), get_scorer(scoring)(model, x, y))


@pytest.mark.slow
def test_scores_know_classes_that_held_out_rows_lack(iris):
    x, y = iris
    ids = np.where(y == "setosa", -1, IDS)
    only_two = [(np.flatnonzero(ids != k), np.flatnonzero(ids == k)) for k in range(3)]
    model = SoftmaxRegressionCV(l2=1e-2, cv=only_two, scoring="neg_log_loss").fit(x, y)
    np.testing.assert_allclose(-model.scores_, model.cross_validation_.fold_loss, rtol=1e-6)
    # For two classes the larger is the one that counts.
    model = SoftmaxRegressionCV(l2=1e-2, cv=IDS, scoring="neg_brier_score").fit(x, y == "setosa")
    for fold, (w, score) in enumerate(zip(model.coefs_paths_, model.scores_, strict=True)):
        rows = np.arange(fold, N, 3)
        p = scipy.special.softmax(x[rows] @ w[:, :-1].T + w[:, -1], axis=1)[:, 1]
        np.testing.assert_allclose(-score, np.mean((p - (y[rows] == "setosa")) ** 2))


def test_groups(iris):
    x, y = iris
    groups = np.random.default_rng(0).permutation(N) // 10
    splitter = GroupKFold(3)
    expected = SoftmaxRegressionCV(l2=1e-2, cv=list(splitter.split(x, y, groups))).fit(x, y)
    for routing in (False, True):
        with sklearn.config_context(enable_metadata_routing=routing):
            model = SoftmaxRegressionCV(l2=1e-2, cv=splitter).fit(x, y, groups=groups)
        np.testing.assert_array_equal(model.scores_, expected.scores_)
    with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
        model.fit(x, y, colours=groups)


def test_metadata_routing(iris):
    x, y = iris
    options = {"l2": (1e-3, 1e-1), "cv": IDS}
    plain = SoftmaxRegressionCV(scoring="accuracy", **options)
    weighted = plain.fit(x, y, sample_weight=WEIGHTS).scores_
    with sklearn.config_context(enable_metadata_routing=True):
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            plain.fit(x, y, sample_weight=WEIGHTS)
        scores = {}
        for asked in (True, False):
            scorer = get_scorer("accuracy").set_score_request(sample_weight=asked)
            model = SoftmaxRegressionCV(scoring=scorer, **options)
            scores[asked] = model.fit(x, y, sample_weight=WEIGHTS).scores_
            asked_for = {"sample_weight": WEIGHTS} if asked else {}
            expected = np.average(model.predict(x) == y, weights=WEIGHTS if asked else None)
            np.testing.assert_allclose(model.score(x, y, **asked_for), expected)
        with pytest.raises(TypeError, match="not routed to any object"):
            model.score(x, y, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(scores[True], weighted)
    assert (scores[False] != weighted).any()


def test_weights_and_passes_of_each_fold(iris):
    x, y = iris
    strengths = (1e-3, 1e-1)
    model = SoftmaxRegressionCV(l2=strengths, cv=IDS, tol=1e-10).fit(x, y)
    assert model.coefs_paths_.shape == (3, 2, 3, 5)
    for fold, i in np.ndindex(3, 2):
        rows = np.flatnonzero(IDS - fold)
        alone = SoftmaxRegression(l2=strengths[i], tol=1e-10).fit(x[rows], y[rows])
        expected = np.c_[alone.coef_, alone.intercept_]
        np.testing.assert_allclose(model.coefs_paths_[fold, i], expected, atol=1e-4)
    passes = model.cross_validation_.folds.passes
    np.testing.assert_array_equal(model.n_iter_, np.ceil(passes))


@pytest.mark.slow
def test_without_a_fit_to_all_rows(iris):
    x, y = iris
    options = {"l2": (1e-3, 1e-1), "cv": IDS}
    model = SoftmaxRegressionCV(refit=False, **options).fit(x, y)
    other = SoftmaxRegressionCV(**options).fit(x, y)
    assert model.l2_ == other.l2_
    mean = model.coefs_paths_[:, options["l2"].index(model.l2_)].mean(axis=0)
    np.testing.assert_array_equal(np.c_[model.coef_, model.intercept_], mean)
    assert model.cross_validation_.path is None
    assert not hasattr(model, "gap_")


def test_no_cv_is_five_folds(iris):
    default, five = (SoftmaxRegressionCV(l2=1e-2, cv=cv).fit(*iris) for cv in (None, 5))
    np.testing.assert_array_equal(default.scores_, five.scores_)


@pytest.fixture
def array_api(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with sklearn.config_context(array_api_dispatch=True):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("array_api")
@pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_array_api(iris, device, dtype):
    xp = array_api_strict
    device = xp.Device(device)
    x, y = iris[0].astype(dtype), np.unique(iris[1], return_inverse=True)[1]
    x_there, y_there = (xp.asarray(a, device=device) for a in (x, y))
    for model in (SoftmaxRegression(l2=1e-2), SoftmaxRegressionCV(l2=1e-2, cv=IDS)):
        expected = clone(model).fit(x, y)
        model.fit(x_there, y_there, sample_weight=xp.ones(N, device=device))
        for name in ("coef_", "intercept_"):
            array = getattr(model, name)
            assert (array.dtype, array.device) == (x_there.dtype, device)
        for method in ("decision_function", "predict_proba", "predict_log_proba", "predict"):
            found = getattr(model, method)(x_there)
            assert found.device == device
            assert found.dtype == (y_there if method == "predict" else x_there).dtype
            found = np.asarray(xp.asarray(found, device=xp.Device("CPU_DEVICE")))
            np.testing.assert_allclose(found, getattr(expected, method)(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(model.score(x_there, y_there), expected.score(x, y))
    with pytest.raises(ValueError, match=r"predict\(\) must use.* X is of .*numpy.* are Array"):
        model.predict(x)
    words = SoftmaxRegression().fit(x_there, iris[1])
    assert set(words.predict(x_there)) == set(iris[1])
    no_dispatch = sklearn.config_context(array_api_dispatch=False)
    with no_dispatch, pytest.raises(ValueError, match="with array_api_dispatch as it was then"):
        words.predict(x)


@pytest.mark.slow
@pytest.mark.usefixtures("array_api")
def test_arrays_of_jax(iris):
    x, y = jnp.asarray(iris[0], jnp.float32), np.unique(iris[1], return_inverse=True)[1]
    model = SoftmaxRegression(l2=1e-2).fit(x, jnp.asarray(y))
    expected = SoftmaxRegression(l2=1e-2).fit(np.asarray(x), y)
    np.testing.assert_allclose(model.objective_, expected.objective_, rtol=1e-12)
    assert isinstance(model.coef_, jax.Array)
    assert isinstance(model.predict(x), jax.Array)
    np.testing.assert_allclose(model.coef_, expected.coef_)
    np.testing.assert_allclose(model.predict_proba(x), expected.predict_proba(iris[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SoftmaxRegression(l2=-1.0), "l2: -1.0"),
        (SoftmaxRegression(class_weight="unbalanced"), "class_weight: 'unbalanced'"),
        (SoftmaxRegression(class_weight={"tulip": 1.0}), "tulip|not in class_weight"),
        (SoftmaxRegressionCV(choice="worst"), "choice: 'worst'"),
        (SoftmaxRegressionCV(cv=1), "folds: 1"),
        (SoftmaxRegressionCV(l1=-1.0), "l1: -1.0"),
    ],
)
def test_errors(iris, model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(*iris)


def test_partial_fit_under_a_guard_of_transfers():
    x, y = np.eye(6, 2), np.arange(6) % 2
    expected = SoftmaxRegression().partial_fit(x, y, classes=[0, 1])
    with jax.transfer_guard("disallow"):
        found = SoftmaxRegression().partial_fit(x, y, classes=[0, 1])
    np.testing.assert_array_equal(found.coef_, expected.coef_)


def test_partial_fit_refuses_features_of_which_float32_keeps_too_little():
    x, y = 1e9 + np.random.default_rng(0).normal(size=(6, 2)), np.arange(6) % 2
    with pytest.raises(ValueError, match=r"X: feature 0 .*; subtract its mean"):
        SoftmaxRegression().partial_fit(x, y, classes=[0, 1])
