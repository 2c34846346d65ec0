"""Blocks of rows: how many rows make one, where they lie, and loops over them.

Whatever is done a block at a time is done with these functions, and takes the size of a block as an
argument. The defaults below are the only ones. A loop on the host runs over `slices`. A loop in
a compiled program is a `scan` or a `total`; there all blocks have one size, so that one body is
compiled, and the last block is moved back to end with the data. The rows that it repeats are marked
and must count nothing.
"""

from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Integer, Shaped
from softmax_jax.checks import checked_count
from softmax_jax.data.streams import Stream, rows_at
from softmax_jax.data.types import Data

NUMBERS = 2**22
"""Numbers that a block holds where memory sets its size: 16 MiB in float32, 32 MiB in float64."""
CACHED = 1_600_000
"""Numbers of a block that is passed over again and again: 6 MiB in float32, which leaves room in a
last-level cache, and enough rows to share out."""
ROWS = 2**13
"""Rows of a block where rounding sets its size: as many are summed in float32 at a time."""

Index: TypeAlias = int | Integer[Array, ""]
"""Where a block starts: a number, or one that a compiled program forms."""

Carry = TypeVar("Carry")
Sums = TypeVar("Sums")
Tree = TypeVar("Tree")


def rows_within(numbers_a_row: int, *, numbers: int = NUMBERS) -> int:
    """Returns how many rows of so many numbers a block of ``numbers`` holds, at least one.

    Example:
      >>> rows_within(1024)
      4096
    """
    return max(numbers // max(numbers_a_row, 1), 1)


def slices(n: int, rows: int, *, start: int = 0) -> Iterator[slice]:
    """Yields the slices of at most ``rows`` rows that make up rows ``start`` to ``n``, in order.

    Raises:
      ValueError: if ``rows`` is not a positive integer.

    Example:
      >>> list(slices(5, 2))
      [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows = checked_count(rows, "block_size")
    return (slice(first, min(first + rows, n)) for first in range(start, n, rows))


def balanced(n: int, most: int) -> tuple[int, int]:
    """Returns the least number of blocks of at most ``most`` rows, and the rows of each.

    No rows at all make one block without rows.

    Example:
      >>> balanced(10, 4)
      (3, 4)
      >>> balanced(9, 4)
      (3, 3)
    """
    number = max(-(-n // max(min(most, n), 1)), 1)
    return number, -(-n // number)


def scan(
    visit: Callable[[Carry, Index, Bool[Array, " rows"]], tuple[Carry, Tree]],
    carry: Carry,
    n: int,
    most: int,
) -> tuple[Carry, Tree]:
    """Calls ``visit(carry, start, is_new) -> (carry, output)`` for blocks of one size.

    Args:
      visit: the body. A block has the rows from ``start`` on, as many as ``is_new: [rows]`` has
        entries; those where that is False were in the block before.
      carry: the first one.
      n: how many rows there are.
      most: rows of a block; all blocks have as many, or a few less.

    Returns:
      The last carry, and the outputs with an axis of blocks in front.

    Example:
      >>> x = jnp.arange(5.0)
      >>> def visit(carry, start, is_new):
      ...     block = rows_of(x, start, len(is_new))
      ...     return carry + jnp.sum(jnp.where(is_new, block, 0)), 2 * block
      >>> carry, doubled = scan(visit, jnp.zeros(()), n=5, most=2)
      >>> float(carry), joined(doubled, 5).tolist()
      (10.0, [0.0, 2.0, 4.0, 6.0, 8.0])
    """
    number, rows = balanced(n, most)
    if number == 1:
        carry, output = visit(carry, 0, jnp.ones(n, bool))
        return carry, jax.tree.map(lambda a: a[None], output)

    def step(carry: Carry, i: Integer[Array, ""]) -> tuple[Carry, Tree]:
        start = jnp.minimum(i * rows, n - rows)
        return visit(carry, start, start + jnp.arange(rows, dtype=jnp.int32) >= i * rows)

    return jax.lax.scan(step, carry, jnp.arange(number, dtype=jnp.int32))


def total(
    f: Callable[[Index, Bool[Array, " rows"]], Sums],
    n: int,
    most: int,
    *,
    axis: str | None = None,
) -> Sums:
    """Returns the sum of ``f(start, is_new)`` over blocks, a pytree of arrays; see `scan`.

    Args:
      f: sums over the rows of a block that are new.
      n: how many rows there are; of this device where there is an ``axis``.
      most: rows of a block.
      axis: a mesh axis, inside `jax.shard_map`, over which rows are spread; the sum is then that
        of all devices.

    Example:
      >>> x = jnp.arange(5.0)
      >>> def f(start, is_new):
      ...     return jnp.sum(jnp.where(is_new, rows_of(x, start, len(is_new)), 0))
      >>> float(total(f, n=5, most=2))
      10.0
    """

    def add(sums: Sums, start: Index, is_new: Bool[Array, " rows"]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, f(start, is_new)), None

    _, rows = balanced(n, most)
    shapes = jax.eval_shape(f, 0, jax.ShapeDtypeStruct((rows,), bool))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    if axis is not None:
        zero = jax.lax.pcast(zero, axis, to="varying")
    sums, _ = scan(add, zero, n, most)
    return sums if axis is None else jax.lax.psum(sums, axis)


def rows_of(arrays: Tree, start: Index, rows: int) -> Tree:
    """Returns ``rows`` rows of each array, or `Stream`, of a pytree, from ``start`` on.

    Example:
      >>> rows_of(jnp.arange(5), 1, 2).tolist()
      [1, 2]
    """

    def of(a: Shaped[Array, " n *each"] | Stream) -> Array:
        if isinstance(a, Stream):
            own = jnp.arange(rows, dtype=jnp.int32)
            # That is where `scan` goes on.
            return rows_at(a, start + own, jnp.minimum(start + rows, len(a) - rows) + own)
        return jax.lax.dynamic_slice_in_dim(a, start, rows) if rows < len(a) else a

    return jax.tree.map(of, arrays, is_leaf=lambda a: isinstance(a, Stream))


def joined(outputs: Tree, n: int) -> Tree:
    """Returns the rows of outputs ``[blocks, rows, ...]`` of `scan` once each: ``[n, ...]``.

    Example:
      >>> joined(jnp.array([[0, 1], [2, 3], [3, 4]]), 5).tolist()  # the last block was moved back
      [0, 1, 2, 3, 4]
    """

    def one(a: Shaped[Array, "blocks rows *each"]) -> Shaped[Array, " n *each"]:
        if len(a) == 1:
            return a[0]
        seen = a.shape[0] * a.shape[1] - n
        return jnp.concatenate([a[:-1].reshape(-1, *a.shape[2:]), a[-1, seen:]])

    return jax.tree.map(one, outputs)


def block_of(data: Data, start: Index, is_new: Bool[Array, " rows"]) -> Data:
    """Returns a block of examples, in which those that are not new have weight zero; see `scan`.

    Example:
      >>> data = Data(x=jnp.eye(3), targets=jnp.array([0, 1, 2]))
      >>> block = block_of(data, 1, jnp.array([False, True]))
      >>> block.targets.tolist(), block.weights.tolist()
      ([1, 2], [0.0, 1.0])
    """
    rows = len(is_new)
    weights = is_new.astype(jnp.float32)
    if data.weights is not None:
        weights = jnp.where(is_new, rows_of(data.weights, start, rows), 0)
    x, targets = rows_of((data.x, data.targets), start, rows)
    return data._replace(x=x, targets=targets, weights=weights)


def take(
    data: Data,
    rows: Integer[Array, "parts rows"],
    is_real: Bool[Array, " rows"] | None = None,
    following: Integer[Array, "parts rows"] | None = None,
) -> Data:
    """Returns the examples of the given rows, with weight zero where they are filling.

    Args:
      data: the examples, in parts of as many consecutive ones.
      rows: numbers of rows within each part, all of them valid.
      is_real: where they are no filling, in all parts alike; None for everywhere.
      following: the rows that are taken next, which are read meanwhile if they are a `Stream`.

    Example:
      >>> data = Data(x=jnp.eye(4), targets=jnp.array([0, 1, 2, 3]))
      >>> batch = take(data, jnp.array([[2, 0]]), jnp.array([True, False]))
      >>> batch.targets.tolist(), batch.weights.tolist()
      ([2, 0], [1.0, 0.0])
      >>> take(data, jnp.array([[1], [0]])).targets.tolist()  # of rows 0 and 1, and of 2 and 3
      [1, 2]
    """
    parts = len(rows)

    def of_part(a: Shaped[Array, " n *each"], own: Integer[Array, " rows"]) -> Array:
        return a.at[own].get(mode="promise_in_bounds")

    def at(a: Shaped[Array, " n *each"]) -> Shaped[Array, " rows *each"]:
        if parts == 1:
            return of_part(a, rows[0])
        taken = jax.vmap(of_part)(a.reshape(parts, -1, *a.shape[1:]), rows)
        return taken.reshape(-1, *a.shape[1:])

    def numbers(own: Integer[Array, "parts rows"]) -> Integer[Array, " rows"]:
        first = jnp.arange(parts, dtype=own.dtype)[:, None] * (len(data.x) // parts)
        return (own + first).reshape(-1)

    if isinstance(data.x, Stream):
        x = rows_at(data.x, numbers(rows), None if following is None else numbers(following))
    else:
        x = at(data.x)
    weights = None if data.weights is None else at(data.weights)
    if is_real is not None:
        is_real = jnp.tile(is_real, parts)
        weights = is_real.astype(jnp.float32) if weights is None else jnp.where(is_real, weights, 0)
    targets = jax.tree.map(at, data.targets)
    return data._replace(x=x, targets=targets, weights=weights)
