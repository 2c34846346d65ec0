r"""Softmax regression with scikit-learn's interface, solved to a certified optimum.

Both estimators minimise this library's objective, the mean loss in nats plus the penalty,

.. math:: F(W, b) = \frac{\sum_i s_i l_i}{\sum_i s_i} + \frac{l_2}{2} |W|^2 + l_1 \|W\|_1,

with a free bias, by `softmax_jax.solvers`. Strengths are per mean loss, not per sum of losses as
scikit-learn's ``C``: `softmax_jax.conventions.from_sklearn` translates, ``l2 = 1 / (C n)`` for
unit weights. For two classes scikit-learn has one vector of weights, and this library one for each
class, as for more: see `softmax_jax.conventions.from_sigmoid`.
"""

import math
import warnings
from typing import Any, Self

import jax
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from softmax_jax import solvers

# Rows at a time, when integers and narrow floats are multiplied as float64.
_BLOCK = 8192


class SoftmaxRegression(ClassifierMixin, BaseEstimator):
    """Softmax regression of given strengths.

    Features are dense or SciPy sparse; sparse ones are never densified as a whole, and dense ones
    keep their type (uint8, float32, ...): no float copy is made of them.

    Args:
      l2: strength of ``|W|²/2``, at least 0.
      l1: strength of ``|W|_1``, at least 0.
      grouped: whether ``l1`` counts a feature's weights by their norm over the classes, so that a
        feature is dropped for all classes or none.
      class_weight: None, a dict from labels to weights (1 for those that are missing), or
        ``"balanced"`` for equal weight of all classes; they multiply the sample weights.
      tol: relative certified gap to stop at: the objective is at most this share of itself above
        the minimum. With ``l2 > 0``, ``|W - W*|² <= 2 tol F / l2``.
      max_passes: passes over the data to stop at.

    Attributes:
      classes_: ``[q]`` labels, sorted.
      coef_: ``[q, d]`` weights ``W^T``, float64; for two classes too.
      intercept_: ``[q]`` biases, with sum zero; ``-inf`` for a class of weight zero, which is then
        never predicted.
      n_features_in_: d.
      feature_names_in_: ``[d]``, if ``X`` had names.
      n_iter_: passes over the data that it took.
      objective_: F in nats.
      gap_: in nats: the minimum of F is not below ``objective_ - gap_``.
      status_: ``certified``, ``not certified`` or ``infimum at infinity``; see
        `softmax_jax.solvers.Solution`.

    Example:
      >>> from sklearn.datasets import load_iris
      >>> x, y = load_iris(return_X_y=True)
      >>> round(SoftmaxRegression(l2=1e-3).fit(x, y).score(x, y), 2)
      0.98
    """

    def __init__(
        self,
        *,
        l2: float = 1e-4,
        l1: float = 0.0,
        grouped: bool = False,
        class_weight: Any = None,
        tol: float = 1e-6,
        max_passes: float = 2000,
    ):
        self.l2 = l2
        self.l1 = l1
        self.grouped = grouped
        self.class_weight = class_weight
        self.tol = tol
        self.max_passes = max_passes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Minimises the objective.

        Args:
          X: ``[n, d]`` features, dense or sparse.
          y: ``[n]`` labels of any kind.
          sample_weight: ``[n]``, 0 or more; a weight of zero is as good as no row.

        Raises:
          ValueError: on input that is not as above, with NaN or infinities, of fewer than two
            classes, or parameters out of range.

        Warns:
          ConvergenceWarning: if the solution is not certified, with the reason.
        """
        problem = self._problem(X, y, sample_weight)
        solution = solvers.fit(l2=self.l2, l1=self.l1, **problem)
        _warn_unless_certified(solution.status, solution.reason)
        return self._keep(solution)

    def _problem(self, X: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
        """The arguments that `solvers.fit` and `solvers.cross_validate` share."""
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype="numeric")
        check_classification_targets(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_, ids = np.unique(y, return_inverse=True)
        class_weight = self.class_weight
        if class_weight is not None and not isinstance(class_weight, str):
            class_weight = compute_class_weight(class_weight, classes=self.classes_, y=y)
        return {
            "x": X,
            "y": ids,
            "sample_weight": sample_weight,
            "class_weight": class_weight,
            "grouped": self.grouped,
            "tol": self.tol,
            "max_passes": self.max_passes,
        }

    def _keep(self, solution: solvers.Solution) -> Self:
        self.coef_ = np.ascontiguousarray(solution.params.w.T)
        self.intercept_ = solution.params.b
        self.n_iter_ = math.ceil(solution.passes)
        self.objective_ = float(solution.objective)
        self.gap_ = float(solution.gap)
        self.status_ = str(solution.status)
        return self

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype="numeric", reset=False)
        blocks = (X[first : first + _BLOCK] for first in range(0, X.shape[0], _BLOCK))
        return np.concatenate([block @ self.coef_.T for block in blocks]) + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """``[n, q]`` logits; for two classes ``[n]``, the log odds of ``classes_[1]``."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> np.ndarray:
        """``[n]``: the most probable labels."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """``[n, q]`` probabilities, with the classes in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """``[n, q]``: their logarithms, in nats."""
        logits = self._logits(X)
        below = logits - logits.max(axis=1, keepdims=True)
        return below - np.log(np.exp(below).sum(axis=1, keepdims=True))


class SoftmaxRegressionCV(SoftmaxRegression):
    """Softmax regression whose strengths are chosen by cross-validation.

    The fits to the rows of every fold and to all rows share their passes over the data, up to four
    at a time; see `softmax_jax.solvers.cross_validate`.

    Args:
      l2: strengths to choose from.
      l1: a strength or several; together with ``l2`` they broadcast to a grid, as by NumPy:
        ``l2=[[1e-4], [1e-3]], l1=[[1e-3, 1e-2]]`` are four pairs.
      cv: how many folds, dealt out so that each class is spread evenly; or an integer array with
        the fold of each row; or pairs of row indices ``(training, held out)``; or one of
        scikit-learn's splitters.
      choice: ``"best"``, of the least held-out loss, or ``"one_standard_error"``, the strongest
        penalty with a loss within one standard error of that.
      random_state: int, the seed of the folds.
      grouped: as in `SoftmaxRegression`, as are those that follow.
      class_weight: also counts in the held-out loss.
      tol: of each fit.
      max_passes: of each fit.

    Attributes:
      l2_: the strength that was chosen, as is ``l1_``.
      cross_validation_: `softmax_jax.solvers.CrossValidation`: losses and accuracies with standard
        errors over the grid, and for each fold; its ``path`` is of the chosen strengths only.

    and those of `SoftmaxRegression`.
    """

    def __init__(
        self,
        *,
        l2: Any = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        l1: Any = 0.0,
        cv: Any = 5,
        choice: str = "best",
        random_state: int = 0,
        grouped: bool = False,
        class_weight: Any = None,
        tol: float = 1e-6,
        max_passes: float = 2000,
    ):
        super().__init__(
            l2=l2,
            l1=l1,
            grouped=grouped,
            class_weight=class_weight,
            tol=tol,
            max_passes=max_passes,
        )
        self.cv = cv
        self.choice = choice
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Chooses strengths and minimises the objective with them.

        The arguments, errors and warnings are those of `SoftmaxRegression.fit`, and those of
        `softmax_jax.solvers.cross_validate`.
        """
        if self.choice not in ("best", "one_standard_error"):
            raise ValueError(f"choice: {self.choice!r}; expected 'best' or 'one_standard_error'")
        problem = self._problem(X, y, sample_weight)
        found = solvers.cross_validate(
            l2=self.l2,
            l1=self.l1,
            folds=self.cv.split(X, y) if hasattr(self.cv, "split") else self.cv,
            seed=self.random_state,
            **problem,
        )
        chosen = getattr(found, self.choice)
        solution = jax.tree.map(lambda a: a[chosen], found.path)
        _warn_unless_certified(
            np.append(solution.status, found.fold_status),
            np.append(solution.reason, found.fold_reason),
        )
        self.l2_, self.l1_ = float(found.l2[chosen]), float(found.l1[chosen])
        self.cross_validation_ = found._replace(path=solution)
        return self._keep(solution)


def _warn_unless_certified(status: Any, reason: Any) -> None:
    """For one solution, or arrays of them."""
    status, reason = np.ravel(status), np.ravel(reason)
    failed = np.flatnonzero(status != solvers.CERTIFIED)
    if failed.size:
        which = "the solution" if status.size == 1 else f"{failed.size} of {status.size} solutions"
        warnings.warn(
            f"{which}: {status[failed[0]]} ({reason[failed[0]]})", ConvergenceWarning, stacklevel=3
        )
