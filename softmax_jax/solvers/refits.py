"""Fits of some of the weights: those that a path found, or those that are not penalised."""

import dataclasses
import time

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.solvers.dispatch import Solved, as_initial, solved
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import MARGIN, MAX_PASSES, Job, Stop
from softmax_jax.solvers.methods import Method
from softmax_jax.solvers.problem import NEVER
from softmax_jax.solvers.report import Report
from softmax_jax.solvers.units import to_solver


def relaxed(inputs: Inputs, found: Solved, method: Method, stop: Stop) -> Solved:
    """Returns solutions with l1 = 0, of the weights alone that are not zero in those found."""
    given, shape = inputs.problem.penalty, (inputs.q, inputs.problem.d)
    relaxed = {}
    for place, (solution, job) in found.items():
        kept = solution.params.w.T != 0
        lower = np.where(kept, -np.inf if given.lower is None else given.lower, 0)
        upper = np.where(kept, np.inf if given.upper is None else given.upper, 0)
        # Without a squared penalty, the factors say that there is none, and the strength nothing.
        relative = (
            given.relative if job.l2 > 0 else np.where(np.broadcast_to(kept, shape), 0.0, 1.0)
        )
        penalty = dataclasses.replace(
            given, grouped=False, relative=relative, lower=lower, upper=upper
        )
        inputs = inputs._replace(
            problem=inputs.problem._replace(penalty=penalty),
            initial=as_initial(solution.params),
        )
        again = Job(place, job.weighting, job.l2 or 1.0, 0.0, job.target)
        report = Report(time.perf_counter(), problems=1)
        ((best, last),) = solved(inputs, [again], method, stop, report, 1).values()
        relaxed[place] = best._replace(passes=solution.passes + best.passes), last
    return relaxed


def unpenalised(
    inputs: Inputs, method: Method, weighting: int, l1: float
) -> Float[NDArray, "q columns"]:
    """Returns the solution with no weights but those that are not penalised."""
    alone = Stop(tol=1e-12, max_passes=MAX_PASSES)
    inputs = inputs._replace(initial=None)
    relative = np.asarray(inputs.problem.penalty.relative)
    relative = np.broadcast_to(relative, (inputs.q, inputs.problem.d))
    for _ in range(5):
        # Without those, the gradient in the others may be larger than it is for W = 0.
        l1 = 8 * l1
        job = Job((), weighting, 0.0, l1, MARGIN * alone.tol)
        report = Report(time.perf_counter(), problems=1)
        ((solution, _),) = solved(inputs, [job], method, alone, report, 1).values()
        params = solution.params
        if not np.any(params.w.T[relative > 0]):
            break
    theta = to_solver(inputs.units, as_initial(params))
    theta[inputs.absent[weighting], 0] = NEVER
    return theta
