"""An epoch as one program against the same update called from a Python loop.

    python experiments/benchmarks/epoch.py
    python experiments/benchmarks/epoch.py --folder=FOLDER_OF_FASHION_MNIST

On Fashion-MNIST where its files are at hand, else on random pixels of the same shape (the time does
not depend on the values). All variants train 60,000 x 784 with batches of 256 and plain SGD; they
take turns, and the median of the rounds is shown. Compilation is timed apart and left out.

The loops differ in what they do beside the update, which decides what they cost:

* ``uint8, unwaited``: hands the update raw pixels and never looks at a result: the least that a
  loop in Python can do.
* ``uint8, loss read``: reads the loss of each step, as a progress bar or a log does.
* ``float32, loss read``: the batches are converted to [0, 1] in NumPy first.
* ``products alone``: no training, only the two matrix products of each step as the update forms
  them, on one float32 batch that stays in cache: how much of an epoch is arithmetic.
* ``torch``: `torch.nn.Linear`, cross-entropy and `torch.optim.SGD` over float32 tensors that are
  in memory already, the loss never read; only if torch is installed.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from softmax_jax import model, training
from softmax_jax.data import Data, load

_FOLDER = flags.DEFINE_string("folder", "", "Folder with the IDX files of Fashion-MNIST.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each variant runs.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Rows a step.", lower_bound=1)

LEARNING_RATE = 0.1
SCALE = 1 / 255
OURS = "one program (ours)"


def pixels_and_labels(folder: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Fashion-MNIST, or random numbers of its shape, and which of them it is."""
    try:
        split = load("fashion_mnist", folder=folder).train
    except (ConnectionError, ImportError):
        if folder:
            raise
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, size=(60_000, 784), dtype=np.uint8)
        return x, rng.integers(10, size=60_000).astype(np.int32), "random pixels"
    return split.x, split.targets, "Fashion-MNIST"


def rows_of_batches(seed: int, n: int, batch_size: int) -> list[np.ndarray]:
    """Shuffled row numbers, cut into full batches."""
    order = np.random.default_rng(seed).permutation(n)
    return np.split(order[: n - n % batch_size], n // batch_size)


def python_loop(update, state, x, y, batch_size, *, convert: bool, read: bool) -> Callable:
    """An epoch by calls of ``update`` on NumPy batches."""

    def run(seed):
        running = state
        for rows in rows_of_batches(seed, len(x), batch_size):
            if convert:
                batch = Data(x[rows].astype(np.float32) / np.float32(255), y[rows])
            else:
                batch = Data(x[rows], y[rows], scale=SCALE)
            running, step_metrics = update(running, batch)
            if read:
                float(step_metrics.loss)
        jax.block_until_ready(running)

    return run


@partial(jax.jit, static_argnames="steps")
def products_alone(w: jax.Array, x: jax.Array, *, steps: int) -> jax.Array:
    """``steps`` times ``X W`` and ``X^T R``, each depending on the one before."""

    def step(w, _):
        scores = x @ w
        gradient = jax.lax.optimization_barrier(scores.T @ x).T
        return w - 1e-6 * gradient, None

    return jax.lax.scan(step, w, length=steps)[0]


def torch_loop(x: np.ndarray, y: np.ndarray, batch_size: int) -> Callable | None:
    """The same training in PyTorch, or None without it."""
    try:
        import torch
    except ImportError:
        return None
    x_tensor = torch.from_numpy(x.astype(np.float32) / np.float32(255))
    y_tensor = torch.from_numpy(y.astype(np.int64))
    linear = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.SGD(linear.parameters(), lr=LEARNING_RATE)

    def run(seed):
        for rows in rows_of_batches(seed, len(x), batch_size):
            index = torch.from_numpy(rows)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(linear(x_tensor[index]), y_tensor[index])
            loss.backward()
            optimizer.step()

    return run


def variants_of(x: np.ndarray, y: np.ndarray, batch_size: int) -> dict[str, Callable]:
    """Returns functions that train an epoch, from a seed; torch is one if it is installed."""
    optimizer = optax.sgd(LEARNING_RATE)
    params = model.init(jax.random.key(0), num_features=x.shape[1], num_classes=10)
    state = training.init(params, optimizer)
    data = Data(jnp.asarray(x), jnp.asarray(y), scale=jnp.float32(SCALE))
    epoch = training.make_epoch(optimizer, batch_size=batch_size)
    loop = partial(python_loop, training.make_update(optimizer), state, x, y, batch_size)
    resident = jnp.asarray(x[:batch_size], jnp.float32) / 255
    variants: dict[str, Callable | None] = {
        OURS: lambda seed: jax.block_until_ready(
            epoch(state._replace(key=jax.random.key(seed)), data)
        ),
        "loop, uint8, unwaited": loop(convert=False, read=False),
        "loop, uint8, loss read": loop(convert=False, read=True),
        "loop, float32, loss read": loop(convert=True, read=True),
        "products alone": lambda seed: jax.block_until_ready(
            products_alone(params.w, resident, steps=len(x) // batch_size)
        ),
        "torch": torch_loop(x, y, batch_size),
    }
    return {name: run for name, run in variants.items() if run is not None}


def seconds_of(variants: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each round; the variants take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run(round_number)
            if round_number > 0:  # the first one compiles and warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(seconds: Mapping[str, Sequence[float]], shape: tuple[int, ...]) -> None:
    """Prints medians, what they come to, and by how much ours is faster in the same round."""
    print(f"{'':28}{'s / epoch':>12}{'examples / s':>14}{'GFLOP/s':>9}{'ours is faster by':>20}")
    # Every step must at least read its pixels and multiply twice by [784, 10].
    flop = 2 * 2 * shape[0] * shape[1] * 10
    ours = statistics.median(seconds[OURS])
    for name, times in seconds.items():
        median = statistics.median(times)
        ratio = statistics.median([t / u for t, u in zip(times, seconds[OURS], strict=True)])
        print(
            f"{name:28}{median:12.4f}{shape[0] / median:14,.0f}{flop / median / 1e9:9.1f}"
            + (f"{ratio:19.2f}x" if median != ours else "")
        )
    if "torch" not in seconds:
        print("torch: not installed, not measured")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    x, y, name = pixels_and_labels(_FOLDER.value)
    batch_size = _BATCH_SIZE.value
    variants = variants_of(x, y, batch_size)
    start = time.perf_counter()
    variants[OURS](0)
    compile_seconds = time.perf_counter() - start
    seconds = seconds_of(variants, _ROUNDS.value)
    print(
        f"{name}: {x.shape[0]:,} x {x.shape[1]}, batch {batch_size}, on "
        f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()}); "
        f"median of {_ROUNDS.value} rounds; first call with compilation {compile_seconds:.2f} s"
    )
    print_table(seconds, x.shape)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
