"""The folder of a run: new, locked, with its config, and refused where it holds other things."""

import contextlib
import dataclasses
import errno
import fnmatch
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import filelock

from runs import datasets, files, settings
from softmax_jax import checks, data

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]


LEFT = (".lock", "config.json.*.tmp")
"""Files that a run may leave which did not get to its config.json."""


ABSENT = object()


@contextlib.contextmanager
def new_folder(name: str) -> Iterator[pathlib.Path]:
    """Makes an empty folder NAME-TIME, of no other run; removes it if an error leaves it empty."""
    stamped = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for again in itertools.count(1):
        folder = pathlib.Path(stamped if again == 1 else f"{stamped}-{again}")
        parents = [parent for parent in folder.parents if not parent.exists()]
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            for empty in (folder, *parents):
                empty.rmdir()
        raise


def make_workdir(config: Any, workdir: pathlib.Path) -> None:
    """Makes the folder, and writes config.json, which must not be there."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "config.json").open("xb") as file:  # x: of two runs at once, one fails here
        file.write(files.to_json(dataclasses.asdict(config)))


@contextlib.contextmanager
def claimed(config: settings.Train, workdir: pathlib.Path) -> Iterator[None]:
    """Takes the folder for this process alone; a run of the same config may have been here before.

    Raises:
      ValueError: if the folder holds a run of another config: says what differs; or if it holds
        other things and no run.
      OSError: if another process is at work in the folder, or nothing can be written there.
    """
    refuse_another_config(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        refuse_another_config(config, workdir)
        files.write_json(workdir / "config.json", dataclasses.asdict(config))
        yield


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Takes two locks: a file, and, where the system has such, the folder itself.

    The second one holds when the file is deleted or the folder renamed, the first one where a
    network's file system knows no other.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(workdir / ".lock", timeout=0))
            stack.enter_context(folder_lock(workdir))
        except (filelock.Timeout, BlockingIOError) as e:
            raise OSError(
                f"another run is at work in {workdir}: wait for it, or give another --workdir"
            ) from e
        yield


@contextlib.contextmanager
def folder_lock(workdir: pathlib.Path) -> Iterator[None]:
    """Locks the folder, if the file system can; raises BlockingIOError if another has it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield
    finally:
        os.close(descriptor)


def refuse_another_config(config: settings.Train, workdir: pathlib.Path) -> None:
    """Raises unless the folder can be made, is empty, or holds a run of this config."""
    refuse_what_is_no_run(workdir)
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        there = files.flat(files.read_json(path))
    except (ValueError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read ({e}): give another --workdir") from e
    there = {key: value for key, value in there.items() if not key.startswith("mesh")}
    here = files.flat(json.loads(files.to_json(settings.without_devices(config))))
    different = [
        f"  {key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in sorted({*there, *here})
        if there.get(key, ABSENT) != here.get(key, ABSENT)
    ]
    if different:
        lines = "\n".join(different)
        raise ValueError(
            f"{workdir} holds a run of another config; give another --workdir, or the same "
            f"settings for it to go on:\n{lines}"
        )


def refuse_what_is_no_run(workdir: pathlib.Path) -> None:
    """Raises if a folder is neither to be made nor empty nor has a config.json."""
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is a file: give another --workdir")
    checks.refuse_other_than_utf8(workdir.absolute())
    if not workdir.exists() or (workdir / "config.json").exists():
        return
    if (workdir / "checkpoints").exists():
        raise ValueError(
            f"{workdir} has checkpoints but no config.json, so that nobody knows whose they "
            "are: give another --workdir"
        )
    others = sorted(
        path.name
        for path in workdir.iterdir()
        if not any(fnmatch.fnmatch(path.name, left) for left in LEFT)
    )
    if others:
        some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise FileExistsError(
            f"{workdir} holds other things than a run ({some}), which are not to be overwritten: "
            "give a new or an empty folder as --workdir"
        )


def refuse_earlier_run(workdir: pathlib.Path) -> None:
    """Raises if the folder holds a run or other things; before the data are loaded."""
    refuse_what_is_no_run(workdir)
    if (workdir / "config.json").exists():
        raise FileExistsError(
            f"{workdir} already holds a run: give another --workdir, or remove it"
        )


def start(config: settings.Fit | settings.Codelength, workdir: pathlib.Path) -> data.Dataset:
    """Loads the data of a run, says what they are, and makes its folder with config.json."""
    refuse_earlier_run(workdir)
    if config.data.validation:
        raise ValueError(
            f"config.data.validation={config.data.validation!r}: only train.py holds data out; "
            "leave it empty"
        )
    dataset = datasets.load(config.data)
    make_workdir(config, workdir)
    return dataset
