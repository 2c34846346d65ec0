"""Rough solutions on samples of the rows, for the work on all of them to begin with."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from softmax_jax._annotations import Array, NDArray
from softmax_jax.solvers.jobs import Job, Stop
from softmax_jax.solvers.methods.method import IterativeMethod
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.report import Report, recorded


def on_samples(
    method: IterativeMethod,
    problem: Problem,
    aids: Any,
    theta: Array | NDArray,
    jobs: Sequence[Job],
    stop: Stop,
    report: Report,
) -> tuple[Array | NDArray, list[Job]]:
    """Solves the first blocks, roughly: a 16th of the rows, then a quarter (`Method.warm_up`).

    A sample is penalised as strongly as all rows are, by strengths times the ratio of the rows.

    Returns:
      ``[k, q, 1 + d]`` parameters, and the jobs with the passes that it took.
    """
    blocks, jobs = int(problem.active), list(jobs)
    for active in sorted({max(1, blocks // divisor) for divisor in method.warm_up}):
        if active > blocks // 2:
            continue
        ratio = blocks / active
        # Less the first step, and later that on all rows and the certificate.
        passes_left = min(stop.max_passes - jobs[0].passes - 2, method.warm_up_passes)
        steps_left = math.floor(passes_left * ratio) - 1
        if steps_left < 1:
            continue
        penalty = dataclasses.replace(
            problem.penalty,
            l2=(np.asarray(problem.penalty.l2) * ratio).astype(problem.dtype),
            l1=(np.asarray(problem.penalty.l1) * ratio).astype(problem.dtype),
        )
        part = problem._replace(active=np.asarray(active, np.int32), penalty=penalty)
        state, steps = method.advance(
            part,
            aids,
            method.init(part, aids, theta),
            target=np.full(len(jobs), method.warm_up_target, problem.dtype),
            limit=np.asarray(min(method.warm_up_steps, steps_left)),
            stop_at_first=np.bool_(False),
        )
        jobs = [job.after(method.passes_to_begin / ratio) for job in jobs]
        jobs, _ = recorded(jobs, np.ones(len(jobs), bool), state, steps, 1 / ratio, report)
        theta = state.theta
    return theta, [job.begun_anew() for job in jobs]
