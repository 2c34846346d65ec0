"""Finished and unfinished runs beside each other: their scores and the settings that differ."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from runs import files, flags, logs, settings, summaries, table


class Run(NamedTuple):
    """A run, finished or not, as far as it went."""

    name: str
    config: dict[str, Any]
    """Settings by flat keys; of a sweep, those of its best member and no sweep."""
    rows: list[dict[str, Any]]
    """Rows of metrics.jsonl, of the run or of the best member of a sweep."""
    row: dict[str, Any]
    """The row that stands for the run."""
    state: str
    """Empty if it is finished and has not diverged."""


def read(workdir: pathlib.Path) -> Run:
    """Reads a run from its folder.

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
        digests = summaries.read(workdir)["digests"]
        # Pictures may be gone, which the comparison does not show.
        for name in ("config.json", "metrics.jsonl"):
            if digests[name] != summaries.digest_of_file(workdir / name):
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
        rows=logs.of_member(rows, best),
        row=row,
        state=state,
    )


def text(runs: Sequence[Run]) -> str:
    """Returns a table with a line a run, the lowest test loss first."""
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
    return table.text(lines, left=(0,))


def test_loss(run: Run) -> float:
    """Returns the test loss in nats; infinite where the run diverged."""
    loss = run.row["test_loss"]
    return math.inf if loss is None or run.state == "diverged" else loss
