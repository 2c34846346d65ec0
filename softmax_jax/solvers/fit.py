"""`fit` and `fit_path`: the front doors of the solvers."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import SupportsIndex

import numpy as np

from softmax_jax import _fork, checks
from softmax_jax._annotations import AnyArray
from softmax_jax.data.npz import MAX_BYTES
from softmax_jax.model import Params
from softmax_jax.solvers import dispatch, jax_settings, refits
from softmax_jax.solvers import strengths as of_path
from softmax_jax.solvers.inputs import Inputs, arrange
from softmax_jax.solvers.jobs import MARGIN, MAX_PASSES, TOL, Job, Stop
from softmax_jax.solvers.methods import DEFAULT, DEFAULT_L1, SHARP, SMOOTH, Method, method_of
from softmax_jax.solvers.report import Report
from softmax_jax.solvers.rows import checked_rows
from softmax_jax.solvers.single import Single
from softmax_jax.solvers.solution import Progress, Solution, stacked
from softmax_jax.solvers.strengths import NUMBER


def fit(
    x: AnyArray,
    y: AnyArray,
    *,
    l2: float,
    l1: float = 0.0,
    grouped: bool = False,
    penalty_factor: AnyArray = None,
    lower: AnyArray = None,
    upper: AnyArray = None,
    relax: bool = False,
    num_classes: SupportsIndex | None = None,
    sample_weight: AnyArray = None,
    class_weight: AnyArray = None,
    offset: AnyArray = None,
    scale: AnyArray = None,
    shift: AnyArray = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    initial: Params | None = None,
    tol: float = TOL,
    max_passes: float = MAX_PASSES,
    method: str | Method = DEFAULT,
    l1_method: str | Method = DEFAULT_L1,
    block_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    callback: Callable[[Progress], None] | None = None,
) -> Solution:
    r"""Minimises the objective of `losses.objective`, and proves how close it came.

    .. math:: F(W, b) = \frac{\sum_i s_i l_i}{\sum_i s_i} + \frac{l_2}{2} \|W\|^2 + l_1 \|W\|_1

    The proof is a duality gap in float64: no parameters have an objective below ``objective - gap``
    (Fenchel). It needs a penalty. With l2 = l1 = 0 the status says "not certified", or "infimum at
    infinity" where the classes are separated.

    Problems with l1 = 0 are solved by L-BFGS that starts from an approximate Hessian (Nocedal and
    Wright, *Numerical Optimization*, algorithm 7.4), and small ones by Newton's method; those with
    l1 > 0 by Newton's method on the weights that are not zero (Keskar, Nocedal, Öztoprak and
    Wächter 2016), or by proximal gradients (Beck and Teboulle 2009). Work is in float32 for all but
    small problems, and goes on in float64 where that does not suffice. The JAX settings of
    the caller (x64, dtype promotion, transfer guard, debugging) change nothing in it.

    Example:
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> solution = fit(x, y, l2=0.1)
      >>> print(solution.status)
      certified
      >>> solution.params.w.shape  # one feature, two classes
      (1, 2)

    Args:
      x: ``[n, d]`` features as they are stored: uint8, bfloat16, floats, of any byte order; NumPy,
        JAX, SciPy sparse, lists or frames; or `data.StoredRows` and `np.memmap`, of which blocks
        are read when they are needed. They become floating-point numbers a block at a time. If
        there are several blocks, one shuffled copy is made, as stored. Sparse rows are multiplied
        as they are, and features without an entry cost nothing; where entries are an eighth of all
        numbers, or these are a million at most, rows are stored as dense ones, which is faster.
      y: class ids ``[n]`` or ``[n, 1]``, integers from 0, or probabilities ``[n, q]``.
      l2: strength of the squared penalty; see `conventions` for those of other packages.
      l1: strength of the absolute penalty.
      grouped: whether l1 penalises the norms of the weights of each feature over the classes,
        ``l1 sum_j |W_j|``, so that features are kept or dropped as a whole.
      penalty_factor: ``[d]`` or ``[d, q]`` factors on both strengths, of features or of single
        weights: 0 for ones that are not penalised, inf for ones that are left out. None means 1.
      lower: least weights, 0 or less: a number, ``[d]`` or ``[d, q]``.
      upper: largest weights, 0 or more, likewise.
      relax: whether to fit anew, with l1 = 0, the weights that are not zero under l1 (the relaxed
        lasso, Meinshausen 2007). The result is that fit, with its objective and certificate, which
        needs no penalty here.
      num_classes: q, by default one more than the largest class id; more classes than rows have to
        be said here.
      sample_weight: ``[n]`` weights ``s_i >= 0``; None means 1.
      class_weight: factors on the weights of rows, ``[q]``, or ``"balanced"`` for ones that give
        each class the same weight in total; with probabilities as targets, their mean.
      offset: ``[n, q]``, added to the logits.
      scale: the features are ``x * scale + shift``; numbers, or ``[d]``. None means 1 and 0.
      shift: see ``scale``.
      fit_intercept: False holds the bias at zero, in the objective and in the bound.
      standardize: penalise the weights of features divided by their standard deviations, weighted;
        the result is for the features as given.
      initial: parameters to start from; by default solutions on samples of the rows.
      tol: certified relative gap, gap / F, at which the solver stops. Small problems, of less than
        10^7 multiplications a pass, go on to where rounding ends it.
      max_passes: passes over all rows, at most. The last one is for the certificate of what was
        reached, so that one alone certifies the start.
      method: for l1 = 0 without limits: ``"quasi-newton"``, which keeps the n q logits, and makes
        way for ``"newton"`` on small problems of few parameters; ``"logits-free"``, which does not,
        and takes its place where there are 2**28 of them or more and no offset, slower and
        certified too; ``"lbfgs"`` for `optax.lbfgs` on kept logits, to compare with; or a
        `Method` with constants of its own, such as ``QuasiNewton(memory=20)``.
      l1_method: for l1 > 0, for limits, and for factors that differ over classes or are 0:
        ``"orthant-newton"``, which makes way for ``"proximal"`` where offsets are large or it is
        slow, as that does for ``"proximal-newton"`` where
        parameters are few; any of these, or a `Method`.
      block_size: rows at a time; by default such that a block of float32 features takes 6 MiB, and
        8,192 to 65,536 sparse ones.
        Results depend on it by rounding only.
      max_bytes: of memory that stored features may take in a process. Of larger ones so many are
        kept, less three blocks, and the others are read in each pass.
      callback: called with a `Progress` each time that the host looks at the problem, under the
        caller's JAX settings.

    Returns:
      A `Solution` of NumPy float64. A class of no weight gets the bias ``-inf`` and weights 0,
      which is where its infimum lies. Of the biases, to which any number may be added, those that
      sum to zero.

    Raises:
      ValueError: if there are NaN or infinite values, shapes that do not fit, class ids out of
        range, negative weights or strengths, no weight at all, or all of it on a single class.
        Nothing has been compiled by then.
      RuntimeError: in a process that was forked after its parent had used JAX, which would wait
        for ever there.
    """
    for name, strength in (("l2", l2), ("l1", l1)):
        if isinstance(strength, str) or np.ndim(strength) > 0:
            raise ValueError(f"{name}: {strength!r}; expected a number; fit_path takes several")
    return fit_path(
        x,
        y,
        l2=l2,
        l1=l1,
        grouped=grouped,
        penalty_factor=penalty_factor,
        lower=lower,
        upper=upper,
        relax=relax,
        num_classes=num_classes,
        sample_weight=sample_weight,
        class_weight=class_weight,
        offset=offset,
        scale=scale,
        shift=shift,
        fit_intercept=fit_intercept,
        standardize=standardize,
        initial=initial,
        tol=tol,
        max_passes=max_passes,
        method=method,
        l1_method=l1_method,
        block_size=block_size,
        max_bytes=max_bytes,
        callback=callback,
    )


def fit_path(
    x: AnyArray,
    y: AnyArray,
    *,
    l2: AnyArray,
    l1: AnyArray = 0.0,
    strengths: SupportsIndex = NUMBER,
    weakest: float | None = None,
    least_gain: float | None = None,
    grouped: bool = False,
    penalty_factor: AnyArray = None,
    lower: AnyArray = None,
    upper: AnyArray = None,
    relax: bool = False,
    num_classes: SupportsIndex | None = None,
    sample_weight: AnyArray = None,
    class_weight: AnyArray = None,
    offset: AnyArray = None,
    scale: AnyArray = None,
    shift: AnyArray = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    initial: Params | None = None,
    tol: float = TOL,
    max_passes: float = MAX_PASSES,
    method: str | Method = DEFAULT,
    l1_method: str | Method = DEFAULT_L1,
    slots: int = 1,
    block_size: int | None = None,
    max_bytes: int = MAX_BYTES,
    callback: Callable[[Progress], None] | None = None,
) -> Solution:
    r"""Solves a grid of strengths, and of weightings, as `fit` does a single one.

    Strengths are taken from strong to weak. Each problem stops on its own certificate. The next one
    goes on from there, in the direction in which the last two solutions differ. Up to four
    weightings at a time share every pass over the rows as one wide product.

    Example:
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> path = fit_path(x, y, l2=[1.0, 0.1], sample_weight=np.ones((3, 4)))
      >>> path.params.w.shape  # three weightings, two strengths, one feature, two classes
      (3, 2, 1, 2)

    Args:
      x: see `fit`.
      y: see `fit`.
      l2: strengths of any shape, broadcast with ``l1``: ``l2[:, None], l1[None]`` makes a grid. Or
        ``"auto"`` for several, along the last axis of the results: from
        :math:`50 \|G\|^2 / F_0` on, where the features explain at most a hundredth of the loss,
        down to 1e-7 of that. :math:`F_0` and :math:`G` are the loss at W = 0 and its gradient in W.
      l1: strengths; or ``"auto"``, if l2 is not: from :math:`\max_{ij} |G_{ij}|` on (grouped,
        :math:`\max_i \|G_i\|`), the least at which W = 0 is the solution, down to 1e-3 of that, or
        1e-2 where there are fewer rows than features.
      strengths: number of strengths that ``"auto"`` stands for.
      weakest: the weakest of them, as a share of the strongest.
      least_gain: leaves out the rest of an ``"auto"`` path where, from one strength to the next,
        `Solution.deviance_explained` rises by less than this share of itself, for all other axes
        of the grid; glmnet has 1e-5.
      grouped: whether l1 penalises the norms of the weights of each feature over the classes,
        ``l1 sum_j |W_j|``, so that features are kept or dropped as a whole.
      penalty_factor: see `fit`.
      lower: see `fit`.
      upper: see `fit`.
      relax: see `fit`.
      num_classes: see `fit`.
      sample_weight: ``[n]``, or ``[m, n]`` for m weightings, which become the first axis of the
        results: folds with zeros for what is left out, or draws of a bootstrap.
      class_weight: see `fit`.
      offset: ``[n, q]``, added to the logits.
      scale: the features are ``x * scale + shift``; numbers, or ``[d]``. None means 1 and 0.
      shift: see ``scale``.
      fit_intercept: False holds the bias at zero, in the objective and in the bound.
      standardize: penalise the weights of features divided by their standard deviations, weighted
        and over all weightings; the result is for the features as given. A feature that does not
        vary, which matters without an intercept, is left as it is.
      initial: parameters to start from; by default from solutions on samples of the rows.
      tol: see `fit`.
      max_passes: passes over all rows for each problem, at most. The last one is for the
        certificate of what was reached, so that one alone certifies the start.
      method: for problems with l1 = 0; see `fit`.
      l1_method: for others; see `fit`.
      slots: strengths, of one weighting, that share a pass. In many slots a pass is cheaper for
        each, but there are more of them, as problems start further from their neighbour's
        solution; mostly that takes longer.
      block_size: see `fit`.
      max_bytes: see `fit`.
      callback: called with a `Progress` each time that the host looks at the slots, under the
        caller's JAX settings.

    Returns:
      A `Solution` of arrays with the axes of the grid in front, and its strengths. See `fit`, also
      for the errors.
    """
    _fork.refuse_broken_process()
    report = Report(time.perf_counter(), problems=0)
    smooth_method, sharp_method = (
        method_of(method, SMOOTH, "method"),
        method_of(l1_method, SHARP, "l1_method"),
    )
    stop, slots = checked_stop(tol, max_passes), checks.checked_count(slots, "slots")
    max_bytes = checks.checked_count(max_bytes, "max_bytes")
    l2, l1 = of_path.checked(l2, l1)
    number, weakest = of_path.checked_path(strengths, weakest)
    is_auto = isinstance(l2, str) or isinstance(l1, str)
    if least_gain is not None and not (is_auto and 0 <= least_gain < 1):
        raise ValueError(
            f"least_gain: {least_gain}; expected a share, or None if nothing is 'auto'"
        )
    has_offset = offset is not None
    smooth_method.check(has_l1=False, grouped=grouped, has_offset=has_offset, is_plain=True)
    single = Single(penalty_factor, lower, upper)
    single.refuse_groups(grouped)
    is_smooth = not (isinstance(l1, str) or np.any(l1 > 0))
    if not is_smooth or single.is_given:
        is_plain = not (single.is_given or relax)
        sharp_method.check(has_l1=True, grouped=grouped, has_offset=has_offset, is_plain=is_plain)
    if callback is not None:
        report.callback = jax_settings.under_present_settings(callback)
    with jax_settings.held(), contextlib.ExitStack() as streams:
        rows = checked_rows(
            x,
            y,
            num_classes=num_classes,
            sample_weight=sample_weight,
            class_weight=class_weight,
            offset=offset,
            scale=scale,
            shift=shift,
            initial=initial,
            single=single,
            max_bytes=max_bytes,
        )
        inputs = arrange(
            rows,
            block_size=block_size,
            fit_intercept=fit_intercept,
            standardize=standardize,
            grouped=grouped,
            is_smooth=is_smooth,
            max_bytes=max_bytes,
            streams=streams,
        )
        alone = partial(refits.unpenalised, inputs, sharp_method) if rows.single.has_zeros else None
        l2, l1 = of_path.grid(l2, l1, inputs, number, weakest, alone)
        several = sample_weight is not None and np.ndim(sample_weight) == 2
        jobs = [
            Job((m,) * several + at, m, float(l2[at]), float(l1[at]), MARGIN * tol)
            for m in range(len(inputs.absent))
            for at in np.ndindex(l2.shape)
        ]
        report.problems = len(jobs)
        is_plain = inputs.problem.penalty.is_plain

        def solve(inputs: Inputs, jobs: Sequence[Job]) -> dispatch.Solved:
            smooth = [job for job in jobs if job.l1 == 0 and is_plain]
            sharp = [job for job in jobs if not (job.l1 == 0 and is_plain)]
            found = dispatch.solved(inputs, smooth, smooth_method, stop, report, slots)
            found |= dispatch.solved(inputs, sharp, sharp_method, stop, report, slots)
            if relax:
                own = {job.place: found[job.place] for job in sharp if job.l1 > 0}
                found |= refits.relaxed(inputs, own, sharp_method, stop)
            return found

        if least_gain is None:
            found = solve(inputs, jobs)
        else:
            found, number = dispatch.while_it_gains(solve, inputs, jobs, number, least_gain)
            l2, l1 = l2[..., :number], l1[..., :number]
    solved = {place: solution for place, (solution, _) in found.items()}
    shape = ((len(inputs.absent),) if several else ()) + l2.shape
    solution = _with_all_features(stacked(solved, shape), inputs)
    solution = _with_all_classes(solution, inputs.classes, inputs.num_classes)
    return solution._replace(l2=np.broadcast_to(l2, shape)[()], l1=np.broadcast_to(l1, shape)[()])


def checked_stop(tol: float, max_passes: float) -> Stop:
    """Checks when to stop.

    Raises:
      ValueError: if there is less than one pass, or no positive tolerance.
    """
    if not max_passes >= 1:
        raise ValueError(f"max_passes: {max_passes}; expected 1 or more")
    if not 0 < tol < math.inf:
        raise ValueError(f"tol: {tol}; expected a positive number")
    return Stop(tol, max_passes)


def _with_all_features(solution: Solution, inputs: Inputs) -> Solution:
    """Returns the solution for the features that users have, without what padding added."""
    d, features, shift = inputs.d, inputs.features, inputs.shift
    q = inputs.classes.size

    def cut(params):
        return Params(params.w[..., :d, :q], params.b[..., :q])

    def filled(params):
        w = np.zeros((*params.w.shape[:-2], shift.size, params.w.shape[-1]))
        w[..., features, :] = params.w
        return params._replace(w=w)

    solution = solution._replace(
        params=cut(solution.params), centered=cut(solution.centered), mean=solution.mean[..., :d]
    )
    if d == shift.size:
        return solution
    mean = np.broadcast_to(shift, (*solution.mean.shape[:-1], shift.size)).copy()
    mean[..., features] = solution.mean
    return solution._replace(
        params=filled(solution.params), centered=filled(solution.centered), mean=mean
    )


def _with_all_classes(solution: Solution, classes: np.ndarray, q: int) -> Solution:
    """Returns the solution for ``q`` classes, given one for those that have weight."""
    if classes.size == q:
        return solution

    def filled(params):
        w = np.zeros((*params.w.shape[:-1], q))
        b = np.full((*params.b.shape[:-1], q), -np.inf)
        w[..., classes], b[..., classes] = params
        return Params(w, b)

    return solution._replace(params=filled(solution.params), centered=filled(solution.centered))
