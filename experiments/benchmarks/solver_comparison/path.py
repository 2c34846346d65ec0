"""The part ``path``: seconds for many strengths."""

import argparse
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from .peers import OURS, chosen_peers, strengths_for
from .processes import STARTUP, answers_of, progress
from .tables import print_table

L2 = tuple(float(l2) for l2 in np.logspace(-1, -6, 16))
TOL = 1e-3
"""The relative certified gap of ours."""
SLACKS = (1e-3, 1e-6)
"""Shares by which the objectives of a peer may be above ours."""
TOLERANCES = tuple(10.0 ** (-j / 2) for j in range(3, 18))
"""Tolerances of a peer at each strength, until it meets the smallest slack."""


def path(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Measures seconds for a path of strengths, and prints them."""
    task: dict[str, Any] = {"data": data, "l2": L2}
    runs = []
    for _ in range(args.repeats):
        answers = answers_of({**task, "do": "ours", "tols": [TOL] * 3}, STARTUP + args.budget)
        runs.append(list(answers))
        progress("path: ours: " + ", ".join(f"{r['seconds']:.2f} s" for r in runs[-1]))
    first = statistics.median([run[0]["seconds"] for run in runs])
    later = statistics.median([r["seconds"] for run in runs for r in run[1:]])
    certified = min(r["status"].count("certified") for run in runs for r in run)

    head = ["", "seconds", "of later calls", "of first call"]
    table = [head, [f"{OURS}, later calls", f"{later:.2f}", "", ""]]
    table.append([f"{OURS}, first call", f"{first:.2f}", "", ""])
    peers = {}
    most = math.inf
    with np.load(data) as file:
        n = len(file["y"])
    task |= {
        "do": "path",
        "strengths": [strengths_for("scikit-learn", l2, n) for l2 in L2],
        "objectives": runs[0][0]["objective"],
        "tols": TOLERANCES,
        "slack": min(SLACKS),
    }
    chosen = chosen_peers(args.solvers)
    for solver in ("newton-cg", "lbfgs"):
        name = f"scikit-learn {solver}"
        if name not in chosen:
            continue
        peers[name] = seconds_of_peer(name, {**task, "solver": solver}, most, args.budget)
        table += lines_of_peer(name, peers[name], later, first)
        if is_complete(peers[name], min(SLACKS)):
            most = min(most, total(peers[name], min(SLACKS)))
    print(
        f"\nPath: {len(L2)} strengths from {L2[-1]:g} to {L2[0]:g}, ours to a "
        f"relative certified gap of {TOL:g} ({certified} certified)"
    )
    print_table(table)
    return {"l2": L2, "later": later, "first": first, "certified": certified, "peers": peers}


def seconds_of_peer(
    name: str, task: Mapping[str, Any], most: float, budget: float
) -> dict[float, dict[float, float]]:
    """Measures seconds by strength and slack.

    It is given up once the sum exceeds ``most``, which another needed for all: the best is wanted.
    """
    spent: dict[float, dict[float, float]] = {}
    try:
        for answer in answers_of(task, budget):
            at = spent.setdefault(answer["l2"], {})
            for slack in SLACKS:
                if answer["excess"] <= slack:
                    at.setdefault(slack, answer["seconds"])
            if min(SLACKS) not in at:
                continue
            so_far = total(spent, min(SLACKS))
            progress(
                f"path: {name}: l2={answer['l2']:.1e}, tol={answer['tol']:.0e}, "
                f"{at[max(SLACKS)]:.1f} s and {at[min(SLACKS)]:.1f} s, {so_far:.0f} s so far"
            )
            if so_far > most:
                progress(f"path: {name}: given up, as another took {most:.0f} s for all")
                break
    except RuntimeError as e:
        progress(f"path: {name}: failed: {e}")
    return spent


def total(spent: Mapping[float, Mapping[float, float]], slack: float) -> float:
    """Returns the seconds for all strengths at which the slack was met."""
    return sum(by_slack.get(slack, 0.0) for by_slack in spent.values())


def is_complete(spent: Mapping[float, Mapping[float, float]], slack: float) -> bool:
    """Returns whether the slack was met at all strengths."""
    return len(spent) == len(L2) and all(slack in at for at in spent.values())


def lines_of_peer(
    name: str, spent: Mapping[float, Mapping[float, float]], later: float, first: float
) -> list[list[str]]:
    """Returns a line of the table for each slack: seconds, and what they are of ours."""
    lines = []
    for slack in SLACKS:
        label = f"{name}, F at most ours x (1 + {slack:g})"
        seconds = total(spent, slack)
        ratios = [f"{seconds / ours:.1f}" for ours in (later, first)]
        if is_complete(spent, slack):
            lines.append([label, f"{seconds:.1f}", *ratios])
        else:
            met = sum(slack in at for at in spent.values())
            bounds = [f"> {ratio}" for ratio in ratios]
            lines.append([label, f"{seconds:.1f} for {met} of them", *bounds])
    return lines
