r"""Statistics of a row of logits that are found a tile of classes at a time.

Each `Statistic` stands for itself: what it finds in a tile, how the findings of two parts of the
classes merge, and what its derivative adds to that of the logits.
Statistics are functions of the gaps :math:`m - o_j \ge 0` below the largest logit ``m`` and of

.. math:: r = \log\sum_j e^{-(m - o_j)}, \qquad \mathrm{logsumexp}(o) = m + r, \qquad
    -\log p_j = (m - o_j) + r,

sums of terms that are never negative, as in `softmax_jax.normalizer`: neither a common offset
nor a confident prediction costs a digit.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, Integer, PyTree
from softmax_jax.data.blocks import Index
from softmax_jax.head.targets import TargetWeights

State: TypeAlias = PyTree
"""Arrays of the rows; each statistic defines its own."""


class Tile(NamedTuple):
    """Logits of some rows and some classes."""

    unscaled: Float[Array, "rows width"]
    """``[rows, width]`` numbers ``u``; the logits are ``scale * u``."""
    gap: Float[Array, "rows width"]
    """``[rows, width]`` distances ``m - o_j`` of the logits below a largest one. In `of_tile` that
    is the largest of the tile, elsewhere the largest of the row."""
    p: Float[Array, "rows width"]
    """``[rows, width]``: ``exp(-gap)`` in `of_tile`, elsewhere the probabilities."""
    scale: float | Float[Array, ""]
    start: Index
    """First class, by its id."""
    targets: TargetWeights
    """Targets of the rows, for all classes of this device."""
    column: Index = 0
    """Where the classes begin among those of this device: `start`, if it has all."""

    @property
    def width(self) -> int:
        """Number of classes."""
        return self.unscaled.shape[1]

    @property
    def classes(self) -> Integer[Array, "1 width"]:
        """Ids ``[1, width]`` of the classes."""
        return self.start + jnp.arange(self.width, dtype=jnp.int32)[None]


class Part(NamedTuple):
    """Relation of a part of the classes to the larger part that it is merged into: ``[rows]``."""

    lift: Float[Array, " rows"]
    """Distance of the part's largest logit below that of both parts."""
    shrink: Float[Array, " rows"]
    """``exp(-lift)``; 0 for a part without any possible class."""
    total: Float[Array, " rows"]
    """``Σ_j exp(-gap_j)`` over the part, with the gaps below its own largest logit."""


class Normalizer(NamedTuple):
    """Largest logit and log-normaliser of each row ``[n]``."""

    m: Float[Array, " n"]
    """Largest logit."""
    m_unscaled: Float[Array, " n"]
    """Number of which ``m`` is a multiple, see `Tile.unscaled`."""
    r: Float[Array, " n"]
    """``log Σ_j exp(o_j - m) >= 0``; NaN where the largest logit is not finite."""


class Whole(NamedTuple):
    """Numbers of the rows that are known when all classes have been seen."""

    normalizer: Normalizer
    total: Float[Array, " rows"]
    """``[rows]``: ``Σ_j exp(-gap_j)``."""
    scale: float | Float[Array, ""]
    num_classes: int
    targets: TargetWeights


class Statistic(NamedTuple):
    """Numbers of each row that are found a tile of logits at a time.

    The library's own ones have names. Any other is given to `linear_cross_entropy` as it is, in
    ``extras``. Its functions must be those of a module or cached: each new one compiles anew. With
    neither `factor` nor `add`, its value is a constant to derivatives.

    Example:
      The variance of the logits under the prediction takes two of these; here is the mean of
      their squares, ``Σ_j p_j o_j²``, whose derivative is ``p_k (o_k² - Σ_j p_j o_j² + 2 o_k)``.

      >>> import jax, jax.numpy as jnp
      >>> from softmax_jax import head
      >>> def logits(tile):
      ...     return tile.unscaled * tile.scale
      >>> second_moment = head.Statistic(
      ...     name="second_moment",
      ...     empty=lambda size, dtype: jnp.zeros(size, dtype),
      ...     of_tile=lambda tile: jnp.sum(tile.p * logits(tile) ** 2, axis=1),
      ...     merge=lambda a, b, part_a, part_b: part_a.shrink * a + part_b.shrink * b,
      ...     finish=lambda state, whole: state / whole.total,
      ...     value=lambda saved, normalizer: saved,
      ...     factor=lambda tile, saved, cotangent: cotangent[:, None]
      ...     * (logits(tile) ** 2 - saved[:, None] + 2 * logits(tile)),
      ... )
      >>> x, w, labels = jnp.eye(2), jnp.array([[1.0, -1.0], [0.0, 2.0]]), jnp.array([0, 1])
      >>> out = head.linear_cross_entropy(x, w, None, labels, extras=[second_moment])
      >>> [f"{moment:.3f}" for moment in out.others["second_moment"]]
      ['1.000', '3.523']
    """

    name: str
    empty: Callable[[int, np.dtype], State]
    """``(rows, dtype) -> state`` of no classes."""
    of_tile: Callable[[Tile], State]
    """``tile -> state`` of its classes alone."""
    merge: Callable[[State, State, Part, Part], State]
    """``(a, b, part_a, part_b) -> state`` of both parts; the classes of ``a`` come first."""
    finish: Callable[[State, Whole], State]
    """``(state, whole) -> saved``: what is kept for the derivative, with an axis of rows in front.
    """
    value: Callable[[State, Normalizer], State]
    """``(saved, normalizer) -> value``, the result: ``[rows, ...]``, or a pytree of such."""
    factor: Callable[[Tile, State, State], Float[Array, "rows width_or_1"]] | None = None
    """``(tile, saved, cotangent) -> f``, ``[rows, 1 or width]``: the derivative in the logits has
    the term ``p f``. The cotangent has the structure of the value, with None for those of its
    leaves that need no derivative. None for no such term."""
    add: (
        Callable[
            [Float[Array, "rows width"], Tile, State, State],
            Float[Array, "rows width"],
        ]
        | None
    ) = None
    """``(g, tile, saved, cotangent) -> g`` with the terms of the derivative that no probability
    multiplies. None for no such terms."""
    again: Callable[[Tile, State], State] | None = None
    """``(tile, state) -> sums``, a pytree of arrays to add over the tiles of a second pass over
    the classes. `finish` gets ``(state, sums)`` then."""
    needs_ids: bool = False
    """Whether targets must be class ids."""
