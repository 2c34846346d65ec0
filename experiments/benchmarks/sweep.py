"""A sweep in one program against its members one by one: seconds for an epoch of all of them.

    python experiments/benchmarks/sweep.py --folder=FOLDER_OF_FASHION_MNIST
    python experiments/benchmarks/sweep.py --members 4 16 64

The members differ in their learning rate and l2 and share the order of the examples. Both ways take
the same steps, and start from the same parameters; ``one by one`` runs the single program of
`softmax_jax.training.make_epoch`, which compiles once for all. Compilation is left out. The limit
is the time of the products alone, wide ones as they are in the one program.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softmax_jax import data as datasets
from softmax_jax import ensemble, model, training
from softmax_jax.data import Data

BATCH = 256


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        default="",
        help="with the IDX files of Fashion-MNIST; by default the one in $SOFTMAX_JAX_DATA",
    )
    parser.add_argument("--members", nargs="+", type=int, default=[64], help="sizes of the sweep")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken")
    args = parser.parse_args(argv)

    dataset = datasets.load("fashion_mnist", folder=args.folder)
    batch = jax.device_put(dataset.train)
    n, d = batch.x.shape
    q = len(dataset.class_names)
    params = model.init(jax.random.key(0), num_features=d, num_classes=q)
    print(
        f"Fashion-MNIST: {n:,} x {d}, batch {BATCH}, on {jax.devices()[0].device_kind} "
        f"({platform.processor() or platform.machine()}); seconds an epoch of all members, median "
        f"of {args.rounds} rounds, without compilation"
    )
    heads = (
        "members",
        "one by one",
        "one program",
        "ratio",
        "products alone",
        "GFLOP/s",
        "compilation",
    )
    print("".join(head.rjust(16) for head in heads))
    for m in args.members:
        print("".join(cell.rjust(16) for cell in line(m, params, batch, args.rounds)))


def line(m: int, params: model.Params, batch: Data, rounds: int) -> tuple[str, ...]:
    """The measurements of a sweep of ``m`` members."""
    (n, d), q = batch.x.shape, params.b.size
    optimizer = optax.sgd(1.0)
    stop = np.int32(2**30)
    epoch = training.make_epoch(optimizer, batch_size=BATCH)
    rates = np.geomspace(0.01, 0.5, m)
    states = [
        training.init(params, optimizer, learning_rate=rate, l2=1e-4 * i)
        for i, rate in enumerate(rates)
    ]
    together = ensemble.stack(states, shared_order=True)
    sweep = ensemble.make_epoch(optimizer, batch_size=BATCH, shared_order=True)
    start = time.perf_counter()
    program = sweep.lower(together, batch, stop).compile()
    compilation = time.perf_counter() - start
    products = jax.jit(products_alone, static_argnames="steps")
    x = jnp.ones((BATCH, d), jnp.float32)
    w = jnp.ones((d, m * q), jnp.float32)
    calls: dict[str, Callable[[], object]] = {
        "one by one": lambda: [epoch(state, batch, stop)[0].params for state in states],
        "one program": lambda: program(together, batch, stop)[0].params,
        "products alone": lambda: products(w, x, steps=-(-n // BATCH)),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            seconds = seconds_of(call)
            if i > 0:  # the first one compiles and warms up
                times[name].append(seconds)
    one_by_one, one_program, alone = (statistics.median(times[name]) for name in calls)
    ratio = statistics.median(
        a / b for a, b in zip(times["one by one"], times["one program"], strict=True)
    )
    flop = 4 * n * d * q * m
    return (
        f"{m}",
        f"{one_by_one:.3f} s",
        f"{one_program:.3f} s",
        f"{ratio:.2f}x",
        f"{alone:.3f} s",
        f"{flop / one_program / 1e9:.0f}",
        f"{compilation:.2f} s",
    )


def products_alone(w: jax.Array, x: jax.Array, *, steps: int) -> jax.Array:
    """The two products of each step, and nothing else."""

    def step(_, w):
        return w + 1e-30 * (x.T @ (x @ w))

    return jax.lax.fori_loop(0, steps, step, w)


if __name__ == "__main__":
    main(sys.argv[1:])
