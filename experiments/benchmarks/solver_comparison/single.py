"""The part ``single``: seconds to each target at one strength."""

import argparse
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .peers import OPTAX, OURS, Peer, chosen_peers, strengths_for
from .picture import draw
from .processes import STARTUP, answers_of, progress
from .tables import Row, print_ratios, print_seconds
from .trials import TARGETS, Trial, climb, quickest

L2 = 1e-4
TOLERANCES = tuple(10.0 ** (-j / 4) for j in range(29))
# Its certified gap can be far above its excess.
OPTAX_TOLERANCES = tuple(10.0 ** (3 - j / 2) for j in range(21))


def single(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Measures seconds to each target at one strength, prints them, and draws them if asked to."""
    task = {"do": "ours", "data": data, "l2": L2}
    (reference,) = answers_of({**task, "tols": [1e-8]}, STARTUP + args.budget)
    lower = reference["lower"]
    progress(
        f"minimum between {lower:.10f} and {reference['objective']:.10f} ({reference['status']})"
    )
    rows = our_rows(OURS, task, TOLERANCES, args.repeats, lower, args.budget)
    rows += our_rows(f"{OURS}, certified", task, None, args.repeats, lower, args.budget)
    compiled = len(rows)
    task["options"] = {"method": "lbfgs"}
    rows += our_rows(OPTAX, task, OPTAX_TOLERANCES, 1, lower, args.budget)
    rows += rows_of_peers(
        chosen_peers(args.solvers),
        partial(attempt_peer, data=data, lower=lower, budget=args.budget),
        args.budget,
        args.repeats,
    )
    print(f"\nSingle: l2 = {L2:g}, seconds until F is within a relative excess; memory in MiB")
    print_seconds(rows)
    print_ratios(rows, compiled)
    if args.figure:
        pathlib.Path(args.figure).write_bytes(draw(rows))
        print(f"the figure is in {args.figure}")
    return {"l2": L2, "lower": lower, "rows": [dataclasses.asdict(row) for row in rows]}


def our_rows(
    name: str,
    task: Mapping[str, Any],
    tolerances: Sequence[float] | None,
    processes: int,
    lower: float,
    budget: float,
) -> list[Row]:
    """Measures later calls, and the first one of a process.

    Args:
      name: of the rows.
      task: for the worker.
      tolerances: the ladder, falling; None to take the targets as they are.
      processes: how many there are for each target.
      lower: bound of the objective.
      budget: seconds of a call.
    """
    later, first = Row(f"{name}, later calls"), Row(f"{name}, first call")
    tols = {target: target for target in TARGETS}
    if tolerances is not None:
        progress(f"{name}: a ladder of tolerances")
        later.trials, complete = ladder(task, tolerances, lower, budget)
        if not complete:
            later.missing = first.missing = f"> {budget:g}"
        tols = {
            target: 1 / min(met)
            for target in TARGETS
            if (met := [t.effort for t in later.trials if t.excess <= target])
        }
    for target, tol in tols.items():
        at_first, at_last = [], []
        for _ in range(processes):
            answers = answers_of({**task, "tols": [tol] * 3}, STARTUP + budget)
            trials = [trial_of(answer, lower) for answer in answers]
            seconds = ", ".join(f"{trial.seconds:.2f}" for trial in trials)
            progress(f"{name}: within {target:.0e} by tol={tol:.1e}: {seconds} s")
            at_first += trials[:1]
            at_last += trials[1:]
        for row, trials in ((first, at_first), (later, at_last)):
            row.trials += trials
            if trials and all(trial.excess <= target for trial in trials):
                row.seconds[target] = statistics.median(trial.seconds for trial in trials)
    return [later, first]


def ladder(
    task: Mapping[str, Any], tolerances: Sequence[float], lower: float, budget: float
) -> tuple[list[Trial], bool]:
    """Tries falling tolerances in one process until the last target is met.

    Returns:
      The trials, and whether none took too long.
    """
    tolerances = [tolerances[0], *tolerances]
    trials: list[Trial] = []
    for answer in answers_of({**task, "tols": tolerances}, STARTUP + budget):
        trials.append(trial_of(answer, lower))
        if len(trials) > 1 and trials[-1].excess <= TARGETS[-1]:
            complete = True
            break
    else:
        complete = len(trials) == len(tolerances)
    return trials[1:], complete  # the first one compiled


def trial_of(answer: Mapping[str, Any], lower: float) -> Trial:
    """Returns an answer of a worker of ours as a trial."""
    return Trial(
        effort=1 / answer["effort"],
        seconds=answer["seconds"],
        excess=answer["objective"] / lower - 1,
        peak=answer["peak"],
        added=answer["added"],
    )


def rows_of_peers(
    peers: Mapping[str, Peer],
    attempt: Callable[[str, Peer, int], Trial],
    budget: float,
    repeats: int,
) -> list[Row]:
    """Measures each peer once, and the best of each package at each target ``repeats`` times."""
    rows = {
        name: row_of_peer(name, peer, partial(attempt, name, peer), budget)
        for name, peer in peers.items()
    }
    # What meets two targets is the same run.
    runs: dict[tuple[str, float], list[float]] = {}
    for target in TARGETS:
        for package in sorted({peer.package for peer in peers.values()}):
            found = [
                (trial.seconds, name, trial.effort)
                for name, row in rows.items()
                if peers[name].package == package and (trial := quickest(row.trials, target))
            ]
            if not found:
                continue
            seconds, name, effort = min(found)
            if (name, effort) not in runs:
                again = [attempt(name, peers[name], int(effort)) for _ in range(repeats - 1)]
                runs[name, effort] = [seconds, *(trial.seconds for trial in again)]
            rows[name].seconds[target] = statistics.median(runs[name, effort])
    return list(rows.values())


def row_of_peer(
    name: str,
    peer: Peer,
    attempt: Callable[[int], Trial],
    budget: float,
    targets: Sequence[float] = TARGETS,
) -> Row:
    """Measures a peer with the limits that just meet each target."""
    row = Row(name)
    try:
        row.trials = climb(attempt, peer, targets, budget)
        if any(math.isinf(trial.excess) for trial in row.trials):
            row.missing = f"> {budget:g}"
    except RuntimeError as e:
        progress(f"{name}: failed: {e}")
        row.missing = "failed"
    for target in targets:
        if best := quickest(row.trials, target):
            row.seconds[target] = best.seconds
    return row


def attempt_peer(
    name: str, peer: Peer, limit: int, *, data: str, lower: float, budget: float
) -> Trial:
    """Fits in a fresh process."""
    with np.load(data) as file:
        strengths = strengths_for(peer.package, L2, len(file["y"]))
    task = {"do": "peer", "data": data, "l2": L2, "strengths": strengths, "max_iter": limit}
    answers = list(answers_of({**task, **dataclasses.asdict(peer)}, budget))
    if not answers or answers[0]["seconds"] > budget:
        progress(f"{name}: {limit} iterations take longer than {budget:g} s")
        return Trial(limit)
    (answer,) = answers
    excess = answer["objective"] / lower - 1
    progress(f"{name}: {limit} iterations, {answer['seconds']:.2f} s, {excess:.2e}")
    return Trial(
        limit,
        answer["seconds"],
        excess,
        answer["peak"],
        answer["added"],
        stopped=answer["iterations"] <= limit - peer.step,
    )
