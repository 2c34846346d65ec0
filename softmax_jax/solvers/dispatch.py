"""The choice of the method for each problem: the one asked for, or what that leaves it to."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.model import Params
from softmax_jax.solvers import cost, row_space, schedule, walks
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import MARGIN, Job, Stop
from softmax_jax.solvers.methods.method import IterativeMethod, Method, PathMethod
from softmax_jax.solvers.report import Report
from softmax_jax.solvers.solution import Solution
from softmax_jax.status import Status

Solved: TypeAlias = dict[tuple[int, ...], tuple[Solution, Job]]
"""Solutions by place, and the jobs as they ended."""


def solved(
    inputs: Inputs,
    jobs: Sequence[Job],
    method: Method,
    stop: Stop,
    report: Report,
    slots: int,
) -> Solved:
    """Solves jobs by a method, or what it leaves them to."""
    if not jobs:
        return {}
    return solved_by(method.instead(inputs, jobs), inputs, jobs, stop, report, slots)


def solved_by(
    method: Method,
    inputs: Inputs,
    jobs: Sequence[Job],
    stop: Stop,
    report: Report,
    slots: int = 1,
) -> Solved:
    """Solves jobs by a method, and by its successor what it has not solved after some passes."""
    successor = method.successor(inputs)
    patient = stop
    if successor is not None:
        most = max(job.passes for job in jobs) + method.successor_after
        patient = stop._replace(max_passes=min(stop.max_passes, most))
    in_row_space = method.in_row_space
    if in_row_space is None:
        in_row_space = row_space.pays(inputs, jobs)
    # Decided; programs are the same for both.
    method = dataclasses.replace(method, in_row_space=False)
    if isinstance(method, PathMethod):
        solved = walks.solve(inputs, jobs, method, patient, report)
    elif not isinstance(method, IterativeMethod):
        raise TypeError(f"{type(method).__name__} is neither an IterativeMethod nor a PathMethod")
    elif in_row_space and row_space.applies(inputs, jobs, patient):
        solved = row_space.solve(inputs, jobs, method, patient, report, slots=slots)
    else:
        solved = schedule.solve(inputs, jobs, method, patient, report, slots=slots)
    for job in jobs if successor is not None else ():
        first, ended = solved[job.place]
        if first.status == Status.CERTIFIED or stop.max_passes < ended.passes + 2:
            continue
        report.solved -= 1
        # From where the other began: it may be stuck where this one gets nowhere either.
        again = ended.begun_anew().with_target(MARGIN * stop.tol)
        assert successor is not None
        ((second, last),) = solved_by(successor, inputs, [again], stop, report).values()
        if second.gap > first.gap:
            second = first._replace(
                passes=second.passes, history=second.history, reason=second.reason
            )
        solved[job.place] = second, last
    return solved


def while_it_gains(
    solve: Callable[[Inputs, Sequence[Job]], Solved],
    inputs: Inputs,
    jobs: Sequence[Job],
    number: int,
    least_gain: float,
    at_once: int = cost.STRENGTHS_AT_ONCE,
) -> tuple[Solved, int]:
    """Solves a path some strengths at a time; see ``least_gain`` of `fit_path`.

    Returns:
      Solutions, and the number of strengths that count.
    """
    found: Solved = {}
    explained = np.zeros(0)
    for first in range(0, number, at_once):
        part = [job for job in jobs if first <= job.place[-1] < first + at_once]
        found |= solve(inputs, part)
        last = max(job.place[-1] for job in part)
        own = np.array([found[job.place][0].deviance_explained for job in part])
        at = np.array([job.place[-1] for job in part])
        explained = np.append(explained, [own[at == i].max() for i in range(first, last + 1)])
        is_flat = np.diff(explained) < least_gain * explained[1:]
        if is_flat.any():
            return found, int(np.argmax(is_flat)) + 2
        if all(job.l1 > 0 for job in part):
            end = next(found[job.place][0] for job in part if job.place[-1] == last)
            inputs = inputs._replace(initial=as_initial(end.params))
    return found, number


def as_initial(params: Params) -> Float[NDArray, "q columns"]:
    """Returns parameters as `Inputs` have them; zero for biases of classes of no weight."""
    b = np.where(np.isneginf(params.b), 0, params.b)
    return np.concatenate([b[:, None], params.w.T], axis=1)
