"""What the drivers share: the command line, the folder of a run, and files written whole."""

import contextlib
import dataclasses
import errno
import fnmatch
import hashlib
import itertools
import json
import os
import pathlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import output
import settings
from softmax_jax import checks, data, io
from softmax_jax.data import Data
from softmax_jax.io import write_atomically as write_atomically
from softmax_jax.model import Params

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# By which systems and schedulers say that a process will be ended, where there are such.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
]
# What a run that did not get to its config.json may leave in a folder.
LEFT = (".lock", "config.json.*.tmp")

ABSENT = object()

# So that --help counts the flags as the script's own.
flags.disclaim_key_flags()


class Interrupted(Exception):
    """By a signal, after which all that is needed to go on was saved."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run(
    experiment: Callable[[Any, pathlib.Path], Any],
    report: Callable[[Any], str],
    cls: type,
    *,
    default: str,
) -> None:
    """Runs a script: flags to settings, ``experiment(settings, workdir)``, and what it reports.

    Bad input ends in a line and exit code 1.
    """
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        f"Config file, FILE.py or FILE.py:VARIANT, by default experiments/configs/{default}.py; "
        "--config.KEY=VALUE changes a setting of it.",
        lock_config=True,
    )
    workdir = flags.DEFINE_string(
        "workdir", "", "Folder for the results; by default a new one, runs/NAME-TIME."
    )
    traceback = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(
                f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE"
            )
        output.outlast_readers()
        folder = pathlib.Path(workdir.value)
        try:
            made = settings.from_config(config.value, cls)
            if "://" in workdir.value:
                raise ValueError(f"--workdir={workdir.value}: give a folder of this machine")
            try:
                folder = folder.expanduser()
            except RuntimeError as e:
                raise ValueError(f"--workdir={workdir.value}: {e}") from e
            with contextlib.ExitStack() as stack:
                if not workdir.value:
                    folder = stack.enter_context(new_folder(f"runs/{made.title}"))
                results = experiment(made, folder)
        except (ValueError, OSError, FloatingPointError) as e:
            if traceback.value:
                raise
            sys.exit(f"error: {e}")
        except jax.errors.JaxRuntimeError as e:
            if traceback.value or "RESOURCE_EXHAUSTED" not in str(e):
                raise
            line = str(e).splitlines()[0]
            sys.exit(f"error: {line}; a smaller config.sweep.memory or batch_size needs less")
        except KeyboardInterrupt:
            sys.exit(f"interrupted; what there is so far is in {folder}")
        except Interrupted as e:
            again = sys.argv if workdir.value else [*sys.argv, f"--workdir={folder}"]
            command = shlex.join([sys.executable, *again])
            print(f"stopped by {e}; to go on: {command}", file=sys.stderr)
            sys.exit(e.exit_code)
        print(report(results))
        print(f"\nresults in {folder}")

    # Of a write that fails, orbax logs tracebacks, and its other writers print that their event
    # loop is gone; the error itself comes here.
    logging.set_verbosity(logging.FATAL)
    sys.excepthook = print_unless_loop_is_closed
    app.run(main, flags_parser=partial(settings.parse_flags, default=default))


@contextlib.contextmanager
def new_folder(name: str) -> Iterator[pathlib.Path]:
    """An empty folder NAME-TIME, of no other run; removed if an error leaves it empty."""
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


def start(config: settings.Fit | settings.Codelength, workdir: pathlib.Path) -> data.Dataset:
    """Loads the data of a run, says what they are, and makes its folder with config.json."""
    refuse_earlier_run(workdir)
    if config.data.validation:
        raise ValueError(
            f"config.data.validation={config.data.validation!r}: only train.py holds data out; "
            "leave it empty"
        )
    dataset = load(config.data)
    make_workdir(config, workdir)
    return dataset


def make_workdir(config: Any, workdir: pathlib.Path) -> None:
    """With config.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "config.json").open("xb") as file:  # x: of two runs at once, one fails here
        file.write(to_json(dataclasses.asdict(config)))


@contextlib.contextmanager
def claimed(config: settings.Train, workdir: pathlib.Path) -> Iterator[None]:
    """The folder with config.json, for this process alone; a run of it may have been here before.

    Raises:
      ValueError: if the folder holds a run of another config: says what differs; or if it holds
        other things and no run.
      OSError: if another process is at work in the folder, or nothing can be written there.
    """
    refuse_another_config(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        refuse_another_config(config, workdir)
        write_atomically(workdir / "config.json", to_json(dataclasses.asdict(config)))
        yield


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Two locks: a file, and, where the system has such, the folder itself.

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
    """Raises BlockingIOError if another process has it; none where the file system knows none."""
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


def print_unless_loop_is_closed(kind: Any, error: BaseException, trace: Any) -> None:
    """For `sys.excepthook`."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def load(source: settings.Data) -> data.Dataset:
    """The data set, with a line that says what it is, and names that can be written and drawn."""
    dataset = data.load(
        source.name,
        folder=source.folder,
        data_dir=source.data_dir,
        max_bytes=int(source.memory * 2**30),
    )
    dataset = dataset._replace(class_names=tuple(map(printable, dataset.class_names)))
    num_train, num_features = dataset.train.x.shape
    print(
        f"{source.name}: {num_train:,} training and {len(dataset.test.x):,} test examples, "
        f"{num_features} features, {len(dataset.class_names)} classes"
    )
    return dataset


def printable(name: str) -> str:
    """The name with halves of characters and what cannot be seen as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def digest(dataset: data.Dataset) -> str:
    """Of all features and targets."""
    found = hashlib.sha256(repr(dataset.train.scale).encode())
    for array in (*dataset.train[:2], *dataset.test[:2]):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def batches(dataset: data.Dataset) -> tuple[Data, Data]:
    """Training and test data on the device."""
    return batch(dataset.train), batch(dataset.test)


def batch(split: Data) -> Data:
    """A split of a data set on the device."""
    return jax.device_put(split._replace(scale=jnp.float32(split.scale)))


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
    """Ctrl-C, SIGTERM and warnings of a scheduler end nothing at first.

    The function tells which came, or 0. A second Ctrl-C or SIGTERM ends the process, as usual.
    """
    came = 0
    usual: dict[int, Any] = {}

    def note(number, frame):
        nonlocal came
        came = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, usual[each])

    if threading.current_thread() is threading.main_thread():
        for each in SIGNALS:
            # None is of a handler that is not Python's.
            usual[each] = signal.signal(each, note) or signal.SIG_DFL
            # Of nohup, which is to be left alone.
            if usual[each] is signal.SIG_IGN and each not in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_IGN)
    try:
        yield lambda: came
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


def save_params(
    workdir: pathlib.Path, dataset: data.Dataset, params: Params, **options: Any
) -> None:
    """Writes params.npz, which knows the features and the classes of its data set."""
    io.save(
        workdir / io.PARAMS,
        params,
        scale=dataset.train.scale,
        class_names=dataset.class_names,
        dtype=dataset.train.x.dtype,
        **options,
    )


def refuse_another_config(config: settings.Train, workdir: pathlib.Path) -> None:
    """Raises unless the folder can be made, is empty, or holds a run of this config."""
    refuse_what_is_no_run(workdir)
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        there = flat(read_json(path))
    except (ValueError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read ({e}): give another --workdir") from e
    here = flat(json.loads(to_json(dataclasses.asdict(config))))
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


def read_json(path: pathlib.Path) -> Any:
    """What a file holds.

    Raises:
      ValueError: if it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as ``outer.inner``."""
    items: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        items |= flat(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return items


def refuse_earlier_run(workdir: pathlib.Path) -> None:
    """Early, before the data are loaded."""
    refuse_what_is_no_run(workdir)
    if (workdir / "config.json").exists():
        raise FileExistsError(
            f"{workdir} already holds a run: give another --workdir, or remove it"
        )


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
