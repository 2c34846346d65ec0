"""What the drivers share: the command line, the folder of a run, and files written whole."""

import contextlib
import dataclasses
import hashlib
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

import settings
from softmax_jax import data
from softmax_jax.training import Batch

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
        folder = pathlib.Path(workdir.value)
        try:
            made = settings.from_config(config.value, cls)
            if "://" in workdir.value:
                raise ValueError(f"--workdir={workdir.value}: give a folder of this machine")
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = folder if workdir.value else pathlib.Path(f"runs/{made.title}-{stamp}")
            try:
                folder = folder.expanduser()
            except RuntimeError as e:
                raise ValueError(f"--workdir={workdir.value}: {e}") from e
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


def start(config: settings.Fit | settings.Codelength, workdir: pathlib.Path) -> data.Dataset:
    """Loads the data of a run, says what they are, and makes its folder with config.json."""
    refuse_earlier_run(workdir)
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
      ValueError: if the folder holds a run of another config: says what differs.
      OSError: if another process is at work in the folder, or nothing can be written there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workdir / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as e:
        raise OSError(
            f"another run is at work in {workdir}: wait for it, or give another --workdir"
        ) from e
    try:
        refuse_another_config(config, workdir)
        write_atomically(workdir / "config.json", to_json(dataclasses.asdict(config)))
        yield
    finally:
        lock.release()


def print_unless_loop_is_closed(kind: Any, error: BaseException, trace: Any) -> None:
    """For `sys.excepthook`."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def load(source: settings.Data) -> data.Dataset:
    """The data set, with a line that says what it is."""
    dataset = data.load(source.name, folder=source.folder, data_dir=source.data_dir)
    num_train, num_features = dataset.train.x.shape
    print(
        f"{source.name}: {num_train:,} training and {len(dataset.test.x):,} test examples, "
        f"{num_features} features, {len(dataset.class_names)} classes"
    )
    return dataset


def digest(dataset: data.Dataset) -> str:
    """Of all features and targets."""
    found = hashlib.sha256(repr(dataset.scale).encode())
    for array in (*dataset.train[:2], *dataset.test[:2]):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def batches(dataset: data.Dataset) -> tuple[Batch, Batch]:
    """Training and test data on the device."""
    train, test = (
        Batch(jnp.asarray(split.x), jnp.asarray(split.targets), scale=jnp.float32(dataset.scale))
        for split in (dataset.train, dataset.test)
    )
    return train, test


@contextlib.contextmanager
def signals_noted() -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM end nothing at first; the function tells which came, or 0.

    The second one ends the process, as usual.
    """
    came = 0
    usual: dict[int, Any] = {}

    def note(number, frame):
        nonlocal came
        came = number
        for each, handler in usual.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        usual = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for each, handler in usual.items():
            signal.signal(each, handler)


def refuse_another_config(config: settings.Train, workdir: pathlib.Path) -> None:
    """If the folder holds a run of one."""
    refuse_a_file(workdir)
    path = workdir / "config.json"
    if not path.exists():
        if (workdir / "checkpoints").exists():
            raise ValueError(
                f"{workdir} has checkpoints but no config.json, so that nobody knows whose they "
                "are: give another --workdir"
            )
        return
    try:
        there = flat(json.loads(path.read_text()))
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{path} cannot be read ({e}): give another --workdir") from e
    here = flat(json.loads(to_json(dataclasses.asdict(config))))
    different = [
        f"  {key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if different:
        lines = "\n".join(different)
        raise ValueError(
            f"{workdir} holds a run of another config; give another --workdir, or the same "
            f"settings for it to go on:\n{lines}"
        )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as ``outer.inner``."""
    items: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        items |= flat(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return items


def refuse_a_file(workdir: pathlib.Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is a file: give another --workdir")


def refuse_earlier_run(workdir: pathlib.Path) -> None:
    """Early, before the data are loaded."""
    refuse_a_file(workdir)
    if (workdir / "config.json").exists():
        raise FileExistsError(
            f"{workdir} already holds a run: give another --workdir, or remove it"
        )


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes under a temporary name and renames, so that no half of a file is ever left."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
