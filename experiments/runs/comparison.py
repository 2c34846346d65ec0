"""Finished and unfinished runs beside each other: their scores and the settings that differ."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from runs import files, flags, logs, results, settings


class Run(NamedTuple):
    """What there is of a run."""

    name: str
    config: dict[str, Any]
    """With flat keys; of a sweep, with the settings of that member and no sweep."""
    rows: list[dict[str, Any]]
    """Of the run, or of the best member of a sweep."""
    row: dict[str, Any]
    """The one of them that stands for the run."""
    state: str


def read(workdir: pathlib.Path) -> Run:
    """A run from its folder.

    Raises:
      ValueError: if there is none, nothing was measured yet, or a file is not as it was written.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no config.json in it")
    rows = logs.read(workdir / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{workdir} holds a run that has not been evaluated yet")
    row = logs.standings(rows)[0]
    best = row["member"]
    state = "not finished"
    if (workdir / "summary.json").exists():
        summary = results.read_summary(workdir)
        # Pictures may be gone, which the comparison does not show.
        for name in ("config.json", "metrics.jsonl"):
            if summary["digests"][name] != results.digest_of_file(workdir / name):
                raise ValueError(f"{workdir / name} is damaged, or was changed")
        state = ""
    try:
        made = flags.from_config(files.read_json(path))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read: {e}") from e
    member = settings.members(made)[best]._asdict()
    config = files.flat(dataclasses.asdict(dataclasses.replace(made, sweep=settings.Sweep())))
    seeds = (member.pop("init_seed"), member.pop("order_seed"))
    if len(set(seeds)) > 1:
        member |= {"seed": "init {}, order {}".format(*seeds)}
    else:
        member |= {"seed": seeds[0]}
    if not math.isfinite(logs.loss(row)):
        state = "diverged"
    return Run(
        name=str(workdir),
        config=config | member,
        rows=results.of_member(rows, best),
        row=row,
        state=state,
    )


def table(runs: Sequence[Run]) -> str:
    """A line a run, by test loss."""
    known = dict.fromkeys(key for run in runs for key in run.config)
    keys = [key for key in known if len({json.dumps(run.config.get(key)) for run in runs}) > 1]
    lines = [["run", *keys, "step", "test loss", "bits", "test accuracy", "seconds", ""]]
    for run in sorted(runs, key=test_loss):
        row = run.row
        lines.append(
            [
                run.name,
                *(json.dumps(run.config.get(key)).strip('"') for key in keys),
                f"{row['step']:,}",
                f"{test_loss(run):.4f}",
                f"{test_loss(run) / math.log(2):.4f}",
                f"{row['test_accuracy']:.4f}",
                f"{row['seconds']:.1f}",
                run.state,
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for line in lines
    )


def test_loss(run: Run) -> float:
    """In nats; infinite where the run diverged."""
    loss = run.row["test_loss"]
    return math.inf if loss is None or run.state == "diverged" else loss
