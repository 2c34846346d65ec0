"""Where the rows of a problem lie: on the device, or over the axis of rows of a mesh.

The rows of each block lie over all devices, so that the first blocks are a sample that all of them
share the work on. Everything else lies on each device. Programs are partitioned by XLA, but for
sums over the rows: each device forms its own over all blocks, and these are added up once.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from softmax_jax import parallel, processes
from softmax_jax._annotations import Array, Float, PyTree, Shaped
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.streamed import StreamedRows

Sums = TypeVar("Sums")
Filled = TypeVar("Filled")

_EVERYWHERE, _OF_BLOCKS = PartitionSpec(), PartitionSpec(None, parallel.DATA)
_ROWS_LAST = {rank: PartitionSpec(*[None] * (rank - 1), parallel.DATA) for rank in range(1, 5)}


def added_up(sums: Sums) -> Sums:
    """Returns the sums of all devices, in a program that each device has for itself."""

    def one(a):
        if a.dtype != np.float64:
            return jax.lax.psum(a, parallel.DATA)
        return jax.lax.platform_dependent(
            a, tpu=added_up_in_limbs, default=lambda a: jax.lax.psum(a, parallel.DATA)
        )

    return jax.tree.map(one, sums)


def added_up_in_limbs(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Returns a sum over all devices in float64, of sums in float32 that are exact.

    XLA for TPUs adds up float64 over chips in some programs alone (libtpu 0.0.42). With
    :math:`p \ge \max |a|`, a number is :math:`p \sum_k l_k` of multiples :math:`l_k` of
    :math:`2^{-bk}`, :math:`|l_k| \le 2^{-b(k - 1)}`. Their sums over D devices have no more than
    the 24 bits of float32 if :math:`2^{b + 1} D \le 2^{24}`. What is left out is :math:`2^{-53} p`.
    """
    bits = 23 - math.ceil(math.log2(jax.lax.axis_size(parallel.DATA)))
    most = jnp.max(jax.lax.all_gather(jnp.max(jnp.abs(a)).astype(np.float32), parallel.DATA))
    scale = jnp.exp2(jnp.ceil(jnp.log2(jnp.where(most > 0, most, 1)))).astype(a.dtype)
    rest, limbs = a / scale, []
    for k in range(1, -(-53 // bits) + 1):
        limb = jnp.round(rest * 2.0 ** (bits * k)) * 2.0 ** (-bits * k)
        limbs.append(limb.astype(np.float32))
        rest = rest - limb
    total = jax.lax.psum(jnp.stack(limbs), parallel.DATA)
    return scale * jnp.sum(total.astype(a.dtype), axis=0)


def largest_of_all(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the largest numbers of all devices, likewise."""
    return jnp.max(jax.lax.all_gather(a, parallel.DATA), axis=0)


def placed(problem: Problem) -> Problem:
    """Returns the problem on its devices: those of the mesh that is set, or the default one.

    Sparse rows lie on each device of a mesh.
    """
    if parallel.extent(parallel.DATA) == 1:
        return jax.device_put(problem)
    mesh = jax.sharding.get_mesh()
    places = jax.tree.map(lambda place: NamedSharding(mesh, place), _places(problem))
    return jax.tree.map(processes.put, problem, places)


def summed_over_devices(
    sums: Callable[..., Sums],
    problem: Problem,
    of_rows: PyTree,
    *others: Shaped[Array, "..."],
    combined: Callable[[Sums], Sums] = added_up,
) -> Sums:
    """Returns ``sums(problem, of_rows, *others)``, which each device forms for its own rows.

    Args:
      sums: function that sums over the rows that it is given.
      problem: the rows.
      of_rows: arrays with an axis of rows at the end.
      others: arrays that all devices have.
      combined: makes one of the sums of all devices, by a collective over their axis.
    """
    if parallel.extent(parallel.DATA) == 1 or isinstance(problem.x, SparseRows):
        return sums(problem, of_rows, *others)
    return _on_each_device(
        lambda *arguments: combined(sums(*arguments)), _EVERYWHERE, problem, of_rows, others
    )


def summed_and_filled(
    function: Callable[..., tuple[Sums, Filled]],
    problem: Problem,
    of_rows: PyTree,
    *others: Shaped[Array, "..."],
) -> tuple[Sums, Filled]:
    """Does what `summed_over_devices` does, of sums, and of arrays ``[blocks, k, q, rows]``."""
    if parallel.extent(parallel.DATA) == 1 or isinstance(problem.x, SparseRows):
        return function(problem, of_rows, *others)

    def on_device(*arguments):
        sums, filled = function(*arguments)
        return added_up(sums), filled

    return _on_each_device(on_device, (_EVERYWHERE, _ROWS_LAST[4]), problem, of_rows, others)


def _on_each_device(
    function: Callable[..., Any],
    places: Any,
    problem: Problem,
    of_rows: PyTree,
    others: tuple[Shaped[Array, "..."], ...],
) -> Any:
    rows_last = jax.tree.map(lambda a: _ROWS_LAST[a.ndim], of_rows)
    return jax.shard_map(
        function,
        in_specs=(_places(problem), rows_last, *[_EVERYWHERE] * len(others)),
        out_specs=places,
        axis_names={parallel.DATA},
        check_vma=False,
    )(problem, of_rows, *others)


def _places(problem: Problem) -> Any:
    """Returns where each part of a problem lies."""
    x = jax.tree.map(lambda _: _EVERYWHERE, problem.x)
    if isinstance(problem.x, StreamedRows):
        x = dataclasses.replace(x, order=_OF_BLOCKS)
    elif not isinstance(problem.x, SparseRows):
        x = _OF_BLOCKS
    return jax.tree.map(lambda _: _EVERYWHERE, problem)._replace(
        x=x,
        targets=_ROWS_LAST[problem.targets.ndim],
        weights=_ROWS_LAST[3],
        offset=None if problem.offset is None else _ROWS_LAST[3],
    )
