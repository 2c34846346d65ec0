r"""Trains softmax regression from a config and reports what came of it.

    python experiments/train.py
    python experiments/train.py --config=experiments/configs/fashion_mnist.py \
        --config.data.folder=FOLDER --config.learning_rate=0.05 --workdir=DIR
    python experiments/train.py --config=experiments/configs/digits.py:smoke

The workdir gets config.json, metrics.jsonl (a row an epoch), summary.json, params.npz (w, b and
the scale of the features), curves.png and, for images, weights.png.
"""

import dataclasses
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

import gradcheck
import settings
from softmax_jax import data, figures, metrics, model, training
from softmax_jax.training import Batch

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, FILE.py or FILE.py:VARIANT, by default experiments/configs/digits.py; "
    "--config.KEY=VALUE changes a setting of it.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder for the results; by default a new one, runs/NAME-TIME."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error arose.")

T = TypeVar("T")


def make_optimizer(config: settings.Train, total_steps: int) -> optax.GradientTransformation:
    """The optimiser that the config names, with its schedule."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, total_steps)
    if config.optimizer == "adam":
        return optax.adam(rate)
    return optax.sgd(rate, momentum=0.9 if config.optimizer == "momentum" else None)


def train(config: settings.Train, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs the experiment; returns what it also writes to ``workdir/summary.json``."""
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

    train_data, test_data = (
        Batch(jnp.asarray(split.x), jnp.asarray(split.targets), scale=jnp.float32(dataset.scale))
        for split in (dataset.train, dataset.test)
    )
    steps_per_epoch = -(-num_train // config.batch_size)
    optimizer = make_optimizer(config, config.epochs * steps_per_epoch)
    init_key, order_key = jax.random.split(jax.random.key(config.seed))
    params = model.init(init_key, num_features=num_features, num_classes=len(dataset.class_names))
    state = training.init(params, optimizer, l2=config.l2, label_smoothing=config.label_smoothing)

    start = time.perf_counter()
    epoch_program = training.make_epoch(optimizer, batch_size=config.batch_size)
    run_epoch = epoch_program.lower(order_key, state, train_data).compile()
    measure = training.measure_blocks.lower(params, test_data).compile()
    compile_seconds = time.perf_counter() - start

    def epochs():
        """Yields the state after each epoch and its metrics, none of them waited for."""
        nonlocal state
        for epoch in range(1, config.epochs + 1):
            key = jax.random.fold_in(order_key, epoch)
            state, step_metrics = run_epoch(key, state, train_data)
            yield epoch, step_metrics, measure(state.params, test_data)

    start = time.perf_counter()
    rows = []
    with (
        (workdir / "metrics.jsonl").open("w") as log,
        tqdm(total=config.epochs, desc="epochs") as bar,
    ):
        # One epoch late, so that the device has the next one to do while this one is written down.
        for epoch, step_metrics, test_blocks in one_late(epochs()):
            scores = metrics.summarize(metrics.total(test_blocks))
            row = {
                "epoch": epoch,
                "step": epoch * steps_per_epoch,
                "train_loss": float(np.average(step_metrics.loss, weights=step_metrics.weight)),
                "train_accuracy": float(
                    np.average(step_metrics.accuracy, weights=step_metrics.weight)
                ),
                "test_loss": scores["nats"],
                "test_accuracy": scores["accuracy"],
                "seconds": time.perf_counter() - start,
            }
            if not np.isfinite([row["train_loss"], row["test_loss"]]).all():
                raise FloatingPointError(
                    f"the loss is {row['train_loss']} on training and {row['test_loss']} on test "
                    f"data in epoch {epoch}: training diverged at learning rate "
                    f"{config.learning_rate} and l2 {config.l2}; try a third of the learning rate"
                )
            rows.append(row)
            print(json.dumps(row, allow_nan=False), file=log, flush=True)
            bar.set_postfix_str(
                f"train loss {row['train_loss']:.4f} nats, "
                f"test accuracy {row['test_accuracy']:.4f}",
                refresh=False,
            )
            bar.update()
    train_seconds = time.perf_counter() - start

    check = gradcheck.check_model(
        state.params, test_data, l2=config.l2, label_smoothing=config.label_smoothing
    )
    summary = {
        "train": metrics.summarize(training.evaluate(state.params, train_data)),
        "test": metrics.summarize(training.evaluate(state.params, test_data)),
        "gradient_check": dataclasses.asdict(check),
        "compile_seconds": compile_seconds,
        "train_seconds": train_seconds,
        "examples_per_second": config.epochs * num_train / train_seconds,
        "device": jax.devices()[0].device_kind,
    }
    write_results(workdir, dataset, state.params, rows, summary)
    return summary


def write_results(
    workdir: pathlib.Path,
    dataset: data.Dataset,
    params: model.Params,
    rows: Sequence[dict[str, float]],
    summary: dict[str, Any],
) -> None:
    """Writes the parameters, the pictures, and last, to say that the run is whole, the summary."""
    stream = io.BytesIO()
    np.savez(stream, w=params.w, b=params.b, scale=dataset.scale)
    write_atomically(workdir / "params.npz", stream.getvalue())
    write_atomically(workdir / "curves.png", figures.to_png(figures.learning_curves(rows)))
    if dataset.image_shape is not None:
        images = figures.weight_images(params.w, dataset.image_shape, dataset.class_names)
        write_atomically(workdir / "weights.png", figures.to_png(images))
    write_atomically(workdir / "summary.json", to_json(summary))


def one_late(iterator: Iterator[T]) -> Iterator[T]:
    """The same items, each handed out after the next one was asked for."""
    previous = next(iterator)
    for item in iterator:
        yield previous
        previous = item
    yield previous


def report(summary: dict[str, Any]) -> str:
    """The last table of a run."""
    lines = [f"{'':18}{'train':>10}{'test':>10}"]
    for name, key in (("loss (nats)", "nats"), ("loss (bits)", "bits"), ("accuracy", "accuracy")):
        lines.append(f"{name:18}{summary['train'][key]:10.4f}{summary['test'][key]:10.4f}")
    check = gradcheck.Check(**summary["gradient_check"])
    return "\n".join([*lines, "", f"gradient check    {check}"])


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


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are --config.KEY=VALUE")
    workdir = _WORKDIR.value
    try:
        config = settings.from_config(_CONFIG.value)
        name = pathlib.Path(config.data.name).stem
        workdir = workdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        summary = train(config, pathlib.Path(workdir))
    except (ValueError, OSError, FloatingPointError) as e:
        if _TRACEBACK.value:
            raise
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; what there is so far is in {workdir}")
    print(report(summary))
    print(f"\nresults in {workdir}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=partial(settings.parse_flags, default="digits"))
