"""Tasks for workers: what a cell asks of them, and trials from their answers."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from solver_comparison.measures import write_data
from solver_comparison.peers import Peer, strengths_for
from solver_comparison.processes import STARTUP, UNCACHED, Worker, answers_of, progress
from solver_comparison.trials import Trial

from .cells import Problem

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "league.py"
TARGETS = (1e-3, 1e-5)
"""Targets of the relative excess, falling."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A cell as workers are given it."""

    name: str
    paths: Sequence[str]
    """Files of the problems."""
    l2: Sequence[float]
    """Strengths of the problems."""
    rows: Sequence[int]
    """Rows of the problems."""
    classes: int
    single: bool
    """Whether features are in float32 or less."""
    budget: float
    """Seconds of a fit."""
    repeats: int
    """Runs of which the median is taken."""


def setting(
    name: str, problems: Sequence[Problem], folder: pathlib.Path, *, budget: float, repeats: int
) -> Setting:
    """Writes the problems of a cell into a folder."""
    paths = [str(folder / f"{i}.npz") for i in range(len(problems))]
    for path, problem in zip(paths, problems, strict=True):
        write_data(path, problem.x, problem.y, problem.divisor)
    return Setting(
        name=name,
        paths=paths,
        l2=[float(problem.l2) for problem in problems],
        rows=[problem.x.shape[0] for problem in problems],
        classes=int(max(problem.y.max() for problem in problems)) + 1,
        single=problems[0].x.dtype != np.float64,
        budget=budget,
        repeats=repeats,
    )


def answers_of_ours(
    at: Setting, tols: Sequence[float], environment: Mapping[str, str] = UNCACHED
) -> list[dict[str, Any]]:
    """Fits with tolerances one after the other, as far as each call is in time."""
    task = {"do": "ours", "data": at.paths, "l2": at.l2, "tols": tols}
    answers: list[dict[str, Any]] = []
    try:
        answers += answers_of(task, STARTUP + at.budget, environment, SCRIPT)
    except RuntimeError as e:
        progress(f"{at.name}: ours: failed: {e}")
    return answers


def answer_of_peer(at: Setting, task: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the answer of a fresh process; None if it fails, or takes longer than the budget."""
    try:
        return next(answers_of(task, 1.1 * at.budget + 5, script=SCRIPT), None)
    except RuntimeError as e:
        progress(f"{at.name}: {task['package']} {task['solver']}: failed: {e}")
        return None


def task_of_peer(at: Setting, peer: Peer, limit: int, **options: Any) -> dict[str, Any]:
    """Returns a task with a limit of iterations."""
    double = peer.package == "scikit-learn" and not at.single
    return {
        "do": "peer",
        **dataclasses.asdict(peer),
        **({"dtype": "float64"} if double else {}),
        "data": at.paths,
        "l2": at.l2,
        "strengths": [
            strengths_for(peer.package, l2, n, at.classes)
            for l2, n in zip(at.l2, at.rows, strict=True)
        ],
        "max_iter": limit,
        **options,
    }


def excess_of(objectives: Sequence[float], minimum: Sequence[float]) -> float:
    """Returns the largest relative excess of all problems, between 1e-12 and 1e6."""
    with np.errstate(invalid="ignore", over="ignore"):
        excess = np.max(np.asarray(objectives, float) / np.asarray(minimum, float)) - 1
    return float(np.clip(np.nan_to_num(excess, nan=1e6), 1e-12, 1e6))


class Attempts:
    """Fits of a peer with limit after limit in one process, and in a new one after a timeout."""

    def __init__(self, at: Setting, name: str, peer: Peer, minimum: Sequence[float], budget: float):
        self._at, self._name, self._peer = at, name, peer
        self._minimum, self._budget = minimum, budget
        self._worker: Worker | None = None

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.__exit__()
            self._worker = None

    def __call__(self, limit: int) -> Trial:
        """Fits with a limit."""
        try:
            if self._worker is None:
                task = task_of_peer(self._at, self._peer, limit)
                self._worker = Worker(task, script=SCRIPT)
                self._worker.answer(STARTUP)
            else:
                self._worker.tell(limit)
            answer = self._worker.answer(1.1 * self._budget + 5)
        except TimeoutError:
            self.close()
            answer = None
        if answer is None or answer["seconds"] > self._budget:
            progress(f"{self._at.name}: {self._name}: {limit}: more than {self._budget:.3g} s")
            return Trial(limit)
        trial = self._trial(limit, answer)
        progress(
            f"{self._at.name}: {self._name}: {limit}: {trial.seconds:.3g} s, {trial.excess:.1e}"
        )
        return trial

    def _trial(self, limit: int, answer: Mapping[str, Any]) -> Trial:
        return Trial(
            limit,
            answer["seconds"],
            excess_of(answer["objectives"], self._minimum),
            answer["peak"],
            answer["added"],
            stopped=answer["iterations"] <= limit - self._peer.step,
        )


@contextlib.contextmanager
def attempts(*args: Any) -> Iterator[Attempts]:
    """Yields `Attempts`, whose process ends with the block."""
    made = Attempts(*args)
    try:
        yield made
    finally:
        made.close()
