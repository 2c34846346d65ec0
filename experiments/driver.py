"""What the drivers share: the command line, the start of a run, and files written whole."""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

import settings
from softmax_jax import data
from softmax_jax.training import Batch

# So that --help counts the flags as the script's own.
flags.disclaim_key_flags()


def run(
    experiment: Callable[[Any, pathlib.Path], Any],
    report: Callable[[Any], str],
    cls: type[settings.Train] | type[settings.Fit],
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
        folder = workdir.value
        try:
            made = settings.from_config(config.value, cls)
            name = pathlib.Path(made.data.name).stem
            folder = folder or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            results = experiment(made, pathlib.Path(folder))
        except (ValueError, OSError, FloatingPointError) as e:
            if traceback.value:
                raise
            sys.exit(f"error: {e}")
        except KeyboardInterrupt:
            sys.exit(f"interrupted; what there is so far is in {folder}")
        print(report(results))
        print(f"\nresults in {folder}")

    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=partial(settings.parse_flags, default=default))


def start(config: settings.Train | settings.Fit, workdir: pathlib.Path) -> data.Dataset:
    """Loads the data of a run, says what they are, and makes its folder with config.json."""
    refuse_earlier_run(workdir)
    dataset = data.load(config.data.name, folder=config.data.folder, data_dir=config.data.data_dir)
    num_train, num_features = dataset.train.x.shape
    print(
        f"{config.data.name}: {num_train:,} training and {len(dataset.test.x):,} test examples, "
        f"{num_features} features, {len(dataset.class_names)} classes"
    )
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "config.json").open("xb") as file:  # x: of two runs at once, one fails here
        file.write(to_json(dataclasses.asdict(config)))
    return dataset


def batches(dataset: data.Dataset) -> tuple[Batch, Batch]:
    """Training and test data on the device."""
    train, test = (
        Batch(jnp.asarray(split.x), jnp.asarray(split.targets), scale=jnp.float32(dataset.scale))
        for split in (dataset.train, dataset.test)
    )
    return train, test


def refuse_earlier_run(workdir: pathlib.Path) -> None:
    """Early, before the data are loaded."""
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is a file: give another --workdir")
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
