"""The account of a job, and the verdict on it."""

import math

import pytest

from softmax_jax.solvers.jobs import OUT_OF_PRECISION, Job, Stop, verdict
from softmax_jax.status import Status

JOB = Job(place=(0,), weighting=0, l2=1e-2, l1=0.0, target=1e-3)
STOP = Stop(tol=1e-2, max_passes=20)
FAR = {"value": 1.0, "gap": 0.5, "slope": 0.1, "floor": 1e-6, "patience": 10}


def judged(job, **changes):
    return verdict(job, STOP, **(FAR | {"done": False, "separated": False} | changes))


def test_passes_and_idle_steps_add_up():
    job = JOB.after(1).recorded(2.0, 1.0, 0.5, 3)
    assert (job.passes, job.idle_steps) == (4, 0)
    job = job.recorded(3.0, 1.0, 0.48, 4, share=0.25)
    assert (job.passes, job.idle_steps) == (5, 4)
    job = job.recorded(4.0, 1.0, 0.3, 2)
    assert (job.passes, job.idle_steps, job.lowest_gap) == (7, 0, 0.3)
    job = job.recorded(5.0, 0.9, 0.7, 1)  # the value falls, if not the gap
    assert (job.idle_steps, job.lowest_value, job.lowest_gap) == (0, 0.9, 0.3)
    assert [row.rows for row in job.history] == [1, 0.25, 1, 1]
    assert [row.seconds for row in job.history] == [2, 3, 4, 5]
    assert JOB.history == ()


def test_progress_can_be_forgotten_but_not_passes():
    job = JOB.recorded(1.0, 1.0, 0.5, 3).recorded(2.0, 1.0, 0.5, 3).restarted_once()
    assert (job.restarted, job.idle_steps, job.lowest_gap) == (True, 0, 0.5)
    job = job.begun_anew()
    assert (job.restarted, job.lowest_value, job.lowest_gap) == (False, math.inf, math.inf)
    assert job.passes == 6
    assert len(job.history) == 2


@pytest.mark.parametrize(
    ("passes", "most", "left"), [(0, 50, 19), (0, 8, 8), (18.5, 8, 0), (20, 8, 0)]
)
def test_steps_left_leave_a_pass_for_the_certificate(passes, most, left):
    assert JOB.after(passes).steps_left(STOP, most) == left
    assert JOB.steps_left(Stop(1e-2, math.inf), most) == most


def test_a_target_tightens_below_what_was_reached():
    job = JOB.recorded(1.0, 2.0, 1e-3, 1)
    assert job.tightened(2).target == 2.5e-4
    assert JOB.recorded(1.0, 1.0, 0.5, 1).tightened(4).target == 2.5e-4


def test_verdicts():
    assert judged(JOB) is None
    assert judged(JOB, gap=1e-2).status == Status.CERTIFIED
    assert judged(JOB, value=0.0, gap=1e-7, floor=1e-4).status == Status.CERTIFIED
    assert judged(JOB.after(19.5)).reason == "max_passes = 20 are used up"
    assert judged(JOB.after(19.5), gap=1e-2).status == Status.CERTIFIED
    assert judged(JOB.recorded(1.0, 1.0, 0.5, 1), done=True) == OUT_OF_PRECISION
    idle = JOB.recorded(1.0, 1.0, 0.5, 5).recorded(2.0, 1.0, 0.5, 10)
    assert judged(idle) == OUT_OF_PRECISION
    assert judged(idle, patience=11) is None
    # It believes to be done, and so goes on to a lower target.
    assert judged(JOB.recorded(1.0, 1.0, 1e-4, 1), done=True) is None


def test_verdicts_without_a_penalty():
    job = Job(place=(), weighting=0, l2=0.0, l1=0.0, target=1e-3)
    assert judged(job.recorded(1.0, 1.0, 0.5, 1), gap=0.0) is None
    assert judged(job, separated=True).status == Status.AT_INFINITY
    flat = judged(job.recorded(1.0, 1.0, 1e-4, 1), slope=3e-9)
    assert flat.status == Status.NOT_CERTIFIED
    assert "the gradient is 3e-09 at most" in flat.reason
    # Separated classes mean nothing where there is a penalty.
    assert judged(JOB, separated=True) is None
