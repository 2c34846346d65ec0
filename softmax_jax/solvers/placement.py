"""Where the rows of a problem lie: on the device, or over the axis of rows of a mesh.

The rows of each block lie over all devices, so that the first blocks are a sample that all of them
share the work on. Everything else lies on each device. Programs are partitioned by XLA, which adds
up what the devices find.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from softmax_jax import parallel
from softmax_jax.solvers.problem import Problem
from softmax_jax.solvers.sparse import SparseRows


def placed(problem: Problem) -> Problem:
    """Returns the problem on its devices: those of the mesh that is set, or the default one.

    Sparse rows lie on each device of a mesh.
    """
    if parallel.extent(parallel.DATA) == 1:
        return jax.device_put(problem)
    mesh = jax.sharding.get_mesh()
    everywhere = NamedSharding(mesh, PartitionSpec())
    over_rows = NamedSharding(mesh, PartitionSpec(None, parallel.DATA))
    rows_last = NamedSharding(mesh, PartitionSpec(None, None, parallel.DATA))
    places = jax.tree.map(lambda _: everywhere, problem)._replace(
        targets=over_rows if problem.targets.ndim == 2 else rows_last,
        weights=rows_last,
        offset=None if problem.offset is None else rows_last,
    )
    if not isinstance(problem.x, SparseRows):
        places = places._replace(x=over_rows)
    return jax.device_put(problem, places)
