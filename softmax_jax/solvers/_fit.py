"""`fit` and `fit_path`: problems run on lanes that share each pass, and certificates at the end.

Compiled programs advance all lanes by some steps; the host looks at them in between, certifies what
is done in float64, and gives free lanes the next problem of their queue.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax.model import Params
from softmax_jax.solvers import (
    _certificate,
    _inputs,
    _optax_lbfgs,
    _preconditioner,
    _problem,
    _proximal,
    _quasi_newton,
)
from softmax_jax.solvers._certificate import Certificate
from softmax_jax.solvers._inputs import Inputs
from softmax_jax.solvers._problem import Problem

CERTIFIED = "certified"
NOT_CERTIFIED = "not certified"
AT_INFINITY = "infimum at infinity"

# Steps after which a preconditioner is renewed, and by how many it is older for a problem that took
# it over from a neighbour. Where it is the exact Hessian that is done often, as it makes the method
# Newton's; where it is not, it takes the time of some five steps and gains little.
RENEWAL = {True: 8, False: 30}
HANDED_OVER = {True: 8, False: 10}
# Steps on each sample of the rows, before the work on all of them.
WARM_UP = 12
# Steps of the proximal method between looks from the host.
ROUND = 50
# Below this many multiplications a pass, all work is in float64, and goes on to where rounding ends
# it: precision costs next to nothing then, and results of equivalent problems agree.
SMALL = 10_000_000
ROUNDING = 1e-18
# The bias of a class of no weight, whose probability is then exactly zero.
NEVER = -1e30


class History(NamedTuple):
    """A problem's way to its solution: a row each time that was looked at it."""

    seconds: np.ndarray
    """Since the call, compilation included."""
    passes: np.ndarray
    objective: np.ndarray
    """In working precision; where ``rows`` is less than all, of those rows."""
    gap: np.ndarray
    """The estimate of the duality gap in working precision, absolute."""
    rows: np.ndarray
    """The share of the rows that was worked on."""


class Progress(NamedTuple):
    """What a callback is told."""

    seconds: float
    solved: int
    problems: int
    passes: float
    objective: float
    """Of the problem furthest from its solution, among those that are worked on."""
    relative_gap: float


class Solution(NamedTuple):
    """Of one problem; from `fit_path`, arrays with the axes of the grid in front."""

    params: Params
    """``w: [d, q]``, ``b: [q]``: NumPy float64, which is what the certificate is about."""
    objective: Any
    """F(w, b) in nats, in float64."""
    gap: Any
    """In nats: the minimum is not below ``objective - gap``; the objective, if nothing is known."""
    relative_gap: Any
    """gap / objective."""
    status: Any
    """``certified``, ``not certified`` or ``infimum at infinity``."""
    reason: Any
    """Why it is not certified; empty if it is."""
    passes: Any
    """Passes over all rows: forward and back."""
    history: Any


_SEPARATED = "the classes are separated and nothing is penalised: the loss falls to 0 as |W| grows"
_UNBOUNDED = "with l2 = l1 = 0 nothing bounds the gap; the last step promised less than tol"
_EXHAUSTED = "no step makes progress any more in float64"


class _Options(NamedTuple):
    tol: float
    max_passes: float
    grouped: bool
    lanes: int
    began: float
    callback: Callable[[Progress], None] | None
    problems: int


@dataclasses.dataclass
class _Work:
    """A problem and the host's account of it."""

    place: tuple[int, ...]
    """In the results."""
    weighting: int
    l2: float
    l1: float
    target: float
    """Relative gap in working precision that counts as done; a margin below ``tol``."""
    order: int = 0
    """In its queue."""
    passes: float = 0.0
    value: float = math.inf
    gap: float = math.inf
    lowest: float = math.inf
    least: float = math.inf
    """The lowest value and the least gap so far, and for how many steps neither has fallen."""
    idle_steps: int = 0
    restarted: bool = False
    history: list[tuple[float, ...]] = dataclasses.field(default_factory=list)


class _Method(NamedTuple):
    """The compiled parts of a method; see `_quasi_newton` for what they do."""

    start: Callable
    advance: Callable
    hand_over: Callable
    forget: Callable
    lanes: int
    """Weightings that share a pass: a step takes 31 ms for one and 80 for four on two cores."""
    with_scores: bool
    patience: int
    """Steps without progress after which the precision counts as exhausted."""


def _method(module: Any, *, lanes: int, with_scores: bool, patience: int) -> _Method:
    return _Method(
        start=jax.jit(module.start),
        advance=jax.jit(module.advance, donate_argnames="state", static_argnames="grouped"),
        hand_over=jax.jit(module.hand_over, donate_argnames="state"),
        forget=jax.jit(module.forget, donate_argnames="state"),
        lanes=lanes,
        with_scores=with_scores,
        patience=patience,
    )


_QUASI_NEWTON = _method(_quasi_newton, lanes=4, with_scores=True, patience=60)
_PROXIMAL = _method(_proximal, lanes=4, with_scores=False, patience=1000)
_OPTAX_LBFGS = _method(_optax_lbfgs, lanes=1, with_scores=False, patience=1000)
_SMOOTH_METHODS = {"quasi-newton": _QUASI_NEWTON, "lbfgs": _OPTAX_LBFGS}


@partial(jax.jit, static_argnames=("dtype", "q", "with_scores"))
def _prepare(
    problem: Problem, chosen: np.ndarray, *, dtype: Any, q: int, with_scores: bool
) -> tuple[Problem, Problem, _preconditioner.Basis, jax.Array | None]:
    """The problem with the chosen weightings and centered features, in float64 and ``dtype``.

    Without the rows, which stay where they are.
    """
    exact = problem._replace(weights=problem.weights[:, chosen])
    sample = min(problem.blocks, max(2, -(-_preconditioner.SAMPLE // problem.rows)))
    centered, basis = _preconditioner.center_and_basis(_problem.cast(exact, dtype), sample)
    z = _preconditioner.scores(centered, basis, q) if with_scores else None
    exact = exact._replace(x=None, shift=centered.shift.astype(jnp.float64))
    return exact, centered._replace(x=None), basis, z


@partial(jax.jit, static_argnames=("grouped", "with_dual"))
def _certify(
    exact: Problem,
    state: Any,
    lane: np.ndarray,
    weighting: np.ndarray,
    *,
    grouped: bool,
    with_dual: bool,
) -> Certificate:
    """The certificate of the problem of a lane, in float64."""

    def only(array, i, axis):
        return jax.lax.dynamic_slice_in_dim(array, i, 1, axis).astype(jnp.float64)

    alone = exact._replace(weights=only(exact.weights, weighting, 1))
    dual = only(state.dual.probabilities, lane, 1) if with_dual else None
    return _certificate.certify(alone, only(state.theta, lane, 0), dual, grouped=grouped)


def _solve(
    inputs: Inputs, works: Sequence[_Work], method: _Method, initial: Any, options: _Options
) -> dict[tuple[int, ...], Solution]:
    """Strong penalties first: each problem goes on from where a stronger one stands."""
    queues: dict[int, collections.deque[_Work]] = {}
    for order, work in enumerate(sorted(works, key=lambda work: (-work.l1, -work.l2))):
        work.order = order
        queues.setdefault(work.weighting, collections.deque()).append(work)
    dtype: Any = np.float32
    if inputs.n * inputs.problem.d * inputs.q <= SMALL:
        dtype = np.float64
        if method is _QUASI_NEWTON:
            method = method._replace(patience=RENEWAL[True])
            for work in works:
                if work.l2 > 0:
                    work.target = min(work.target, ROUNDING)
    solved: dict[tuple[int, ...], Solution] = {}
    weightings = sorted(queues)
    # Of one width, as far as it goes, as each width is compiled for.
    groups = -(-len(weightings) // method.lanes)
    width = -(-len(weightings) // groups)
    for first in range(0, len(weightings), width):
        lanes = [queues[m] for m in weightings[first : first + width]]
        if len(lanes) == 1:  # the lanes draw from one queue
            lanes = lanes * min(options.lanes if method.lanes > 1 else 1, len(lanes[0]))
        solved |= _run(inputs, lanes, dtype, method, initial, options, len(solved))
    return solved


def _run(
    inputs: Inputs,
    queues: Sequence[collections.deque[_Work]],
    dtype: Any,
    method: _Method,
    initial: np.ndarray | None,
    options: _Options,
    solved_before: int,
) -> dict[tuple[int, ...], Solution]:
    """The problems of the queues; there is a lane for each queue, and they may be the same."""
    latest = [queue.popleft() for queue in queues]
    lanes: list[_Work | None] = list(latest)
    weightings = sorted({work.weighting for work in latest})
    exact, problem, basis, z = _prepare(
        inputs.problem,
        np.array(weightings),
        dtype=dtype,
        q=inputs.q,
        with_scores=method.with_scores,
    )
    exact = exact._replace(x=inputs.problem.x)
    problem = _with_strengths(problem._replace(x=inputs.problem.x), latest, dtype)
    mean = np.asarray(inputs.problem.shift) - np.asarray(exact.shift)

    theta = np.zeros((len(lanes), inputs.q, 1 + exact.d))
    if initial is not None:
        theta[:] = initial
        theta[..., 0] += theta[..., 1:] @ mean
    theta[inputs.absent[[work.weighting for work in latest]], 0] = NEVER
    begin: Any = theta.astype(dtype)
    if initial is None:
        begin = _warm_up(problem, basis, z, begin, latest, method, options)
    state = method.start(problem, z, begin)
    for first in latest:
        first.passes += 1

    solved: dict[tuple[int, ...], Solution] = {}
    is_exact = _preconditioner.rank(exact.d, inputs.q) == exact.d
    age = np.full(len(lanes), RENEWAL[is_exact])
    while any(work is not None for work in lanes):
        spent = max(work.passes for work in lanes if work is not None)
        passes_left = max(math.ceil(options.max_passes - spent), 1)
        renew = (age >= RENEWAL[is_exact]) & [work is not None for work in lanes]
        state, steps = method.advance(
            problem,
            basis,
            z,
            state,
            renew=renew,
            target=np.array([math.inf if work is None else work.target for work in lanes], dtype),
            limit=np.asarray(min(RENEWAL[is_exact] if method.with_scores else ROUND, passes_left)),
            stop_at_first=np.bool_(any(queues)),
            grouped=options.grouped,
        )
        done, steps = _look(lanes, state, steps, 1.0, options, solved_before + len(solved))
        age = np.where(renew, 0, age) + steps
        for i, work in enumerate(lanes):
            if work is None or not _deserves_a_look(work, done[i], method, options):
                continue
            work.passes += 1
            certificate = jax.device_get(
                _certify(
                    _with_strengths(exact, [work], np.float64),
                    state,
                    np.asarray(i),
                    np.asarray(weightings.index(work.weighting)),
                    grouped=options.grouped,
                    with_dual=method.with_scores,
                )
            )
            verdict = _verdict(certificate, work, bool(done[i]), method, inputs, options)
            if verdict is None:
                # The estimate was a little too good, as the bias was not yet the best.
                work.target = min(work.target, work.gap / work.value) / 2
                done[i] = False
                state = state._replace(done=np.array(done))
                continue
            if verdict == (NOT_CERTIFIED, _EXHAUSTED) and not work.restarted:
                # A stale preconditioner may be to blame, or pairs that rounding spoilt.
                work.restarted, work.idle_steps = True, 0
                age[i] = RENEWAL[is_exact]
                done[i] = False
                state = method.forget(state, np.asarray(i))
                continue
            if verdict == (NOT_CERTIFIED, _EXHAUSTED) and dtype == np.float32:
                at = _in_users_terms(np.asarray(certificate.theta[0]), mean)
                work.lowest, work.least = math.inf, math.inf
                work.idle_steps, work.restarted = 0, False
                solved |= _run(
                    inputs,
                    [collections.deque([work])],
                    np.float64,
                    method,
                    at,
                    options,
                    solved_before + len(solved),
                )
            else:
                absent = inputs.absent[work.weighting]
                solved[work.place] = _solution(certificate, work, mean, absent, verdict)
            lanes[i] = None
            if queues[i]:
                lanes[i] = latest[i] = queues[i].popleft()
                others = [j for j in range(len(lanes)) if j != i and queues[j] is queues[i]]
                source = max(others, key=lambda j: latest[j].order, default=i)
                l2 = np.asarray(problem.l2[source])
                problem = _with_strengths(problem, latest, dtype)
                state = method.hand_over(problem, state, np.asarray(i), np.asarray(source), l2)
                latest[i].passes += 0.5
                age[i] = age[source] + HANDED_OVER[is_exact]
    return solved


def _with_strengths(problem: Problem, works: Sequence[_Work], dtype: Any) -> Problem:
    return problem._replace(
        l2=np.array([work.l2 for work in works], dtype),
        l1=np.array([work.l1 for work in works], dtype),
    )


def _warm_up(
    problem: Problem,
    basis: Any,
    z: Any,
    theta: Any,
    works: Sequence[_Work],
    method: _Method,
    options: _Options,
) -> Any:
    """Roughly solves a sixteenth and then a quarter of the rows.

    With the penalty as strong in all as with all rows: strengths times the ratio of the rows.
    """
    for active in sorted({max(1, problem.blocks // 16), problem.blocks // 4}):
        if not 1 <= active <= problem.blocks // 2:
            continue
        ratio = problem.blocks / active
        part = problem._replace(
            active=np.asarray(active, np.int32),
            l2=(problem.l2 * ratio).astype(problem.l2.dtype),
            l1=(problem.l1 * ratio).astype(problem.l1.dtype),
        )
        everyone = np.ones(len(works), bool)
        state, steps = method.advance(
            part,
            basis,
            z,
            method.start(part, z, theta),
            renew=everyone,
            target=np.full(len(works), 0.02, problem.dtype),
            limit=np.asarray(WARM_UP if method.with_scores else ROUND),
            stop_at_first=np.bool_(False),
            grouped=options.grouped,
        )
        _look(works, state, steps, 1 / ratio, options, 0)
        theta = state.theta
    for work in works:
        work.lowest, work.least, work.idle_steps = math.inf, math.inf, 0
    return theta


def _look(
    works: Sequence[_Work | None],
    state: Any,
    steps: jax.Array,
    share: float,
    options: _Options,
    solved: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Fetches where the lanes stand, and takes note of it; who is done, and their steps."""
    values, gaps, done, steps = jax.device_get((state.value, state.gap, state.done, steps))
    seconds = time.perf_counter() - options.began
    busy = []
    for i, work in enumerate(works):
        if work is None:
            continue
        work.passes += float(steps[i]) * share
        work.value, work.gap = float(values[i]), float(gaps[i])
        # Far from the optimum the gap may grow while the value falls.
        falls = work.gap < 0.9 * work.least or work.value < (1 - 1e-5) * work.lowest
        work.idle_steps = 0 if falls else work.idle_steps + int(steps[i])
        work.least, work.lowest = min(work.least, work.gap), min(work.lowest, work.value)
        work.history.append((seconds, work.passes, work.value, work.gap, share))
        busy.append(work)
    if options.callback is not None:
        ratios = [work.gap / work.value if work.value > 0 else math.inf for work in busy]
        last = busy[int(np.argmax(ratios))]
        options.callback(
            Progress(seconds, solved, options.problems, last.passes, last.value, max(ratios))
        )
    return np.array(done), steps


def _deserves_a_look(work: _Work, done: bool, method: _Method, options: _Options) -> bool:
    stuck = work.idle_steps >= method.patience
    return done or stuck or work.passes >= options.max_passes or work.l2 == work.l1 == 0


def _verdict(
    certificate: Certificate,
    work: _Work,
    done: bool,
    method: _Method,
    inputs: Inputs,
    options: _Options,
) -> tuple[str, str] | None:
    """Status and reason, or None if the work is to go on."""
    if work.l2 == work.l1 == 0:
        if inputs.one_hot and certificate.margin[0] > 0:
            return AT_INFINITY, _SEPARATED
        if done:
            return NOT_CERTIFIED, _UNBOUNDED
    elif certificate.gap[0] <= options.tol * certificate.value[0]:
        return CERTIFIED, ""
    if work.passes >= options.max_passes:
        return NOT_CERTIFIED, f"max_passes = {options.max_passes:g} are used up"
    if work.idle_steps >= method.patience or (done and not work.gap <= work.target * work.value):
        return NOT_CERTIFIED, _EXHAUSTED
    return None


def _in_users_terms(theta: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Parameters for the features as they were before they were centered."""
    theta = np.array(theta, np.float64)
    theta[:, 0] -= theta[:, 1:] @ mean
    return theta


def _solution(
    certificate: Certificate,
    work: _Work,
    mean: np.ndarray,
    absent: np.ndarray,
    verdict: tuple[str, str],
) -> Solution:
    theta = _in_users_terms(np.asarray(certificate.theta[0]), mean)
    w: Any = theta[:, 1:].T
    b: Any = theta[:, 0]
    # One number may be added to all biases; the choice is that they sum to zero.
    b = np.where(absent, -np.inf, b - b[~absent].mean())
    value, gap = float(certificate.value[0]), float(certificate.gap[0])
    columns = np.array(work.history, np.float64).T
    return Solution(
        params=Params(w=w, b=b),
        objective=value,
        gap=gap,
        relative_gap=gap / value if value > 0 else 0.0,
        status=verdict[0],
        reason=verdict[1],
        passes=work.passes,
        history=History(*columns),
    )


def fit(
    x: Any,
    y: Any,
    *,
    l2: float,
    l1: float = 0.0,
    sample_weight: Any = None,
    tol: float = 1e-4,
    **options: Any,
) -> Solution:
    r"""Minimises the objective of `losses.objective`, and proves how close it came.

    .. math:: F(W, b) = \frac{\sum_i s_i l_i}{\sum_i s_i} + \frac{l_2}{2} \|W\|^2 + l_1 \|W\|_1

    With l1 = 0 by a preconditioned quasi-Newton method (`_quasi_newton`), with l1 > 0 by an
    accelerated proximal one (`_proximal`). Work is in float32 for all but small problems, and goes
    on in float64 where that does not suffice; the certificate is float64 always (`_certificate`),
    whatever ``jax_enable_x64`` says::

        solution = fit(pixels, labels, l2=1e-4, scale=1 / 255)
        solution.status, solution.relative_gap  # 'certified', 4.2e-05
        probabilities = model.probabilities(solution.params, pixels / 255)

    Args:
      x: ``[n, d]`` features as they are stored: uint8, bfloat16, floats; NumPy, JAX or SciPy
        sparse. They become floating-point numbers, and sparse rows dense ones, a block at a time.
        If there are several blocks, one shuffled copy is made, as stored.
      y: class ids ``[n]``, integers from 0, or probabilities ``[n, q]``.
      l2: strength of the squared penalty; see `conventions` for those of other packages.
      l1: strength of the absolute penalty.
      sample_weight: ``[n]`` weights ``s_i >= 0``; None means 1.
      tol: the solver stops at a *certified* relative gap, gap / F, of at most this.
      **options: the other arguments of `fit_path`.

    Returns:
      A `Solution` of NumPy float64. A class of no weight gets the bias ``-inf`` and weights 0,
      which is where its infimum lies. Of the biases, to which any number may be added, those that
      sum to zero.

    Raises:
      ValueError: on NaN or infinite values, shapes that do not fit, class ids out of range,
        negative weights or strengths, no weight at all, or all of it on a single class. Nothing
        has been compiled by then.
    """
    return fit_path(
        x, y, l2=float(l2), l1=float(l1), sample_weight=sample_weight, tol=tol, **options
    )


def fit_path(
    x: Any,
    y: Any,
    *,
    l2: Any,
    l1: Any = 0.0,
    grouped: bool = False,
    num_classes: int | None = None,
    sample_weight: Any = None,
    class_weight: Any = None,
    offset: Any = None,
    scale: Any = None,
    shift: Any = None,
    initial: Params | None = None,
    tol: float = 1e-4,
    max_passes: float = 2000,
    method: str = "quasi-newton",
    lanes: int = 1,
    block_size: int | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Solution:
    """Solves a grid of strengths, and of weightings, as `fit` does a single one.

    Strengths are taken from strong to weak. Each problem stops on its own certificate, and the next
    goes on from where its neighbour stands, and further along the way from the neighbour before.
    Up to four weightings at a time share every pass over the rows as one wide product.

    Args:
      x: see `fit`.
      y: see `fit`.
      l2: strengths of any shape, broadcast with ``l1``: ``l2[:, None], l1[None]`` makes a grid.
      l1: strengths.
      grouped: let l1 penalise the norms of the weights of each feature over the classes,
        ``l1 sum_j |W_j|``, so that features are kept or dropped as a whole.
      num_classes: q, by default one more than the largest class id.
      sample_weight: ``[n]``, or ``[m, n]`` for m weightings, which become the first axis of the
        results: folds with zeros for what is left out, or draws of a bootstrap.
      class_weight: factors on the weights of rows, ``[q]``, or ``"balanced"`` for ones that give
        each class the same weight in total; with probabilities as targets, their mean.
      offset: ``[n, q]``, added to the logits.
      scale: the features are ``x * scale + shift``; numbers, or ``[d]``. None means 1 and 0.
      shift: see ``scale``.
      initial: where to start; by default from solutions on samples of the rows.
      tol: see `fit`.
      max_passes: of each problem over all rows, after which it is given up.
      method: for problems with l1 = 0: ``"quasi-newton"``, or ``"lbfgs"`` for `optax.lbfgs`
        without a preconditioner and without sharing passes, to compare with.
      lanes: strengths, of one weighting, that share a pass. On many lanes a pass is cheaper for
        each, but there are more of them, as problems start further from their neighbour's
        solution: 16 strengths on Fashion-MNIST take 148 passes in 9.1 s on one lane, and 224 in
        10.3 s on two (two cores).
      block_size: rows at a time; by default such that a block of float32 features takes 6 MiB.
        Results depend on it by rounding only.
      callback: called with a `Progress` each time that the host looks at the lanes.

    Returns:
      A `Solution` of arrays with the axes of the grid in front. See `fit`, also for the errors.
    """
    began = time.perf_counter()
    if method not in _SMOOTH_METHODS:
        raise ValueError(f"method: {method!r}; expected one of {', '.join(_SMOOTH_METHODS)}")
    if lanes < 1:
        raise ValueError(f"lanes: {lanes}; expected 1 or more")
    if not 0 < tol < math.inf:
        raise ValueError(f"tol: {tol}; expected a positive number")
    l2, l1 = np.broadcast_arrays(
        _inputs.checked_strength(l2, "l2"), _inputs.checked_strength(l1, "l1")
    )
    with jax.enable_x64(True):
        inputs = _inputs.arrange(
            x,
            y,
            num_classes=num_classes,
            sample_weight=sample_weight,
            class_weight=class_weight,
            offset=offset,
            scale=scale,
            shift=shift,
            initial=initial,
            block_size=block_size,
        )
        several = sample_weight is not None and np.ndim(sample_weight) == 2
        works = [
            _Work(((m,) if several else ()) + at, m, float(l2[at]), float(l1[at]), 0.7 * tol)
            for m in range(len(inputs.absent))
            for at in np.ndindex(l2.shape)
        ]
        options = _Options(tol, max_passes, grouped, lanes, began, callback, len(works))
        solved: dict[tuple[int, ...], Solution] = {}
        for parts, some in (
            (_SMOOTH_METHODS[method], [work for work in works if work.l1 == 0]),
            (_PROXIMAL, [work for work in works if work.l1 > 0]),
        ):
            if some:
                solved |= _solve(inputs, some, parts, inputs.initial, options)
    shape = ((len(inputs.absent),) if several else ()) + l2.shape
    return _stacked(solved, shape)


def _stacked(solved: dict[tuple[int, ...], Solution], shape: tuple[int, ...]) -> Solution:
    """One solution of arrays with ``shape`` in front; histories are an array of objects."""
    if shape == ():
        return solved[()]
    order = [solved[at] for at in np.ndindex(shape)]

    def stack(values):
        values = np.array(values)
        return values.reshape(*shape, *values.shape[1:])

    histories = np.empty(shape, object)
    for at in np.ndindex(shape):
        histories[at] = solved[at].history
    return Solution(
        params=Params(
            w=stack([solution.params.w for solution in order]),
            b=stack([solution.params.b for solution in order]),
        ),
        history=histories,
        **{
            name: stack([getattr(solution, name) for solution in order])
            for name in ("objective", "gap", "relative_gap", "status", "reason", "passes")
        },
    )
