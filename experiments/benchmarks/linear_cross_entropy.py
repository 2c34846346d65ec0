"""A head without its logits, beside the same loss with all of them, and beside other packages.

    python experiments/benchmarks/linear_cross_entropy.py
    python experiments/benchmarks/linear_cross_entropy.py --dtype=bfloat16 \
        --rows=16384 --features=4096 --classes=128256

Mean loss of class ids, and its gradient in x and w, compiled; medians of rounds in which all take
turns. Memory is what the compiled program needs besides arguments and results. Errors are relative
to the largest entry, against float64 of the same inputs by NumPy. ``materialised`` is optax on
logits in float32; `tokamax` and `jax-cce` take part where they are installed (``pip install tokamax
jax-cce``). On an accelerator, the share of its peak is that of 6 n d q FLOP in the time of a
gradient, where the peak is what a large product of the same type reaches in the same run.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softmax_jax.head import linear_cross_entropy

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Function of x, w and labels."""


class Compiled(NamedTuple):
    """A program, how long its compilation took, and the memory that it needs."""

    call: Callable[..., Any]
    seconds: float
    mebibytes: float


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--classes", type=int, default=65536)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken")
    parser.add_argument("--no-errors", action="store_true", help="leave out the float64 part")
    args = parser.parse_args(argv)
    del sys.argv[1:]  # tokamax would read them as its own
    n, d, q = args.rows, args.features, args.classes

    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (n, d)).astype(args.dtype)
    w = (jax.random.normal(keys[1], (d, q)) / d**0.5).astype(args.dtype)
    labels = jax.random.randint(keys[2], (n,), 0, q)

    device = jax.devices()[0]
    print(
        f"{n:,} x {d:,}, {q:,} classes, {args.dtype}, on {device.device_kind}; jax "
        f"{jax.__version__}; median of {args.rounds} rounds, without compilation"
    )
    programs: dict[str, dict[str, Compiled]] = {}
    for name, loss in all_losses().items():
        try:
            programs[name] = compiled(loss, x, w, labels, has_product=not name.startswith("peer"))
        except Exception as e:  # out of memory, or a package that this device or jax is not for
            print(f"{name} takes no part: {type(e).__name__}: {str(e).splitlines()[0][:150]}")
    seconds = timed(programs, (x, w, labels), args.rounds)
    exact = None if args.no_errors else reference(x, w, labels)
    peak = None if device.platform == "cpu" else peak_flops(args.dtype)
    heads = ["", "loss s", "gradient s", "ratio", "MiB", "Hessian s", "MiB", "compile s"]
    heads += ["loss error", "gradient"] if exact else []
    heads += ["of peak"] if peak else []
    print("".join(head.rjust(12) if head else " " * 22 for head in heads), flush=True)
    for name, parts in programs.items():
        cells = [f"{seconds[name, 'loss']:.3f}", f"{seconds[name, 'gradient']:.3f}"]
        base = seconds.get(("materialised", "gradient"))
        cells.append(f"{seconds[name, 'gradient'] / base:.2f}x" if base else "-")
        cells.append(f"{parts['gradient'].mebibytes:.1f}")
        if "product" in parts:
            cells += [f"{seconds[name, 'product']:.3f}", f"{parts['product'].mebibytes:.1f}"]
        else:
            cells += ["-", "-"]
        cells.append(f"{sum(part.seconds for part in parts.values()):.1f}")
        if exact:
            cells += errors(parts["gradient"].call(x, w, labels), exact)
        if peak:
            share = 6 * n * d * q / seconds[name, "gradient"] / peak
            cells.append(f"{share:.2f}")
        print(name.ljust(22) + "".join(cell.rjust(12) for cell in cells))
    if peak:
        print(f"peak of a product of two 8192 x 8192 in {args.dtype}: {peak / 1e12:.0f} TFLOP/s")


def all_losses() -> dict[str, Loss]:
    """Ours, the plain one, and those of the packages that are installed."""
    found: dict[str, Loss] = {
        "materialised": materialised,
        "ours, auto": functools.partial(ours, strategy="auto"),
        "ours, fused": functools.partial(ours, strategy="fused"),
        "ours, recompute": functools.partial(ours, strategy="recompute"),
    }
    try:
        from tokamax import linear_softmax_cross_entropy_loss
    except ImportError:
        print("tokamax is not installed")
    else:
        # Those of its implementations that run anywhere; its releases up to 0.0.12 have the first.
        for implementation in ("xla", "chunked_xla"):
            found[f"peer, tokamax {implementation}"] = functools.partial(
                linear_softmax_cross_entropy_loss, implementation=implementation, reduction="mean"
            )
    try:
        import jax_cce
    except ImportError:
        print("jax-cce is not installed")
    else:
        # It holds its weights as [q, d].
        found["peer, jax-cce"] = lambda x, labels, w: jax_cce.linear_cross_entropy(x, w.T, labels)
    return {
        name: loss if not name.startswith("peer") else with_labels_last(loss)
        for name, loss in found.items()
    }


def with_labels_last(loss: Callable[..., jax.Array]) -> Loss:
    return lambda x, w, labels: loss(x, labels, w)


def materialised(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jnp.matmul(x, w, preferred_element_type=jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def ours(x: jax.Array, w: jax.Array, labels: jax.Array, *, strategy: str) -> jax.Array:
    return jnp.mean(linear_cross_entropy(x, w, None, labels, strategy=strategy).loss)


def compiled(
    loss: Loss, x: jax.Array, w: jax.Array, labels: jax.Array, *, has_product: bool
) -> dict[str, Compiled]:
    """The loss, its gradient, and the product of its Hessian with a direction."""
    gradient = jax.grad(loss, argnums=(0, 1))

    def product(x, w, labels):
        return jax.jvp(lambda x, w: gradient(x, w, labels), (x, w), (x, w))[1]

    parts: dict[str, Callable[..., Any]] = {
        "loss": loss,
        "gradient": jax.value_and_grad(loss, argnums=(0, 1)),
    }
    if has_product:
        parts["product"] = product
    made = {}
    for name, part in parts.items():
        start = time.perf_counter()
        program = jax.jit(part).lower(x, w, labels).compile()
        seconds = time.perf_counter() - start
        memory: Any = program.memory_analysis()
        jax.block_until_ready(program(x, w, labels))
        made[name] = Compiled(program, seconds, memory.temp_size_in_bytes / 2**20)
    return made


def timed(
    programs: dict[str, dict[str, Compiled]], arguments: tuple[jax.Array, ...], rounds: int
) -> dict[tuple[str, str], float]:
    """Median seconds of each part of each program."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, parts in programs.items():
            for part, program in parts.items():
                start = time.perf_counter()
                jax.block_until_ready(program.call(*arguments))
                seconds.setdefault((name, part), []).append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


def reference(x: jax.Array, w: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
    """Mean loss and gradients in float64, some rows at a time."""
    wide_x, wide_w = (np.asarray(a).astype(np.float64) for a in (x, w))
    ids = np.asarray(labels)
    loss, w_gradient = 0.0, np.zeros(wide_w.shape)
    x_gradient = np.zeros(wide_x.shape)
    for start in range(0, len(ids), 128):
        rows = slice(start, start + 128)
        o = wide_x[rows] @ wide_w
        o -= o.max(axis=1, keepdims=True)
        at = np.arange(len(o)), ids[rows]
        loss -= o[at].sum()
        p = np.exp(o, out=o)
        total = p.sum(axis=1, keepdims=True)
        loss += np.log(total).sum()
        p /= total
        p[at] -= 1
        p /= len(ids)
        x_gradient[rows] = p @ wide_w.T
        w_gradient += wide_x[rows].T @ p
    return loss / len(ids), x_gradient, w_gradient


def errors(actual: Any, exact: tuple[Any, ...]) -> list[str]:
    """Returns the error of the loss, and the larger one of the gradients."""
    value, gradients = actual
    flat = [value, *gradients]
    relative = [
        float(np.max(np.abs(np.asarray(a).astype(np.float64) - e)) / np.max(np.abs(e)))
        for a, e in zip(flat, exact, strict=True)
    ]
    return [f"{relative[0]:.1e}", f"{max(relative[1:]):.1e}"]


def peak_flops(dtype: str) -> float:
    """Returns the FLOP a second of a large product."""
    a = jax.random.normal(jax.random.key(0), (8192, 8192)).astype(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - start)
    return 2 * 8192**3 / min(times)


if __name__ == "__main__":
    main(sys.argv[1:])
