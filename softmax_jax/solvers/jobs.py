"""Jobs: a problem, the account of its progress, and the verdict. All of it is pure."""

import dataclasses
import math
from typing import NamedTuple

from softmax_jax.status import EXHAUSTED, SEPARATED, Status, unbounded, used_up

# A gap falls if it is below this share of the lowest one; a value, if it is less by such a share.
GAP_FALLS = 0.9
VALUE_FALLS = 1e-5
# Gaps in working precision have to be this much below the tolerance, for rounding.
MARGIN = 0.7
# What the doors stop at by default.
TOL = 1e-4
MAX_PASSES = 2000


class Stop(NamedTuple):
    """The limits at which to stop."""

    tol: float
    """Certified relative gap."""
    max_passes: float
    """Passes over all rows, at most."""


class Verdict(NamedTuple):
    """The end of a job, and its reason."""

    status: Status
    reason: str


class Row(NamedTuple):
    """State of a job when the host looked; see `softmax_jax.solvers.History`."""

    seconds: float
    passes: float
    objective: float
    gap: float
    rows: float


@dataclasses.dataclass(frozen=True)
class Job:
    """A problem and how far it has come."""

    place: tuple[int, ...]
    """Index in the results."""
    weighting: int
    l2: float
    l1: float
    target: float
    """Relative gap in working precision that counts as done; a margin below ``tol``."""
    order: int = 0
    """Rank in its queue."""
    passes: float = 0.0
    value: float = math.inf
    gap: float = math.inf
    lowest_value: float = math.inf
    """Lowest objective so far."""
    lowest_gap: float = math.inf
    idle_steps: int = 0
    """Steps since the objective or the gap last fell."""
    restarted: bool = False
    history: tuple[Row, ...] = ()

    @property
    def is_unpenalised(self) -> bool:
        """True if nothing bounds the gap."""
        return self.l2 == self.l1 == 0

    def steps_left(self, stop: Stop, most: int) -> int:
        """Returns how many steps to take, up to ``most``, before the pass of the certificate."""
        return max(math.floor(min(stop.max_passes - self.passes - 1, most)), 0)

    def after(self, passes: float) -> "Job":
        """Returns the job with so many passes more."""
        return dataclasses.replace(self, passes=self.passes + passes)

    def recorded(
        self, seconds: float, value: float, gap: float, steps: int, share: float = 1.0
    ) -> "Job":
        """Returns the job after ``steps`` on a share of the rows, with what they led to."""
        passes = self.passes + steps * share
        # Far from the optimum the gap may grow while the value falls.
        falls = gap < GAP_FALLS * self.lowest_gap or value < (1 - VALUE_FALLS) * self.lowest_value
        return dataclasses.replace(
            self,
            passes=passes,
            value=value,
            gap=gap,
            idle_steps=0 if falls else self.idle_steps + steps,
            lowest_value=min(self.lowest_value, value),
            lowest_gap=min(self.lowest_gap, gap),
            history=(*self.history, Row(seconds, passes, value, gap, share)),
        )

    def begun_anew(self) -> "Job":
        """Returns the job with no progress to compare with: on other rows, or in another type."""
        return dataclasses.replace(
            self, lowest_value=math.inf, lowest_gap=math.inf, idle_steps=0, restarted=False
        )

    def restarted_once(self) -> "Job":
        """Returns the job with its patience renewed, for the only time."""
        return dataclasses.replace(self, restarted=True, idle_steps=0)

    def with_target(self, target: float) -> "Job":
        """Returns the job with another target."""
        return dataclasses.replace(self, target=target)

    def tightened(self, by: float) -> "Job":
        """Returns the job with a lower target, as the gap was larger than it seemed."""
        return dataclasses.replace(self, target=min(self.target, self.gap / self.value) / by)


def verdict(
    job: Job,
    stop: Stop,
    *,
    value: float,
    gap: float,
    slope: float,
    floor: float,
    patience: int,
    done: bool,
    separated: bool,
) -> Verdict | None:
    """Returns how a job ended, or None if it has to go on.

    Args:
      job: with the passes of the certificate.
      stop: when to stop.
      value: certified objective.
      gap: certified gap.
      slope: largest entry of the gradient.
      floor: objective below which the gap is compared with this instead.
      patience: steps without progress after which precision is exhausted.
      done: whether the method says that it is done.
      separated: whether the classes are separated.
    """
    if job.is_unpenalised and separated:
        return Verdict(Status.AT_INFINITY, SEPARATED)
    if not job.is_unpenalised and gap <= stop.tol * max(value, floor):
        return Verdict(Status.CERTIFIED, "")
    promises = job.gap <= job.target * job.value
    if job.is_unpenalised and promises:
        return Verdict(Status.NOT_CERTIFIED, unbounded(slope))
    if job.steps_left(stop, 1) < 1:
        return Verdict(Status.NOT_CERTIFIED, used_up(stop.max_passes))
    if job.idle_steps >= patience or (done and not promises):
        return OUT_OF_PRECISION
    return None


OUT_OF_PRECISION = Verdict(Status.NOT_CERTIFIED, EXHAUSTED)
"""Verdict on a job that makes no progress in the type that it is worked on in."""
