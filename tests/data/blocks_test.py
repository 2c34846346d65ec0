import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax.data import Data, blocks


@pytest.mark.parametrize("rows", [1, 3, 4, 10, 11, 100])
def test_slices_are_all_rows_once(rows):
    at = list(blocks.slices(10, rows))
    assert max(len(range(10)[s]) for s in at) <= rows
    assert [row for s in at for row in range(10)[s]] == list(range(10))
    assert [row for s in blocks.slices(10, rows, start=4) for row in range(10)[s]] == [
        *range(4, 10)
    ]


@pytest.mark.parametrize("rows", [0, 2.5])
def test_blocks_without_rows_are_refused(rows):
    with pytest.raises(ValueError, match="block_size"):
        blocks.slices(10, rows)


@pytest.mark.parametrize(("numbers", "rows"), [(0, 100), (1, 100), (30, 3), (101, 1)])
def test_a_block_holds_so_many_numbers(numbers, rows):
    assert blocks.rows_within(numbers, numbers=100) == rows


@pytest.mark.parametrize("most", [1, 3, 4, 10, 100])
def test_a_scan_sees_each_row_once(most):
    x = np.arange(10.0, dtype=np.float32)

    @jax.jit
    def run(x):
        def visit(carry, start, is_new):
            own = blocks.rows_of(x, start, len(is_new))
            return carry + jnp.sum(jnp.where(is_new, own, 0)), own

        return blocks.scan(visit, jnp.float32(0), 10, most)

    carry, outputs = run(x)
    assert carry == 45
    assert outputs.shape[1] <= most
    np.testing.assert_array_equal(blocks.joined(outputs, 10), x)


@pytest.mark.parametrize("most", [1, 3, 10])
@pytest.mark.parametrize("weighted", [False, True])
def test_repeated_rows_of_a_block_weigh_nothing(most, weighted):
    weights = jnp.arange(10.0, dtype=jnp.float32) if weighted else None
    data = Data(jnp.ones((10, 2)), jnp.arange(10), weights, scale=3.0)

    def weight(start, is_new):
        block = blocks.block_of(data, start, is_new)
        assert block.scale == 3.0
        return {
            "weight": jnp.sum(block.weights),
            "ids": jnp.sum(block.weights * block.targets.astype(jnp.float32)),
        }

    sums = blocks.total(weight, 10, most)
    s = np.arange(10.0) if weighted else np.ones(10)
    assert jax.tree.map(float, sums) == {"weight": s.sum(), "ids": s @ np.arange(10)}


ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp
from softmax_jax.data import blocks
jax.config.update("jax_num_cpu_devices", 4)

def total(x):
    def own(start, is_new):
        return jnp.sum(jnp.where(is_new, blocks.rows_of(x, start, len(is_new)), 0))

    return blocks.total(own, len(x), 2, axis="rows")

mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
spec = jax.sharding.PartitionSpec
run = jax.shard_map(total, mesh=mesh, in_specs=spec("rows"), out_specs=spec())
print(jax.jit(run)(jnp.arange(12.0)))
"""


@pytest.mark.slow
def test_a_total_is_over_the_devices_of_a_mesh_axis():
    command = [sys.executable, "-c", ON_FOUR_DEVICES]
    assert float(subprocess.run(command, check=True, capture_output=True).stdout) == 66


@pytest.mark.parametrize("weights", [None, np.arange(5.0, dtype=np.float32)])
def test_filling_is_taken_with_weight_zero(weights):
    data = Data(jnp.arange(10.0).reshape(5, 2), jnp.arange(5), weights)
    if weights is not None:
        data = data._replace(weights=jnp.asarray(weights))
    taken = blocks.take(data, jnp.array([[3, 1, 0]]), jnp.array([True, True, False]))
    np.testing.assert_array_equal(taken.x, [[6, 7], [2, 3], [0, 1]])
    np.testing.assert_array_equal(taken.targets, [3, 1, 0])
    np.testing.assert_array_equal(taken.weights, [1, 1, 0] if weights is None else [3, 1, 0])
    whole = blocks.take(data, jnp.array([[2]]))
    assert (whole.weights is None) == (weights is None)
