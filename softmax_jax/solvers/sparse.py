r"""Sparse rows, multiplied from either side without a dense copy and without a scatter.

:math:`X V` and :math:`X^\top R` are both sums over the entries of lines: of rows of V over those of
a row, of rows of R over those of a column. So the entries are stored twice, by rows and by columns.

Lines differ widely in their number of entries, as words do in texts. They are cut into pieces of 32
entries at most. Pieces of about one length share an array, filled up to one of three widths
(ELLPACK, in slices). The sums of a line in several pieces are added up in the same way, one level
up. Each sum is then a gather of contiguous rows, always in the same order; a scatter would be
serial on CPUs, and in any order on GPUs.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Float, Int, Integer, Num

# Entries of a piece. More widths would mean fewer zeros to fill lines with, but these are in the
# cache: products would take as long, and more time to compile.
_WIDTHS = (2, 8, 32)
_LONGEST = _WIDTHS[-1]
# Terms that are added at a time: sums stay in registers meanwhile.
_UNROLLED = 8


class Pieces(NamedTuple):
    """Pieces of up to ``width`` entries each; filling has the value zero."""

    at: Int[Array, "blocks width pieces"]
    """Rows of the operand that entries are multiplied with."""
    value: Num[Array, "blocks width pieces"]


class Lines(NamedTuple):
    """Entries of the rows, or of the columns, of each block."""

    levels: tuple[tuple[Pieces, ...], ...]
    """Pieces of the operand; then of the sums of those pieces; and so on."""
    place: Int[Array, "blocks lines"]
    """Place of each line among all sums; behind the last one where it has no entry."""


class SparseRows(NamedTuple):
    """Blocks of sparse rows."""

    rows: Lines
    columns: Lines


def product(
    lines: Lines,
    operand: Float[Array, "m p"],
    j: Integer[Array, ""],
    of_entry: Callable[[Array], Array] = lambda value: value,
) -> Float[Array, "lines p"]:
    """Returns the sum, over the entries of each line of block ``j``, of rows of ``operand``.

    Args:
      lines: of all blocks.
      operand: what entries are multiplied with.
      j: the block.
      of_entry: the factor that an entry stands for, by default the entry itself.
    """
    found: list[Array] = []
    source = operand
    for i, level in enumerate(lines.levels):
        sums = [
            _sums(pieces, source, j, of_entry if i == 0 else lambda one: one) for pieces in level
        ]
        source = jnp.concatenate(sums)
        found.append(source)
    of_nothing = jnp.zeros((1, operand.shape[1]), operand.dtype)
    every = jnp.concatenate([*found, of_nothing])
    return every.at[_block(lines.place, j)].get(mode="promise_in_bounds")


def _sums(
    pieces: Pieces, operand: Float[Array, "m p"], j: Integer[Array, ""], of_entry: Callable
) -> Float[Array, "pieces p"]:
    at, value = (_block(a, j) for a in pieces)
    width, number = at.shape
    step = min(width, _UNROLLED)

    def add(total, terms):
        for row, entry in zip(*terms, strict=True):
            rows = operand.at[row].get(mode="promise_in_bounds")
            total = total + rows * of_entry(entry.astype(operand.dtype))[:, None]
        return total, None

    terms = (a.reshape(width // step, step, number) for a in (at, value))
    zero = jnp.zeros((number, operand.shape[1]), operand.dtype)
    return jax.lax.scan(add, zero, tuple(terms))[0]


def _block(array: Array, j: Integer[Array, ""]) -> Array:
    return jax.lax.dynamic_index_in_dim(array, j, keepdims=False)


def stored(blocks: Sequence[AnyArray], round_up: Callable[[int], int]) -> SparseRows:
    """Stores blocks of rows.

    Args:
      blocks: CSR matrices of one shape, without duplicates.
      round_up: rounds numbers of pieces, so that data of nearly one size share a program.
    """
    return SparseRows(
        rows=_lines(blocks, round_up),
        columns=_lines([block.T.tocsr() for block in blocks], round_up),
    )


def _lines(blocks: Sequence[AnyArray], round_up: Callable[[int], int]) -> Lines:
    numbers = [_numbers_of_pieces(np.diff(block.indptr)) for block in blocks]
    # All blocks go through one loop, and have as many pieces of each width as the fullest.
    sizes = [
        [round_up(int(most)) if most else 0 for most in np.max(level, axis=0)]
        for level in itertools.zip_longest(*numbers, fillvalue=np.zeros(len(_WIDTHS), int))
    ]
    arranged = [_arranged(block, sizes) for block in blocks]
    levels = [
        tuple(Pieces(*map(_stacked, zip(*same, strict=True))) for same in zip(*level, strict=True))
        for level in zip(*(levels for levels, _ in arranged), strict=True)
    ]
    return Lines(tuple(filter(None, levels)), _stacked([place for _, place in arranged]))


def _stacked(arrays: Sequence[np.ndarray]) -> AnyArray:
    return np.stack(arrays)


class _Cut(NamedTuple):
    """Pieces that lines are cut into."""

    line: np.ndarray
    first: np.ndarray
    """First entry, of all entries of all lines."""
    length: np.ndarray
    kind: np.ndarray
    """Width, by number."""


def _cut(counts: np.ndarray) -> _Cut:
    """Cuts lines of so many entries each."""
    number = -(-counts // _LONGEST)
    line = np.repeat(np.arange(len(counts)), number)
    within = _LONGEST * (np.arange(len(line)) - np.repeat(np.cumsum(number) - number, number))
    length = np.minimum(counts[line] - within, _LONGEST)
    first = (np.cumsum(counts) - counts)[line] + within
    return _Cut(line, first, length, np.searchsorted(_WIDTHS, length))


def _numbers_of_pieces(counts: np.ndarray) -> list[np.ndarray]:
    """Returns the number of pieces of each width, for each level."""
    found: list[np.ndarray] = []
    while not found or counts.size:
        cut = _cut(counts)
        found.append(np.bincount(cut.kind, minlength=len(_WIDTHS)))
        number = np.bincount(cut.line, minlength=len(counts))
        counts = number[number > 1]
    return found


def _arranged(block: AnyArray, sizes: list[list[int]]) -> tuple[list[list[tuple]], np.ndarray]:
    """Returns the arrays of the pieces of each width, for each level, and the places of lines."""
    place = np.full(block.shape[0], np.sum(sizes), np.int32)
    # Lines that are not summed up yet, and their entries.
    lines, counts = np.arange(block.shape[0]), np.diff(block.indptr)
    index, value = block.indices, block.data
    levels, behind = [], 0
    for size in sizes:
        cut = _cut(counts)
        # Sums of a level are in the order of their widths.
        order = np.argsort(cut.kind, kind="stable")
        ends = np.cumsum(np.bincount(cut.kind, minlength=len(_WIDTHS)))
        widths = [
            order[end - n : end] for end, n in zip(ends, np.diff(ends, prepend=0), strict=True)
        ]
        position = np.zeros(len(order), np.int32)
        starts = np.cumsum(size) - size
        for own, start in zip(widths, starts, strict=True):
            position[own] = start + np.arange(len(own))
        levels.append(
            [
                _filled(cut.first[own], cut.length[own], width, most, index, value)
                for own, width, most in zip(widths, _WIDTHS, size, strict=True)
                if most
            ]
        )
        number = np.bincount(cut.line, minlength=len(counts))
        is_whole = number[cut.line] == 1
        place[lines[cut.line[is_whole]]] = behind + position[is_whole]
        behind += sum(size)
        lines, counts = lines[number > 1], number[number > 1]
        index, value = position[~is_whole], np.ones(np.count_nonzero(~is_whole), np.int8)
    return levels, place


def _filled(
    first: np.ndarray,
    length: np.ndarray,
    width: int,
    most: int,
    index: np.ndarray,
    value: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``[width, most]`` indices and values of pieces."""
    steps = np.arange(width)[:, None]
    inside = steps < length
    entry = np.where(inside, first + steps, 0)
    filling = ((0, 0), (0, most - len(first)))
    return (
        np.pad(np.where(inside, index[entry], 0).astype(np.int32), filling),
        np.pad(np.where(inside, value[entry], 0).astype(value.dtype), filling),
    )
