"""Problems run on lanes that share each pass, with a certificate at the end of each.

Compiled programs advance all lanes by some steps; the host looks at them in between, certifies what
is done in float64, and gives free lanes the next problem of their queue.
"""

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax.solvers import certificate as certificates
from softmax_jax.solvers import separation
from softmax_jax.solvers import units as _units
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods import (
    lbfgs,
    preconditioner,
    proximal,
    proximal_newton,
    quasi_newton,
)
from softmax_jax.solvers.problem import Problem, cast
from softmax_jax.solvers.solution import (
    History,
    Progress,
    Solution,
)
from softmax_jax.status import EXHAUSTED, SEPARATED, Status, unbounded, used_up

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
# Objectives below this share of the loss without features count as zero: a gap has to be small
# against that share, as none is small against nothing.
NEGLIGIBLE = 1e-6
# Offsets that differ by more within a row are large.
LARGE_OFFSET = 30
# The bias of a class of no weight, whose probability is then exactly zero.
NEVER = -1e30


# With XLA:CPU's newer emitters of fused loops it takes twice as long to compile, and just as long
# to run. Versions from 0.11.1 on have no choice.
_jit = partial(
    jax.jit,
    compiler_options={"xla_cpu_use_fusion_emitters": False}
    if jax.__version_info__ < (0, 11, 1)
    else None,
)


class Options(NamedTuple):
    """Those of `fit_path` that the lanes need, with the time of the call and how many problems."""

    tol: float
    max_passes: float
    lanes: int
    began: float
    callback: Callable[[Progress], None] | None
    problems: int


@dataclasses.dataclass
class Work:
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

    def passes_left(self, options: Options) -> int:
        """How many to take before the last one, which is the certificate's."""
        return max(math.floor(min(options.max_passes - self.passes - 1, ROUND)), 0)


class Method(NamedTuple):
    """The compiled parts of a method; see `_quasi_newton` for what they do."""

    start: Callable
    advance: Callable
    hand_over: Callable
    forget: Callable
    lanes: int
    """Weightings that share a pass: a step takes 31 ms for one and 80 for four on two cores."""
    scores: str
    """Of which coordinates of rows it wants the values, if of any: components or features."""
    patience: int
    """Steps without progress after which the precision counts as exhausted."""

    @property
    def is_quasi_newton(self) -> bool:
        """Whether its state has a preconditioner to renew, and distributions for the bound."""
        return self.scores == "components"


def _method(module: Any, *, lanes: int, scores: str = "", patience: int) -> Method:
    return Method(
        start=_jit(module.start),
        advance=_jit(module.advance, donate_argnames="state"),
        hand_over=_jit(module.hand_over, donate_argnames="state"),
        forget=_jit(module.forget, donate_argnames="state"),
        lanes=lanes,
        scores=scores,
        patience=patience,
    )


QUASI_NEWTON = _method(quasi_newton, lanes=4, scores="components", patience=60)
PROXIMAL = _method(proximal, lanes=4, patience=1000)
PROXIMAL_NEWTON = _method(proximal_newton, lanes=4, scores="features", patience=5)
OPTAX_LBFGS = _method(lbfgs, lanes=1, patience=1000)
SMOOTH_METHODS = {"quasi-newton": QUASI_NEWTON, "lbfgs": OPTAX_LBFGS}


@partial(_jit, static_argnames=("dtype", "q", "coordinates"))
def _prepare(
    problem: Problem,
    chosen: np.ndarray,
    factor: jax.Array,
    *,
    dtype: Any,
    q: int,
    coordinates: str,
) -> tuple[Problem, Problem, preconditioner.Basis, jax.Array | None]:
    """The problem with the chosen weightings, in float64 and ``dtype``, and what goes with it.

    Without the rows, which stay where they are.
    """
    exact = problem._replace(weights=problem.weights[:, chosen])
    sample = min(problem.blocks, max(2, -(-preconditioner.SAMPLE // problem.rows)))
    working = cast(exact, dtype)
    basis = preconditioner.basis(working, sample, factor.astype(dtype), q)
    z = None
    if coordinates:
        is_own = coordinates == "features"
        axes = basis._replace(components=jnp.eye(exact.d, dtype=dtype)) if is_own else basis
        z = preconditioner.scores(working, axes, q)
    return exact._replace(x=None), working._replace(x=None), basis, z


@partial(_jit, static_argnames="with_dual")
def _certify(
    exact: Problem,
    state: Any,
    lane: np.ndarray,
    weighting: np.ndarray,
    *,
    with_dual: bool,
) -> Certificate:
    """The certificate of the problem of a lane, in float64."""
    dual = _of_lane(state.dual.probabilities, lane, 1) if with_dual else None
    alone = exact._replace(weights=_of_lane(exact.weights, weighting, 1))
    return certificates.certify(alone, _of_lane(state.theta, lane, 0), dual)


@_jit
def _margin(exact: Problem, state: Any, lane: np.ndarray, weighting: np.ndarray) -> jax.Array:
    alone = exact._replace(weights=_of_lane(exact.weights, weighting, 1))
    return separation.margin(alone, _of_lane(state.theta, lane, 0))[0]


def _of_lane(array: jax.Array, lane: np.ndarray, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, lane, 1, axis).astype(jnp.float64)


def solve(
    inputs: Inputs, works: Sequence[Work], method: Method, options: Options, solved_before: int
) -> dict[tuple[int, ...], Solution]:
    """Solutions by place. Strong penalties first: each goes on from where a stronger one stands."""
    queues: dict[int, collections.deque[Work]] = {}
    for order, work in enumerate(sorted(works, key=lambda work: (-work.l1, -work.l2))):
        work.order = order
        queues.setdefault(work.weighting, collections.deque()).append(work)
        if work.l2 == work.l1 == 0:
            # There is an estimate of the gap only, by an approximate Hessian.
            work.target /= 100
    inputs = _from_smaller_offsets(inputs, queues, method, options, solved_before)
    dtype: Any = np.float64 if inputs.is_wide or method is PROXIMAL_NEWTON else np.float32
    if inputs.n * inputs.problem.d * inputs.q <= SMALL:
        dtype = np.float64
        if method.scores:
            is_exact = preconditioner.rank(inputs.problem.d, inputs.q) == inputs.problem.d
            if method.is_quasi_newton and is_exact:
                method = method._replace(patience=RENEWAL[True])
            for work in works:
                work.target = min(work.target, ROUNDING)
    start = None if inputs.initial is None else _units.to_solver(inputs.units, inputs.initial)
    solved: dict[tuple[int, ...], Solution] = {}
    weightings = sorted(queues)
    # Of one width, as far as it goes, as each width is compiled for.
    groups = -(-len(weightings) // method.lanes)
    width = -(-len(weightings) // groups)
    for first in range(0, len(weightings), width):
        lanes = [queues[m] for m in weightings[first : first + width]]
        if len(lanes) == 1:  # the lanes draw from one queue
            lanes = lanes * min(options.lanes if method.lanes > 1 else 1, len(lanes[0]))
        solved |= _run(inputs, lanes, dtype, method, start, options, solved_before + len(solved))
    return solved


def _from_smaller_offsets(
    inputs: Inputs,
    queues: Mapping[int, Sequence[Work]],
    method: Method,
    options: Options,
    solved_before: int,
) -> Inputs:
    """With a start from the solution for a third of the offsets, where these are large.

    Their softmax is all but a step then, from which no method learns where to go. For ``W = 3 V``
    the objective is three times that of V with a third of the offsets and three times l2, but that
    its softmax is of a third of the logits: of a higher temperature, and as easy as need be, as
    that problem starts from a third of its offsets in turn.
    """
    offset = inputs.problem.offset
    if offset is None or inputs.initial is not None:
        return inputs
    if not float(jnp.max(jnp.ptp(offset, axis=1))) > LARGE_OFFSET:
        return inputs
    if options.max_passes < 40:  # a tenth of them must be left
        return inputs
    first = min((queue[0] for queue in queues.values()), key=lambda work: work.order)
    easier = Work((), first.weighting, 3 * first.l2, first.l1, 0.01)
    solution = solve(
        inputs._replace(problem=inputs.problem._replace(offset=offset / 3)),
        [easier],
        method,
        options._replace(tol=0.01, max_passes=0.9 * options.max_passes),
        solved_before,
    )[()]
    for queue in queues.values():
        queue[0].passes += easier.passes
    w, b = (np.asarray(a) for a in solution.params)
    theta = np.concatenate([np.where(np.isfinite(b), b, 0)[:, None], w.T], axis=1)
    return inputs._replace(initial=3 * theta)


def _run(
    inputs: Inputs,
    queues: Sequence[collections.deque[Work]],
    dtype: Any,
    method: Method,
    initial: np.ndarray | None,
    options: Options,
    solved_before: int,
) -> dict[tuple[int, ...], Solution]:
    """The problems of the queues; there is a lane for each queue, and they may be the same."""
    latest = [queue.popleft() for queue in queues]
    lanes: list[Work | None] = list(latest)
    weightings = sorted({work.weighting for work in latest})
    penalised = any(work.l2 > 0 for queue in [latest, *queues] for work in queue)
    exact, problem, basis, z = _prepare(
        inputs.problem,
        np.array(weightings),
        inputs.problem.factor if penalised else jnp.ones_like(inputs.problem.factor),
        dtype=dtype,
        q=inputs.q,
        coordinates=method.scores,
    )
    exact = exact._replace(x=inputs.problem.x)
    problem = with_strengths(problem._replace(x=inputs.problem.x), latest, dtype)

    theta = np.zeros((len(lanes), inputs.q, 1 + exact.d))
    if initial is not None:
        theta[:] = initial
    if latest[0].passes_left(options) < 1:
        works = {work.place: work for work in [*latest, *itertools.chain(*queues)]}
        return {
            place: _not_begun(inputs, exact, weightings, theta[:1], work, method, options)
            for place, work in works.items()
        }
    absent = inputs.absent[[work.weighting for work in latest]]
    theta[absent] = 0
    theta[absent, 0] = NEVER
    begin: Any = theta.astype(dtype)
    if initial is None:
        begin = _warm_up(problem, basis, z, begin, latest, method, options, solved_before)
    state = _started(problem, basis, z, begin, method, options)

    for first in latest:
        first.passes += 1

    solved: dict[tuple[int, ...], Solution] = {}
    is_exact = preconditioner.rank(exact.d, inputs.q) == exact.d
    age = np.full(len(lanes), RENEWAL[is_exact])
    while any(work is not None for work in lanes):
        passes_left = min(work.passes_left(options) for work in lanes if work is not None)
        renew = (age >= RENEWAL[is_exact]) & [work is not None for work in lanes]
        state, steps = method.advance(
            problem,
            basis,
            z,
            state,
            renew=renew,
            target=np.array([math.inf if work is None else work.target for work in lanes], dtype),
            limit=np.asarray(min(RENEWAL[is_exact] if method.scores else ROUND, passes_left)),
            stop_at_first=np.bool_(any(queues)),
        )
        done, steps = look(lanes, state, steps, 1.0, options, solved_before + len(solved))
        age = np.where(renew, 0, age) + steps
        handed_over: set[int] = set()
        for i, work in enumerate(lanes):
            if work is None:
                continue
            lane, weighting = np.asarray(i), np.asarray(weightings.index(work.weighting))
            separated = (
                work.l2 == work.l1 == 0
                and inputs.one_hot
                and float(_margin(exact, state, lane, weighting)) > 0
            )
            stuck = work.idle_steps >= method.patience
            if not (done[i] or stuck or separated or work.passes_left(options) < 1):
                continue
            work.passes += 1
            certificate = jax.device_get(
                _certify(
                    with_strengths(exact, [work], np.float64),
                    state,
                    lane,
                    weighting,
                    with_dual=method.is_quasi_newton and not work.l2 == work.l1 == 0,
                )
            )
            floor = NEGLIGIBLE * float(inputs.baseline[work.weighting])
            verdict = _verdict(certificate, work, bool(done[i]), separated, method, options, floor)
            if verdict is None:
                # The estimate was a little too good, as the bias was not yet the best.
                work.target = min(work.target, work.gap / work.value) / 2
                done[i] = False
                state = state._replace(done=np.array(done))
                continue
            if verdict == (Status.NOT_CERTIFIED, EXHAUSTED) and not work.restarted:
                # A stale preconditioner may be to blame, or pairs that rounding spoilt.
                work.restarted, work.idle_steps = True, 0
                age[i] = RENEWAL[is_exact]
                done[i] = False
                state = method.forget(state, lane)
                continue
            if verdict == (Status.NOT_CERTIFIED, EXHAUSTED) and dtype == np.float32:
                at: Any = np.asarray(certificate.theta[0])
                at = at if np.isfinite(at).all() else np.zeros_like(at)
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
                if verdict == (Status.NOT_CERTIFIED, EXHAUSTED) and work.l2 == work.l1 == 0:
                    verdict = Status.NOT_CERTIFIED, unbounded(float(certificate.slope[0]))
                if verdict[0] == Status.NOT_CERTIFIED:
                    nothing = jax.device_get(
                        _certify(
                            with_strengths(exact, [work], np.float64),
                            state._replace(theta=_without_weights(state.theta)),
                            lane,
                            weighting,
                            with_dual=False,
                        )
                    )
                    if not certificate.value[0] <= nothing.value[0]:
                        certificate = nothing
                solved[work.place] = to_solution(inputs, certificate, work, verdict)
            lanes[i] = None
            if queues[i]:
                # From the nearest in strength, which is the one that was begun last.
                near = [
                    j for j in range(len(lanes)) if queues[j] is queues[i] and j not in handed_over
                ]
                source = max(near, key=lambda j: latest[j].order)
                lanes[i] = latest[i] = queues[i].popleft()
                handed_over.add(i)
                done[i] = False
                l2 = np.asarray(problem.penalty.l2)[source]
                problem = with_strengths(problem, latest, dtype)
                state = method.hand_over(problem, state, lane, np.asarray(source), l2)
                age[i] = age[source] + HANDED_OVER[is_exact]
    return solved


class _Start(NamedTuple):
    """What `_certify` reads of a state."""

    theta: np.ndarray


def _not_begun(
    inputs: Inputs,
    exact: Problem,
    weightings: Sequence[int],
    theta: np.ndarray,
    work: Work,
    method: Method,
    options: Options,
) -> Solution:
    """Of where the work would start, for a problem whose passes suffice for a certificate only."""
    absent = inputs.absent[work.weighting]
    theta = np.where(absent[None, :, None], 0, theta)
    theta[:, absent, 0] = NEVER
    certificate = jax.device_get(
        _certify(
            with_strengths(exact, [work], np.float64),
            _Start(theta),
            np.asarray(0),
            np.asarray(weightings.index(work.weighting)),
            with_dual=False,
        )
    )
    work.passes += 1
    work.value, work.gap = float(certificate.value[0]), float(certificate.gap[0])
    work.history.append(
        (time.perf_counter() - options.began, work.passes, work.value, work.gap, 1.0)
    )
    floor = NEGLIGIBLE * float(inputs.baseline[work.weighting])
    verdict = _verdict(certificate, work, False, False, method, options, floor)
    assert verdict is not None
    return to_solution(inputs, certificate, work, verdict)


def _without_weights(theta: jax.Array) -> jax.Array:
    """Zero, but for classes of no weight."""
    bias = jnp.where(theta[..., 0] < NEVER / 2, NEVER, 0)
    return jnp.zeros_like(theta).at[..., 0].set(bias.astype(theta.dtype))


def with_strengths(problem: Problem, works: Sequence[Work], dtype: Any) -> Problem:
    """The problem with the strengths of ``works``."""
    l2, l1 = (np.array([getattr(w, name) for w in works], dtype) for name in ("l2", "l1"))
    return problem._replace(penalty=dataclasses.replace(problem.penalty, l2=l2, l1=l1))


def _started(
    problem: Problem, basis: Any, z: Any, theta: Any, method: Method, options: Options
) -> Any:
    """At ``theta``, with a preconditioner yet to come: it is that of where the problems stand."""
    state = method.start(problem, z, theta)
    if not method.is_quasi_newton:
        return state
    return method.advance(
        problem,
        basis,
        z,
        state,
        renew=np.zeros(len(theta), bool),
        target=np.zeros(len(theta), problem.dtype),
        limit=np.asarray(1),
        stop_at_first=np.bool_(False),
    )[0]


def _warm_up(
    problem: Problem,
    basis: Any,
    z: Any,
    theta: Any,
    works: Sequence[Work],
    method: Method,
    options: Options,
    solved_before: int,
) -> Any:
    """Roughly solves a sixteenth and then a quarter of the rows.

    With the penalty as strong in all as with all rows: strengths times the ratio of the rows.
    """
    blocks = int(problem.active)
    for active in sorted({max(1, blocks // 16), blocks // 4}):
        if not 1 <= active <= blocks // 2:
            continue
        ratio = blocks / active
        # Less the first step, and later that on all rows and the certificate.
        steps_left = math.floor(min(options.max_passes - works[0].passes - 2, ROUND) * ratio) - 1
        if steps_left < 1:
            continue
        part = problem._replace(
            active=np.asarray(active, np.int32),
            penalty=dataclasses.replace(
                problem.penalty,
                l2=(np.asarray(problem.penalty.l2) * ratio).astype(problem.dtype),
                l1=(np.asarray(problem.penalty.l1) * ratio).astype(problem.dtype),
            ),
        )
        everyone = np.ones(len(works), bool)
        state, steps = method.advance(
            part,
            basis,
            z,
            _started(part, basis, z, theta, method, options),
            renew=everyone,
            target=np.full(len(works), 0.02, problem.dtype),
            limit=np.asarray(min(WARM_UP if method.scores else ROUND, steps_left)),
            stop_at_first=np.bool_(False),
        )
        for work in works:
            work.passes += 1 / ratio  # the first one
        look(works, state, steps, 1 / ratio, options, solved_before)
        theta = state.theta
    for work in works:
        work.lowest, work.least, work.idle_steps = math.inf, math.inf, 0
    return theta


def look(
    works: Sequence[Work | None],
    state: Any,
    steps: jax.Array,
    share: float,
    options: Options,
    solved: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Fetches where the lanes stand, and takes note of it; who is done, and their steps."""
    values, gaps, done, taken = jax.device_get((state.value, state.gap, state.done, steps))
    seconds = time.perf_counter() - options.began
    busy = []
    for i, work in enumerate(works):
        if work is None:
            continue
        work.passes += float(taken[i]) * share
        work.value, work.gap = float(values[i]), float(gaps[i])
        # Far from the optimum the gap may grow while the value falls.
        falls = work.gap < 0.9 * work.least or work.value < (1 - 1e-5) * work.lowest
        work.idle_steps = 0 if falls else work.idle_steps + int(taken[i])
        work.least, work.lowest = min(work.least, work.gap), min(work.lowest, work.value)
        work.history.append((seconds, work.passes, work.value, work.gap, share))
        busy.append(work)
    if options.callback is not None:
        ratios = [work.gap / work.value if work.value > 0 else math.inf for work in busy]
        last = busy[int(np.argmax(ratios))]
        options.callback(
            Progress(seconds, solved, options.problems, last.passes, last.value, max(ratios))
        )
    return np.array(done), taken


def _verdict(
    certificate: Certificate,
    work: Work,
    done: bool,
    separated: bool,
    method: Method,
    options: Options,
    floor: float,
) -> tuple[str, str] | None:
    """Status and reason, or None if the work is to go on."""
    is_unbounded = work.l2 == work.l1 == 0
    if is_unbounded and separated:
        return Status.AT_INFINITY, SEPARATED
    if not is_unbounded and certificate.gap[0] <= options.tol * max(
        float(certificate.value[0]), floor
    ):
        return Status.CERTIFIED, ""
    promises = work.gap <= work.target * work.value
    if is_unbounded and promises:
        return Status.NOT_CERTIFIED, unbounded(float(certificate.slope[0]))
    if work.passes_left(options) < 1:
        return Status.NOT_CERTIFIED, used_up(options.max_passes)
    if work.idle_steps >= method.patience or (done and not promises):
        return Status.NOT_CERTIFIED, EXHAUSTED
    return None


def to_solution(
    inputs: Inputs, certificate: Certificate, work: Work, verdict: tuple[str, str]
) -> Solution:
    """What `fit` returns of a problem, for the features and biases as users have them."""
    params, centered, error = _units.to_users(
        inputs.units,
        np.asarray(certificate.theta[0], np.float64),
        ~inputs.absent[work.weighting],
        fit_intercept=bool(inputs.problem.intercept > 0),
        centered=work.l1 == 0,
    )
    # The bias is at its optimum, where the loss is flat: what float64 cannot hold of it costs half
    # its square at most, as the second derivative is a variance under the predictions.
    value, gap = float(certificate.value[0]), float(certificate.gap[0]) + error**2 / 2
    columns = np.array(work.history, np.float64).reshape(-1, len(History._fields)).T
    return Solution(
        params=params,
        centered=centered,
        mean=inputs.units.mean,
        objective=value,
        gap=gap,
        relative_gap=gap / max(value, NEGLIGIBLE * float(inputs.baseline[work.weighting])),
        slope=float(certificate.slope[0]),
        status=verdict[0],
        reason=verdict[1],
        passes=work.passes,
        history=History(*columns),
    )
