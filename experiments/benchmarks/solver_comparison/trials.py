"""Trials of a solver, and the search for those that just meet each target."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .peers import Peer

TARGETS = (1e-2, 1e-3, 3e-4, 1e-4, 1e-6)
"""Targets of the relative excess, falling."""
REFINEMENTS = 2


class Trial(NamedTuple):
    """One fit, or one that took too long."""

    effort: float
    """A limit of iterations, or one over a tolerance."""
    seconds: float = math.inf
    excess: float = math.inf
    peak: float = math.nan
    added: float = math.nan
    stopped: bool = True
    """Whether more effort would change nothing."""


def climb(
    attempt: Callable[[int], Trial], peer: Peer, targets: Sequence[float], budget: float
) -> list[Trial]:
    """Tries growing limits until the last target is met, and then such as just meet each.

    Args:
      attempt: from a limit to a trial.
      peer: says where to begin, and the steps.
      targets: of the excess, falling.
      budget: of seconds.
    """

    def whole(effort: float) -> int:
        return peer.step * math.ceil(effort / peer.step)

    trials = [attempt(peer.first)]
    while trials[-1].excess > targets[-1] and not trials[-1].stopped:
        if len(trials) > 1 and trials[-1].excess > 0.9 * trials[-2].excess:
            break
        trials.append(attempt(whole(trials[-1].effort * peer.factor)))
    if len(trials) > 1 and math.isinf(trials[-1].excess):
        before = trials[-2]
        effort = whole(0.9 * before.effort * budget / before.seconds) - peer.step
        if before.effort < effort < trials[-1].effort:
            trials.append(attempt(effort))
    for target in targets:
        for _ in range(REFINEMENTS):
            met = [trial for trial in trials if trial.excess <= target]
            if not met:
                break
            high = min(met, key=lambda trial: trial.effort)
            ended = [trial for trial in trials if math.isfinite(trial.excess)]
            below = [trial for trial in ended if trial.effort < high.effort]
            low = max(below, key=lambda trial: trial.effort, default=Trial(0))
            if high.effort - low.effort <= max(peer.step, 0.07 * low.effort):
                break
            if below:
                share = math.log(low.excess / target) / math.log(low.excess / high.excess)
                guess = 1.02 * low.effort * (high.effort / low.effort) ** share
            else:
                guess = high.effort / 2
            most = int(high.effort) - peer.step
            trials.append(attempt(min(max(whole(guess), int(low.effort) + peer.step), most)))
    return trials


def quickest(trials: Sequence[Trial], target: float) -> Trial | None:
    """Returns the fastest within the target, or None."""
    met = [trial for trial in trials if trial.excess <= target]
    return min(met, key=lambda trial: trial.seconds, default=None)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the points that no other beats in both seconds and excess, by seconds."""
    kept: list[tuple[float, float]] = []
    for seconds, excess in sorted(points):
        if 0 < excess < (kept[-1][1] if kept else math.inf):
            kept.append((seconds, excess))
    return kept
