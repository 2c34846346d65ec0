r"""Sweeps over the logits of a linear head, a tile of rows times classes at a time.

Two sweeps are all there is. `statistics` goes over the classes and merges, for each row, what a
softmax needs: with ``m = max_j o_j`` and the gaps ``m - o_j >= 0``,

.. math:: r = \log\sum_j e^{-(m - o_j)}, \qquad \mathrm{logsumexp}(o) = m + r, \qquad
    -\log p_j = (m - o_j) + r,

sums of terms that are never negative, as in `softmax_jax.normalizer`: neither a common offset
nor a confident prediction costs a digit. `gradients` goes over the classes once more with the
derivative in the logits, a tile ``G``, adding ``G Wᵀ`` to the gradient in ``x`` and ``Xᵀ G`` to
that in ``w``.

XLA's CPU backend does not vectorise comparisons. So what is done to every entry of a tile is
arithmetic here where it can be, and what concerns a few entries is gathered and scattered.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax import _dtypes

# In the tuples below, what is of type Any is an array or, where it is not needed, None.


class Spec(NamedTuple):
    """What is compiled in."""

    rows: int
    """Of a tile, at most."""
    classes: int
    """Of a tile, at most."""
    soft_cap: float | None = None
    has_temperature: bool = False
    """Whether it is anything but 1."""
    has_entropy: bool = False
    has_collision: bool = False
    k: int = 0
    """How many of the largest logits are wanted."""
    has_rank: bool = False


class Head(NamedTuple):
    """What logits are made of: ``o = soft_cap(x w + b) / temperature``."""

    x: jax.Array
    """``[n, d]``."""
    w: jax.Array
    """``[d, v]``."""
    b: Any
    """``[v]``."""
    temperature: jax.Array


class Targets(NamedTuple):
    """``y``: what each class of each row weighs; a sum of the parts that are not None."""

    ids: Any = None
    """``[n, t]`` int32, in any order, and..."""
    weights: Any = None
    """``[n, t]``, what each of them adds. NaN makes the loss of the row NaN."""
    dense: Any = None
    """``[n, v]``, to be multiplied by..."""
    class_weights: Any = None
    """``[v]``; ``weights`` have theirs in them."""
    uniform: Any = None
    """``u``, what smoothing spreads over the classes, the same for all rows: ``[v]``, or a scalar
    if it is the same for all classes, too."""


class Row(NamedTuple):
    """Of each row ``[n]``."""

    m: jax.Array
    """The largest logit, and what it is a multiple of, see `_unscaled`."""
    m_unscaled: jax.Array
    r: jax.Array
    """``log Σ_j exp(o_j - m) >= 0``."""
    below: jax.Array
    """``Σ_j y_j (m - o_j)``."""
    mass: jax.Array
    """``Σ_j y_j``."""
    uniform_below: Any
    """``Σ_j u_j (m - o_j)``."""
    uniform_mass: Any
    """``Σ_j u_j``, the same for all rows."""
    gap: Any
    """``Σ_j p_j (m - o_j)``, of which the entropy is ``r`` more."""
    collision: Any
    """``Σ_j p_j²``."""
    top: Any
    """``[n, k]`` largest logits and their classes, of equal ones the lower class first."""
    rank: Any
    """How many classes come before the target."""


class Coefficients(NamedTuple):
    r"""What the derivative in the logits is made of, a number for each row ``[n]``:

    .. math:: G_j = p_j (a + h (m - o_j - \bar g) + 2 s (p_j - \bar p)) - c\, y_j - e\, u_j
        + \text{top}_j

    with the means :math:`\bar g`, :math:`\bar p` under the prediction, `Row.gap` and `collision`.
    """

    p: jax.Array
    """``a``."""
    y: jax.Array
    """``c``."""
    uniform: Any
    """``e``."""
    entropy: Any
    """``h``."""
    collision: Any
    """``s``."""
    top: Any
    """``[n, k]``, for the classes in `Row.top`."""


class _Partial(NamedTuple):
    """`Row` over the classes seen so far, with sums of ``exp(o - m)`` instead of ``p``."""

    m: jax.Array
    m_unscaled: jax.Array
    others: jax.Array
    """``Σ_j exp(o_j - m) - 1``: of all but one class that attains the maximum. -1 for no class."""
    below: jax.Array
    mass: jax.Array
    uniform_below: Any
    uniform_mass: Any
    gap: Any
    square: Any
    """``Σ_j exp(o_j - m)²``."""
    target: Any
    """What the logit of the target is a multiple of, see `_unscaled`..."""
    top: Any
    """... and those of the largest logits."""


def balanced(total: int, most: int) -> tuple[int, int]:
    """As few parts of at most ``most`` as can be: their number, and the size of the largest."""
    number = -(-total // most)
    return number, -(-total // number)


def over_rows(
    n: int, most: int, visit: Callable[[Any, Any, jax.Array], tuple[Any, Any]], carry: Any
) -> tuple[Any, Any]:
    """Calls ``visit(carry, start, is_new)`` for blocks of rows of one size.

    The last block is moved back to end with the data; ``is_new`` is False for its rows that were
    visited before.

    Returns:
      The last carry, and what else ``visit`` returned, put together along the rows.
    """
    number, size = balanced(n, most)
    if number == 1:
        return visit(carry, 0, jnp.ones(n, bool))

    def step(carry, i):
        start = jnp.minimum(i * size, n - size)
        return visit(carry, start, start + jnp.arange(size, dtype=jnp.int32) >= i * size)

    carry, blocks = jax.lax.scan(step, carry, jnp.arange(number, dtype=jnp.int32))
    seen = number * size - n

    def joined(a):
        return jnp.concatenate([a[:-1].reshape(-1, *a.shape[2:]), a[-1, seen:]])

    return carry, jax.tree.map(joined, blocks)


def over_classes(
    v: int, most: int, visit: Callable[..., tuple[Any, Any]], carry: Any, kept: Any = (None, None)
) -> tuple[Any, Any]:
    """Calls ``visit(carry, start, width, kept)`` for blocks of classes, the last one smaller.

    What else ``visit`` returns is handed to the same block by a second call as ``kept``.
    """
    _, size = balanced(v, most)
    full, rest = divmod(v, size)
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


def rows_of(tree: Any, start: Any, size: int) -> Any:
    """The rows from ``start`` of all arrays in a pytree."""
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), tree)


def _columns(a: jax.Array, start: Any, width: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(a, start, width, axis=a.ndim - 1)


def accumulation_type(head: Head) -> Any:
    """Of logits, losses and sums: float32 at least."""
    return jnp.dtype(_dtypes.accumulation_type(head.x, head.w))


def _product_type(head: Head) -> Any:
    """Of the factors of matrix products: float32 at least, or bfloat16 where both are of it.

    float16 has too small a range for p, and bfloat16 too few digits for integers.
    """
    narrow = head.x.dtype == head.w.dtype == jnp.bfloat16
    return jnp.bfloat16 if narrow else accumulation_type(head)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int], head: Head) -> jax.Array:
    """Over an axis of ``a`` and one of ``b``."""
    kind = _product_type(head)
    return jax.lax.dot_general(
        a.astype(kind),
        b.astype(kind),
        (((axes[0],), (axes[1],)), ((), ())),
        preferred_element_type=accumulation_type(head),
    )


def _unscaled(spec: Spec, head: Head, start: Any, width: int) -> jax.Array:
    """``u``, of which the logits are `_scale` times as much.

    Apart, because compilers fuse the difference of two multiples into an operation of one rounding,
    in which a number less itself is not zero.
    """
    u = _product(head.x, _columns(head.w, start, width), (1, 0), head)
    if head.b is not None:
        b = _columns(head.b, start, width).astype(u.dtype)[None]
        u = u + b
    if spec.soft_cap is not None:
        u = jnp.tanh(u / spec.soft_cap)
        if head.b is not None:
            # What is impossible stays so.
            u = u + jnp.where(b == -jnp.inf, b, 0)
    return u


def _scale(spec: Spec, head: Head) -> Any:
    cap = 1.0 if spec.soft_cap is None else spec.soft_cap
    return cap / head.temperature if spec.has_temperature else cap


def _through_logits(spec: Spec, head: Head, u: jax.Array, g: jax.Array) -> jax.Array:
    """From the derivative in the logits to that in ``x w + b``."""
    if spec.soft_cap is not None:
        g = g * (1 - jnp.minimum(u * u, 1))
    return g / head.temperature if spec.has_temperature else g


def _within(ids: jax.Array, start: Any, width: int) -> tuple[jax.Array, jax.Array]:
    """Where classes are in a tile, ``width`` if they are not; and whether they are."""
    inside = (ids >= start) & (ids < start + width)
    return jnp.where(inside, ids - start, width), inside


def _dense(targets: Targets, start: Any, width: int, kind: Any) -> jax.Array:
    y = _columns(targets.dense, start, width).astype(kind)
    if targets.class_weights is not None:
        y = y * _columns(targets.class_weights, start, width)[None]
    return y


def _nothing(spec: Spec, targets: Targets, size: int, kind: Any) -> _Partial:
    """Of no classes."""
    zeros = jnp.zeros(size, kind)
    top = None
    if spec.k:
        top = jnp.full((size, spec.k), -jnp.inf, kind), jnp.zeros((size, spec.k), jnp.int32)
    return _Partial(
        m=jnp.full(size, -jnp.inf, kind),
        m_unscaled=jnp.full(size, -jnp.inf, kind),
        others=zeros - 1,
        below=zeros,
        mass=zeros,
        uniform_below=None if targets.uniform is None else zeros,
        uniform_mass=None if targets.uniform is None else jnp.zeros((), kind),
        gap=zeros if spec.has_entropy else None,
        square=zeros if spec.has_collision else None,
        target=zeros if spec.has_rank else None,
        top=top,
    )


def _of_tile(
    spec: Spec, u: jax.Array, scale: Any, targets: Targets, start: Any, width: int
) -> _Partial:
    kind = u.dtype
    m = jnp.max(u, axis=1)
    # Where all classes are impossible, gaps are infinite.
    gap = (jnp.where(m == -jnp.inf, 0, m)[:, None] - u) * scale
    e = jnp.exp(-gap)
    # 0 where the maximum is attained, else 1: for gaps between 0 and 1e-30, e is 1 to the last
    # digit, so that it does not matter what is counted as what. No derivative: how often the
    # maximum is attained does not change.
    below_top = jax.lax.stop_gradient(jnp.clip(gap * 1e30, 0, 1))
    ties = width - jnp.sum(below_top, axis=1)
    below, mass = jnp.zeros_like(m), jnp.zeros_like(m)
    if targets.ids is not None:
        at, inside = _within(targets.ids, start, width)
        found = jnp.take_along_axis(gap, jnp.minimum(at, width - 1), axis=1)
        counts = inside & (targets.weights != 0)
        below += jnp.sum(jnp.where(counts, targets.weights * found, 0), axis=1)
        mass += jnp.sum(jnp.where(counts, targets.weights, 0), axis=1)
    if targets.dense is not None:
        y = _dense(targets, start, width, kind)
        below += jnp.sum(jnp.where(y == 0, 0, y * gap), axis=1)
        mass += jnp.sum(y, axis=1)
    uniform_below = uniform_mass = None
    if targets.uniform is not None:
        each = targets.uniform
        if each.ndim == 0:
            uniform_below, uniform_mass = each * jnp.sum(gap, axis=1), each * width
        else:
            each = _columns(each, start, width)[None]
            uniform_below = jnp.sum(jnp.where(each == 0, 0, each * gap), axis=1)
            uniform_mass = jnp.sum(each)
    target = None
    if spec.has_rank:
        at, inside = _within(targets.ids[:, :1], start, width)
        found = jnp.take_along_axis(u, jnp.minimum(at, width - 1), axis=1)
        target = jnp.where(inside, found, 0)[:, 0]
    top = None
    if spec.k:
        # Adding zero makes -0 a 0, which top_k would put below it. A class that is impossible
        # still comes before none at all.
        values, at = jax.lax.top_k(jnp.maximum(u + 0, jnp.finfo(kind).min), min(spec.k, width))
        missing = ((0, 0), (0, spec.k - values.shape[1]))
        ids = (at + start).astype(jnp.int32)
        top = jnp.pad(values, missing, constant_values=-jnp.inf), jnp.pad(ids, missing)
    return _Partial(
        m=m * scale,
        m_unscaled=m,
        others=jnp.sum(e * below_top, axis=1) + (ties - 1),
        below=below,
        mass=mass,
        uniform_below=uniform_below,
        uniform_mass=uniform_mass,
        gap=jnp.sum(e * jnp.minimum(gap, 1e30), axis=1) if spec.has_entropy else None,
        square=jnp.sum(e * e, axis=1) if spec.has_collision else None,
        target=target,
        top=top,
    )


def _merged(a: _Partial, b: _Partial) -> _Partial:
    """Over the classes of both, of which those of ``a`` come first."""
    a_leads = a.m >= b.m
    m = jnp.where(a_leads, a.m, b.m)
    # How far each maximum is below the common one. Where a part has no possible class, all that it
    # adds is there already: nothing, or the infinity of a target that is impossible.
    none_a, none_b = a.m == -jnp.inf, b.m == -jnp.inf
    lift_a, lift_b = m - jnp.where(none_a, m, a.m), m - jnp.where(none_b, m, b.m)
    lift_a, lift_b = jnp.where(none_a, 0, lift_a), jnp.where(none_b, 0, lift_b)
    shrink_a = jnp.where(none_a, 0, jnp.exp(-lift_a))
    shrink_b = jnp.where(none_b, 0, jnp.exp(-lift_b))

    uniform_below = gap = square = top = target = uniform_mass = None
    if a.uniform_below is not None:
        uniform_below = a.uniform_below + b.uniform_below
        uniform_below += a.uniform_mass * lift_a + b.uniform_mass * lift_b
        uniform_mass = a.uniform_mass + b.uniform_mass
    if a.gap is not None:
        gap = shrink_a * (a.gap + (1 + a.others) * lift_a)
        gap += shrink_b * (b.gap + (1 + b.others) * lift_b)
    if a.square is not None:
        square = shrink_a**2 * a.square + shrink_b**2 * b.square
    if a.target is not None:
        target = a.target + b.target
    if a.top is not None:
        values, ids = (jnp.concatenate(pair, axis=1) for pair in zip(a.top, b.top, strict=True))
        values, at = jax.lax.top_k(values, a.top[0].shape[1])
        top = values, jnp.take_along_axis(ids, at, axis=1)
    return _Partial(
        m=m,
        m_unscaled=jnp.where(a_leads, a.m_unscaled, b.m_unscaled),
        others=jnp.where(
            a_leads,
            a.others + (1 + b.others) * shrink_b,
            b.others + (1 + a.others) * shrink_a,
        ),
        below=a.below + b.below + a.mass * lift_a + b.mass * lift_b,
        mass=a.mass + b.mass,
        uniform_below=uniform_below,
        uniform_mass=uniform_mass,
        gap=gap,
        square=square,
        target=target,
        top=top,
    )


def statistics(spec: Spec, head: Head, targets: Targets, *, keep: bool = False) -> tuple[Row, Any]:
    """Sweeps over the classes of a block of rows.

    Returns:
      What there is to say of each row, and what `gradients` makes logits of, if it is to be kept.
    """
    kind, v, scale = accumulation_type(head), head.w.shape[1], _scale(spec, head)

    def visit(carry, start, width, _):
        u = _unscaled(spec, head, start, width)
        return _merged(carry, _of_tile(spec, u, scale, targets, start, width)), u if keep else None

    nothing = _nothing(spec, targets, len(head.x), kind)
    seen, kept = over_classes(v, spec.classes, visit, nothing)
    is_real = jnp.isfinite(seen.m)
    r = jnp.where(is_real, jnp.log1p(jnp.where(is_real, seen.others, 0)), jnp.nan)
    uniform_mass = top = None
    if seen.uniform_mass is not None:
        uniform_mass = jnp.broadcast_to(seen.uniform_mass, r.shape)
    if seen.top is not None:
        values, ids = seen.top
        top = jnp.where(values == jnp.finfo(kind).min, -jnp.inf, values * scale), ids
    row = Row(
        m=seen.m,
        m_unscaled=seen.m_unscaled,
        r=r,
        below=seen.below,
        mass=seen.mass,
        uniform_below=seen.uniform_below,
        uniform_mass=uniform_mass,
        gap=None if seen.gap is None else seen.gap / (1 + seen.others),
        collision=None if seen.square is None else seen.square / (1 + seen.others) ** 2,
        top=top,
        rank=None,
    )
    if spec.has_rank:
        is_none = jnp.isnan(r) | jnp.isnan(targets.weights[:, 0])
        row = row._replace(rank=jnp.where(is_none, v, _rank(spec, head, targets, seen.target)))
    return row, kept


def _rank(spec: Spec, head: Head, targets: Targets, target: jax.Array) -> jax.Array:
    """A sweep of its own: the logit of the target must be known before others are counted."""

    def visit(count, start, width, _):
        u = _unscaled(spec, head, start, width)
        is_lower = start + jnp.arange(width, dtype=jnp.int32)[None] < targets.ids[:, :1]
        before = (u > target[:, None]) | ((u == target[:, None]) & is_lower)
        return count + jnp.sum(before, axis=1, dtype=jnp.int32), None

    count = jnp.zeros(len(target), jnp.int32)
    return over_classes(head.w.shape[1], spec.classes, visit, count)[0]


def gradient_of_tile(
    u: jax.Array,
    scale: Any,
    targets: Targets,
    row: Row,
    coefficients: Coefficients,
    start: Any,
    width: int,
) -> jax.Array:
    """``G``, see `Coefficients`: ``[rows, width]``."""
    c = coefficients
    gap = (row.m_unscaled[:, None] - u) * scale
    p = jnp.exp(-(gap + row.r[:, None]))
    factor = c.p[:, None]
    if c.entropy is not None:
        factor = factor + c.entropy[:, None] * (jnp.minimum(gap, 1e30) - row.gap[:, None])
    if c.collision is not None:
        factor = factor + 2 * c.collision[:, None] * (p - row.collision[:, None])
    g = p * factor
    if c.uniform is not None:
        each = targets.uniform
        each = each if each.ndim == 0 else _columns(each, start, width)[None]
        g = g - c.uniform[:, None] * each
    if targets.dense is not None:
        g = g - c.y[:, None] * _dense(targets, start, width, g.dtype)

    def add(g, ids, values):
        at, _ = _within(ids, start, width)
        rows = jnp.arange(len(ids))[:, None]
        return g.at[rows, at].add(values.astype(g.dtype), mode="drop")

    if targets.ids is not None:
        y = c.y[:, None]
        g = add(g, targets.ids, -jnp.where(y == 0, 0, y * targets.weights))
    if c.top is not None:
        g = add(g, row.top[1], c.top)
    return g


class Gradients(NamedTuple):
    """Of a sum over rows, those that are wanted."""

    x: Any
    w: Any
    b: Any
    temperature: Any


def gradients(
    spec: Spec,
    head: Head,
    targets: Targets,
    row: Row,
    coefficients: Coefficients,
    so_far: Gradients,
    kept: Any = (None, None),
) -> Gradients:
    """Sweeps over the classes of a block of rows once more, and adds their gradients.

    Args:
      spec: what is compiled in.
      head: with the rows of the block.
      targets: of the block.
      row: from `statistics`.
      coefficients: of the block.
      so_far: of the blocks before; ``x`` is that of the block itself.
      kept: by `statistics`, if it did.
    """
    scale = _scale(spec, head)

    def visit(so_far, start, width, u):
        if u is None:
            u = _unscaled(spec, head, start, width)
        g = gradient_of_tile(u, scale, targets, row, coefficients, start, width)
        temperature = so_far.temperature
        if temperature is not None:
            temperature -= jnp.sum(g * jnp.maximum(u * scale, -1e30)) / head.temperature
        # Both products read the tile; without the barrier, each would compute it anew.
        g = jax.lax.optimization_barrier(_through_logits(spec, head, u, g))
        x, w, b = so_far.x, so_far.w, so_far.b
        if x is not None:
            x += _product(g, _columns(head.w, start, width), (1, 1), head)
        if w is not None:
            w = _added(w, _product(head.x, g, (0, 0), head), start)
        if b is not None:
            b = _added(b, jnp.sum(g, axis=0), start)
        return Gradients(x, w, b, temperature), None

    return over_classes(head.w.shape[1], spec.classes, visit, so_far, kept)[0]


def _added(total: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    """``part`` added to the columns from ``start``."""
    axis = total.ndim - 1
    there = jax.lax.dynamic_slice_in_dim(total, start, part.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(total, there + part, start, axis)
