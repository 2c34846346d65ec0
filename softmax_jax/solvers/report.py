"""Reports of where jobs stand: fetched from the device, recorded, and told to a callback."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from softmax_jax.solvers.jobs import Job
from softmax_jax.solvers.methods.method import State
from softmax_jax.solvers.solution import Progress


@dataclasses.dataclass
class Report:
    """Whom to tell about a call, and how much of it is solved."""

    began: float
    """`time.perf_counter` at its start."""
    problems: int
    callback: Callable[[Progress], None] | None = None
    solved: int = 0

    def seconds(self) -> float:
        """Returns the seconds since the call began."""
        return time.perf_counter() - self.began


def recorded(
    jobs: Sequence[Job],
    busy: np.ndarray,
    state: State,
    steps: jax.Array,
    share: float,
    report: Report,
) -> tuple[list[Job], np.ndarray]:
    """Records where the jobs of busy slots stand after ``steps`` on a share of the rows.

    Returns:
      The jobs, and ``[k]`` which of them the method says are done.
    """
    values, gaps, done, taken = jax.device_get((state.value, state.gap, state.done, steps))
    seconds = report.seconds()
    jobs = [
        job.recorded(seconds, float(values[i]), float(gaps[i]), int(taken[i]), share)
        if busy[i]
        else job
        for i, job in enumerate(jobs)
    ]
    if report.callback is not None:
        working = [job for i, job in enumerate(jobs) if busy[i]]
        ratios = [job.gap / job.value if job.value > 0 else math.inf for job in working]
        last = working[int(np.argmax(ratios))]
        report.callback(
            Progress(seconds, report.solved, report.problems, last.passes, last.value, max(ratios))
        )
    return jobs, np.array(done)
