"""Sizes of tiles, and the strategy by which the gradient of a head is formed."""

from typing import NamedTuple

import jax
import numpy as np

from softmax_jax import parallel
from softmax_jax.checks import checked_count
from softmax_jax.head.statistics import Statistic

STRATEGIES = ("auto", "recompute", "fused")
MOST_LOGITS = 2**24
"""Default of the number of logits that training and evaluation hold at a time, 64 MiB of float32.
A batch with more of them goes through `linear_cross_entropy`."""


class Tiling(NamedTuple):
    """Options that change memory and time and nothing else but rounding."""

    strategy: str = "auto"
    """One of `STRATEGIES`."""
    memory: int | None = None
    """Bytes that are held at a time; None for a default that suits the device."""
    block_rows: int | None = None
    """Rows of a tile; None for as many as suit the memory."""
    block_classes: int | None = None
    """Classes of a tile; None for as many as suit the memory."""


class Shards(NamedTuple):
    """Numbers of devices that share the work, see `softmax_jax.parallel`."""

    rows: int = 1
    """Devices that the rows lie over."""
    classes: int = 1
    """Devices that the classes lie over."""

    @property
    def number(self) -> int:
        """Number of all devices."""
        return self.rows * self.classes


def present_shards() -> Shards:
    """Returns the devices of the mesh that is set."""
    return Shards(parallel.extent(parallel.DATA), parallel.extent(parallel.CLASSES))


class Spec(NamedTuple):
    """Constants that a pass over the tiles is compiled for."""

    rows: int
    """Most rows of a tile."""
    classes: int
    """Most classes of a tile."""
    statistics: tuple[Statistic, ...] = ()
    soft_cap: float | None = None
    has_temperature: bool = False
    """Whether the temperature may differ from 1."""
    num_classes: int = 0
    """Number of classes, without those that fill up the last device."""
    shards: Shards = Shards()


class Plan(NamedTuple):
    """Constants that the loss and its derivative are compiled for."""

    spec: Spec
    fused: Spec | None = None
    """Tiles of the fused strategy, which keeps the logits of its rows; None to recompute them."""


def checked_tiling(tiling: Tiling) -> Tiling:
    """Returns the tiling with sizes as int.

    Raises:
      ValueError: if the strategy is unknown, or a size is not a positive integer.
    """
    if tiling.strategy not in STRATEGIES:
        choices = ", ".join(STRATEGIES)
        raise ValueError(f"strategy: choose one of {choices}, got {tiling.strategy!r}")

    def checked(size: int | None, name: str) -> int | None:
        return None if size is None else checked_count(size, name)

    return Tiling(
        strategy=tiling.strategy,
        memory=checked(tiling.memory, "memory"),
        block_rows=checked(tiling.block_rows, "block_rows"),
        block_classes=checked(tiling.block_classes, "block_classes"),
    )


def make_plan(sizes: tuple[int, int, int], spec: Spec, dtype: np.dtype, tiling: Tiling) -> Plan:
    """Returns the sizes of tiles for ``(rows, features, classes)``, and whether to fuse.

    Args:
      sizes: of the whole problem, which the shards divide evenly.
      spec: whose block sizes are to be replaced.
      dtype: of the logits.
      tiling: checked.
    """
    n, d, q = sizes[0] // spec.shards.rows, sizes[1], sizes[2] // spec.shards.classes
    on_cpu = jax.default_backend() == "cpu"
    memory = tiling.memory
    if memory is None:
        memory = 2**26 if on_cpu else 2**31
    # A tile is held as logits and as their gradient. On a CPU it should stay in the cache.
    entries = memory // (2 * dtype.itemsize)
    entries = max(min(entries, 2**21) if on_cpu else entries, 1)
    rows = min(n, tiling.block_rows or max(2**11 if on_cpu else 2**13, entries // q))
    classes = tiling.block_classes or entries // rows
    tile = spec._replace(rows=rows, classes=_clamped(classes, q))
    kept = _clamped(tiling.block_rows or memory // (2 * dtype.itemsize * q), n)
    classes = tiling.block_classes or entries // kept
    fused = spec._replace(rows=kept, classes=_clamped(classes, q))
    strategy = tiling.strategy
    if strategy == "recompute" or (strategy == "auto" and not _fusing_pays(kept, d, on_cpu)):
        return Plan(tile)
    return Plan(tile, fused)


def _clamped(size: int, most: int) -> int:
    return max(min(size, most), 1)


def _fusing_pays(rows: int, d: int, on_cpu: bool) -> bool:
    r"""Returns whether the arithmetic that fusing saves is worth the traffic that it adds.

    It saves 2 n d q FLOP. It reads and writes the gradient in ``w`` once for each block of rows,
    and the logits once: ``8 d q (n / rows) + 8 n q`` bytes. With ``β`` FLOP to the byte for the
    machine, that is worth it where ``4 β (1 / rows + 1 / d) < 1``.
    """
    balance = 48 if on_cpu else 256
    return 4 * balance * (1 / rows + 1 / d) < 1
