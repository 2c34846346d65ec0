"""`SoftmaxRegressionCV`."""

import copy
import inspect
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from sklearn.metrics import get_scorer
from sklearn.utils import Bunch
from sklearn.utils.metadata_routing import (
    UNUSED,
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    _routing_enabled,
    process_routing,
)
from sklearn.utils.validation import _check_method_params

from softmax_jax import solvers
from softmax_jax._annotations import AnyArray
from softmax_jax.estimator._arrays import dtype_of_weights, for_solvers, place_of, to_numpy
from softmax_jax.estimator._linear_classifier import TOL, LinearClassifier, warn_unless_certified
from softmax_jax.estimator._single import SoftmaxRegression
from softmax_jax.model import Params
from softmax_jax.solvers.jobs import MAX_PASSES


class SoftmaxRegressionCV(LinearClassifier):
    """Softmax regression whose strengths are chosen by cross-validation.

    The fits to the rows of every fold and to all rows share their passes over the data, up to four
    at a time; see `softmax_jax.solvers.cross_validate`.

    Args:
      l2: a strength, or several to choose from.
      l1: a strength or several; together with ``l2`` they broadcast to a grid, as by NumPy:
        ``l2=[[1e-4], [1e-3]], l1=[[1e-3, 1e-2]]`` are four pairs.
      cv: how many folds, dealt out so that each class is spread evenly, 5 for None; or an integer
        array with the fold of each row; or pairs of row indices ``(training, held out)``; or one of
        scikit-learn's splitters.
      scoring: what to choose by: None for the loss of held-out rows, or a name or function as
        scikit-learn's ``get_scorer`` takes them. `score` is by it too, or accuracy for None.
      choice: ``"best"``, of the least held-out loss or the largest score, or
        ``"one_standard_error"``, the strongest penalty within one standard error of that.
      refit: whether the weights are those of a fit to all rows with the strengths that were chosen;
        if not, they are the mean of those of the folds.
      random_state: int, the seed of the folds.
      grouped: as in `SoftmaxRegression`, as are those that follow.
      fit_intercept: whether there are biases.
      standardize: by the standard deviations in the rows of all folds.
      class_weight: also counts in the held-out loss.
      tol: of each fit.
      max_passes: of each fit.

    Attributes:
      l2_: the strength that was chosen, as is ``l1_``.
      scores_: ``[folds, *grid]`` scores of each fold's held-out rows; without ``scoring``, minus
        their losses.
      coefs_paths_: ``[folds, *grid, q, d + 1]`` weights fitted to the rows that each fold trains
        on, the bias last.
      n_iter_: ``[folds, *grid]`` passes over the data that each took.
      cross_validation_: `softmax_jax.solvers.CrossValidation`: losses and accuracies with standard
        errors over the grid, and for each fold; its ``path`` is of the chosen strengths only.

    and those of `SoftmaxRegression`; ``objective_``, ``gap_`` and ``status_`` with ``refit`` only.

    Example:
      >>> x, y = np.arange(8.0)[:, None], ["low"] * 4 + ["high"] * 4
      >>> chosen = SoftmaxRegressionCV(l2=[1e-3, 1.0], cv=4).fit(x, y)
      >>> chosen.l2_, chosen.predict([[1.0], [6.0]]).tolist()
      (0.001, ['low', 'high'])
    """

    # The scorer asks for them, or not.
    __metadata_request__score = {"sample_weight": UNUSED}  # noqa: RUF012

    def __init__(
        self,
        *,
        l2: AnyArray = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        l1: AnyArray = 0.0,
        cv: Any = 5,
        scoring: str | Callable[..., float] | None = None,
        choice: str = "best",
        refit: bool = True,
        random_state: int = 0,
        grouped: bool = False,
        fit_intercept: bool = True,
        standardize: bool = False,
        class_weight: AnyArray = None,
        tol: float = TOL,
        max_passes: float = MAX_PASSES,
    ):
        self.l2 = l2
        self.l1 = l1
        self.cv = cv
        self.scoring = scoring
        self.choice = choice
        self.refit = refit
        self.random_state = random_state
        self.grouped = grouped
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.class_weight = class_weight
        self.tol = tol
        self.max_passes = max_passes

    @property
    def penalty(self) -> str:
        """See `SoftmaxRegression`; of the strength that was chosen, once there is one."""
        return "l1" if np.any(np.asarray(getattr(self, "l1_", self.l1)) > 0) else "l2"

    def fit(self, X: AnyArray, y: AnyArray, sample_weight: AnyArray = None, **params: Any) -> Self:
        """Chooses strengths and minimises the objective with them.

        Args:
          X: see `SoftmaxRegression.fit`.
          y: see there.
          sample_weight: see there. They count in training and in the held-out loss, and without
            scikit-learn's metadata routing in ``scoring`` too.
          **params: ``groups`` for the splitter; with metadata routing whatever splitter and scorer
            have requested.

        The errors and warnings are those of `SoftmaxRegression.fit`, and those of
        `softmax_jax.solvers.cross_validate`.
        """
        if self.choice not in ("best", "one_standard_error"):
            raise ValueError(f"choice: {self.choice!r}; expected 'best' or 'one_standard_error'")
        _raise_for_params(params, self, "fit", allow=["groups"])
        routed = self._routed("fit", sample_weight=sample_weight, **params)
        X, ids = self._checked(X, y)
        weights = self._weights(ids, sample_weight)
        labels = to_numpy(self.classes_)[ids]
        found = solvers.cross_validate(
            for_solvers(X),
            ids,
            l2=self.l2,
            l1=self.l1,
            folds=self._folds(X, labels, routed.splitter.split),
            seed=self.random_state,
            score=self._scores_of(to_numpy(X), labels, routed.scorer.get("score", {})),
            refit=self.refit,
            grouped=self.grouped,
            fit_intercept=self.fit_intercept,
            standardize=self.standardize,
            tol=self.tol,
            max_passes=self.max_passes,
            **weights,
        )
        chosen = getattr(found, self.choice)
        self.l2_, self.l1_ = float(found.l2[chosen]), float(found.l1[chosen])
        place, dtype = place_of(X), dtype_of_weights(X)
        scores = -found.fold_loss if found.fold_score is None else found.fold_score
        self.scores_ = place.put(np.asarray(scores, dtype))
        w, b = (np.asarray(a) for a in found.folds.params)
        paths = np.concatenate([np.moveaxis(w, -2, -1), b[..., None]], axis=-1)
        self.coefs_paths_ = place.put(paths.astype(dtype))
        self.n_iter_ = place.put(np.ceil(found.folds.passes).astype(np.int32))
        if found.path is None:
            of_folds = (slice(None), *chosen)
            self._set_weights(Params(w[of_folds].mean(axis=0), b[of_folds].mean(axis=0)), X)
            warn_unless_certified(self.tol, found.folds)
        else:
            # Of a single strength, `path` is one solution.
            solution = jax.tree.map(lambda a: a[chosen] if chosen else a, found.path)
            found = found._replace(path=solution)
            solution = self._keep(solution, self.l2_, self.l1_, X, ids, weights)
            warn_unless_certified(self.tol, solution, found.folds)
        self.cross_validation_ = found
        return self

    def score(
        self, X: AnyArray, y: AnyArray, sample_weight: AnyArray = None, **params: Any
    ) -> float:
        """Returns what ``scoring`` makes of predictions for ``X``; without it their accuracy."""
        _raise_for_params(params, self, "score")
        if sample_weight is not None:
            params["sample_weight"] = sample_weight
        return self._scorer()(self, X, y, **self._routed("score", **params).scorer.score)

    def get_metadata_routing(self) -> MetadataRouter:
        """Returns the metadata that the splitter and the scorer ask for."""
        to_scorer = MethodMapping().add(caller="score", callee="score")
        if self.scoring is not None:
            to_scorer = to_scorer.add(caller="fit", callee="score")
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))
            .add(scorer=self._scorer(), method_mapping=to_scorer)
        )

    def _routed(self, method: str, **params: Any) -> Any:
        """Returns the arguments of the splitter's ``split`` and of the scorer's ``score``."""
        if _routing_enabled():
            return process_routing(self, method, **params)
        params = {name: value for name, value in params.items() if value is not None}
        groups = {"groups": params.pop("groups")} if "groups" in params else {}
        return Bunch(splitter=Bunch(split=groups), scorer=Bunch(score=params))

    def _scorer(self) -> Callable[..., float]:
        return get_scorer("accuracy" if self.scoring is None else self.scoring)

    def _folds(self, X: AnyArray, labels: np.ndarray, params: dict[str, Any]) -> Any:
        if hasattr(self.cv, "split"):
            return self.cv.split(to_numpy(X), labels, **params)
        return 5 if self.cv is None else self.cv

    def _scores_of(
        self, X: AnyArray, labels: np.ndarray, params: dict[str, Any]
    ) -> Callable[[Params, np.ndarray], float] | None:
        """The scorer as `solvers.cross_validate` calls it."""
        if self.scoring is None:
            return None
        classes = to_numpy(self.classes_)
        scorer = _with_labels(self._scorer(), classes)

        def score(model: Params, rows: np.ndarray) -> float:
            fitted = SoftmaxRegression()
            fitted.classes_ = classes
            fitted.n_features_in_ = X.shape[1]
            fitted.coef_, fitted.intercept_ = model.w.T, model.b
            held_out = _check_method_params(X, params, indices=rows)
            return scorer(fitted, X[rows], labels[rows], **held_out)

        return score


def _with_labels(scorer: Any, classes: np.ndarray) -> Any:
    """A scorer told of all classes, of which held-out rows may lack some."""
    function = getattr(scorer, "_score_func", None)
    known = () if function is None else inspect.signature(function).parameters
    if "labels" not in known:
        return scorer
    options = {"labels": classes}
    if "pos_label" in known and len(classes) == 2:
        options["pos_label"] = classes[1]
    scorer = copy.copy(scorer)
    scorer._kwargs = options | scorer._kwargs
    return scorer
