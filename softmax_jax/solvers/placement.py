"""Where the rows of a problem lie: on the device, or over the axis of rows of a mesh.

The rows of each block lie over all devices, so that the first blocks are a sample that all of them
share the work on. Everything else lies on each device. Programs are partitioned by XLA, but for
sums over the rows that are as large as the parameters: each device forms its own over all blocks,
and these are added up once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from softmax_jax import parallel, processes
from softmax_jax._annotations import Array, Shaped
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.streamed import StreamedRows

Sums = TypeVar("Sums")

_EVERYWHERE, _OF_BLOCKS = PartitionSpec(), PartitionSpec(None, parallel.DATA)
_ROWS_LAST = {rank: PartitionSpec(*[None] * (rank - 1), parallel.DATA) for rank in range(1, 5)}


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
    of_rows: Shaped[Array, "blocks k q rows"],
    *others: Shaped[Array, "..."],
) -> Sums:
    """Returns ``sums(problem, of_rows, *others)``, which each device forms for its own rows.

    Args:
      sums: function that sums over the rows that it is given.
      problem: the rows.
      of_rows: an array with an axis of rows at the end.
      others: arrays that all devices have.
    """
    if parallel.extent(parallel.DATA) == 1 or isinstance(problem.x, SparseRows):
        return sums(problem, of_rows, *others)
    return jax.shard_map(
        lambda *arguments: jax.lax.psum(sums(*arguments), parallel.DATA),
        in_specs=(_places(problem), _ROWS_LAST[4], *[_EVERYWHERE] * len(others)),
        out_specs=_EVERYWHERE,
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
