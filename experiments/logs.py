"""What a run writes down as it goes: metrics.jsonl, and the same for TensorBoard."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

import driver

SCALARS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "examples_per_second")

REQUIRED = ("member", "epoch", "step", "seconds", "diverged_at_step", *SCALARS)


class Log:
    """The rows of a run, in memory and on disk."""

    def __init__(self, workdir: pathlib.Path, alone: bool):
        self.workdir = workdir
        self.rows = read(workdir / "metrics.jsonl")
        self._alone = alone
        self._files = contextlib.ExitStack()

    def number(self, members: Sequence[int], *, up_to_step: int) -> int:
        """Of rows that there are of some members."""
        return sum(row["member"] in members and row["step"] <= up_to_step for row in self.rows)

    def require(self, members: Sequence[int], *, up_to_step: int, number: int) -> None:
        """Raises ValueError if rows are missing that a checkpoint says were written."""
        if (found := self.number(members, up_to_step=up_to_step)) != number:
            raise ValueError(
                f"{self.workdir / 'metrics.jsonl'} has {found} rows up to step {up_to_step}, the "
                f"last checkpoint, where {number} were written: put the missing ones back, or give "
                "another --workdir"
            )

    def forget(self, members: Sequence[int], *, after_step: int) -> None:
        """Drops rows of steps that will be taken again, and goes on writing."""
        self.close()
        self.rows = [
            row for row in self.rows if row["member"] not in members or row["step"] <= after_step
        ]
        path = self.workdir / "metrics.jsonl"
        driver.write_atomically(path, "".join(map(line, self.rows)).encode())
        self._file = self._files.enter_context(path.open("a"))
        for old in self.workdir.glob("events.out.tfevents.*"):
            old.unlink()
        self._board = EventsWriter(str(self.workdir / "events"))
        self._files.callback(self._board.close)
        for row in self.rows:
            self._show(row)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows of one evaluation."""
        for row in rows:
            self.rows.append(row)
            self._file.write(line(row))
            self._show(row)
        self._file.flush()

    def _show(self, row: Mapping[str, Any]) -> None:
        for name in SCALARS:
            if row[name] is not None:
                tag = name if self._alone else f"{name}/{row['member']}"
                event = Event(
                    wall_time=time.time(), step=row["step"], summary=scalar(tag, row[name])
                )
                self._board.write_event(event)

    def flush(self) -> None:
        """To disk, before a checkpoint that says that these steps are done."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """What is open."""
        self._files.close()

    def lowest_test_loss(self, members: Sequence[int], step: int) -> float:
        """Of some members at a step; inf if they were not evaluated there."""
        rows = [row for row in self.rows if row["step"] == step and row["member"] in members]
        return min(map(test_loss, rows), default=float("inf"))


@contextlib.contextmanager
def open_log(workdir: pathlib.Path, *, alone: bool) -> Iterator[Log]:
    """The log of a run, with what it has from before."""
    log = Log(workdir, alone)
    try:
        yield log
    finally:
        log.close()


def line(row: Mapping[str, Any]) -> str:
    """Of metrics.jsonl."""
    return json.dumps(row, allow_nan=False) + "\n"


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file, less what a killed process did not write to the end."""
    if not path.exists():
        return []
    rows = []
    for number, text in enumerate(path.read_text().splitlines(keepends=True), start=1):
        if not text.endswith("\n"):
            continue
        try:
            row = json.loads(text)
            rows.append({**row, **{key: row[key] for key in REQUIRED}})
        except (ValueError, TypeError, KeyError) as e:
            raise ValueError(
                f"{path}, line {number} is no row of metrics: remove it, or give another --workdir"
            ) from e
    return rows


def test_loss(row: Mapping[str, Any]) -> float:
    """Infinite where it is no number, and of a member that diverged."""
    is_good = row["test_loss"] is not None and row["diverged_at_step"] is None
    return row["test_loss"] if is_good else float("inf")


def latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each member, the lowest test loss first."""
    last = {row["member"]: row for row in rows}
    return sorted(last.values(), key=test_loss)
