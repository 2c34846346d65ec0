"""Paths of strengths that a method walks in one program, certified together at its end.

On the host a small problem costs more than its solution. So it hands over a path at a time, or of
large problems a few strengths, and certifies what comes back as one wide problem.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import AnyArray, Float, Integer, NDArray
from softmax_jax.data.blocks import NUMBERS
from softmax_jax.solvers import cost, schedule, working_set
from softmax_jax.solvers import strengths as of_path
from softmax_jax.solvers.certificate import Certificate, certified_together
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job, Stop, verdict
from softmax_jax.solvers.methods.components import step_of
from softmax_jax.solvers.methods.method import PathMethod, Setup, Walk
from softmax_jax.solvers.plan import plan_of
from softmax_jax.solvers.problem import NEVER, Problem
from softmax_jax.solvers.report import Report
from softmax_jax.solvers.solution import Progress, Solution, negligible, solution_of
from softmax_jax.solvers.units import to_solver
from softmax_jax.status import Status

# Numbers of the logits that are certified at once: float64 of 64 MiB.
_LOGITS = 2 * NUMBERS

_Solved: TypeAlias = dict[tuple[int, ...], tuple[Solution, Job]]
"""Solutions by place, and the jobs as they ended."""


def solve(
    inputs: Inputs,
    jobs: Sequence[Job],
    method: PathMethod,
    stop: Stop,
    report: Report,
) -> _Solved:
    """Solves jobs as `schedule.solve` does, in float32 first where that may do."""
    solved: _Solved = {}
    starts: dict[int, np.ndarray] = {}
    left = list(jobs)
    for dtype in schedule.types(inputs, method):
        for weightings, group in _groups(left, method.width):
            penalised = any(jobs[0].l2 > 0 for jobs in group)
            setup = method.prepare(inputs, weightings, dtype, penalised=penalised)
            way = _Way(inputs, weightings, setup, method, dtype, stop, report)
            found, last = _walked(way, group, _start(inputs, weightings, starts))
            solved |= found
            starts |= dict(zip(weightings, last, strict=True))
        # What float32 cannot finish is walked again, in float64.
        left = [job for job in left if not _is_certified(solved, job)]
    return solved


def _is_certified(solved: _Solved, job: Job) -> bool:
    return job.place in solved and solved[job.place][0].status == Status.CERTIFIED


def _groups(jobs: Sequence[Job], width: int) -> Iterator[tuple[list[int], list[tuple[Job, ...]]]]:
    """Yields weightings that share their strengths, and their jobs, strong penalties first."""

    def strength(job):
        return -job.l1, -job.l2

    paths: dict[tuple[tuple[float, float], ...], list[list[Job]]] = {}
    ordered = sorted(jobs, key=lambda job: (job.weighting, *strength(job)))
    for _, own in itertools.groupby(ordered, key=lambda job: job.weighting):
        path = list(own)
        paths.setdefault(tuple(map(strength, path)), []).append(path)
    for alike in paths.values():
        for first in range(0, len(alike), width):
            together = alike[first : first + width]
            yield [path[0].weighting for path in together], list(zip(*together, strict=True))


class _Start(NamedTuple):
    """The beginning of a path."""

    theta: Float[NDArray, "k q columns"]
    largest: float
    """Least l1 for which these are the solutions, if they are without weights; else 0."""


class _Way(NamedTuple):
    """The problems of a path, and all that they are solved with."""

    inputs: Inputs
    weightings: list[int]
    """Weightings that take each step together, by number."""
    setup: Setup
    method: PathMethod
    dtype: DTypeLike
    stop: Stop
    report: Report


def _walked(
    way: _Way, path: list[tuple[Job, ...]], start: _Start
) -> tuple[_Solved, Float[NDArray, "k q columns"]]:
    """Walks a path, whose strengths each have a job of each weighting.

    Returns:
      Solutions, and parameters of the last strengths that were reached.
    """
    theta, taken = _approached(way, start, path[0][0])
    path = [tuple(job.after(n) for job, n in zip(path[0], taken, strict=True)), *path[1:]]
    length = _rounded(min(len(path), _strengths_between_looks(way.inputs)))
    solved: _Solved = {}
    previous, least, pace, done = theta, 0, cost.STRENGTHS_AT_ONCE, 0
    while done < len(path):
        features = working_set.chosen(way.setup, path[done][0], theta.astype(way.dtype), least)
        own = path[done : done + (length if features is None else pace)]
        most = max(0, way.stop.max_passes - own[0][0].passes - 2)
        walk = _walk(way, features, theta, previous, [jobs[0] for jobs in own], most)
        found = _certified(way, own, walk)
        reached = len(own)
        if features is not None:
            # What was left out may be wanted from some strength on.
            are_certified = (all(_is_certified(found, job) for job in jobs) for jobs in own)
            reached = sum(itertools.takewhile(bool, are_certified))
            least = (1 if reached else 2) * len(features)
            faster = 2 * reached if reached == len(own) else reached
            pace = max(1, min(cost.STRENGTHS_AT_ONCE, faster))
        done += reached
        if reached:
            kept = {job.place for jobs in own[:reached] for job in jobs} & found.keys()
            solved |= {place: found[place] for place in kept}
            _tell(way, {place: found[place] for place in kept})
            theta, previous = _last(walk, theta, reached), _last(walk, theta, reached - 1)
            if not np.isfinite(walk.gap[reached - 1]).all():
                break  # float32 does not suffice
    return solved, theta


def _walk(
    way: _Way,
    features: Integer[NDArray, " c"] | None,
    theta: Float[NDArray, "k q columns"],
    previous: Float[NDArray, "k q columns"],
    strengths: Sequence[Job],
    most: float,
) -> Walk:
    """Walks a part of a path on some of the features, or on all where these are None."""
    # Of few lengths, as each is compiled for; what is repeated is solved.
    number = len(strengths)
    strengths = [*strengths, *[strengths[-1]] * (_rounded(number) - number)]
    problem, aids = way.setup.working, way.setup.aids
    columns: slice | NDArray = slice(None)
    if features is not None:
        problem = working_set.restricted(problem, features)
        aids = _aids(way.method, problem, theta.shape[1])
        columns = np.concatenate([[0], 1 + features])
    walk = way.method.walk(
        problem,
        aids,
        theta[..., columns].astype(way.dtype),
        previous[..., columns].astype(way.dtype),
        l2=np.array([job.l2 for job in strengths], way.dtype),
        l1=np.array([job.l1 for job in strengths], way.dtype),
        target=np.array([job.target for job in strengths], way.dtype),
        limit=np.asarray(most, np.int32),
    )
    walk = Walk(*(array[:number] for array in jax.device_get(walk)))
    if features is None:
        return walk
    found: AnyArray = np.zeros((*walk.theta.shape[:-1], theta.shape[-1]), way.dtype)
    found[..., columns] = walk.theta
    return walk._replace(theta=found)


@partial(compiled, static_argnames=("method", "q"))
def _aids(method: PathMethod, problem: Problem, q: int) -> Any:
    return method.aids(problem, jnp.asarray(problem.factor), q)


def _last(walk: Walk, theta: np.ndarray, most: int) -> np.ndarray:
    """Returns the parameters of the last of ``most`` strengths reached, else those before."""
    reached = np.isfinite(walk.gap[:most]).sum(axis=0)
    return np.stack([walk.theta[n - 1, i] if n else theta[i] for i, n in enumerate(reached)])


def _rounded(length: int) -> int:
    """Returns the length that programs are compiled for."""
    return -(-length // cost.STRENGTHS_AT_ONCE) * cost.STRENGTHS_AT_ONCE


def _strengths_between_looks(inputs: Inputs) -> int:
    """Returns the strengths that take about a second, after which the host looks at them."""
    number = cost.SECOND / (cost.STEPS * step_of(inputs.problem, inputs.q))
    return max(cost.STRENGTHS_AT_ONCE, int(number))


def _start(inputs: Inputs, weightings: list[int], reached: dict[int, np.ndarray]) -> _Start:
    """Returns where to begin: what weightings have ``reached``, what is given, or no weights."""
    absent = inputs.absent[weightings]
    theta = np.zeros((len(weightings), inputs.q, 1 + inputs.problem.d))
    largest = 0.0
    if inputs.initial is not None:
        theta[:] = to_solver(inputs.units, inputs.initial)
    else:
        for i, m in enumerate(weightings):
            _, theta[i, :, 0], g = of_path.without_weights(inputs, m)
            largest = max(largest, of_path.largest_l1(inputs, g))
    theta = np.where(absent[..., None], 0, theta)
    theta[absent, 0] = NEVER
    if any(m in reached for m in weightings):
        largest = 0.0
        theta = np.stack([reached.get(m, theta[i]) for i, m in enumerate(weightings)])
    return _Start(theta, largest)


def _approached(
    way: _Way, start: _Start, first: Job
) -> tuple[Float[NDArray, "k q columns"], Float[NDArray, " k"]]:
    """Goes from no weights to near the first strength, over stronger ones; roughly.

    Returns:
      Parameters, and the passes that each problem took.
    """
    theta = previous = start.theta
    ratio, target = way.method.approach_ratio, max(first.target, way.method.approach_target)
    taken = np.zeros(len(theta))
    has_strongest = start.largest > 0 and first.l1 > 0
    number = math.floor(math.log(start.largest / first.l1, 1 / ratio)) if has_strongest else 0
    if way.stop.max_passes < cost.STEPS * (1 + number):
        return theta, taken
    for i in range(1, number + 1):
        job = dataclasses.replace(first, l1=start.largest * ratio**i, target=target)
        features = working_set.chosen(way.setup, job, theta.astype(way.dtype), 0)
        walk = _walk(way, features, theta, previous, [job], cost.STEPS)
        taken = taken + walk.passes[0]
        if np.isfinite(walk.gap).all():
            previous, theta = theta, np.asarray(walk.theta[0])
    return theta, taken


def _certified(way: _Way, path: list[tuple[Job, ...]], walk: Walk) -> _Solved:
    """Certifies a part of a path, some strengths at once."""
    inputs, method = way.inputs, way.method
    most = max(1, min(len(path), _LOGITS // (inputs.n * inputs.q)))
    small = schedule.is_small(inputs, method)
    plan = plan_of(inputs, method, way.dtype, is_small=small)
    solved: _Solved = {}
    for i, m in enumerate(way.weightings):
        for first in range(0, len(path), most):
            # Of one number, as each is compiled for.
            at = np.minimum(np.arange(first, first + most), len(path) - 1)
            jobs = [path[j][i] for j in at]
            certificates = certified_together(inputs.problem, m, jobs, walk.theta[at, i])
            for j, certificate in dict(zip(at, certificates, strict=True)).items():
                if np.isfinite(walk.gap[j, i]):
                    job = path[j][i].after(float(walk.passes[j, i]))
                    value, gap = float(walk.value[j, i]), float(walk.gap[j, i])
                    job = job.recorded(way.report.seconds(), value, gap, 0).after(1)
                    solution = _settled(way, job, certificate)._replace(plan=plan)
                    solved[job.place] = solution, job
    return solved


def _settled(way: _Way, job: Job, certificate: Certificate) -> Solution:
    ended = verdict(
        job,
        way.stop,
        value=float(certificate.value[0]),
        gap=float(certificate.gap[0]),
        slope=float(certificate.slope[0]),
        floor=negligible(way.inputs, job.weighting),
        patience=0,
        done=True,
        separated=False,
    )
    assert ended is not None
    return solution_of(way.inputs, way.setup.units, certificate, job, ended, tol=way.stop.tol)


def _tell(way: _Way, found: _Solved) -> None:
    """Counts what is solved, and tells about the worst of it."""
    report = way.report
    # What float32 does not solve is walked again.
    settled = [j for _, j in found.values() if way.dtype == np.float64 or _is_certified(found, j)]
    report.solved += len(settled)
    if report.callback is not None and found:
        worst, job = max(found.values(), key=lambda pair: pair[0].relative_gap)
        value, gap = float(worst.objective), float(worst.relative_gap)
        seconds, passes = report.seconds(), job.passes
        report.callback(Progress(seconds, report.solved, report.problems, passes, value, gap))
