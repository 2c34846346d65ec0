"""Linear classifier: input, predictions and weights, as both estimators have them."""

import warnings
from typing import Self

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import dense, is_sparse
from softmax_jax.data import blocks
from softmax_jax.estimator._arrays import (
    Place,
    dtype_of_weights,
    place_of,
    to_numpy,
    without_bfloat16,
)
from softmax_jax.model import Params
from softmax_jax.normalizer import log_softmax
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import Solution, Status
from softmax_jax.solvers.cross_validation import standard_deviations
from softmax_jax.solvers.rows import checked_weights

TOL = 1e-6
"""Certified relative gap at which the estimators stop by default: scores agree to many digits."""


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """``classes_``, ``coef_`` and ``intercept_``, and what is predicted with them."""

    class_weight: AnyArray
    grouped: bool
    standardize: bool
    tol: float
    classes_: AnyArray
    coef_: AnyArray
    intercept_: AnyArray

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags

    def decision_function(self, X: AnyArray) -> AnyArray:
        """``[n, q]`` logits; for two classes ``[n]``, the log odds of ``classes_[1]``."""
        logits = self._logits(X, "decision_function")
        logits = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
        return self._in_the_type_of_the_weights(logits)

    def predict(self, X: AnyArray) -> AnyArray:
        """``[n]``: the most probable labels."""
        logits = self._logits(X, "predict")
        place = place_of(logits)
        best = to_numpy(place.namespace.argmax(logits, axis=1))
        labels = to_numpy(self.classes_)[best]
        return labels if labels.dtype.kind in "OUS" else place.put(labels)

    def predict_proba(self, X: AnyArray) -> AnyArray:
        """``[n, q]`` probabilities, with the classes in the order of ``classes_``."""
        log_probabilities = self._log_probabilities(X, "predict_proba")
        probabilities = place_of(log_probabilities).namespace.exp(log_probabilities)
        return self._in_the_type_of_the_weights(probabilities)

    def predict_log_proba(self, X: AnyArray) -> AnyArray:
        """``[n, q]``: their logarithms, in nats."""
        return self._in_the_type_of_the_weights(self._log_probabilities(X, "predict_log_proba"))

    def sparsify(self) -> Self:
        """Makes ``coef_`` a SciPy sparse matrix, which is smaller where ``l1`` left few weights."""
        check_is_fitted(self)
        self.coef_ = scipy.sparse.csr_matrix(to_numpy(self.coef_))
        return self

    def densify(self) -> Self:
        """Makes ``coef_`` a NumPy array again after `sparsify`."""
        check_is_fitted(self)
        self.coef_ = dense(self.coef_)
        return self

    def _checked(self, X: AnyArray, y: AnyArray) -> tuple[AnyArray, np.ndarray]:
        """Features, and class ids for NumPy; sets ``classes_``."""
        X, y = validate_data(self, without_bfloat16(X), y, accept_sparse="csr", dtype="numeric")
        check_classification_targets(y)
        classes, ids = np.unique(to_numpy(y), return_inverse=True)
        self.classes_ = place_of(y).put(classes)
        return X, ids

    def _weights(self, ids: np.ndarray, sample_weight: AnyArray) -> dict[str, AnyArray]:
        """Both kinds of weights as the solvers take them."""
        if sample_weight is not None:
            sample_weight = _check_sample_weight(to_numpy(sample_weight), ids, dtype=np.float64)
        class_weight = self.class_weight
        if class_weight is not None and not isinstance(class_weight, str):
            classes = to_numpy(self.classes_)
            class_weight = compute_class_weight(class_weight, classes=classes, y=classes[ids])
        return {"sample_weight": sample_weight, "class_weight": class_weight}

    def _set_weights(self, params: Params, X: AnyArray) -> None:
        """Sets weights in the type that belongs to features ``X``, and where those lie."""
        place, dtype = place_of(X), dtype_of_weights(X)
        self.coef_ = place.put(np.ascontiguousarray(params.w.T, dtype))
        self.intercept_ = place.put(np.asarray(params.b, dtype))

    def _keep(
        self,
        solution: Solution,
        l2: float,
        l1: float,
        X: AnyArray,
        ids: np.ndarray,
        weights: dict[str, AnyArray],
    ) -> Solution:
        """Takes the weights over; returns the solution with the objective of these.

        That is another one, if they were rounded to float32.
        """
        self._set_weights(solution.params, X)
        bound = solution.objective - solution.gap
        if dtype_of_weights(X) == np.float32 or solution.passes == 0:
            objective = self._objective(l2, l1, X, ids, weights)
            gap = max(objective - bound, 0.0)
            # What the gap is relative to: not the objective, where that is next to nothing.
            scale = solution.gap / solution.relative_gap if solution.relative_gap else 0.0
            relative_gap = gap / max(objective, scale)
            solution = solution._replace(objective=objective, gap=gap, relative_gap=relative_gap)
            if solution.status == Status.CERTIFIED and solution.relative_gap > self.tol:
                solution = solution._replace(
                    status=Status.NOT_CERTIFIED,
                    reason=f"with the weights in float32, as the features are, the gap is {gap:.1e}"
                    " nats: centre the features, or give them as float64",
                )
        self.objective_ = float(solution.objective)
        self.gap_ = float(solution.gap)
        self.status_ = str(solution.status)
        return solution

    def _objective(
        self, l2: float, l1: float, X: AnyArray, ids: np.ndarray, weights: dict[str, AnyArray]
    ) -> float:
        """F of the weights as they are, in float64."""
        w, b = model_params(self.coef_, self.intercept_)
        share = checked_weights(**weights, y=ids, n=len(ids), q=len(b))[0]
        rows = np.flatnonzero(share)
        X = to_numpy(X)
        logits = _products(X, w, place_of(ids)) + b
        losses = -log_softmax(logits)[rows, ids[rows]]
        w = w * standard_deviations(X, share)[:, None] if self.standardize else w
        penalty = Penalty(l2, l1, grouped=self.grouped).value(w)
        return float(np.average(losses, weights=share[rows]) + penalty)

    def _logits(self, X: AnyArray, method: str) -> AnyArray:
        """``[n, q]`` in the widest floats, as products with large features lose digits."""
        check_is_fitted(self)
        X = validate_data(
            self, without_bfloat16(X), accept_sparse="csr", dtype="numeric", reset=False
        )
        place = place_of(X)
        _refuse_another_place(place, self.coef_, f"{type(self).__name__}.{method}()")
        intercept = place.namespace.astype(self.intercept_, place.widest_float)
        return _products(X, self.coef_.T, place) + intercept[None, :]

    def _log_probabilities(self, X: AnyArray, method: str) -> AnyArray:
        logits = self._logits(X, method)
        return log_softmax(logits, place_of(logits).namespace)

    def _in_the_type_of_the_weights(self, a: AnyArray) -> AnyArray:
        return place_of(a).namespace.astype(a, self.intercept_.dtype, copy=False)


def _products(x: AnyArray, w: AnyArray, place: Place) -> AnyArray:
    """``x w`` in the widest floats and dense, where either may be sparse; a block at a time."""
    n, dtype = x.shape[0], place.widest_float

    def wide(a: AnyArray) -> AnyArray:
        if is_sparse(a):
            return a.astype(dtype)
        return place.namespace.astype(a, dtype, copy=False)

    w = wide(w)
    rows = blocks.rows_within(max(w.shape))
    products = [wide(x[at, :]) @ w for at in blocks.slices(n, rows)]
    return place.namespace.concat([dense(part) for part in products])


def _refuse_another_place(place: Place, weights: AnyArray, method: str) -> None:
    fitted = place_of(weights)
    # Without array_api_dispatch all places are NumPy's, even where the weights are not.
    is_numpys = is_sparse(weights) or isinstance(weights, np.ndarray)
    if fitted != place or place.is_numpy != is_numpys:
        raise ValueError(
            f"Inputs passed to {method} must use the same namespace and device as those of fit(), "
            f"with array_api_dispatch as it was then: X is of {place.namespace.__name__} on "
            f"{place.device}, the weights are {type(weights).__name__} on {fitted.device}"
        )


def model_params(coef: AnyArray, intercept: AnyArray) -> Params:
    """``coef_`` and ``intercept_`` as float64 parameters of the model."""
    w, b = (np.asarray(to_numpy(dense(a))) for a in (coef, intercept))
    return Params(w.T.astype(np.float64), b.astype(np.float64))


def warn_unless_certified(tol: float, *solutions: Solution) -> None:
    """Returns, for each, a solution or arrays of them.

    Without a penalty nothing bounds the gap: there the gradient says whether it is small.
    """
    status, reason, slope = (
        np.concatenate([np.ravel(getattr(solution, name)) for solution in solutions])
        for name in ("status", "reason", "slope")
    )
    is_flat = (status == Status.NOT_CERTIFIED) & (slope.astype(np.float64) <= tol)
    failed = np.flatnonzero((status != Status.CERTIFIED) & ~is_flat)
    if failed.size:
        which = "the solution" if status.size == 1 else f"{failed.size} of {status.size} solutions"
        warnings.warn(
            f"{which}: {status[failed[0]]} ({reason[failed[0]]})", ConvergenceWarning, stacklevel=3
        )
