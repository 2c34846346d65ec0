"""Large offsets, approached by way of smaller ones."""

import collections
import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job, Stop
from softmax_jax.solvers.methods.method import IterativeMethod, Method
from softmax_jax.solvers.report import Report

# With fewer passes there are none to spend on it; it may take nine tenths of them.
FEWEST_PASSES = 40
SHARE = 0.9


def are_large(inputs: Inputs, method: Method) -> bool:
    """Returns whether offsets differ so much within a row that smaller ones come first."""
    offset = inputs.problem.offset
    return offset is not None and float(jnp.max(jnp.ptp(offset, axis=1))) > method.large_offset


def with_start(
    inputs: Inputs,
    queues: dict[int, collections.deque[Job]],
    method: IterativeMethod,
    stop: Stop,
    report: Report,
    solve: Callable,
) -> tuple[Inputs, dict[int, collections.deque[Job]]]:
    """Adds a start from the solution for a third of the offsets, where these are large.

    Their softmax is all but a step then, from which no method learns where to go. For ``W = 3 V``
    the objective is three times that of V with a third of the offsets and three times l2, but that
    its softmax is of a third of the logits: of a higher temperature, and as easy as need be, as
    that problem starts from a third of its offsets in turn.

    Args:
      inputs: the rows.
      queues: jobs by weighting.
      method: how to solve them.
      stop: when to stop.
      report: whom to tell.
      solve: `softmax_jax.solvers.schedule.solve`.
    """
    offset = inputs.problem.offset
    if inputs.initial is not None or stop.max_passes < FEWEST_PASSES:
        return inputs, queues
    if offset is None or not are_large(inputs, method):
        return inputs, queues
    first = min((queue[0] for queue in queues.values()), key=lambda job: job.order)
    easier = Job((), first.weighting, 3 * first.l2, first.l1, method.offset_target)
    third = inputs._replace(problem=inputs.problem._replace(offset=offset / 3))
    sooner = Stop(method.offset_target, SHARE * stop.max_passes)
    solution, ended = solve(third, [easier], method, sooner, dataclasses.replace(report))[()]
    for queue in queues.values():
        queue[0] = queue[0].after(ended.passes)
    w, b = (np.asarray(a) for a in solution.params)
    theta = np.concatenate([np.where(np.isfinite(b), b, 0)[:, None], w.T], axis=1)
    return inputs._replace(initial=3 * theta), queues
