"""Measurements of a cell: ours, and the peers beside it."""

import pathlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from solver_comparison.peers import PEERS, Peer
from solver_comparison.processes import UNCACHED, progress
from solver_comparison.record import plain
from solver_comparison.single import row_of_peer
from solver_comparison.tables import Row
from solver_comparison.trials import Trial, quickest

from .cells import Cell, Problem
from .peers import applicable
from .tasks import (
    TARGETS,
    Setting,
    answer_of_peer,
    answers_of_ours,
    attempts,
    excess_of,
    setting,
    task_of_peer,
)

PROOF = 1e-6
"""Relative gap up to which the lower bound of ours is taken for the minimum."""
REFERENCE = (TARGETS[0], *TARGETS, 1e-8)
"""Tolerances of the calls that find it, the first of which compiles."""
PATIENCE = 4.0
"""Budgets after which a median is that of the runs so far."""
LONG = 5.0
"""Seconds of a call beside which what is left to compile in a second one does not count."""


def measure(
    name: str, cell: Cell, peers: Mapping[str, Peer], *, budget: float, repeats: int
) -> dict[str, Any]:
    """Returns all numbers of a cell, as JSON can hold them."""
    progress(f"{name}: generating")
    problems = cell.problems()
    with tempfile.TemporaryDirectory() as folder:
        at = setting(name, problems, pathlib.Path(folder), budget=budget, repeats=repeats)
        shape, fitting = shape_of(problems), applicable(peers, problems[0])
        del problems
        minimum, proved, feasible = reference(at)
        ours = measure_ours(at, minimum, feasible, pathlib.Path(folder, "compiled"))
        found = measure_peers(at, fitting, minimum)
        result = {
            "shape": shape,
            "l2": at.l2[0],
            "budget": budget,
            "repeats": repeats,
            "minimum": minimum[0],
            "proved": proved,
            "ours": ours,
            "peers": found,
            "default": measure_default(at, minimum),
        }
    return plain(result)


def shape_of(problems: Sequence[Problem]) -> dict[str, Any]:
    """Returns rows, features and classes of the first problem, and how many problems there are."""
    first = problems[0]
    n, d = first.x.shape
    return {
        "rows": n,
        "features": d,
        "classes": int(first.y.max()) + 1,
        "problems": len(problems),
        "nonzeros": None if isinstance(first.x, np.ndarray) else int(first.x.nnz),
        "dtype": str(first.x.dtype),
    }


def reference(at: Setting) -> tuple[list[float], bool, dict[float, float]]:
    """Finds the minimum of each problem.

    Returns:
      Lower bounds of ours, or the best that scikit-learn finds in time if ours prove too little;
      whether they are proved; and what ours took to each target that it met.
    """
    answers = answers_of_ours(at, REFERENCE)
    feasible = {a["tol"]: a["seconds"] for a in answers if a["tol"] in TARGETS and a["certified"]}
    best = np.min([[np.inf] * len(at.l2), *(a["objectives"] for a in answers)], axis=0)
    lower = np.max([[-np.inf] * len(at.l2), *(a["lower"] for a in answers)], axis=0)
    if answers and np.all(best <= lower * (1 + PROOF)):
        progress(f"{at.name}: minimum {lower[0]:.9g}, proved")
        return lower.tolist(), True, feasible
    for solver, limit in (("newton-cg", 1000), ("lbfgs", 10_000)):
        task = task_of_peer(at, PEERS[f"scikit-learn {solver}"], limit, tol=1e-8)
        if answer := answer_of_peer(at, task):
            best = np.minimum(best, answer["objectives"])
    if not np.all(np.isfinite(best)):
        raise RuntimeError(f"{at.name}: no solver came to an end within {at.budget:g} s")
    progress(f"{at.name}: minimum {best[0]:.9g}, not proved")
    return best.tolist(), False, feasible


def measure_ours(
    at: Setting, minimum: Sequence[float], feasible: Mapping[float, float], cache: pathlib.Path
) -> dict[str, Any]:
    """Measures first calls, later calls, and first calls of what is compiled already."""
    result: dict[str, Any] = {"seconds": {}, "excess": {}, "first": None, "cached": None}
    result["runs"] = {}
    # Where a call is short, the second one of a process is left out, as it may compile.
    calls = [*feasible] * (2 if max(feasible.values(), default=0) < LONG else 1)
    runs = fresh_runs(at, [min(feasible), *calls]) if feasible else []
    if not runs:
        return {**result, "peak": None}
    result["peak"] = max(answer["peak"] for run in runs for answer in run)
    result["first"] = statistics.median(run[0]["seconds"] for run in runs)
    for target in feasible:
        chosen = [[a for a in run[1:] if a["tol"] == target][-1] for run in runs]
        excess = max(excess_of(a["objectives"], minimum) for a in chosen)
        result["runs"][target] = [a["seconds"] for a in chosen]
        seconds = statistics.median(result["runs"][target])
        certified = all(a["certified"] for a in chosen)
        result["excess"][target] = excess
        if certified and excess <= target and seconds <= at.budget:
            result["seconds"][target] = seconds
    environment = {
        **UNCACHED,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    answers_of_ours(at, [min(feasible)], environment)
    if cached := fresh_runs(at, [min(feasible)], environment):
        result["cached"] = statistics.median(run[0]["seconds"] for run in cached)
    shown = ", ".join(f"{s:.3g} s to {t:.0e}" for t, s in result["seconds"].items())
    progress(f"{at.name}: ours: {shown}; first {result['first']:.3g} s")
    return result


def fresh_runs(
    at: Setting, tols: Sequence[float], environment: Mapping[str, str] = UNCACHED
) -> list[list[dict[str, Any]]]:
    """Repeats calls in fresh processes, until all of them took four times the budget."""
    runs: list[list[dict[str, Any]]] = []
    spent = 0.0
    while len(runs) < at.repeats and spent <= PATIENCE * at.budget:
        answers = answers_of_ours(at, tols, environment)
        if len(answers) < len(tols):
            progress(f"{at.name}: ours: a call came to no end")
            break
        runs.append(answers)
        spent += sum(answer["seconds"] for answer in answers)
    return runs


def measure_peers(
    at: Setting, peers: Mapping[str, Peer], minimum: Sequence[float]
) -> dict[str, Any]:
    """Measures each peer until it just meets each target, and the best of them again.

    No peer is waited for longer than what another one took to the last target.
    """
    rows, cap = {}, at.budget
    for name, peer in peers.items():
        with attempts(at, name, peer, minimum, cap) as attempt:
            rows[name] = row_of_peer(name, peer, attempt, cap, TARGETS)
        if best := quickest(rows[name].trials, TARGETS[-1]):
            cap = min(cap, max(1.0, 1.5 * best.seconds))
    again = repeat_the_best(at, rows, peers, minimum)
    return {
        name: {
            "seconds": row.seconds,
            "missing": row.missing,
            "peak": max((run.peak for run in again.get(name, ())), default=None),
            "trials": row.trials,
            "repeats": again.get(name, []),
        }
        for name, row in rows.items()
    }


def repeat_the_best(
    at: Setting, rows: Mapping[str, Row], peers: Mapping[str, Peer], minimum: Sequence[float]
) -> dict[str, list[Trial]]:
    """Puts medians of fresh processes in the rows, until the best of each target is a median.

    Returns:
      All their fits, by name.
    """
    again: dict[tuple[str, float], list[Trial]] = {}
    for target in TARGETS:
        medians = set()
        while True:
            found = [(r.seconds[target], name) for name, r in rows.items() if target in r.seconds]
            name = min(found)[1] if found else ""
            if not name or name in medians:
                break
            medians.add(name)
            best = quickest(rows[name].trials, target)
            assert best is not None
            key = name, best.effort
            if key not in again:
                again[key] = repeated(at, name, peers[name], int(best.effort), minimum)
            if again[key]:
                rows[name].seconds[target] = statistics.median(t.seconds for t in again[key])
    fits: dict[str, list[Trial]] = {}
    for (name, _), runs in again.items():
        fits.setdefault(name, []).extend(runs)
    return fits


def repeated(
    at: Setting, name: str, peer: Peer, effort: int, minimum: Sequence[float]
) -> list[Trial]:
    """Fits in fresh processes, until all of them took four times the budget."""
    runs: list[Trial] = []
    while len(runs) < at.repeats and sum(r.seconds for r in runs) <= PATIENCE * at.budget:
        with attempts(at, name, peer, minimum, at.budget) as attempt:
            runs.append(attempt(effort))
    return [run for run in runs if np.isfinite(run.seconds)]


def measure_default(at: Setting, minimum: Sequence[float]) -> dict[str, Any]:
    """Measures scikit-learn's `LogisticRegression` as it is, but for its strength."""
    task = task_of_peer(at, PEERS["scikit-learn lbfgs"], 100, tol=1e-4)
    if not (answer := answer_of_peer(at, task)):
        return {"seconds": None, "excess": None}
    excess = excess_of(answer["objectives"], minimum)
    progress(f"{at.name}: scikit-learn as it is: {answer['seconds']:.3g} s, {excess:.1e}")
    return {"seconds": answer["seconds"], "excess": excess}
