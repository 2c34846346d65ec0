"""The command line of a script: flags to settings, and errors to a line and an exit code."""

import contextlib
import gc
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
from absl import app, logging
from absl import flags as absl_flags
from ml_collections import config_flags

from runs import compilation, flags, folders, output, settings, together
from runs.signals import Interrupted
from softmax_jax import parallel, processes

# So that --help counts the flags as the script's own.
absl_flags.disclaim_key_flags()


def run(
    experiment: Callable[[Any, pathlib.Path], Any],
    report: Callable[[Any], str],
    cls: type,
    *,
    default: str,
) -> None:
    """Runs a script: flags to settings, ``experiment(settings, workdir)``, and its report.

    Bad input ends in a line and exit code 1.

    Args:
      experiment: takes settings and the folder for its results.
      report: returns what to print of what the experiment returned.
      cls: the type of the settings.
      default: name of the config that is taken without ``--config``.
    """
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        f"Config file, FILE.py or FILE.py:VARIANT, by default experiments/configs/{default}.py; "
        "--config.KEY=VALUE changes a setting of it.",
        lock_config=True,
    )
    workdir = absl_flags.DEFINE_string(
        "workdir", "", "Folder for the results; by default a new one, runs/NAME-TIME."
    )
    traceback = absl_flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")
    coordinator = absl_flags.DEFINE_string(
        "coordinator",
        "",
        "Of a run of several processes: HOST:PORT of the first, or 'cluster' for what Slurm, Open "
        "MPI, Kubernetes or Cloud TPU say. All get the same settings; the first one writes.",
    )
    num_processes = absl_flags.DEFINE_integer(
        "num_processes", None, "How many processes there are, unless the cluster says it."
    )
    process_id = absl_flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
    cache = absl_flags.DEFINE_bool(
        "compilation_cache",
        True,
        "Keep compiled programs in $XDG_CACHE_HOME/softmax_jax/compiled, by default in ~/.cache, "
        "for the next run; where $JAX_COMPILATION_CACHE_DIR is set, there.",
    )

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(
                f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE"
            )
        prepare(cache=cache.value)
        with errors_in_a_line(traceback.value), contextlib.ExitStack() as stack:
            made = flags.from_config(config.value, cls)
            together.join(coordinator.value, num_processes.value, process_id.value)
            folder = given_folder(workdir.value)
            if folder is None and processes.is_first():
                folder = stack.enter_context(folders.new_folder(f"runs/{made.title}"))
            stack.enter_context(devices(made))
            folder = stack.enter_context(together.own_folder(folder))
            with stops_in_a_line(folder, is_new=not workdir.value):
                results = experiment(made, folder)
        print(report(results))
        print(f"\nresults in {folder}")

    # Of a write that fails, orbax logs tracebacks, and its other writers print that their event
    # loop is gone; the error itself comes here.
    logging.set_verbosity(logging.FATAL)
    sys.excepthook = print_unless_loop_is_closed
    app.run(main, flags_parser=partial(flags.parse, default=default))


def devices(config: Any) -> contextlib.AbstractContextManager[Any]:
    """Sets the mesh of a config, if it has several devices.

    Raises:
      ValueError: if there are not as many.
    """
    mesh: settings.Mesh = config.mesh
    if mesh.data * mesh.classes == 1:
        return contextlib.nullcontext()
    # Threads of XLA on a CPU. Its devices wait for one another in them, and work takes others.
    os.environ.setdefault("NPROC", str(4 * mesh.data * mesh.classes))
    try:
        made = parallel.make_mesh(mesh.data, mesh.classes)
    except ValueError as e:
        is_cpu = jax.devices()[0].platform == "cpu"
        hint = "; JAX_NUM_CPU_DEVICES=8 makes several of a CPU" if is_cpu else ""
        raise ValueError(f"config.mesh: {e}{hint}") from e
    print(f"on {mesh.data} x {mesh.classes} devices: examples x classes")
    return jax.set_mesh(made)


def prepare(*, cache: bool) -> None:
    """Makes output outlast its readers, and compilation quick."""
    output.outlast_readers()
    if cache:
        compilation.use_cache()
    # What was imported stays, and tracing makes many objects. To look through all of them for
    # garbage, again and again, takes much of the time in which programs are traced.
    gc.freeze()
    gc.set_threshold(50_000)


def given_folder(workdir: str) -> pathlib.Path | None:
    """Returns the folder of ``--workdir``, or None if that is empty.

    Raises:
      ValueError: if it is none of this machine, or of a user who is not there.
    """
    if not workdir:
        return None
    if "://" in workdir:
        raise ValueError(f"--workdir={workdir}: give a folder of this machine")
    try:
        return pathlib.Path(workdir).expanduser()
    except RuntimeError as e:
        raise ValueError(f"--workdir={workdir}: {e}") from e


@contextlib.contextmanager
def errors_in_a_line(traceback: bool) -> Iterator[None]:
    """Ends the process with a line for an error that its user can do something about."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as e:
        if traceback:
            raise
        sys.exit(f"error: {e}")
    except jax.errors.JaxRuntimeError as e:
        if traceback or "RESOURCE_EXHAUSTED" not in str(e):
            raise
        line = str(e).splitlines()[0]
        sys.exit(f"error: {line}; a smaller config.sweep.memory or batch_size needs less")


@contextlib.contextmanager
def stops_in_a_line(folder: pathlib.Path, *, is_new: bool) -> Iterator[None]:
    """Ends the process, where a signal stops a run, with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"interrupted; what there is so far is in {folder}")
    except Interrupted as e:
        again = [*sys.argv, f"--workdir={folder}"] if is_new else sys.argv
        command = shlex.join([sys.executable, *again])
        print(f"stopped by {e}; to go on: {command}", file=sys.stderr)
        sys.exit(e.exit_code)


def print_unless_loop_is_closed(kind: Any, error: BaseException, trace: Any) -> None:
    """Prints an uncaught error, unless it is that of a writer of orbax after another's failure."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)
