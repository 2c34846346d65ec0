"""The log of a run as it goes: metrics.jsonl, and the same for TensorBoard.

Beside metrics.jsonl there is a digest of each of its lines, so that a changed one is noticed.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from runs import files

SCALARS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "examples_per_second")

VALIDATION = ("validation_loss", "validation_accuracy")
"""Only where there are validation data."""

REQUIRED = ("member", "epoch", "step", "seconds", "diverged_at_step", *SCALARS)


# The end of the names of our event files, as those of others may be in the same folder.
SUFFIX = ".softmax_jax"


class Log:
    """The rows of a run, in memory and on disk."""

    def __init__(self, workdir: pathlib.Path, alone: bool):
        self.workdir = workdir
        self.rows = read(workdir / "metrics.jsonl")
        self._alone = alone
        self._files = contextlib.ExitStack()

    def number(self, members: Sequence[int], *, up_to_step: int) -> int:
        """Returns how many rows of some members there are."""
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
        lines = list(map(files.json_line, self.rows))
        # In this order, there is never a digest of another line.
        digests_of(path).unlink(missing_ok=True)
        files.write_atomically(path, b"".join(lines))
        files.write_atomically(digests_of(path), b"".join(map(digest, lines)))
        self._file = self._files.enter_context(path.open("ab"))
        self._digests = self._files.enter_context(digests_of(path).open("ab"))
        for old in self.workdir.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        self._board = EventsWriter(str(self.workdir / "events"), SUFFIX)
        self._files.callback(self._board.close)
        for row in self.rows:
            self._show(row)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the rows of one evaluation."""
        self.rows += rows
        lines = list(map(files.json_line, rows))
        self._file.write(b"".join(lines))
        self._file.flush()
        self._digests.write(b"".join(map(digest, lines)))
        self._digests.flush()
        for row in rows:
            self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        for name in (*SCALARS, *VALIDATION):
            if row.get(name) is not None:
                tag = name if self._alone else f"{name}/{row['member']}"
                event = Event(
                    wall_time=time.time(), step=row["step"], summary=scalar(tag, row[name])
                )
                self._board.write_event(event)

    def flush(self) -> None:
        """Brings rows to disk, before a checkpoint that says that these steps are done."""
        for file in (self._file, self._digests):
            file.flush()
            os.fsync(file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Closes all files."""
        self._files.close()

    def lowest_loss(self, members: Sequence[int], step: int) -> float:
        """Returns the lowest loss of some members at a step; inf if they have no row there."""
        rows = [row for row in self.rows if row["step"] == step and row["member"] in members]
        return min(map(loss, rows), default=float("inf"))


@contextlib.contextmanager
def open_log(workdir: pathlib.Path, *, alone: bool) -> Iterator[Log]:
    """Opens the log of a run, with the rows that it has from before."""
    log = Log(workdir, alone)
    try:
        yield log
    finally:
        log.close()


def digest(line: bytes) -> bytes:
    """Returns the line of `digests_of` for one of metrics.jsonl."""
    return hashlib.sha256(line).hexdigest().encode() + b"\n"


def digests_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the file with a digest a line of metrics.jsonl, in order."""
    return path.with_name(f".{path.name}.sha256")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a file, less what a killed process did not write to the end.

    Raises:
      ValueError: names the line that is no row, or is not as it was written. Lines that are not
        there are no error here, nor are more lines than digests.
    """
    if not path.exists():
        return []
    # A line goes to its end only with what ends it.
    *lines, _ = path.read_bytes().split(b"\n")
    digests: list[bytes] = []
    if digests_of(path).exists():
        *digests, _ = digests_of(path).read_bytes().split(b"\n")
    # A line has to be among those that come after the one before it.
    written = iter(digests)
    rows = []
    for number, text in enumerate(lines, start=1):
        try:
            row = json.loads(text)
            rows.append({**row, **{key: row[key] for key in REQUIRED}})
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise ValueError(
                f"{path}, line {number} is no row of metrics: remove it, or give another --workdir"
            ) from e
        if number <= len(digests) and digest(text + b"\n").strip() not in written:
            raise ValueError(
                f"{path}, line {number} is not as it was written: put it back, or give another "
                f"--workdir; if the change is yours, remove {digests_of(path)}"
            )
    return rows


def split(row: Mapping[str, Any]) -> str:
    """Returns what steps and members are compared by: validation data if there are such."""
    return "validation" if "validation_loss" in row else "test"


def loss(row: Mapping[str, Any]) -> float:
    """Returns the loss on the data of `split`; infinite if it is no number or diverged."""
    value = row[f"{split(row)}_loss"]
    is_good = value is not None and row["diverged_at_step"] is None
    return value if is_good else float("inf")


def standings(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the row of each member that stands for it, the lowest loss first.

    It is the last one, or the one with the lowest validation loss if there are such data.
    """
    of_member: dict[int, dict[str, Any]] = {}
    for row in rows:
        before = of_member.get(row["member"])
        if before is None or split(row) == "test" or loss(row) < loss(before):
            of_member[row["member"]] = row
    return sorted(of_member.values(), key=loss)


def of_member(rows: Sequence[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    """Returns the rows of one member."""
    return [row for row in rows if row["member"] == member]
