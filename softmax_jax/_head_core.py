r"""The loss of a head without its logits, differentiated: what each strategy keeps and does again.

Two strategies give the same numbers up to rounding:

* ``"recompute"`` keeps some numbers a row from the loss and forms the logits again for the
  gradient: 8 n d v FLOP (2 for the loss, 2 for the logits again, 4 for the products with the
  gradient), the smallest memory: one tile.
* ``"sweep"`` forms the gradient beside the loss, from logits that are kept for a block of rows:
  6 n d v FLOP, with more traffic, and the gradient in ``w`` held once more. That must know what
  each loss will be multiplied by, which a derivative says only later. So the gradient is formed as
  if that were ``weights``, up to a common factor, as it is for a mean or a sum of what is returned;
  where it turns out to be something else, `recompute` does it over.

``"auto"`` takes the sweep where the arithmetic that it saves costs more than its traffic, by sizes
alone (`_sweep_pays`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax import _head_sweeps as sweeps
from softmax_jax._head_sweeps import Coefficients, Gradients, Head, Row, Spec, Targets

STRATEGIES = ("auto", "recompute", "sweep")


class Plan(NamedTuple):
    """What `_core` is compiled for."""

    spec: Spec
    sweep: Spec | None = None
    """None to recompute. The logits of its rows are kept."""


def make_plan(
    sizes: tuple[int, int, int], spec: Spec, kind: Any, strategy: str, memory: int | None
) -> Plan:
    """Blocks of a spec where they are 0, and whether to sweep."""
    n, d, v = sizes
    on_cpu = jax.default_backend() == "cpu"
    if memory is None:
        memory = 2**26 if on_cpu else 2**31
    # A tile is held as logits and as their gradient. On a CPU it should stay in the cache.
    entries = memory // (2 * kind.itemsize)
    entries = max(min(entries, 2**21) if on_cpu else entries, 1)
    rows = min(n, spec.rows or max(2**11 if on_cpu else 2**13, entries // v))
    tile = spec._replace(rows=rows, classes=_clamped(spec.classes or entries // rows, v))
    kept = _clamped(spec.rows or memory // (2 * kind.itemsize * v), n)
    sweep = spec._replace(rows=kept, classes=_clamped(spec.classes or entries // kept, v))
    if strategy == "recompute" or (strategy == "auto" and not _sweep_pays(kept, d, on_cpu)):
        return Plan(tile)
    return Plan(tile, sweep)


def _clamped(size: int, most: int) -> int:
    return max(min(size, most), 1)


def _sweep_pays(rows: int, d: int, on_cpu: bool) -> bool:
    r"""Whether arithmetic saved is worth more than traffic added, of a sweep by blocks of rows.

    It saves 2 n d v FLOP. It reads and writes the gradient in ``w`` once for each block of rows,
    and the logits once: ``8 d v (n / rows) + 8 n v`` bytes. With ``β`` FLOP to the byte for the
    machine, that is worth it where ``4 β (1 / rows + 1 / d) < 1``.
    """
    balance = 48 if on_cpu else 256
    return 4 * balance * (1 / rows + 1 / d) < 1


class Out(NamedTuple):
    """Of `_core`, all for each row; as cotangents, None is zero."""

    loss: Any
    nats: Any = None
    logsumexp: Any = None
    entropy: Any = None
    collision: Any = None
    top_values: Any = None
    top_ids: Any = None
    rank: Any = None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(
    plan: Plan,
    head: Head,
    targets: Targets,
    guess: jax.Array,
    smoothing: jax.Array | None,
    z: jax.Array | None,
) -> Out:
    """The loss of each row before its weight, and the rest; the guess is for derivatives only."""
    del guess
    return _out(_statistics(plan.spec, head, targets), smoothing, z)


def _statistics(spec: Spec, head: Head, targets: Targets) -> Row:
    def visit(_, start, is_new):
        return None, sweeps.statistics(spec, *_rows(head, targets, start, len(is_new)))[0]

    return sweeps.over_rows(len(head.x), spec.rows, visit, None)[1]


def _rows(head: Head, targets: Targets, start: Any, size: int) -> tuple[Head, Targets]:
    """A block of them."""
    ids, weights, dense = sweeps.rows_of((targets.ids, targets.weights, targets.dense), start, size)
    return (
        head._replace(x=sweeps.rows_of(head.x, start, size)),
        targets._replace(ids=ids, weights=weights, dense=dense),
    )


def _out(row: Row, smoothing: jax.Array | None, z: jax.Array | None) -> Out:
    logsumexp = row.m + row.r
    nats = row.below + row.mass * row.r
    loss = nats
    if smoothing is not None:
        spread = row.uniform_below + row.uniform_mass * row.r
        # An impossible class makes the spread infinite, and as a target the nats, too.
        loss = jnp.where(smoothing == 1, 0, (1 - smoothing) * nats)
        loss += jnp.where(smoothing == 0, 0, smoothing * spread)
    if z is not None:
        loss = loss + z * logsumexp**2
    return Out(
        loss=loss,
        nats=nats,
        logsumexp=logsumexp,
        entropy=None if row.gap is None else row.gap + row.r,
        collision=row.collision,
        top_values=None if row.top is None else row.top[0],
        top_ids=None if row.top is None else row.top[1],
        rank=row.rank,
    )


def _coefficients(
    row: Row,
    smoothing: jax.Array | None,
    z: jax.Array | None,
    cotangent: Out,
) -> Coefficients:
    """From what each result is to be multiplied by; None there for nothing."""
    y = jnp.zeros_like(row.m)
    p = jnp.zeros_like(row.m)
    uniform = None
    of_loss = cotangent.loss
    if of_loss is not None:
        y = of_loss if smoothing is None else (1 - smoothing) * of_loss
        if smoothing is not None:
            uniform = smoothing * of_loss
            p += uniform * row.uniform_mass
        if z is not None:
            p += 2 * z * (row.m + row.r) * of_loss
    if cotangent.nats is not None:
        y = y + cotangent.nats
    # A row that does not count may have a target out of range.
    p += jnp.where(y == 0, 0, y * row.mass)
    if cotangent.logsumexp is not None:
        p += cotangent.logsumexp
    return Coefficients(
        p=p,
        y=y,
        uniform=uniform,
        entropy=cotangent.entropy,
        collision=cotangent.collision,
        top=cotangent.top_values,
    )


def _forward(plan: Plan, head: Any, *others: Any) -> tuple[Out, Any]:
    """`_core`, and what `_backward` needs."""

    def is_primal(leaf):
        return hasattr(leaf, "perturbed")

    # As (), what a derivative is wanted of, as None the rest: known when this is compiled.
    wanted = Gradients(*(() if leaf is not None and leaf.perturbed else None for leaf in head))
    head, targets, guess, smoothing, z = jax.tree.map(
        lambda leaf: leaf.value, (head, *others), is_leaf=is_primal
    )
    if plan.sweep is None:
        row, total = _statistics(plan.spec, head, targets), None
    else:
        row, total = _swept(plan.sweep, head, targets, guess, smoothing, z, wanted)
    out = _out(row, smoothing, z)
    return out, (head, targets, guess, smoothing, z, row, wanted, total)


def _swept(
    spec: Spec,
    head: Head,
    targets: Targets,
    guess: jax.Array,
    smoothing: jax.Array | None,
    z: jax.Array | None,
    wanted: Gradients,
) -> tuple[Row, Gradients]:
    """What there is to say of the rows, and the gradients of the loss, multiplied as guessed."""

    def visit(total, start, is_new):
        block = _rows(head, targets, start, len(is_new))
        row, kept = sweeps.statistics(spec, *block, keep=True)
        guessed = jnp.where(is_new, sweeps.rows_of(guess, start, len(is_new)), 0)
        coefficients = _coefficients(row, smoothing, z, Out(guessed))
        return _plus_block(spec, block, row, coefficients, total, start, kept), row

    total, row = sweeps.over_rows(len(head.x), spec.rows, visit, _zeros(head, wanted))
    return row, total


def _recomputed(
    spec: Spec,
    head: Head,
    targets: Targets,
    row: Row,
    coefficients: Coefficients,
    wanted: Gradients,
) -> Gradients:
    """The gradients, with the logits formed anew."""

    def visit(total, start, is_new):
        size = len(is_new)
        own = jax.tree.map(
            lambda a: jnp.where(is_new.reshape(-1, *[1] * (a.ndim - 1)), a, 0),
            sweeps.rows_of(coefficients, start, size),
        )
        block, own_row = _rows(head, targets, start, size), sweeps.rows_of(row, start, size)
        return _plus_block(spec, block, own_row, own, total, start), None

    return sweeps.over_rows(len(head.x), spec.rows, visit, _zeros(head, wanted))[0]


def _zeros(head: Head, wanted: Gradients) -> Gradients:
    """To add gradients to."""
    kind = sweeps.accumulation_type(head)
    return Gradients(
        *(
            None if want is None else jnp.zeros(leaf.shape, kind)
            for want, leaf in zip(wanted, head, strict=True)
        )
    )


def _plus_block(
    spec: Spec,
    block: tuple[Head, Targets],
    row: Row,
    coefficients: Coefficients,
    total: Gradients,
    start: Any,
    kept: Any = (None, None),
) -> Gradients:
    """The total with the gradients of a block of rows."""
    head, targets = block
    own = None if total.x is None else jnp.zeros(head.x.shape, total.x.dtype)
    added = sweeps.gradients(spec, head, targets, row, coefficients, total._replace(x=own), kept)
    if total.x is None or total.x.shape == added.x.shape:
        return added
    there = sweeps.rows_of(total.x, start, len(added.x))
    x = jax.lax.dynamic_update_slice_in_dim(total.x, there + added.x, start, axis=0)
    return added._replace(x=x)


def _backward(plan: Plan, saved: Any, cotangent: Out) -> tuple[Any, None, None, None, None]:
    head, targets, guess, smoothing, z, row, wanted, total = saved
    cotangent = Out(*(None if _is_zero_cotangent(ct) else ct for ct in cotangent))

    def recomputed(head, targets, smoothing, z, row, cotangent):
        coefficients = _coefficients(row, smoothing, z, cotangent)
        gradients = _recomputed(plan.spec, head, targets, row, coefficients, wanted)
        return _in_types_of(head, gradients)

    operands = (head, targets, smoothing, z, row, cotangent)
    if total is None or cotangent.loss is None:
        return recomputed(*operands), None, None, None, None

    # What is swept is right where it was guessed, not around there: derivatives are those of the
    # gradient recomputed.
    @jax.custom_jvp
    def chosen(total, guess, operands):
        factor, is_as_guessed = _factor(guess, operands[-1])
        return jax.lax.cond(
            is_as_guessed,
            lambda: _in_types_of(
                head, jax.tree.map(lambda a: jnp.where(factor == 0, 0, factor * a), total)
            ),
            lambda: recomputed(*operands),
        )

    @chosen.defjvp
    def _(primals, tangents):
        return chosen(*primals), jax.jvp(recomputed, primals[-1], tangents[-1])[1]

    return chosen(total, guess, operands), None, None, None, None


def _factor(guess: jax.Array, cotangent: Out) -> tuple[jax.Array, jax.Array]:
    """Of the loss to the guess; and whether there is one, and nothing else to differentiate."""
    largest = jnp.argmax(jnp.abs(guess))
    factor = jnp.where(guess[largest] == 0, 0, cotangent.loss[largest] / guess[largest])
    error = jnp.abs(cotangent.loss - factor * guess)
    is_as_guessed = jnp.all(error <= 8 * jnp.finfo(error.dtype).eps * jnp.abs(cotangent.loss))
    for other in cotangent[1:]:
        if other is not None:
            is_as_guessed &= jnp.all(other == 0)
    return factor, is_as_guessed


_core.defvjp(_forward, _backward, symbolic_zeros=True)
compiled = jax.jit(_core, static_argnums=0)
compiled_statistics = jax.jit(_statistics, static_argnums=0)


def _is_zero_cotangent(ct: Any) -> bool:
    return ct is None or isinstance(ct, jax.custom_derivatives.SymbolicZero)


def _in_types_of(head: Head, gradients: Gradients) -> Head:
    rounded: list[Any] = [
        None if gradient is None else gradient.astype(leaf.dtype)
        for leaf, gradient in zip(head, gradients, strict=True)
    ]
    return Head(*rounded)
