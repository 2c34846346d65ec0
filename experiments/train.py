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
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from tqdm import tqdm

import driver
import gradcheck
import settings
from softmax_jax import data, figures, metrics, model, training

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
    dataset = driver.start(config, workdir)
    train_data, test_data = driver.batches(dataset)
    num_train, num_features = train_data.x.shape
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
    driver.write_atomically(workdir / "params.npz", stream.getvalue())
    driver.write_atomically(workdir / "curves.png", figures.to_png(figures.learning_curves(rows)))
    if dataset.image_shape is not None:
        images = figures.weight_images(params.w, dataset.image_shape, dataset.class_names)
        driver.write_atomically(workdir / "weights.png", figures.to_png(images))
    driver.write_atomically(workdir / "summary.json", driver.to_json(summary))


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


if __name__ == "__main__":
    driver.run(train, report, settings.Train, default="digits")
