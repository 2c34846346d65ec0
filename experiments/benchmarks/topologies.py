r"""Compiles the library's programs for TPU slices, without a TPU, and prints what each would take.

    pip install "libtpu==0.0.42.*"      # for jax 0.10.2; on Linux, of any processor
    python experiments/benchmarks/topologies.py
    python experiments/benchmarks/topologies.py --slices v5e:4x4 --programs head-classes

XLA for TPUs compiles ahead of time for a description of the machine. From each compiled program the
table has the bytes of its arguments on a device, those that it holds beside them, and the
collectives with the bytes that come of each, those in loops once. The time is a model, not a
measurement: the largest of the products at peak, the traffic of arguments and results with memory,
and the collectives over one link, from the vendor's data sheets (cloud.google.com/tpu/docs). It
leaves out latencies, and whatever does not overlap.

Programs: an ``update`` of minibatches of 4,096 of 1.28 million x 2,048 bfloat16 features and 1,000
classes, over all devices; a ``sweep`` of eight such; a ``head`` of 32,768 rows x 4,096 features x
1,048,576 classes, its loss and gradient, by each strategy, with the rows over all devices or, as
``head-classes``, the classes; a ``solver`` step and its ``certificate`` on 1.28 million x 2,048 x
1,000. The step of the solver compiles for many minutes. The certificate is in float64, which a TPU
makes of two numbers of float32.
"""

import argparse
import collections
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from softmax_jax import Data, Params, ensemble, head, parallel, solvers, training
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import certificate as certificates
from softmax_jax.solvers.methods import quasi_newton
from softmax_jax.solvers.problem import Problem

# As many as ImageNet has, filled up for 16 blocks over 256 chips.
ROWS, FEATURES, CLASSES = 1_282_048, 2_048, 1_000
HEAD_ROWS, HEAD_FEATURES, HEAD_CLASSES = 32_768, 4_096, 1_048_576
BATCH, MEMBERS = 4_096, 8


class Chip(NamedTuple):
    """Figures of the vendor's data sheet, for a chip."""

    flops: float
    """Products of bfloat16, a second."""
    memory: float
    """Bytes a second."""
    link: float
    """Bytes a second over a link in one direction."""


CHIPS = {"v5e": Chip(197e12, 819e9, 50e9), "v5p": Chip(459e12, 2765e9, 100e9)}
SLICES = ("v5e:1x1", "v5e:4x4", "v5e:16x16", "v5p:4x4x4")
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)
ARRAY = re.compile(r"(pred|[a-z]+(\d+))\[([\d,]*)\]")


class Lowered(NamedTuple):
    """A program before it is compiled, and the work of all devices."""

    program: jax.stages.Lowered
    flop: float
    """FLOP of its products."""
    traffic: float
    """Bytes that are read and written in memory at least."""


def struct(shape: tuple[int, ...], dtype: Any, *spec: str | None) -> Any:
    """Returns an array that is not there, and where it would lie on the mesh that is set."""
    place = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def everywhere(tree: Any) -> Any:
    """Returns the arrays of a tree, each on all devices."""
    return jax.tree.map(lambda a: struct(a.shape, a.dtype), tree)


def update(members: int = 1) -> Lowered:
    """Returns an epoch of one model, or of several side by side."""
    optimizer = optax.adam(1e-3)

    def begin(key):
        params = Params(jnp.zeros((FEATURES, CLASSES)), jnp.zeros(CLASSES))
        return training.init(params, optimizer, key=key, l2=1e-6)

    parts = parallel.extent(parallel.DATA)
    if members == 1:
        state = jax.eval_shape(lambda: begin(jax.random.key(0)))
        epoch = training.make_epoch(optimizer, batch_size=BATCH, parts=parts)
    else:
        state = jax.eval_shape(
            lambda: ensemble.stack([begin(jax.random.key(0))] * members, shared_order=True)
        )
        epoch = ensemble.make_epoch(optimizer, batch_size=BATCH, shared_order=True, parts=parts)
    data = Data(
        struct((ROWS, FEATURES), jnp.bfloat16, parallel.DATA),
        struct((ROWS,), jnp.int32, parallel.DATA),
    )
    stop = () if members == 1 else (None,)
    flop = 4.0 * BATCH * FEATURES * CLASSES * members
    # Rows of a minibatch; parameters, gradient and two moments on each device, read and written.
    state_bytes = 4.0 * members * FEATURES * CLASSES * parts
    traffic = 2 * 2.0 * BATCH * FEATURES + 7 * state_bytes
    return Lowered(epoch.lower(everywhere(state), data, *stop), flop, traffic)


def large_head(strategy: str) -> Lowered:
    """Returns the loss of a head and its gradient."""

    def loss(x, w, labels):
        return head.linear_cross_entropy(
            x, w, None, labels, reduction="mean", strategy=strategy, memory=2**28
        ).loss

    arguments = (
        struct((HEAD_ROWS, HEAD_FEATURES), jnp.bfloat16, parallel.DATA),
        struct((HEAD_FEATURES, HEAD_CLASSES), jnp.bfloat16, None, parallel.CLASSES),
        struct((HEAD_ROWS,), jnp.int32, parallel.DATA),
    )
    flop = (6.0 if strategy == "fused" else 8.0) * HEAD_ROWS * HEAD_FEATURES * HEAD_CLASSES
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments)
    # Features and weights, twice, and their gradients, on each device that has them.
    copies = parallel.extent(parallel.CLASSES), parallel.extent(parallel.DATA)
    numbers = HEAD_ROWS * HEAD_FEATURES * copies[0] + HEAD_FEATURES * HEAD_CLASSES * copies[1]
    return Lowered(program, flop, 3 * 2.0 * numbers)


def problem_of(dtype: Any) -> Problem:
    """Returns a problem of the solvers in 16 blocks."""
    blocks = 16
    rows = ROWS // blocks
    per_feature = struct((FEATURES,), dtype)
    return Problem(
        x=struct((blocks, rows, FEATURES), jnp.bfloat16, None, parallel.DATA),
        center=struct((FEATURES,), jnp.float64),
        scale=struct((FEATURES,), jnp.float64),
        intercept=struct((), dtype),
        targets=struct((blocks, rows), jnp.int32, None, parallel.DATA),
        weights=struct((blocks, 1, rows), dtype, None, None, parallel.DATA),
        offset=None,
        penalty=Penalty(struct((1,), dtype), struct((1,), dtype), per_feature, class_axis=-2),
        active=struct((), jnp.int32),
    )


def solver() -> Lowered:
    """Returns steps of the default method, up to a look of the host."""
    method, problem = solvers.QuasiNewton(), problem_of(jnp.float32)
    sizes = method.sizes.decided(problem, CLASSES)
    method = solvers.QuasiNewton(sizes=sizes)
    theta = struct((1, CLASSES, 1 + FEATURES), jnp.float32)
    factor = struct((FEATURES,), jnp.float32)
    aids = everywhere(jax.eval_shape(lambda p, f: method.aids(p, f, CLASSES), problem, factor))
    # The functions without their own `jax.jit`, whose options only a program as a whole can have.
    blank, advance = (getattr(quasi_newton, name).__wrapped__ for name in ("_blank", "_advance"))
    state = jax.eval_shape(lambda *args: blank(method, *args), problem, aids, theta)
    rows_last = (None, None, None, parallel.DATA)

    def placed(a):
        is_of_rows = a.ndim == 4 and a.shape[-1] == problem.rows
        return struct(a.shape, a.dtype, *(rows_last if is_of_rows else ()))

    program = jax.jit(lambda *args: advance(method, *args), donate_argnums=2).lower(
        problem,
        aids,
        jax.tree.map(placed, state),
        struct((1,), jnp.float32),
        struct((), jnp.int32),
        struct((), jnp.bool_),
    )
    # Features twice, and the logits some ten times.
    traffic = 2 * 2.0 * ROWS * FEATURES + 10 * 4.0 * ROWS * CLASSES
    return Lowered(program, 4.0 * ROWS * FEATURES * CLASSES, traffic)


def certificate() -> Lowered:
    """Returns the certificate of a solution, in float64."""
    problem, theta = problem_of(jnp.float64), struct((1, CLASSES, 1 + FEATURES), jnp.float64)
    program = jax.jit(lambda p, theta: certificates.certify(p, theta, None)).lower(problem, theta)
    traffic = 2 * 2.0 * ROWS * FEATURES + 10 * 8.0 * ROWS * CLASSES
    return Lowered(program, 4.0 * ROWS * FEATURES * CLASSES, traffic)


PROGRAMS: dict[str, tuple[bool, Callable[[], Lowered]]] = {
    "update": (False, update),
    "sweep": (False, lambda: update(MEMBERS)),
    "head-recompute": (False, lambda: large_head("recompute")),
    "head-fused": (False, lambda: large_head("fused")),
    "head-classes-recompute": (True, lambda: large_head("recompute")),
    "head-classes-fused": (True, lambda: large_head("fused")),
    "solver": (False, solver),
    "certificate": (False, certificate),
}
"""Whether the classes lie over the devices, or the rows, and the program."""


def mesh_of(name: str, *, over_classes: bool) -> Mesh:
    """Returns the mesh of a slice, of all its devices along one axis."""
    options: dict[str, Any] = {}
    if name == "v5e:1x1":
        options = {"chips_per_host_bounds": (1, 1, 1)}
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    shape = (1, -1) if over_classes else (-1, 1)
    axes = (parallel.DATA, parallel.CLASSES)
    return Mesh(np.array(found.devices).reshape(shape), axes, axis_types=(AxisType.Auto,) * 2)


def collectives(text: str) -> dict[str, list[int]]:
    """Returns the bytes of the results of each collective in a compiled program, by kind."""
    found = collections.defaultdict(list)
    for line in text.splitlines():
        operation = COLLECTIVE.search(line)
        if operation is not None:
            arrays = ARRAY.findall(line[: operation.start()])
            sizes = (
                math.prod(map(int, filter(None, shape.split(",")))) * int(bits or 8) // 8
                for _, bits, shape in arrays
            )
            found[operation[1]].append(sum(sizes))
    return dict(found)


def measured(slice_name: str, names: list[str]) -> Iterator[str]:
    """Yields a line for each program."""
    chip = CHIPS[slice_name.split(":")[0]]
    for name in names:
        over_classes, make = PROGRAMS[name]
        mesh = mesh_of(slice_name, over_classes=over_classes)
        is_solver = name in ("solver", "certificate")
        with jax.set_mesh(mesh), jax.enable_x64(is_solver), jax.numpy_dtype_promotion("standard"):
            began = time.perf_counter()
            try:
                lowered = make()
                compiled = lowered.program.compile()
            except jax.errors.JaxRuntimeError as e:
                needed = re.search(
                    r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G", str(e)
                )
                why = (
                    f"{needed[1]} of {needed[2]} GiB: too little"
                    if needed
                    else str(e).splitlines()[0]
                )
                yield f"{slice_name} | {name} | {why}"
                continue
            seconds = time.perf_counter() - began
        memory: Any = compiled.memory_analysis()
        found = collectives(compiled.as_text() or "")
        times = {
            "products": lowered.flop / mesh.size / chip.flops,
            "memory": lowered.traffic / mesh.size / chip.memory,
            "links": 2 * sum(map(sum, found.values())) / chip.link,
        }
        most = max(times, key=lambda key: times[key])
        each = ", ".join(
            f"{len(sizes)} {kind} of {sum(sizes) / 1e6:.3g} MB" for kind, sizes in found.items()
        )
        yield (
            f"{slice_name} | {name} | {memory.argument_size_in_bytes / 2**30:.2f} | "
            f"{memory.temp_size_in_bytes / 2**30:.2f} | {each or 'none'} | "
            f"{1e3 * times[most]:.3g} ms, {most} | {seconds:.0f} s"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", nargs="+", default=list(SLICES), metavar="NAME")
    parser.add_argument(
        "--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS, metavar="NAME"
    )
    args = parser.parse_args()
    print("slice | program | arguments, GiB | beside them, GiB | collectives | least | compiled in")
    for name in args.slices:
        for line in measured(name, args.programs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
