"""Table of the statistics that `linear_cross_entropy` knows by name.

A statistic is added by an entry of `TABLE`. Sums over classes here are sums of terms that are never
negative, see `softmax_jax.head.statistics`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, Integer
from softmax_jax.head.statistics import Normalizer, Part, Statistic, Tile, Whole
from softmax_jax.head.targets import columns, dense_of_tile, places_in_tile
from softmax_jax.model import ABSTAIN


class _Surprisal(NamedTuple):
    """Sums over classes of weights ``y_j`` and of ``y_j`` times the gap: ``[rows]``.

    The mass is a scalar while it is the same for all rows.
    """

    below: Float[Array, " rows"]
    mass: Float[Array, " rows"] | Float[Array, ""]


def _surprisal_merge(a: _Surprisal, b: _Surprisal, part_a: Part, part_b: Part) -> _Surprisal:
    below = a.below + b.below + a.mass * part_a.lift + b.mass * part_b.lift
    return _Surprisal(below, a.mass + b.mass)


def _surprisal(saved: _Surprisal, normalizer: Normalizer) -> Float[Array, " rows"]:
    return saved.below + saved.mass * normalizer.r


def _nats_empty(size: int, dtype: np.dtype) -> _Surprisal:
    return _Surprisal(jnp.zeros(size, dtype), jnp.zeros(size, dtype))


def _nats_of_tile(tile: Tile) -> _Surprisal:
    targets, gap = tile.targets, tile.gap
    below, mass = _nats_empty(len(gap), gap.dtype)
    if targets.ids is not None and targets.weights is not None:
        at, inside = places_in_tile(targets.ids, tile.start, tile.width)
        found = jnp.take_along_axis(gap, jnp.minimum(at, tile.width - 1), axis=1)
        counts = inside & (targets.weights != 0)
        below += jnp.sum(jnp.where(counts, targets.weights * found, 0), axis=1)
        mass += jnp.sum(jnp.where(counts, targets.weights, 0), axis=1)
    if targets.dense is not None:
        y = dense_of_tile(targets, tile.column, tile.width, gap.dtype)
        below += jnp.sum(jnp.where(y == 0, 0, y * gap), axis=1)
        mass += jnp.sum(y, axis=1)
    return _Surprisal(below, mass)


def _nats_factor(
    tile: Tile, saved: _Surprisal, cotangent: Float[Array, " rows"]
) -> Float[Array, "rows 1"]:
    # A row that does not count may have a target out of range, whose mass is NaN.
    c = cotangent
    return jnp.where(c == 0, 0, c * saved.mass)[:, None]


def _nats_add(
    g: Float[Array, "rows width"],
    tile: Tile,
    saved: _Surprisal,
    cotangent: Float[Array, " rows"],
) -> Float[Array, "rows width"]:
    targets, c = tile.targets, cotangent[:, None]
    if targets.dense is not None:
        g = g - c * dense_of_tile(targets, tile.column, tile.width, g.dtype)
    if targets.ids is not None and targets.weights is not None:
        g = _scattered(g, tile, targets.ids, -jnp.where(c == 0, 0, c * targets.weights))
    return g


def _scattered(
    g: Float[Array, "rows width"],
    tile: Tile,
    ids: Integer[Array, "rows t"],
    values: Float[Array, "rows t"],
) -> Float[Array, "rows width"]:
    """Adds ``values: [rows, t]`` at the classes ``ids``, where the tile has them."""
    at, _ = places_in_tile(ids, tile.start, tile.width)
    rows = jnp.arange(len(ids))[:, None]
    return g.at[rows, at].add(values.astype(g.dtype), mode="drop")


NATS = Statistic(
    name="nats",
    empty=_nats_empty,
    of_tile=_nats_of_tile,
    merge=_surprisal_merge,
    finish=lambda state, whole: state,
    value=_surprisal,
    factor=_nats_factor,
    add=_nats_add,
)
"""Cross-entropy with the targets, ``Σ_j y_j (m - o_j + r)``."""


def _uniform(tile: Tile) -> Float[Array, "1 width"] | Float[Array, ""]:
    """Returns ``u_j`` of the classes of a tile: ``[1, width]``, or a scalar."""
    each = tile.targets.uniform
    assert each is not None
    return each if each.ndim == 0 else columns(each, tile.column, tile.width)[None]


def _spread_of_tile(tile: Tile) -> _Surprisal:
    each, gap = _uniform(tile), tile.gap
    if each.ndim == 0:
        return _Surprisal(each * jnp.sum(gap, axis=1), each * tile.width)
    return _Surprisal(jnp.sum(jnp.where(each == 0, 0, each * gap), axis=1), jnp.sum(each))


def _spread_finish(state: _Surprisal, whole: Whole) -> _Surprisal:
    return state._replace(mass=jnp.broadcast_to(state.mass, state.below.shape))


def _spread_add(
    g: Float[Array, "rows width"],
    tile: Tile,
    saved: _Surprisal,
    cotangent: Float[Array, " rows"],
) -> Float[Array, "rows width"]:
    return g - cotangent[:, None] * _uniform(tile)


SPREAD = Statistic(
    name="spread",
    # The mass is the same for all rows.
    empty=lambda size, dtype: _Surprisal(jnp.zeros(size, dtype), jnp.zeros((), dtype)),
    of_tile=_spread_of_tile,
    merge=_surprisal_merge,
    finish=_spread_finish,
    value=_surprisal,
    factor=lambda tile, saved, cotangent: (cotangent * saved.mass)[:, None],
    add=_spread_add,
)
"""Cross-entropy with what label smoothing spreads over the classes."""

LOGSUMEXP = Statistic(
    name="logsumexp",
    empty=lambda size, dtype: (),
    of_tile=lambda tile: (),
    merge=lambda a, b, part_a, part_b: (),
    finish=lambda state, whole: (),
    value=lambda saved, normalizer: normalizer.m + normalizer.r,
    factor=lambda tile, saved, cotangent: cotangent[:, None],
)


def _entropy_merge(
    a: Float[Array, " rows"], b: Float[Array, " rows"], part_a: Part, part_b: Part
) -> Float[Array, " rows"]:
    lifted_a = part_a.shrink * (a + part_a.total * part_a.lift)
    return lifted_a + part_b.shrink * (b + part_b.total * part_b.lift)


def _entropy_factor(
    tile: Tile, saved: Float[Array, " rows"], cotangent: Float[Array, " rows"]
) -> Float[Array, "rows width"]:
    gap = jnp.minimum(tile.gap, 1e30)
    return cotangent[:, None] * (gap - saved[:, None])


ENTROPY = Statistic(
    name="entropy",
    empty=jnp.zeros,
    of_tile=lambda tile: jnp.sum(tile.p * jnp.minimum(tile.gap, 1e30), axis=1),
    merge=_entropy_merge,
    finish=lambda state, whole: state / whole.total,
    value=lambda saved, normalizer: saved + normalizer.r,
    factor=_entropy_factor,
)
"""``-Σ_j p_j log p_j``: the mean gap under the prediction, and ``r``."""

COLLISION = Statistic(
    name="collision",
    empty=jnp.zeros,
    of_tile=lambda tile: jnp.sum(tile.p * tile.p, axis=1),
    merge=lambda a, b, part_a, part_b: part_a.shrink**2 * a + part_b.shrink**2 * b,
    finish=lambda state, whole: state / whole.total**2,
    value=lambda saved, normalizer: saved,
    factor=lambda tile, saved, cotangent: 2 * cotangent[:, None] * (tile.p - saved[:, None]),
)
"""``Σ_j p_j²``."""


def _rank_of_tile(tile: Tile) -> Float[Array, " rows"]:
    """Returns the unscaled logit of the target if it is in the tile, else 0."""
    assert tile.targets.ids is not None
    at, inside = places_in_tile(tile.targets.ids[:, :1], tile.start, tile.width)
    found = jnp.take_along_axis(tile.unscaled, jnp.minimum(at, tile.width - 1), axis=1)
    return jnp.where(inside, found, 0)[:, 0]


def _rank_again(tile: Tile, target: Float[Array, " rows"]) -> Integer[Array, " rows"]:
    """Counts the classes before the target; its logit must be known before they can be."""
    assert tile.targets.ids is not None
    u, target, own = tile.unscaled, target[:, None], tile.targets.ids[:, :1]
    before = (u > target) | ((u == target) & (tile.classes < own))
    # The target is not before itself, though its logit may be rounded otherwise this time.
    return jnp.sum(before & (tile.classes != own), axis=1, dtype=jnp.int32)


def _rank_finish(
    state: tuple[Float[Array, " rows"], Integer[Array, " rows"]], whole: Whole
) -> Integer[Array, " rows"]:
    assert whole.targets.weights is not None
    is_none = jnp.isnan(whole.normalizer.r) | jnp.isnan(whole.targets.weights[:, 0])
    return jnp.where(is_none, whole.num_classes, state[1])


RANK = Statistic(
    name="rank",
    empty=jnp.zeros,
    of_tile=_rank_of_tile,
    merge=lambda a, b, part_a, part_b: a + b,
    finish=_rank_finish,
    value=lambda saved, normalizer: saved,
    again=_rank_again,
    needs_ids=True,
)
"""Number of classes before the target: those of a larger logit, and the lower ones of an equal."""


class Top(NamedTuple):
    """Largest logits of each row and their classes, of equal ones the lower class first."""

    values: Float[Array, "rows k"]
    """``[rows, k]``; unscaled until all classes have been seen."""
    ids: Integer[Array, "rows k"]
    """``[rows, k]`` int32."""


class Best(NamedTuple):
    """Value of `top`: `Top`, and the prediction."""

    values: Float[Array, "rows k"]
    ids: Integer[Array, "rows k"]
    argmax: Integer[Array, " rows"]
    """``[rows]`` int32; `model.ABSTAIN` where the largest logit is not finite."""


def _top_empty(k: int, size: int, dtype: np.dtype) -> Top:
    return Top(jnp.full((size, k), -jnp.inf, dtype), jnp.zeros((size, k), jnp.int32))


def _top_of_tile(k: int, tile: Tile) -> Top:
    u = tile.unscaled
    # Adding zero makes -0 a 0, which top_k would put below it. A class that is impossible
    # still comes before none at all.
    least = jnp.finfo(u.dtype).min
    values, at = jax.lax.top_k(jnp.maximum(u + 0, least), min(k, tile.width))
    missing = ((0, 0), (0, k - values.shape[1]))
    ids = (at + tile.start).astype(jnp.int32)
    return Top(jnp.pad(values, missing, constant_values=-jnp.inf), jnp.pad(ids, missing))


def _top_merge(a: Top, b: Top, part_a: Part, part_b: Part) -> Top:
    values, ids = (jnp.concatenate(pair, axis=1) for pair in zip(a, b, strict=True))
    values, at = jax.lax.top_k(values, a.values.shape[1])
    return Top(values, jnp.take_along_axis(ids, at, axis=1))


def _top_finish(state: Top, whole: Whole) -> Top:
    values, least = state.values, jnp.finfo(state.values.dtype).min
    return state._replace(values=jnp.where(values == least, -jnp.inf, values * whole.scale))


def _top_value(saved: Top, normalizer: Normalizer) -> Best:
    argmax = jnp.where(jnp.isnan(normalizer.r), ABSTAIN, saved.ids[:, 0])
    return Best(saved.values, saved.ids, argmax)


@functools.cache
def top(k: int) -> Statistic:
    """Returns the statistic of the ``k`` largest logits; the first of them is the prediction."""
    return Statistic(
        name="top",
        empty=functools.partial(_top_empty, k),
        of_tile=functools.partial(_top_of_tile, k),
        merge=_top_merge,
        finish=_top_finish,
        value=_top_value,
        add=lambda g, tile, saved, cotangent: _scattered(g, tile, saved.ids, cotangent.values),
    )


TABLE: dict[str, Callable[[int], Statistic]] = {
    "nats": lambda k: NATS,
    "logsumexp": lambda k: LOGSUMEXP,
    "entropy": lambda k: ENTROPY,
    "collision": lambda k: COLLISION,
    "argmax": top,
    "rank": lambda k: RANK,
    "top_k": top,
}
"""Statistics that have a name, as functions of the ``k`` of ``"top_k"``."""
EXTRAS = tuple(TABLE)
"""Names that `linear_cross_entropy` takes as ``extras``."""


def chosen(extras: Sequence[str | Statistic], k: int) -> tuple[Statistic, ...]:
    """Returns the statistics that are asked for, each once.

    Raises:
      ValueError: if a name is not in `TABLE`, or two statistics have the same one.
    """
    k = k if "top_k" in extras else 1
    reserved = {SPREAD.name, *(make(k).name for make in TABLE.values())}
    found: dict[str, Statistic] = {}
    for extra in extras:
        if isinstance(extra, Statistic):
            if extra.name in reserved or found.get(extra.name, extra) != extra:
                raise ValueError(f"extras: {extra.name!r} is the name of another statistic")
            found[extra.name] = extra
        elif extra in TABLE:
            statistic = TABLE[extra](k)
            found[statistic.name] = statistic
        else:
            raise ValueError(f"extras: choose some of {', '.join(EXTRAS)}, got {extra!r}")
    return tuple(found.values())
