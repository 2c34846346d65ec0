"""Cross-validation: what held-out rows say of each strength of the penalty."""

from collections.abc import Callable, Iterable
from typing import NamedTuple, SupportsIndex

import jax
import numpy as np

from softmax_jax import _fork
from softmax_jax._annotations import AnyArray, ArrayLike
from softmax_jax.checks import is_sparse, per_feature
from softmax_jax.data.blocks import rows_within, slices
from softmax_jax.data.npz import MAX_BYTES
from softmax_jax.data.types import for_stored
from softmax_jax.model import Params
from softmax_jax.solvers import spread
from softmax_jax.solvers import strengths as of_path
from softmax_jax.solvers.fit import fit_path
from softmax_jax.solvers.folds import drop_what_cannot_be_scored, refuse_a_single_class, splits
from softmax_jax.solvers.held_out import measured, rows_of_block
from softmax_jax.solvers.jobs import MAX_PASSES, TOL
from softmax_jax.solvers.methods import DEFAULT, DEFAULT_L1, Method
from softmax_jax.solvers.rows import canonical, checked_weights, checked_x, checked_y
from softmax_jax.solvers.single import Single
from softmax_jax.solvers.solution import Progress, Solution
from softmax_jax.solvers.strengths import NUMBER


class CrossValidation(NamedTuple):
    """Scores of held-out rows, and the fits behind them; ``*grid`` are axes of strengths."""

    l2: np.ndarray
    """``[*grid]``: strengths of the squared penalty."""
    l1: np.ndarray
    """``[*grid]``: strengths of the absolute penalty."""
    loss: np.ndarray
    """``[*grid]``: mean cross-entropy of held-out rows, in nats, without the penalty."""
    loss_error: np.ndarray
    """``[*grid]``: standard error of the loss."""
    accuracy: np.ndarray
    """``[*grid]``: share of held-out rows predicted correctly."""
    accuracy_error: np.ndarray
    """``[*grid]``: standard error of the accuracy."""
    score: np.ndarray | None
    """``[*grid]``: mean of the user's score over the folds; None without one."""
    score_error: np.ndarray | None
    """``[*grid]``: standard error of the score; None without one."""
    fold_loss: np.ndarray
    """``[folds, *grid]``: the mean loss of each fold's held-out rows."""
    fold_accuracy: np.ndarray
    """``[folds, *grid]``: the share of each fold's held-out rows predicted correctly."""
    fold_score: np.ndarray | None
    """``[folds, *grid]``: the score of each fold; None without one."""
    fold_weight: np.ndarray
    """``[folds]``: the weight of the held-out rows that were scored."""
    folds: Solution
    """``[folds, *grid]``: the fits to the rows that each fold trains on."""
    path: Solution | None
    """``[*grid]``: the fits to all rows; None without ``refit``."""
    best: tuple[int, ...]
    """Index in the grid of the least loss, or the largest score: ``l2[best]``, ``l1[best]``."""
    one_standard_error: tuple[int, ...]
    """Index of the strongest penalty among those within one standard error of the best."""


def cross_validate(
    x: AnyArray,
    y: AnyArray,
    *,
    l2: AnyArray,
    l1: AnyArray = 0.0,
    strengths: SupportsIndex = NUMBER,
    weakest: float | None = None,
    least_gain: float | None = None,
    folds: int | np.ndarray | Iterable[tuple[AnyArray, AnyArray]] = 5,
    seed: int = 0,
    score: Callable[[Params, np.ndarray], float] | None = None,
    refit: bool = True,
    num_classes: SupportsIndex | None = None,
    sample_weight: AnyArray = None,
    class_weight: AnyArray = None,
    offset: AnyArray = None,
    scale: AnyArray = None,
    shift: AnyArray = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    initial: Params | None = None,
    grouped: bool = False,
    penalty_factor: AnyArray = None,
    lower: AnyArray = None,
    upper: AnyArray = None,
    relax: bool = False,
    tol: float = TOL,
    max_passes: float = MAX_PASSES,
    method: str | Method = DEFAULT,
    l1_method: str | Method = DEFAULT_L1,
    slots: int = 1,
    block_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    callback: Callable[[Progress], None] | None = None,
) -> CrossValidation:
    r"""Scores every strength on rows that its fit has not seen.

    The fits of all folds, and of all rows, are one `fit_path`, and up to four at a time share their
    passes over ``x``. With the weight :math:`S_k` of the rows held out by fold :math:`k` and the
    mean loss :math:`l_k(\lambda)` on them, of the parameters fitted to the other rows,

    .. math:: \bar l(\lambda) = \sum_k \frac{S_k}{S} l_k(\lambda), \qquad
        \mathrm{se}(\lambda)^2 = \frac{1}{K - 1} \sum_k \frac{S_k}{S} (l_k - \bar l)^2, \qquad
        S = \sum_k S_k,

    which for folds of one weight is the variance of the :math:`l_k` over :math:`K`. (Folds share
    training rows, so that it is an estimate with a bias: Bengio and Grandvalet 2004.) The strongest
    penalty with :math:`\bar l(\lambda) \le \bar l(\lambda^*) + \mathrm{se}(\lambda^*)`,
    :math:`\lambda^*` being the best, is the one-standard-error choice of Hastie, Tibshirani and
    Friedman, *The Elements of Statistical Learning*, section 7.10. Of two penalties the stronger is
    the one with the larger ``l1`` or, where that is the same, the larger ``l2``; of equal losses
    the best is the one with the stronger penalty.

    Rows are scored in float64, a block at a time: ``x`` is not copied, nor densified if sparse. The
    logits of all strengths are one product.

    Example:
      >>> x, y = np.arange(20.0)[:, None], np.arange(20) // 5 % 2
      >>> found = cross_validate(x, y, l2=[1.0, 0.1, 0.01], folds=4)
      >>> found.loss.shape, found.path.params.w[found.best].shape
      ((3,), (1, 2))

    Args:
      x: ``[n, d]`` features, as `fit` takes them.
      y: class ids ``[n]`` or probabilities ``[n, q]``.
      l2: strengths, of any shape that broadcasts with ``l1``: together they are the grid; or
        ``"auto"``, see `fit_path`.
      l1: strengths; or ``"auto"``.
      strengths: see `fit_path`.
      weakest: see `fit_path`.
      least_gain: see `fit_path`; the rise is that of the fold, or of all rows, where it is largest.
      folds: how many, at least 2: rows are shuffled and dealt out so that each class is spread as
        evenly as it goes (for probabilities, the most probable class). A class of a single row is
        never held out. Or an integer array ``[n]`` with the fold that holds out each row, any two
        rows of a group in the same one, and a negative number for a row that is never held out. Or
        pairs of row indices, ``(training, held out)``, such as scikit-learn's splitters yield.
      seed: of the shuffle, where ``folds`` is a number; the same seed gives the same folds.
      score: ``score(params, rows)`` of parameters for ``x`` as it is given, ``w: [d, q]``, and the
        indices of rows that were held out of their fit: a number, the larger the better. It takes
        the place of the loss in the choice, and NaN is the worst. It is called once for each fold
        and strength, folds in the outer loop.
      refit: whether to fit all rows too.
      num_classes: ``q``, if more than there are in ``y``.
      sample_weight: ``[n]``, in training and in scores.
      class_weight: as `fit` takes it, in training and in scores, so that what is validated is what
        is minimised. ``balanced`` is by the weights of all rows, the same for all folds.
      offset: ``[n, q]``, in training and in scores.
      scale: scalar or ``[d]``.
      shift: scalar or ``[d]``.
      standardize: penalise the weights of features divided by their standard deviations, weighted
        and over all rows, the same for all folds.
      fit_intercept: False holds the bias at zero.
      initial: parameters to start from, in every fold.
      grouped: whether l1 penalises the norms of the weights of each feature over the classes.
      penalty_factor: see `fit`.
      lower: see `fit`.
      upper: see `fit`.
      relax: see `fit`.
      tol: certified relative gap of every fit.
      max_passes: passes over all rows for each fit, at most.
      method: for l1 = 0, as `fit` takes it.
      l1_method: for l1 > 0, as `fit` takes it.
      slots: see `fit_path`; folds share passes anyway.
      block_size: rows at a time, in training and in scores.
      max_bytes: see `fit`.
      callback: called with a `Progress` while the fits are on their way.

    Returns:
      `CrossValidation`, in which ``path.params.w[best]`` are weights ``[d, q]`` fitted to all rows.

    Raises:
      ValueError: on what `fit` refuses; on folds that are fewer than two, more than there are rows,
        that hold out nothing, or that leave a single class to train on.

    Warns:
      UserWarning: if a fold holds out rows of a class of which it has none to train on. Whatever
        the strength, their loss is infinite; they take no part in the scores. With a ``score`` it
        is called with them too, and there is no warning.
    """
    _fork.refuse_broken_process()
    l2, l1 = of_path.checked(l2, l1)
    of_path.checked_path(strengths, weakest)
    x, _ = checked_x(x, max_bytes)
    n, d = x.shape
    y, q = checked_y(y, n, num_classes)
    Single(penalty_factor, lower, upper).checked(d, q)
    weights = checked_weights(sample_weight, class_weight, y, n, q)
    if len(weights) > 1:
        raise ValueError(f"sample_weight: {len(weights)} weightings; expected one, of shape [{n}]")
    train, test = splits(folds, y, weights[0], seed)
    refuse_a_single_class(train, y, q)
    if score is None:
        drop_what_cannot_be_scored(train, test, y, q)
    scale, shift = per_feature(scale, 1.0, d, "scale"), per_feature(shift, 0.0, d, "shift")
    # To be penalised as if divided by their standard deviations, features are divided by them.
    sizes = standard_deviations(x, weights[0]) * np.abs(scale) if standardize else np.ones(d)
    divisor = np.where(sizes > 0, sizes, np.inf)
    solution = fit_path(
        x,
        y,
        l2=l2,
        l1=l1,
        strengths=strengths,
        weakest=weakest,
        least_gain=least_gain,
        num_classes=q,
        sample_weight=np.vstack([train, weights]) if refit else train,
        offset=offset,
        scale=scale / divisor,
        shift=shift / divisor,
        fit_intercept=fit_intercept,
        initial=initial,
        grouped=grouped,
        penalty_factor=penalty_factor,
        lower=_times(sizes, lower),
        upper=_times(sizes, upper),
        relax=relax,
        tol=tol,
        max_passes=max_passes,
        method=method,
        l1_method=l1_method,
        slots=slots,
        block_size=block_size,
        max_bytes=max_bytes,
        callback=callback,
    )
    if standardize:
        solution = _with_features_times(sizes, solution)
    path = jax.tree.map(lambda a: a[-1], solution) if refit else None
    held_in = jax.tree.map(lambda a: a[: len(train)], solution)
    params = for_stored(held_in.params, scale, shift)
    return _compared(held_in, path, params, test, x, y, offset, score, block_size)


def _times(sizes: np.ndarray, limit: AnyArray) -> np.ndarray | None:
    """Returns limits for the weights of features divided by their sizes."""
    if limit is None:
        return None
    limit = np.asarray(limit, np.float64)
    sizes = np.where(sizes > 0, sizes, 1)
    return limit * (sizes if limit.ndim < 2 else sizes[:, None])


def _compared(
    folds: Solution,
    path: Solution | None,
    params: Params,
    test: np.ndarray,
    x: AnyArray,
    y: np.ndarray,
    offset: AnyArray,
    score: Callable[[Params, np.ndarray], float] | None,
    block_size: int | None,
) -> CrossValidation:
    """Measures the fits of all folds on what they hold out, and chooses among the strengths.

    Args:
      folds: fits ``[folds, *grid]``.
      path: fits to all rows, ``[*grid]``, or None.
      params: those of ``folds``, for features as they are stored.
      test: ``[folds, n]`` weights of the rows that each fold holds out.
      x: see `cross_validate`, as are all others.
      y: checked.
      offset: not checked.
      score: of a fit and the rows held out, or None.
      block_size: rows at a time.
    """
    l2, l1 = (np.asarray(strengths)[0] for strengths in (folds.l2, folds.l1))
    size = rows_of_block(params, test, is_sparse(x), block_size)
    sums = [measured(x, y, offset, size, *fold) for fold in zip(test, *params, strict=True)]
    weight = np.array([np.ravel(fold.weight)[0] for fold in sums])
    loss = np.stack([fold.negative_log_likelihood / fold.weight for fold in sums])
    accuracy = np.stack([fold.correct / fold.weight for fold in sums])
    mean_loss, loss_error = _mean_and_error(loss, weight)
    mean_accuracy, accuracy_error = _mean_and_error(accuracy, weight)
    fold_score = mean_score = score_error = None
    if score is None:
        best, one_standard_error = choices(l2, l1, mean_loss, loss_error)
    else:
        fold_score = _scored(score, params, test)
        mean_score, score_error = _mean_and_error(fold_score, weight)
        best, one_standard_error = choices(l2, l1, -mean_score, score_error)
    return CrossValidation(
        l2=l2,
        l1=l1,
        loss=mean_loss,
        loss_error=loss_error,
        accuracy=mean_accuracy,
        accuracy_error=accuracy_error,
        score=mean_score,
        score_error=score_error,
        fold_loss=loss,
        fold_accuracy=accuracy,
        fold_score=fold_score,
        fold_weight=weight,
        folds=folds,
        path=path,
        best=best,
        one_standard_error=one_standard_error,
    )


def standard_deviations(x: AnyArray, weights: np.ndarray) -> np.ndarray:
    """Returns ``[d]`` weighted standard deviations of features, in float64, a block at a time."""
    share = weights / weights.sum()
    if is_sparse(x):
        return spread.of_entries(canonical(x), share).deviation

    def mean(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(x.shape[1])
        for at in slices(len(share), rows_within(x.shape[1])):
            total += share[at] @ function(np.asarray(x[at], np.float64))
        return total

    center = mean(lambda block: block)
    return np.sqrt(mean(lambda block: (block - center) ** 2))


def _with_features_times(sizes: np.ndarray, solution: Solution) -> Solution:
    """Returns the solution for features times ``sizes``; where those are 0 it has no weights."""
    inverse = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)[:, None]
    params, centered = (Params(p.w * inverse, p.b) for p in (solution.params, solution.centered))
    return solution._replace(params=params, centered=centered, mean=solution.mean * sizes)


def _scored(
    score: Callable[[Params, np.ndarray], float], params: Params, test: np.ndarray
) -> np.ndarray:
    """Scores every fit by the user's function: ``[folds, *grid]``."""
    scores = np.empty(params.b.shape[:-1])
    for at in np.ndindex(*scores.shape):
        scores[at] = score(Params(params.w[at], params.b[at]), np.flatnonzero(test[at[0]]))
    return scores


def _mean_and_error(values: np.ndarray, weight: np.ndarray) -> tuple[AnyArray, AnyArray]:
    """Returns the mean over folds, and its standard error; NaN where one of them is infinite.

    They are arrays, or NumPy scalars where there is a single strength.
    """
    share = weight / weight.sum()
    mean = np.tensordot(share, values, 1)
    with np.errstate(invalid="ignore"):
        return mean, np.sqrt(np.tensordot(share, (values - mean) ** 2, 1) / (len(share) - 1))


def choices(
    l2: ArrayLike, l1: ArrayLike, loss: ArrayLike, error: ArrayLike
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns where the loss is least, and the penalty strongest within a standard error."""
    shape = np.shape(l2)
    l2, l1 = np.ravel(l2), np.ravel(l1)
    loss, error = np.where(np.isnan(loss), np.inf, loss), np.nan_to_num(error)
    strongest_first = np.lexsort((-l2, -l1))
    loss, error = np.ravel(loss)[strongest_first], np.ravel(error)[strongest_first]
    best = np.argmin(loss)
    simplest = np.argmax(loss <= loss[best] + error[best])

    def place(i: np.integer) -> tuple[int, ...]:
        return tuple(int(axis) for axis in np.unravel_index(strongest_first[i], shape))

    return place(best), place(simplest)
