"""The summary of a run: summary.json, written last, and the table that a run ends with.

It has digests of the other files and of itself, so that a finished run is known to be whole.
"""

import hashlib
import json
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from runs import files, gradients, logs, scores, table


def write(
    workdir: pathlib.Path, summary: Mapping[str, Any], names: Iterable[str]
) -> dict[str, Any]:
    """Writes summary.json with digests of the files of those names; returns what it wrote."""
    whole = {**summary, "digests": {name: digest_of_file(workdir / name) for name in names}}
    whole["digest"] = digest(whole)
    files.write_json(workdir / "summary.json", whole)
    return whole


def digest(summary: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the values of a summary, as JSON has them."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the summary of a finished run, as it was written.

    Raises:
      FileNotFoundError: if it is gone.
      ValueError: if it is damaged, or was changed.
    """
    path = workdir / "summary.json"
    try:
        summary = files.read_json(path)
        own = summary.pop("digest")
        is_own = own == digest(summary)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path} is damaged") from e
    if not is_own:
        raise ValueError(f"{path} is damaged, or was changed")
    return {**summary, "digest": own}


def changed(workdir: pathlib.Path, summary: Mapping[str, Any]) -> list[str]:
    """Returns the files of a finished run that are not as they were written.

    Raises:
      FileNotFoundError: if one of them is gone.
    """
    return [
        name
        for name, expected in summary["digests"].items()
        if digest_of_file(workdir / name) != expected
    ]


def of_finished(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run.

    None means that there is none, or, with a warning, that results are gone or were changed.

    Raises:
      ValueError: if metrics.jsonl was changed, as its rows cannot be made again.
    """
    path = workdir / "summary.json"
    logs.read(workdir / "metrics.jsonl")
    try:
        summary = read(workdir)
        others = changed(workdir, summary)
    except FileNotFoundError as e:
        if path.exists():
            warnings.warn(f"{e.filename} is gone: the results are made again", stacklevel=2)
        return None
    except ValueError as e:
        warnings.warn(f"{e}: the results are made again", stacklevel=2)
        return None
    if "metrics.jsonl" in others:
        raise ValueError(
            f"{workdir / 'metrics.jsonl'} is not as the finished run left it: put it back, or give "
            "another --workdir"
        )
    if others:
        names = ", ".join(others)
        warnings.warn(
            f"{names} in {workdir}: damaged, or changed: the results are made again", stacklevel=2
        )
        return None
    return summary


def text(summary: Mapping[str, Any]) -> str:
    """Returns the last table of a run: losses and accuracy, of a sweep its best members too."""
    lines = []
    if "members" in summary:
        lines += [members_text(summary), ""]
        by = scores.split(summary)
        lines.append(f"member {summary['best_member']}, which has the lowest {by} loss:")
    splits = ("train", "validation", "test") if "validation" in summary else ("train", "test")
    cells = [["", *splits]]
    for name, key in (("loss (nats)", "nats"), ("loss (bits)", "bits"), ("accuracy", "accuracy")):
        cells.append([name, *(table.digits(summary[split][key]) for split in splits)])
    widths = (18, *(max(10, len(split) + 2) for split in splits))
    lines.append(table.text(cells, widths=widths, left=(0,), gap=""))
    if "validation" in summary:
        lines += ["", scores.stopped(summary)]
    check = gradients.Check(**summary["gradient_check"])
    lines += [
        "",
        f"gradient check    {check}",
        f"time              {summary['train_seconds']:.2f} s of training, "
        f"{summary['examples_per_second']:,.0f} examples/s; "
        f"before that {summary['trace_seconds']:.2f} s of tracing, "
        f"{summary['compile_seconds']:.2f} s of compilation",
    ]
    return "\n".join(lines)


def members_text(summary: Mapping[str, Any], most: int = 10) -> str:
    """Returns a table of the best members of a sweep, and says how many diverged."""
    members = summary["members"]
    lines = [table.text(scores.cells(members)[: most + 1])]
    diverged = sum(member["diverged_at_step"] is not None for member in members)
    if len(members) > most:
        lines.append(f"and {len(members) - most} more in summary.json and report.html")
    if diverged:
        lines.append(f"{diverged} of {len(members)} diverged and were left as they were before it")
    return "\n".join(lines)
