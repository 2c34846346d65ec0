"""`SoftmaxRegression`."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.validation import validate_data

from softmax_jax import solvers, training
from softmax_jax._annotations import AnyArray
from softmax_jax._fork import refuse_broken_process
from softmax_jax.checks import dense
from softmax_jax.data import Data
from softmax_jax.data.dataset import stored_features
from softmax_jax.estimator._arrays import for_solvers, to_numpy, without_bfloat16
from softmax_jax.estimator._linear_classifier import (
    TOL,
    LinearClassifier,
    model_params,
    warn_unless_certified,
)
from softmax_jax.model import Params
from softmax_jax.solvers.jobs import MAX_PASSES
from softmax_jax.solvers.rows import checked_weights, checked_y


class SoftmaxRegression(LinearClassifier):
    """Softmax regression of given strengths.

    Args:
      l2: strength of ``|W|²/2``, at least 0.
      l1: strength of ``|W|_1``, at least 0.
      grouped: whether ``l1`` counts a feature's weights by their norm over the classes, so that a
        feature is dropped for all classes or none.
      fit_intercept: whether there are biases; without, ``intercept_`` is 0.
      standardize: whether the penalty is on the weights of features divided by their standard
        deviations; ``coef_`` is for the features as they are.
      class_weight: None, a dict from labels to weights (1 for those that are missing), or
        ``"balanced"`` for equal weight of all classes; they multiply the sample weights.
      tol: relative certified gap to stop at: the objective is at most this share of itself above
        the minimum. With ``l2 > 0``, ``|W - W*|² <= 2 tol F / l2``.
      max_passes: passes over the data to stop at; 0 for the parameters to start from.
      warm_start: whether `fit` starts from the weights of the fit before, where the features are as
        many and the classes the same. The optimum is the same; close to it, it takes fewer passes.
      learning_rate: of `partial_fit` alone, as is ``batch_size``.
      batch_size: rows a step.

    Attributes:
      classes_: ``[q]`` labels, sorted.
      coef_: ``[q, d]`` weights ``W^T``; for two classes too.
      intercept_: ``[q]`` biases, with sum zero; ``-inf`` for a class of weight zero, which is then
        never predicted.
      n_features_in_: d.
      feature_names_in_: ``[d]``, if ``X`` had names.
      n_iter_: passes over the data that it took.
      objective_: F in nats, of the weights as they are, float32 ones too.
      gap_: in nats: the minimum of F is not below ``objective_ - gap_``.
      status_: ``certified``, ``not certified`` or ``infimum at infinity``; see
        `softmax_jax.solvers.Solution`.

    Example:
      >>> from sklearn.datasets import load_iris
      >>> x, y = load_iris(return_X_y=True)
      >>> round(SoftmaxRegression(l2=1e-3).fit(x, y).score(x, y), 2)
      0.99
    """

    def __init__(
        self,
        *,
        l2: float = 1e-4,
        l1: float = 0.0,
        grouped: bool = False,
        fit_intercept: bool = True,
        standardize: bool = False,
        class_weight: AnyArray = None,
        tol: float = TOL,
        max_passes: float = MAX_PASSES,
        warm_start: bool = False,
        learning_rate: float = 0.01,
        batch_size: int = 128,
    ):
        self.l2 = l2
        self.l1 = l1
        self.grouped = grouped
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_passes = max_passes
        self.warm_start = warm_start
        self.learning_rate = learning_rate
        self.batch_size = batch_size

    @property
    def penalty(self) -> str:
        """``"l1"`` where weights are left at zero, else ``"l2"``.

        By it scikit-learn's ``SelectFromModel`` knows to keep all features of weights above 1e-5.
        """
        return "l1" if self.l1 > 0 else "l2"

    def fit(self, X: AnyArray, y: AnyArray, sample_weight: AnyArray = None) -> Self:
        """Minimises the objective.

        Args:
          X: ``[n, d]`` features, dense or sparse.
          y: ``[n]`` labels of any kind; of shape ``[n, 1]`` with a ``DataConversionWarning``.
          sample_weight: ``[n]``, 0 or more; a weight of zero is as good as no row.

        Raises:
          ValueError: on input that is not as above, with NaN or infinities, of fewer than two
            classes, or parameters out of range.

        Warns:
          ConvergenceWarning: if the solution is not certified, with the reason.
        """
        before = dict(self.__dict__)
        X, ids = self._checked(X, y)
        weights = self._weights(ids, sample_weight)
        initial = self._start(before, X.shape[1]) if self.warm_start else None
        if self.max_passes == 0:
            _, q = checked_y(ids, len(ids), None)
            solution = _not_begun(initial or _zeros(X.shape[1], q))
        else:
            solution = solvers.fit(
                for_solvers(X),
                ids,
                l2=self.l2,
                l1=self.l1,
                grouped=self.grouped,
                fit_intercept=self.fit_intercept,
                standardize=self.standardize,
                tol=self.tol,
                max_passes=self.max_passes,
                initial=initial,
                **weights,
            )
        self._moments = None
        self.n_iter_ = math.ceil(solution.passes)
        warn_unless_certified(self.tol, self._keep(solution, self.l2, self.l1, X, ids, weights))
        return self

    def partial_fit(
        self, X: AnyArray, y: AnyArray, classes: AnyArray = None, sample_weight: AnyArray = None
    ) -> Self:
        """Takes one pass of Adam over the rows given, in minibatches, from where the weights stand.

        This is `softmax_jax.training`, in float32: the steps descend the mean loss of their
        minibatch plus the l2 penalty. Nothing is certified: ``objective_``, ``gap_`` and
        ``status_`` are those of a `fit`, and there are none after this.

        Args:
          X: ``[n, d]`` features; sparse ones become dense.
          y: ``[n]`` labels, all of them in ``classes``.
          classes: all labels that there will be; needed by the first call, if there was no `fit`.
          sample_weight: ``[n]``, 0 or more.

        Raises:
          ValueError: on input that is not as above, a feature of which float32 loses digits, an
            ``l1`` above 0, or ``standardize`` or a ``class_weight`` of ``"balanced"``, which need
            all rows.
          RuntimeError: in a process that was forked after its parent had used JAX.

        Warns:
          ConvergenceWarning: if a step led to no finite number; the weights are as before it.
        """
        if self.l1 > 0:
            raise ValueError(f"l1: {self.l1}; partial_fit takes l2 only: give l1=0, or call fit")
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight: 'balanced' needs all rows, which partial_fit has not: give a dict"
            )
        if self.standardize:
            raise ValueError(
                "standardize needs all rows, which partial_fit has not: scale X before"
            )
        is_first = not hasattr(self, "coef_")
        X, y = validate_data(
            self, without_bfloat16(X), y, accept_sparse="csr", dtype="numeric", reset=is_first
        )
        _check_partial_fit_first_call(self, None if classes is None else to_numpy(classes))
        ids = self._ids(to_numpy(y))
        weights = checked_weights(
            **self._weights(ids, sample_weight), y=ids, n=len(ids), q=self.classes_.shape[0]
        )
        if is_first:
            self.n_iter_, self._moments = 0, None
            self._set_weights(_zeros(X.shape[1], self.classes_.shape[0]), X)
        state = self._take_a_pass(X, ids, weights[0])
        self.n_iter_ += 1
        for name in ("objective_", "gap_", "status_"):
            self.__dict__.pop(name, None)
        self._set_weights(Params(*state.params), X)
        self._moments = state.opt_state
        if state.diverged >= 0:
            warnings.warn(
                f"step {state.diverged} of partial_fit led to no finite number, and no step was "
                "taken from there: scale the features, or give a smaller learning_rate",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _start(self, before: dict[str, Any], d: int) -> Params | None:
        """The weights of the fit before, if it was of the same classes and as many features."""
        if "coef_" not in before or not np.array_equal(
            to_numpy(before["classes_"]), to_numpy(self.classes_)
        ):
            return None
        params = model_params(before["coef_"], before["intercept_"])
        return params if len(params.w) == d else None

    def _ids(self, y: np.ndarray) -> np.ndarray:
        classes = to_numpy(self.classes_)
        unknown = ~np.isin(y, classes)
        if unknown.any():
            raise ValueError(
                f"y: row {np.argmax(unknown)} is {y[np.argmax(unknown)]!r}, which is not among the "
                f"classes of the first call: {classes}"
            )
        return np.searchsorted(classes, y)

    @jax.transfer_guard("allow")
    def _take_a_pass(
        self, X: AnyArray, ids: np.ndarray, weights: np.ndarray
    ) -> training.TrainState:
        refuse_broken_process()
        w, b = model_params(self.coef_, self.intercept_)
        b = jnp.asarray(b, jnp.float32)
        state = training.init(
            Params(jnp.asarray(w, jnp.float32), jnp.where(jnp.isneginf(b), 0, b)),
            _optimizer(self.fit_intercept),
            key=jax.random.key(self.n_iter_),
            learning_rate=self.learning_rate,
            l2=self.l2,
        )
        if self._moments is not None:
            state = state._replace(opt_state=self._moments)
        X = stored_features(dense(to_numpy(X)), "X")
        rows = Data(
            jnp.asarray(X, jnp.float32),
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(weights, jnp.float32),
        )
        state, _ = _epoch(self.fit_intercept, self.batch_size)(state, rows)
        # Without the key, which cannot be pickled.
        return jax.device_get(state._replace(key=None))


@functools.cache
def _optimizer(fit_intercept: bool) -> optax.GradientTransformation:
    """Its learning rate is that of `training.init`, so that all share one program."""
    held = optax.masked(optax.set_to_zero(), Params._make((False, True)))
    return optax.adam(1.0) if fit_intercept else optax.chain(optax.adam(1.0), held)


@functools.cache
def _epoch(fit_intercept: bool, batch_size: int) -> Callable[..., Any]:
    return training.make_epoch(_optimizer(fit_intercept), batch_size=batch_size)


def _zeros(d: int, q: int) -> Params:
    return Params(np.zeros((d, q)), np.zeros(q))


def _not_begun(params: Params) -> solvers.Solution:
    """Returns a solution of which nothing is known but that the objective is not negative."""
    known: dict[str, Any] = {
        "params": params,
        "objective": 0.0,
        "gap": 0.0,
        "status": solvers.Status.NOT_CERTIFIED,
        "reason": "max_passes = 0: these are the parameters to start from",
        "passes": 0,
    }
    unknown: dict[str, Any] = dict.fromkeys(solvers.Solution._fields)
    return solvers.Solution(**unknown | known)
