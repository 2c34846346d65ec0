"""Random permutations without a sort."""

import math

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Integer, Shaped
from softmax_jax.checks import checked_count

_SMALL = 4096
_ROUNDS = 4


def permutation(key: Shaped[Array, "..."], n: int) -> Integer[Array, " {n}"]:
    """Returns a pseudo-random permutation of ``0, ..., n - 1``: int32 ``[n]``.

    `jax.random.permutation` sorts twice, which costs a good part of an epoch of softmax regression
    on a CPU. From 4096 on, this lays the indices on a grid of about √n rows and
    columns and alternately shifts each row by a random amount and each column by another, eight
    times: a Feistel network whose round functions are tables of true random numbers. Four such
    shifts already make a permutation that looks random to anyone who sees fewer than about n^¼
    entries (Luby and Rackoff 1988), more shifts to more (Patarin 2004). The cost is O(n) look-ups
    in tables of √n entries. Smaller ones come from `jax.random.permutation`.

    Raises:
      ValueError: if ``n`` is negative or does not fit int32.

    Example:
      >>> order = permutation(jax.random.key(0), 5000)
      >>> jnp.array_equal(jnp.sort(order), jnp.arange(5000)).item()
      True
    """
    n = checked_count(n, "n", 0)
    if n >= 2**31:
        raise ValueError(f"n must lie in [0, 2**31), to index with int32, got {n}")
    if n < _SMALL:
        return jax.random.permutation(key, n)

    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    key_of_rows, key_of_columns = jax.random.split(key)
    shift_of_row = jax.random.randint(key_of_rows, (_ROUNDS, rows), 0, columns)
    shift_of_column = jax.random.randint(key_of_columns, (_ROUNDS, columns), 0, rows)

    def walk(index):
        row, column = index // columns, index % columns
        for to_row, to_column in zip(shift_of_row, shift_of_column, strict=True):
            row = _add_modulo(row, to_column[column], rows)
            column = _add_modulo(column, to_row[row], columns)
        return row * columns + column

    # The grid has up to √n cells too many. An index that lands on one walks on until it is back
    # (Black and Rogaway 2002), which keeps the map one-to-one on the indices that exist.
    return jax.lax.while_loop(
        lambda index: jnp.any(index >= n),
        lambda index: jnp.where(index >= n, walk(index), index),
        walk(jnp.arange(n, dtype=jnp.int32)),
    )


def _add_modulo(
    a: Integer[Array, " n"], b: Integer[Array, " n"], modulus: int
) -> Integer[Array, " n"]:
    total = a + b
    return jnp.where(total >= modulus, total - modulus, total)
