"""The command line of a script: flags to settings, and errors to a line and an exit code."""

import contextlib
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from absl import app, logging
from absl import flags as absl_flags
from ml_collections import config_flags

from runs import flags, folders, output
from runs.signals import Interrupted

# So that --help counts the flags as the script's own.
absl_flags.disclaim_key_flags()


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
    workdir = absl_flags.DEFINE_string(
        "workdir", "", "Folder for the results; by default a new one, runs/NAME-TIME."
    )
    traceback = absl_flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")

    def main(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(
                f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE"
            )
        output.outlast_readers()
        folder = pathlib.Path(workdir.value)
        try:
            made = flags.from_config(config.value, cls)
            if "://" in workdir.value:
                raise ValueError(f"--workdir={workdir.value}: give a folder of this machine")
            try:
                folder = folder.expanduser()
            except RuntimeError as e:
                raise ValueError(f"--workdir={workdir.value}: {e}") from e
            with contextlib.ExitStack() as stack:
                if not workdir.value:
                    folder = stack.enter_context(folders.new_folder(f"runs/{made.title}"))
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
    app.run(main, flags_parser=partial(flags.parse, default=default))


def print_unless_loop_is_closed(kind: Any, error: BaseException, trace: Any) -> None:
    """For `sys.excepthook`."""
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)
