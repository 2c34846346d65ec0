"""scikit-learn's own tests of ``LogisticRegression``, of the installed version, run on ours.

They see the classes below under scikit-learn's names. These translate arguments and attributes and
do nothing else: ``C`` by `conventions`, two classes by one vector, and so on.
"""

import importlib.util
import inspect
import re

import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted

from softmax_jax import conventions
from softmax_jax.estimator import SoftmaxRegression, SoftmaxRegressionCV
from softmax_jax.estimator._arrays import place_of, to_numpy


class LogisticRegression(ClassifierMixin, BaseEstimator):
    def __init__(
        self,
        penalty="deprecated",
        *,
        C=1.0,
        l1_ratio=0.0,
        dual=False,
        tol=1e-4,
        fit_intercept=True,
        intercept_scaling=1,
        class_weight=None,
        random_state=None,
        solver="lbfgs",
        max_iter=100,
        verbose=0,
        warm_start=False,
        n_jobs=None,
    ):
        for name, value in locals().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def fit(self, X, y, sample_weight=None):
        ratio = {"l1": 1.0, "l2": 0.0}.get(self.penalty, self.l1_ratio)
        C = np.inf if self.penalty is None else self.C
        l2, l1 = self._strengths(C, ratio, y, self._total_weight(y, sample_weight))
        model = SoftmaxRegression(l2=l2, l1=l1, warm_start=self.warm_start, **self._options())
        if self.warm_start and hasattr(self, "coef_"):
            model.__dict__.update(vars(self._model()) | model.get_params())
        self._take(model.fit(X, y, sample_weight))
        self.n_iter_ = np.array([model.n_iter_])
        return self

    def _options(self):
        return {
            "class_weight": self.class_weight,
            "fit_intercept": self.fit_intercept,
            # Theirs bounds a gradient, ours a difference of objectives.
            "tol": min(max(self.tol**2, 1e-12), 1e-6),
            # 100 iterations are their default; ours come with a certificate, or a warning.
            "max_passes": self.max_iter if self.max_iter < 100 else 2000,
        }

    def _total_weight(self, y, sample_weight):
        y = to_numpy(y)
        weights = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        return np.sum(weights * compute_sample_weight(self.class_weight, y))

    @staticmethod
    def _strengths(C, ratio, y, total_weight):
        strengths = conventions.from_sklearn(C, l1_ratio=ratio, total_weight=total_weight)
        two = np.unique(to_numpy(y)).size == 2
        return conventions.from_sigmoid(*strengths) if two else strengths

    def _take(self, model):
        """The attributes of a fitted model as theirs."""
        for name in ("classes_", "n_features_in_", "feature_names_in_"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.coef_, self.intercept_ = one_vector(model.coef_), one_vector(model.intercept_)

    def _model(self):
        """Ours with weights that may have been changed."""
        check_is_fitted(self)
        model = SoftmaxRegression()
        model.__dict__.update(vars(self))
        model.coef_, model.intercept_ = two_vectors(self.coef_), two_vectors(self.intercept_)
        return model

    def decision_function(self, X):
        return self._model().decision_function(X)

    def predict(self, X):
        return self._model().predict(X)

    def predict_proba(self, X):
        return self._model().predict_proba(X)

    def predict_log_proba(self, X):
        return self._model().predict_log_proba(X)

    def sparsify(self):
        self._take(self._model().sparsify())
        return self

    def densify(self):
        self._take(self._model().densify())
        return self


class LogisticRegressionCV(LogisticRegression):
    def __init__(
        self,
        *,
        Cs=10,
        l1_ratios="warn",
        fit_intercept=True,
        cv=None,
        dual=False,
        penalty="deprecated",
        scoring="warn",
        solver="lbfgs",
        tol=1e-4,
        max_iter=100,
        class_weight=None,
        n_jobs=None,
        verbose=0,
        refit=True,
        intercept_scaling=1.0,
        random_state=None,
        use_legacy_attributes="warn",
    ):
        for name, value in locals().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def fit(self, X, y, sample_weight=None, **params):
        self.Cs_ = np.logspace(-4, 4, self.Cs) if np.ndim(self.Cs) == 0 else np.asarray(self.Cs)
        is_l2 = self.l1_ratios is None or isinstance(self.l1_ratios, str)
        self.l1_ratios_ = np.asarray([0.0] if is_l2 else self.l1_ratios)
        cv = self._new().cv
        folds = cv.get_n_splits(X, y) if hasattr(cv, "get_n_splits") else len(cv)
        # Their C is for a sum over the rows of a fold, ours for the mean, so that the fit to all
        # rows has another strength.
        weight = self._total_weight(y, sample_weight) * (1 - 1 / folds)
        grid = [
            [self._strengths(C, ratio, y, weight) for C in self.Cs_] for ratio in self.l1_ratios_
        ]
        l2, l1 = np.moveaxis(grid, -1, 0)
        self._cv = self._new(l2=l2, l1=l1, refit=False, **self._options())
        self._cv.fit(X, y, sample_weight, **params)
        at = self._cv.cross_validation_.best
        self.C_, self.l1_ratio_ = float(self.Cs_[at[1]]), float(self.l1_ratios_[at[0]])
        self._take(self._cv)
        if self.refit:
            shared = ("tol", "max_iter", "class_weight", "fit_intercept")
            options = {name: getattr(self, name) for name in shared}
            single = LogisticRegression(C=self.C_, l1_ratio=self.l1_ratio_, **options)
            self._take(single.fit(X, y, sample_weight))
        paths = np.moveaxis(one_vector(np.moveaxis(self._cv.coefs_paths_, -2, 0)), 0, -2)
        self.coefs_paths_ = paths if self.fit_intercept else paths[..., :-1]
        self.scores_, self.n_iter_ = self._cv.scores_, self._cv.n_iter_
        if self.use_legacy_attributes is not False:
            self._use_legacy_attributes(is_l2)
        return self

    def _new(self, **options):
        """Named as theirs in error messages."""
        default = isinstance(self.scoring, str) and self.scoring == "warn"
        scoring = "accuracy" if default or self.scoring is None else self.scoring
        cv = (
            StratifiedKFold(self.cv or 5)
            if self.cv is None or isinstance(self.cv, int)
            else self.cv
        )
        return OursUnderTheirName(cv=cv, scoring=scoring, **options)

    def _use_legacy_attributes(self, is_l2):
        """A dict by class of ``[folds, Cs, l1_ratios, ...]``."""
        names = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        coefs = np.moveaxis(self.coefs_paths_, (3, 0, 2, 1), (0, 1, 2, 3))
        scores, n_iter = self.scores_.swapaxes(1, 2), self.n_iter_.swapaxes(1, 2)[None]
        if is_l2:
            coefs, scores, n_iter = coefs[:, :, :, 0], scores[:, :, 0], n_iter[..., 0]
        self.coefs_paths_ = dict(zip(names, coefs, strict=True))
        self.scores_ = dict.fromkeys(names, scores)
        self.n_iter_ = n_iter
        self.C_, self.l1_ratio_ = (np.full(len(names), a) for a in (self.C_, self.l1_ratio_))

    def score(self, X, y, sample_weight=None, **params):
        model = self._new()
        if hasattr(self, "coef_"):
            model.__dict__.update(vars(self._model()) | model.get_params())
        return model.score(X, y, sample_weight, **params)

    def get_metadata_routing(self):
        return self._new().get_metadata_routing()


OursUnderTheirName = type("LogisticRegressionCV", (SoftmaxRegressionCV,), {})


def one_vector(a):
    """Returns, of two classes, the second less the first, ``[1, ...]``; of more they stay."""
    return a[1:2, ...] - a[0:1, ...] if a.shape[0] == 2 else a


def two_vectors(a):
    if a.shape[0] != 1:
        return a
    if scipy.sparse.issparse(a):
        return scipy.sparse.csr_array(scipy.sparse.vstack([-a / 2, a / 2]))
    return place_of(a).namespace.concat([-a / 2, a / 2])


def suite():
    """The module of their tests, which imports the classes above for theirs."""
    name = "sklearn.linear_model.tests.test_logistic"
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for ours in (LogisticRegression, LogisticRegressionCV):
            patch.setattr(sklearn.linear_model, ours.__name__, ours)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def global_random_seed():
    return 42


# Their tests do not treat all warnings as errors.
pytestmark = pytest.mark.filterwarnings("ignore")

# By reason, patterns of the names of cases.
EXPECTED_FAILURES = {
    "on what one of their solvers cannot do, by its name": (
        r"test_check_solver_option.*",
        r"test_large_sparse_matrix.*(liblinear|sag|saga)\]",
        r"test_liblinear_multiclass_raises.*",
        r"test_liblinear_with_large_values",
        r"test_dtype_match.*liblinear\]",
        r"test_newton_cholesky_fallback_to_lbfgs",
    ),
    "on the message of one of their solvers, by its name": (r"test_max_iter.*",),
    "on random choices of liblinear, where ours makes none": (r"test_liblinear_dual_random_state",),
    "on warnings of arguments that they give up, and ours never had": (
        r"test_elasticnet_l1_ratio_err_helpful.*",
        r"test_l1_ratio_non_elasticnet",
        r"test_penalty_none.*",
        r"test_penalty_deprecated.*",
        r"test_logisticregressioncv_warns_with_use_legacy_attributes",
        r"test_l1_ratio_None_deprecated",
        r"test_logisticregression_warns_with_n_jobs",
        r"test_lr_penalty_l1ratio_incompatible.*",
        r"test_lr_scoring_warns",
    ),
    "calls their private functions": (
        r"test_logreg_predict_proba_multinomial",
        r"test_get_default_scorer",
        # It compares them with ours, at a tolerance that lbfgs stops far from.
        r"test_logistic_cv_multinomial_score\[neg_log_loss.*",
    ),
    "asks for the callbacks of scikit-learn 1.9; solvers.fit has one of its own": (
        r"test_logistic_regression_callback.*",
    ),
    "two starts of one pass each are not one of two: the method remembers gradients": (
        r"test_warm_start_newton_solver.*-True-.*",
    ),
    "a fold that trains on a single class is an error here": (
        r"test_logistic_cv_folds_with_classes_missing\[2-.*",
    ),
}


@pytest.fixture(autouse=True)
def _known(request, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    for reason, patterns in EXPECTED_FAILURES.items():
        if any(re.fullmatch(pattern, request.node.name) for pattern in patterns):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def of_what_is_installed(mark):
    """Namespaces of arrays come from a generator, which pytest would warn of."""
    if mark.name != "parametrize" or not inspect.isgenerator(mark.args[1]):
        return mark
    cases = [case for case in mark.args[1] if importlib.util.find_spec(case[0])]
    return pytest.mark.parametrize(mark.args[0], cases, **mark.kwargs).mark


def prepared(test):
    test.pytestmark = [of_what_is_installed(mark) for mark in getattr(test, "pytestmark", [])]
    return pytest.mark.slow(test)


globals().update(
    {name: prepared(f) for name, f in vars(suite()).items() if name.startswith("test_")}
)
