"""Training of a head of very many classes on generated data, with its lowest possible loss."""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from runs import files, folders, optimizers, row_plots, settings
from softmax_jax import io, processes, training
from softmax_jax.data import Data
from softmax_jax.head import SparseTargets, linear_cross_entropy
from softmax_jax.model import Params


def train(config: settings.Head, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, writes the results to ``workdir``, and returns the summary."""
    folders.refuse_earlier_run(workdir)
    share = optimizers.make_schedule(config.schedule, steps_of=config.steps_of)
    optimizer = optimizers.make(config.optimizer, share)
    folders.make_workdir(config, workdir)
    v = config.levels**config.features
    print(
        f"{v:,} classes, {config.features} features: {config.steps * config.batch_size:,} examples "
        f"with {config.draws} labels each"
    )
    params, rows, first_step = trained(config, optimizer)
    bayes, last = bayes_loss(config), rows[-1]
    summary = {
        "classes": v,
        "uniform_loss": math.log(v),
        "bayes_loss": bayes,
        "test_loss": bayes + last["excess"],
        "excess": last["excess"],
        "seconds": last["seconds"],
        "seconds_of_first_step": first_step,
        "logits_per_second": (config.steps - 1) * config.batch_size * v / last["seconds"],
        "device": jax.devices()[0].device_kind,
    }
    write(workdir, rows, summary, params)
    return summary


def trained(
    config: settings.Head, optimizer: optax.GradientTransformation
) -> tuple[Params, list[dict[str, Any]], float]:
    """Trains from zero; returns parameters, rows of metrics, and seconds of the first step.

    Raises:
      FloatingPointError: if the loss is no finite number.
    """
    key = jax.random.key(config.seed)
    test = generate(config, jax.random.fold_in(key, 0), config.test_rows)
    lowest = float(loss(true_params(config), *test))
    v = config.levels**config.features
    zero = Params(jnp.zeros((config.features, v)), jnp.zeros(v))
    state = training.init(zero, optimizer, learning_rate=config.learning_rate)
    update = training.make_update(optimizer)
    rows: list[dict[str, Any]] = []
    first, begun = time.perf_counter(), math.nan
    silent = not processes.is_first()
    with tqdm(total=config.steps, unit="step", desc="training", disable=silent) as bar:
        for step in range(1, config.steps + 1):
            x, targets = generate(config, jax.random.fold_in(key, step), config.batch_size)
            state, scores = update(state, Data(x, targets))
            if step == 1:
                # Compilation is in the first step.
                jax.block_until_ready(state)
                begun = time.perf_counter()
            if step % config.evaluate_every == 0 or step == config.steps:
                excess = float(loss(state.params, *test)) - lowest
                seconds = time.perf_counter() - begun
                row = {"step": step, "train_loss": float(scores.loss), "excess": excess}
                if not math.isfinite(excess):
                    raise FloatingPointError(
                        f"the loss is no finite number at step {step} with learning rate "
                        f"{config.learning_rate:g}: try a third of it and another --workdir"
                    )
                rows.append({**row, "seconds": seconds})
                bar.set_postfix_str(f"{excess:.4f} nats above the lowest", refresh=False)
            bar.update(1)
    return processes.on_host(state.params), rows, begun - first


def levels(config: settings.Head) -> np.ndarray:
    """Returns ``u``: ``[levels]``."""
    return np.linspace(-1, 1, config.levels)


def true_params(config: settings.Head) -> Params:
    """Returns the head whose distributions the labels are drawn from."""
    digits = np.indices((config.levels,) * config.features).reshape(config.features, -1)
    w = config.sharpness * levels(config)[digits]
    return Params(jnp.asarray(w, jnp.float32), jnp.zeros(w.shape[1]))


@functools.partial(jax.jit, static_argnums=(0, 2))
def generate(config: settings.Head, key: jax.Array, n: int) -> tuple[jax.Array, SparseTargets]:
    """Draws features ``[n, features]``, and for each row as many labels as ``draws``."""
    x_key, digit_key = jax.random.split(key)
    x = jax.random.normal(x_key, (n, config.features))
    logits = config.sharpness * x[:, :, None] * jnp.asarray(levels(config), x.dtype)[None, None]
    digits = jax.random.categorical(
        digit_key, logits[:, None], shape=(n, config.draws, config.features)
    )
    place = config.levels ** jnp.arange(config.features - 1, -1, -1)
    ids = jnp.sum(digits * place[None, None], axis=-1)
    return x, SparseTargets(ids, jnp.full(ids.shape, 1 / config.draws))


@jax.jit
def loss(params: Params, x: jax.Array, targets: SparseTargets) -> jax.Array:
    """Returns the mean cross-entropy in nats."""
    return jnp.mean(linear_cross_entropy(x, params.w, params.b, targets).loss)


def bayes_loss(config: settings.Head) -> float:
    """Returns the mean entropy of the labels given the features, in nats, by Gauss-Hermite rule."""
    x, weights = np.polynomial.hermite_e.hermegauss(200)
    logits = config.sharpness * x[:, None] * levels(config)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    entropy = -np.sum(np.exp(log_p) * log_p, axis=1)
    return config.features * float(weights @ entropy / weights.sum())


def write(
    workdir: pathlib.Path, rows: list[dict[str, Any]], summary: dict[str, Any], params: Params
) -> None:
    """Writes all files, the summary last: where it is, the run is whole."""
    files.write_rows(workdir / "metrics.jsonl", rows)
    io.save(workdir / io.PARAMS, params, dtype=np.float32)
    curve = row_plots.excess_curve(
        [row["step"] for row in rows], [row["excess"] for row in rows], summary["bayes_loss"]
    )
    files.write_picture(workdir / "curve.png", curve)
    files.write_json(workdir / "summary.json", summary)


def report(summary: dict[str, Any]) -> str:
    """Returns the losses and times at a glance."""
    return (
        f"a guess          {summary['uniform_loss']:.4f} nats\n"
        f"trained          {summary['test_loss']:.4f}\n"
        f"lowest possible  {summary['bayes_loss']:.4f}\n\n"
        f"{summary['seconds']:.0f} s of training, {summary['logits_per_second']:.2e} logits/s; "
        f"{summary['seconds_of_first_step']:.1f} s for the first step, with compilation"
    )
