"""Problems in slots that share each pass, with a certificate at the end of each.

Compiled programs advance all slots by some steps. In between, the host records where they stand,
certifies in float64 what is done, and gives free slots the next job of their queue.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import Array, NDArray
from softmax_jax.solvers import offsets, separation, warm_up
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import MARGIN, OUT_OF_PRECISION, Job, Stop, Verdict, verdict
from softmax_jax.solvers.methods.method import IterativeMethod, Method, Mixture, Setup, of_slot
from softmax_jax.solvers.plan import plan_of
from softmax_jax.solvers.problem import NEVER, Problem, with_strengths
from softmax_jax.solvers.report import Report, recorded
from softmax_jax.solvers.solution import Solution, negligible, solution_of
from softmax_jax.solvers.units import to_solver
from softmax_jax.status import Status, unbounded

# An estimate of the gap by an approximate Hessian, the only one without a penalty, is worth less.
UNPENALISED_TARGET = 0.01


class Group(NamedTuple):
    """Jobs that are solved together, and how."""

    queues: Sequence[collections.deque[Job]]
    """A queue for each slot; slots may share one."""
    dtype: DTypeLike
    initial: np.ndarray | None
    """``[q, 1 + d]`` parameters to begin with, in the solvers' units; None means those of a sample.
    """


def solve(
    inputs: Inputs,
    jobs: Sequence[Job],
    method: IterativeMethod,
    stop: Stop,
    report: Report,
    *,
    slots: int = 1,
) -> dict[tuple[int, ...], tuple[Solution, Job]]:
    """Solves jobs, strong penalties first: each goes on from where a stronger one stands.

    Args:
      inputs: the rows.
      jobs: problems on them.
      method: how to solve them.
      stop: when to stop.
      report: whom to tell.
      slots: strengths of one weighting that share a pass, at most.

    Returns:
      Solutions by place, and the jobs as they ended.
    """
    method = method.sized(inputs)
    small = is_small(inputs, method)
    queues = _queues(jobs, method.float64_target if small else np.inf)
    inputs, queues = offsets.with_start(inputs, queues, method, stop, report, solve)
    dtype = types(inputs, method)[0]
    start = None if inputs.initial is None else to_solver(inputs.units, inputs.initial)
    groups = collections.deque(
        Group(together, dtype, start) for together in _in_slots(queues, method.width, slots)
    )
    solved: dict[tuple[int, ...], tuple[Solution, Job]] = {}
    while groups:
        found, unfinished = run(inputs, groups.popleft(), method, stop, report)
        solved |= found
        # What float32 cannot finish is queued again, in float64.
        groups.extendleft(
            Group([collections.deque([job])], np.float64, theta)
            for job, theta in reversed(unfinished)
        )
    return solved


def is_small(inputs: Inputs, method: Method) -> bool:
    """Returns whether a pass takes so little that all work is in float64."""
    return inputs.n * inputs.d * inputs.q <= method.float64_below


def types(inputs: Inputs, method: Method) -> tuple[DTypeLike, ...]:
    """Returns the types to work in, one after the other where the first does not suffice."""
    if inputs.needs_float64 or method.always_float64 or is_small(inputs, method):
        return (np.float64,)
    return np.float32, np.float64


def _queues(jobs: Sequence[Job], most: float) -> dict[int, collections.deque[Job]]:
    """Returns a queue for each weighting, with targets of at most ``most``."""
    queues: dict[int, collections.deque[Job]] = {}
    for order, job in enumerate(sorted(jobs, key=lambda job: (-job.l1, -job.l2))):
        target = job.target * UNPENALISED_TARGET if job.is_unpenalised else job.target
        job = dataclasses.replace(job, order=order, target=min(target, most))
        queues.setdefault(job.weighting, collections.deque()).append(job)
    return queues


def _in_slots(
    queues: dict[int, collections.deque[Job]], width: int, slots: int
) -> list[list[collections.deque[Job]]]:
    """Groups the queues of weightings, up to ``width`` of them; a lone one fills several slots."""
    weightings = sorted(queues)
    # Of one width, as far as it goes, as each width is compiled for.
    groups = -(-len(weightings) // width)
    width_of_all = -(-len(weightings) // groups)
    groups_of_queues = []
    for first in range(0, len(weightings), width_of_all):
        own = [queues[m] for m in weightings[first : first + width_of_all]]
        if len(own) == 1:  # the slots draw from one queue
            own = own * min(slots if width > 1 else 1, len(own[0]))
        groups_of_queues.append(own)
    return groups_of_queues


@dataclasses.dataclass
class Slots:
    """Jobs side by side in one compiled program, and what the host knows of them."""

    inputs: Inputs
    method: IterativeMethod
    stop: Stop
    report: Report
    queues: Sequence[collections.deque[Job]]
    dtype: DTypeLike
    jobs: list[Job]
    """Job of each slot, the last one where it is idle."""
    busy: np.ndarray
    """``[k]``: whether the slot has a job that is not solved."""
    weightings: list[int]
    """Weightings of the problem, by number."""
    setup: Setup
    problem: Problem
    """Rows in working precision, with the strengths of the jobs."""
    state: Any
    """Pytree of the method's own; see `State`. None where nothing is solved."""
    patience: int
    solved: dict[tuple[int, ...], tuple[Solution, Job]] = dataclasses.field(default_factory=dict)
    unfinished: list[tuple[Job, np.ndarray]] = dataclasses.field(default_factory=list)
    """Jobs out of float32's precision, and parameters ``[q, 1 + d]`` to go on from."""


def run(
    inputs: Inputs, group: Group, method: IterativeMethod, stop: Stop, report: Report
) -> tuple[dict[tuple[int, ...], tuple[Solution, Job]], list[tuple[Job, np.ndarray]]]:
    """Works on a group until its queues are empty; see `Slots` for what it returns."""
    slots = _begun(inputs, group, method, stop, report)
    if slots.state is None:
        return slots.solved, []
    while slots.busy.any():
        done = _advance(slots)
        handed_over: set[int] = set()
        for i in map(int, np.flatnonzero(slots.busy)):
            if not _settled(slots, i, bool(done[i])):
                done[i] = False
                continue
            done[i] = not slots.queues[i]
            if slots.queues[i]:
                _take_next(slots, i, handed_over)
                handed_over.add(i)
            else:
                slots.busy[i] = False
        # Idle slots count as done, so that nothing waits for them.
        slots.state = slots.state._replace(done=np.array(done))
    return slots.solved, slots.unfinished


def _begun(
    inputs: Inputs, group: Group, method: IterativeMethod, stop: Stop, report: Report
) -> Slots:
    """Fills the slots and brings them to where their problems start."""
    everything = list(itertools.chain(*{id(queue): queue for queue in group.queues}.values()))
    jobs = [queue.popleft() for queue in group.queues]
    weightings = sorted({job.weighting for job in jobs})
    d, q = inputs.problem.d, inputs.q
    penalised = any(job.l2 > 0 for job in everything)
    setup = method.prepare(inputs, weightings, group.dtype, penalised=penalised)
    slots = Slots(
        inputs=inputs,
        method=method,
        stop=stop,
        report=report,
        queues=group.queues,
        dtype=group.dtype,
        jobs=jobs,
        busy=np.ones(len(jobs), bool),
        weightings=weightings,
        setup=setup,
        problem=with_strengths(setup.working, jobs, group.dtype),
        state=None,
        patience=method.patience_with(d, q, small=is_small(inputs, method)),
    )

    def everywhere(start: np.ndarray | None) -> NDArray:
        theta = np.zeros((len(jobs), q, 1 + d)) + (0 if start is None else start)
        absent = inputs.absent[[job.weighting for job in jobs]]
        return _with_absent(theta, absent)

    start = everywhere(setup.origin if group.initial is None else group.initial)
    if jobs[0].steps_left(stop, 1) < 1:
        for job in everything:
            _certify_start(slots, start[:1], job)
        return slots
    origin = everywhere(setup.origin).astype(group.dtype)
    begin: Array | NDArray = origin if group.initial is None else start.astype(group.dtype)
    if group.initial is None:
        begin, slots.jobs = warm_up.on_samples(
            method, slots.problem, setup.aids, begin, jobs, stop, report
        )
    slots.state = method.init(slots.problem, setup.aids, begin)
    slots.jobs = [job.after(method.passes_to_begin) for job in slots.jobs]
    may_begin_anew = slots.jobs[0].steps_left(stop, 1) >= 1
    if begin is not origin and may_begin_anew and _is_above_zero(slots):
        # A sample of fewer rows than features is explained by chance, and from where predictions
        # are certain and wrong the loss is all but linear.
        slots.state = method.init(slots.problem, setup.aids, origin)
        slots.jobs = [job.after(method.passes_to_begin) for job in slots.jobs]
    return slots


def _is_above_zero(slots: Slots) -> bool:
    """Returns whether some job begins above its objective at zero, the log of the classes."""
    if slots.problem.offset is not None:
        return False
    absent = slots.inputs.absent[[job.weighting for job in slots.jobs]]
    value = np.asarray(slots.state.value)
    return bool((np.isfinite(value) & (value > np.log((~absent).sum(axis=1)))).any())


def _advance(slots: Slots) -> np.ndarray:
    """Takes some steps, records where the jobs stand, and returns which of them are done."""
    method, d, q = slots.method, slots.setup.exact.d, slots.inputs.q
    working = [job for job, busy in zip(slots.jobs, slots.busy, strict=True) if busy]
    most = method.steps_between_looks(d, q)
    slots.state, steps = method.advance(
        slots.problem,
        slots.setup.aids,
        slots.state,
        target=np.where(slots.busy, [job.target for job in slots.jobs], np.inf).astype(slots.dtype),
        limit=np.asarray(min(job.steps_left(slots.stop, most) for job in working)),
        stop_at_first=np.bool_(any(slots.queues)),
    )
    slots.jobs, done = recorded(slots.jobs, slots.busy, slots.state, steps, 1.0, slots.report)
    return done


def _settled(slots: Slots, i: int, done: bool) -> bool:
    """Certifies the job of a slot if it may be finished; returns whether the slot is free."""
    job, method = slots.jobs[i], slots.method
    at = np.asarray(slots.weightings.index(job.weighting))
    looks_done = done or job.idle_steps >= slots.patience or job.steps_left(slots.stop, 1) < 1
    separated = (
        job.is_unpenalised
        and slots.inputs.one_hot
        and (method.watches_separation or looks_done)
        and float(_margin(slots.setup.exact, slots.state.theta, np.asarray(i), at)) > 0
    )
    if not (looks_done or separated):
        return False
    targets = np.array([job.target for job in slots.jobs])
    dual = None if job.is_unpenalised else method.dual(slots.state, targets)
    certificate, taken = _certified(
        slots, job, slots.state.theta, dual, i, _passes_left(slots, job)
    )
    job = slots.jobs[i] = job.after(taken)
    ended = _verdict(slots, job, certificate, done, separated)
    if ended is None:
        # The estimate was a little too good, as the bias was not yet the best.
        excess = float(certificate.gap[0] / certificate.value[0]) / slots.stop.tol
        by = min(max(method.tightening, excess / MARGIN), method.most_tightening)
        slots.jobs[i] = job.tightened(by)
        return False
    if ended == OUT_OF_PRECISION and not job.restarted:
        # A stale preconditioner may be to blame, or pairs that rounding spoilt.
        slots.jobs[i] = job.restarted_once()
        slots.state = method.restart(slots.state, np.asarray(i))
        return False
    if ended == OUT_OF_PRECISION and slots.dtype == np.float32:
        reached = np.asarray(certificate.theta[0])
        reached = reached if np.isfinite(reached).all() else np.zeros_like(reached)
        slots.unfinished.append((job.begun_anew(), reached))
        return True
    if ended == OUT_OF_PRECISION and job.is_unpenalised:
        ended = Verdict(Status.NOT_CERTIFIED, unbounded(float(certificate.slope[0])))
    if ended.status == Status.NOT_CERTIFIED:
        absent = slots.inputs.absent[[job.weighting for job in slots.jobs]]
        zero = _with_absent(np.zeros_like(slots.state.theta), absent)
        nothing, _ = _certified(slots, job, zero, None, i, 1)
        if not certificate.value[0] <= nothing.value[0]:
            certificate = nothing
    _finish(slots, job, certificate, ended)
    return True


def _take_next(slots: Slots, i: int, handed_over: set[int]) -> None:
    """Gives a slot the next job of its queue, which goes on from where a neighbour stands."""
    # From the nearest in strength, which is the one that was begun last.
    near = [
        j
        for j in range(len(slots.jobs))
        if slots.queues[j] is slots.queues[i] and j not in handed_over
    ]
    source = max(near, key=lambda j: slots.jobs[j].order)
    slots.jobs[i] = slots.queues[i].popleft()
    slots.problem = with_strengths(slots.problem, slots.jobs, slots.dtype)
    slots.state = slots.method.hand_over(
        slots.problem, slots.state, np.asarray(i), np.asarray(source)
    )


def _certify_start(slots: Slots, theta: np.ndarray, job: Job) -> None:
    """Certifies where a job would start: its passes suffice for no more."""
    theta = _with_absent(theta, slots.inputs.absent[[job.weighting]])
    certificate, taken = _certified(slots, job, theta, None, 0, _passes_left(slots, job))
    value, gap = float(certificate.value[0]), float(certificate.gap[0])
    job = job.after(taken).recorded(slots.report.seconds(), value, gap, 0)
    ended = _verdict(slots, job, certificate, False, False)
    assert ended is not None
    _finish(slots, job, certificate, ended)


def _finish(slots: Slots, job: Job, certificate: Certificate, ended: Verdict) -> None:
    inputs, method = slots.inputs, slots.method
    solution = solution_of(inputs, slots.setup.units, certificate, job, ended, tol=slots.stop.tol)
    small = is_small(inputs, method)
    solution = solution._replace(plan=plan_of(inputs, method, slots.dtype, is_small=small))
    slots.solved[job.place] = solution, job
    slots.report.solved += 1


def _passes_left(slots: Slots, job: Job) -> float:
    return slots.stop.max_passes - job.passes


def _certified(
    slots: Slots, job: Job, theta: Array | NDArray, dual: Mixture | None, i: int, most: float
) -> tuple[Certificate, int]:
    """Certifies a job at ``theta[i]``, and fetches the certificate."""
    certificate, taken = slots.method.certify(
        slots.setup,
        with_strengths(slots.setup.exact, [job], np.float64),
        theta,
        dual,
        np.asarray(i),
        np.asarray(slots.weightings.index(job.weighting)),
        most=most,
    )
    return jax.device_get(certificate), taken


def _verdict(
    slots: Slots, job: Job, certificate: Certificate, done: bool, separated: bool
) -> Verdict | None:
    return verdict(
        job,
        slots.stop,
        value=float(certificate.value[0]),
        gap=float(certificate.gap[0]),
        slope=float(certificate.slope[0]),
        floor=negligible(slots.inputs, job.weighting),
        patience=slots.patience,
        done=done,
        separated=separated,
    )


@compiled
def _margin(exact: Problem, theta: jax.Array, slot: jax.Array, weighting: jax.Array) -> jax.Array:
    alone = exact._replace(weights=of_slot(exact.weights, weighting, 1))
    return separation.margin(alone, of_slot(theta, slot, 0))[0]


def _with_absent(theta: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Returns ``[k, q, 1 + d]`` with no weights, and the least bias, for classes of no weight."""
    theta = np.where(absent[..., None], 0, theta)
    theta[absent, 0] = NEVER
    return theta
