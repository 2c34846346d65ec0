r"""Passes over the logits of a linear head, a tile of rows times classes at a time.

Two passes are all there is. `measure` goes over the classes and merges, for each row, its
statistics. `add_gradients` goes over the classes once more with the derivative in the logits, a
tile ``G``, and adds ``G Wᵀ`` to the gradient in ``x`` and ``Xᵀ G`` to that in ``w``.

XLA's CPU backend does not vectorise comparisons. So each entry of a tile goes through arithmetic
where it can, and what concerns a few entries is gathered and scattered.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, Num, PyTree
from softmax_jax._dtypes import accumulation_type
from softmax_jax.data.blocks import Carry, Index, balanced
from softmax_jax.head import shards
from softmax_jax.head.plan import Spec
from softmax_jax.head.statistics import Normalizer, Part, State, Tile, Whole
from softmax_jax.head.targets import TargetWeights, columns

Kept: TypeAlias = tuple[
    Float[Array, "*blocks rows width"] | None, Float[Array, "rows width_of_last"] | None
]
"""Logits of the blocks of classes of one size, stacked if there are several, and of the last one if
it is smaller; None where they are not kept."""
NOTHING_KEPT: Kept = (None, None)


class Operands(NamedTuple):
    """Arrays that logits are made of: ``o = soft_cap(x w + b) / temperature``."""

    x: Num[Array, "n d"]
    """``[n, d]``."""
    w: Num[Array, "d q"]
    """``[d, q]``."""
    b: Num[Array, " q"] | None
    """``[q]``; None for no bias."""
    temperature: Float[Array, ""]


class Gradients(NamedTuple):
    """Gradients of a sum over rows in the `Operands`; None for those that nobody wants."""

    x: Float[Array, "n d"] | None
    w: Float[Array, "d q"] | None
    b: Float[Array, " q"] | None
    temperature: Float[Array, ""] | None


class Row(NamedTuple):
    """Results of `measure` for each row."""

    normalizer: Normalizer
    saved: dict[str, State]
    """States of the statistics, by name."""


class _Seen(NamedTuple):
    """State of `measure`, for the classes seen so far."""

    m: Float[Array, " rows"]
    m_unscaled: Float[Array, " rows"]
    others: Float[Array, " rows"]
    """``Σ_j exp(o_j - m) - 1``: the sum over all classes but one that attains the maximum; -1 for
    no class."""
    states: tuple[State, ...]
    """States of the statistics."""


def _scan_classes(
    q: int,
    most: int,
    visit: Callable[..., tuple[Carry, PyTree]],
    carry: Carry,
    kept: Kept = NOTHING_KEPT,
) -> tuple[Carry, tuple[PyTree, PyTree]]:
    """Calls ``visit(carry, start, width, kept)`` for blocks of classes, the last one smaller.

    The other results of ``visit`` are handed to the same block by a second call as ``kept``.
    """
    _, size = balanced(q, most)
    full, rest = divmod(q, size)
    if full == 1:
        carry, first = visit(carry, 0, size, kept[0])
    else:
        carry, first = jax.lax.scan(
            lambda carry, each: visit(carry, each[0] * size, size, each[1]),
            carry,
            (jnp.arange(full, dtype=jnp.int32), kept[0]),
        )
    last = None
    if rest:
        carry, last = visit(carry, full * size, rest, kept[1])
    return carry, (first, last)


def _product_type(operands: Operands) -> np.dtype:
    """Returns the type of the factors of products: bfloat16 where both are of it, or a wide one.

    float16 has too small a range for p, and bfloat16 too few digits for integers.
    """
    narrow = operands.x.dtype == operands.w.dtype == jnp.bfloat16
    return jnp.dtype(jnp.bfloat16) if narrow else accumulation_type(operands.x, operands.w)


def _product(
    a: Num[Array, "..."], b: Num[Array, "..."], axes: tuple[int, int], operands: Operands
) -> Float[Array, "i j"]:
    """Multiplies matrices over an axis of ``a`` and one of ``b``."""
    kind = _product_type(operands)
    return jax.lax.dot_general(
        a.astype(kind),
        b.astype(kind),
        (((axes[0],), (axes[1],)), ((), ())),
        preferred_element_type=accumulation_type(operands.x, operands.w),
    )


def _unscaled_logits(
    spec: Spec, operands: Operands, start: Index, width: int
) -> Float[Array, "rows {width}"]:
    """Returns numbers ``u`` of a tile; the logits are ``scale * u``.

    Apart, because compilers fuse the difference of two multiples into an operation of one rounding,
    in which a number less itself is not zero.
    """
    u = _product(operands.x, columns(operands.w, start, width), (1, 0), operands)
    b = operands.b
    if b is not None:
        b = columns(b, start, width).astype(u.dtype)[None]
        u = u + b
    if spec.soft_cap is not None:
        u = jnp.tanh(u / spec.soft_cap)
        if b is not None:
            # A class that is impossible stays so.
            u = u + jnp.where(b == -jnp.inf, b, 0)
    return u


def _scale(spec: Spec, operands: Operands) -> float | Float[Array, ""]:
    cap = 1.0 if spec.soft_cap is None else spec.soft_cap
    return cap / operands.temperature if spec.has_temperature else cap


def _through_logits(
    spec: Spec,
    operands: Operands,
    u: Float[Array, "rows width"],
    g: Float[Array, "rows width"],
) -> Float[Array, "rows width"]:
    """Turns the derivative in the logits into that in ``x w + b``."""
    if spec.soft_cap is not None:
        g = g * (1 - jnp.minimum(u * u, 1))
    return g / operands.temperature if spec.has_temperature else g


def _below_own_largest(
    u: Float[Array, "rows width"],
    scale: float | Float[Array, ""],
    start: Index,
    first: Index,
    targets: TargetWeights,
) -> Tile:
    m = jnp.max(u, axis=1)
    # Where all classes are impossible, gaps are infinite.
    gap = (jnp.where(m == -jnp.inf, 0, m)[:, None] - u) * scale
    return Tile(u, gap, jnp.exp(-gap), scale, first + start, targets, start)


def _below_row_largest(
    u: Float[Array, "rows width"],
    scale: float | Float[Array, ""],
    start: Index,
    first: Index,
    targets: TargetWeights,
    row: Normalizer,
) -> Tile:
    gap = (row.m_unscaled[:, None] - u) * scale
    p = jnp.exp(-(gap + row.r[:, None]))
    return Tile(u, gap, p, scale, first + start, targets, start)


def _seen_in_tile(spec: Spec, tile: Tile) -> _Seen:
    m = jnp.max(tile.unscaled, axis=1)
    # 0 where the maximum is attained, else 1: for gaps between 0 and 1e-30, exp(-gap) is 1 to the
    # last digit, so that it does not matter which is counted as what. No derivative: how often
    # the maximum is attained does not change.
    below_top = jax.lax.stop_gradient(jnp.clip(tile.gap * 1e30, 0, 1))
    ties = tile.width - jnp.sum(below_top, axis=1)
    return _Seen(
        m=m * tile.scale,
        m_unscaled=m,
        others=jnp.sum(tile.p * below_top, axis=1) + (ties - 1),
        states=tuple(statistic.of_tile(tile) for statistic in spec.statistics),
    )


def _seen_nothing(spec: Spec, size: int, dtype: np.dtype) -> _Seen:
    return _Seen(
        m=jnp.full(size, -jnp.inf, dtype),
        m_unscaled=jnp.full(size, -jnp.inf, dtype),
        others=jnp.zeros(size, dtype) - 1,
        states=tuple(statistic.empty(size, dtype) for statistic in spec.statistics),
    )


def _part(seen: _Seen, m: Float[Array, " rows"]) -> Part:
    # A part without a possible class has added all that it adds: nothing, or the infinity of a
    # target that is impossible.
    is_none = seen.m == -jnp.inf
    lift = jnp.where(is_none, 0, m - jnp.where(is_none, m, seen.m))
    return Part(lift, jnp.where(is_none, 0, jnp.exp(-lift)), 1 + seen.others)


def _merged(spec: Spec, a: _Seen, b: _Seen) -> _Seen:
    """Merges two parts of the classes, of which those of ``a`` come first."""
    a_leads = a.m >= b.m
    m = jnp.where(a_leads, a.m, b.m)
    part_a, part_b = _part(a, m), _part(b, m)
    return _Seen(
        m=m,
        m_unscaled=jnp.where(a_leads, a.m_unscaled, b.m_unscaled),
        others=jnp.where(
            a_leads,
            a.others + part_b.total * part_b.shrink,
            b.others + part_a.total * part_a.shrink,
        ),
        states=tuple(
            statistic.merge(state_a, state_b, part_a, part_b)
            for statistic, state_a, state_b in zip(spec.statistics, a.states, b.states, strict=True)
        ),
    )


def measure(
    spec: Spec, operands: Operands, targets: TargetWeights, *, keep: bool = False
) -> tuple[Row, Kept]:
    """Passes over the classes of a block of rows.

    Returns:
      The statistics of each row; and the logits, for `add_gradients`, if they are to be kept.
    """
    kind, q = accumulation_type(operands.x, operands.w), operands.w.shape[1]
    scale, first = _scale(spec, operands), shards.first_class(spec, q)

    def visit(carry, start, width, _):
        u = _unscaled_logits(spec, operands, start, width)
        tile = _below_own_largest(u, scale, start, first, targets)
        return _merged(spec, carry, _seen_in_tile(spec, tile)), u if keep else None

    nothing = _seen_nothing(spec, len(operands.x), kind)
    seen, kept = _scan_classes(q, spec.classes, visit, nothing)
    seen = shards.merged(spec, seen, partial(_merged, spec))
    is_real = jnp.isfinite(seen.m)
    r = jnp.where(is_real, jnp.log1p(jnp.where(is_real, seen.others, 0)), jnp.nan)
    normalizer = Normalizer(seen.m, seen.m_unscaled, r)
    whole = Whole(normalizer, 1 + seen.others, scale, spec.num_classes or q, targets)
    states = _after_second_pass(spec, operands, targets, normalizer, seen.states)
    saved = {
        statistic.name: statistic.finish(state, whole)
        for statistic, state in zip(spec.statistics, states, strict=True)
    }
    return Row(normalizer, saved), kept


def _after_second_pass(
    spec: Spec,
    operands: Operands,
    targets: TargetWeights,
    normalizer: Normalizer,
    states: tuple[State, ...],
) -> tuple[State, ...]:
    """Returns the states, paired with their sums for statistics that look `again`."""
    twice = [
        (i, statistic.again)
        for i, statistic in enumerate(spec.statistics)
        if statistic.again is not None
    ]
    if not twice:
        return states
    q = operands.w.shape[1]
    scale, first = _scale(spec, operands), shards.first_class(spec, q)

    def sums_of(start, width):
        u = _unscaled_logits(spec, operands, start, width)
        tile = _below_row_largest(u, scale, start, first, targets, normalizer)
        return [again(tile, states[i]) for i, again in twice]

    def visit(carry, start, width, _):
        return jax.tree.map(jnp.add, carry, sums_of(start, width)), None

    shapes = jax.eval_shape(lambda: sums_of(0, 1))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    sums = shards.over_classes(spec, _scan_classes(q, spec.classes, visit, zeros)[0])
    found = dict(zip((i for i, _ in twice), sums, strict=True))
    return tuple((state, found[i]) if i in found else state for i, state in enumerate(states))


def _gradient_of_tile(
    spec: Spec, tile: Tile, row: Row, cotangents: dict[str, State]
) -> Float[Array, "rows width"]:
    """Returns the derivative in the logits of a tile: ``[rows, width]``."""
    wanted = [
        (statistic, row.saved[statistic.name], cotangents[statistic.name])
        for statistic in spec.statistics
        if jax.tree.leaves(cotangents.get(statistic.name))
    ]
    factors = [s.factor(tile, saved, ct) for s, saved, ct in wanted if s.factor is not None]
    g = tile.p * sum(factors[1:], factors[0]) if factors else jnp.zeros_like(tile.p)
    for statistic, saved, cotangent in wanted:
        if statistic.add is not None:
            g = statistic.add(g, tile, saved, cotangent)
    return g


def add_gradients(
    spec: Spec,
    operands: Operands,
    targets: TargetWeights,
    row: Row,
    cotangents: dict[str, State],
    so_far: Gradients,
    kept: Kept = NOTHING_KEPT,
) -> Gradients:
    """Passes over the classes of a block of rows once more, and adds their gradients.

    Args:
      spec: constants of the pass.
      operands: with the rows of the block.
      targets: of the block.
      row: from `measure`.
      cotangents: derivative in the value of each statistic, by its name; those of value zero may
        be missing.
      so_far: gradients of the blocks before; ``x`` is that of the block itself.
      kept: logits that `measure` kept, if it did.
    """
    q = operands.w.shape[1]
    scale, first = _scale(spec, operands), shards.first_class(spec, q)

    def visit(so_far, start, width, u):
        if u is None:
            u = _unscaled_logits(spec, operands, start, width)
        tile = _below_row_largest(u, scale, start, first, targets, row.normalizer)
        g = _gradient_of_tile(spec, tile, row, cotangents)
        temperature = so_far.temperature
        if temperature is not None:
            temperature -= jnp.sum(g * jnp.maximum(u * scale, -1e30)) / operands.temperature
        # Both products read the tile; without the barrier, each would compute it anew.
        g = jax.lax.optimization_barrier(_through_logits(spec, operands, u, g))
        x, w, b = so_far.x, so_far.w, so_far.b
        if x is not None:
            x += _product(g, columns(operands.w, start, width), (1, 1), operands)
        if w is not None:
            w = _added(w, _product(operands.x, g, (0, 0), operands), start)
        if b is not None:
            b = _added(b, jnp.sum(g, axis=0), start)
        return Gradients(x, w, b, temperature), None

    return _scan_classes(q, spec.classes, visit, so_far, kept)[0]


def _added(
    total: Float[Array, "*d q"], part: Float[Array, "*d width"], start: Index
) -> Float[Array, "*d q"]:
    """Adds ``part`` to the columns from ``start``."""
    axis = total.ndim - 1
    there = jax.lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(total, there + part, start, axis)
