"""Compares runs of `experiments/train.py`: one table, and one picture of their curves.

    python experiments/compare.py runs/first runs/second
    python experiments/compare.py runs/* --figure=comparison.png

The table has the settings in which the runs differ, and their scores on test data; of a sweep,
those of its best member, and where data were held out those of its best step. Runs that are not
finished count as far as they went. Those whose files were changed are left out. The figure replaces
no file but an earlier comparison.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import driver
import logs
import output
import results
import settings
from softmax_jax import figures

TITLE = "softmax_jax comparison of runs"
"""Of the picture, by which it is known as one."""


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
        made = settings.from_config(driver.read_json(path))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read: {e}") from e
    member = settings.members(made)[best]._asdict()
    config = driver.flat(dataclasses.asdict(dataclasses.replace(made, sweep=settings.Sweep())))
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


def refuse_other_files(path: pathlib.Path) -> None:
    """Raises FileExistsError if there is a file that is no picture of this script."""
    if path.exists() and TITLE.encode() not in path.read_bytes()[:4096]:
        raise FileExistsError(
            f"--figure={path}: there is another file of that name, which is not to be overwritten"
        )


def main(argv: Sequence[str]) -> None:
    output.outlast_readers()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", nargs="+", type=pathlib.Path, help="folder of a run")
    parser.add_argument(
        "--figure", type=pathlib.Path, default="compare.png", help="the PNG; by default %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        runs = []
        for workdir in args.workdir:
            try:
                runs.append(read(workdir))
            except (ValueError, OSError, AttributeError) as e:
                print(f"left out: {e}", file=sys.stderr)
        if not runs:
            raise ValueError("there is no run to show")
        print(table(runs))
        path = args.figure
        if path.suffix != ".png":
            raise ValueError(f"--figure={path}: give the name of a PNG")
        refuse_other_files(path)
        figure = figures.compared_curves({driver.printable(run.name): run.rows for run in runs})
        driver.write_atomically(path, figures.to_png(figure, title=TITLE))
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    print(f"\nthe curves are in {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
