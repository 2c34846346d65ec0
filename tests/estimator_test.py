import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from softmax_jax import conventions, solvers
from softmax_jax.estimator import SoftmaxRegression, SoftmaxRegressionCV

N = 150
IDS = np.arange(N) % 3
WEIGHTS = np.random.default_rng(0).uniform(0.5, 2, N)


# Fewer strengths and folds than by default, to save time.
@pytest.mark.slow
@parametrize_with_checks([SoftmaxRegression(), SoftmaxRegressionCV(l2=(1e-3, 1e-1), cv=3)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    """With labels in words, of which some are wrong, so that the classes differ in size."""
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
    assert ours.status_ == solvers.CERTIFIED
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


def test_what_is_not_certified_warns_with_the_reason(iris):
    x, y = iris
    with pytest.warns(ConvergenceWarning, match=r"the solution: not certified \(max_passes"):
        SoftmaxRegression(tol=1e-12, max_passes=3).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="infimum at infinity .the classes are separated"):
        model = SoftmaxRegression(l2=0).fit(x, x[:, 2] > 2.5)
    assert model.status_ == solvers.AT_INFINITY
    with pytest.warns(ConvergenceWarning, match="7 of 7 solutions: not certified"):
        SoftmaxRegressionCV(l2=(1e-3, 1e-1), cv=IDS, tol=1e-12, max_passes=3).fit(x, y)


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
