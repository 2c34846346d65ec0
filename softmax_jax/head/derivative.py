r"""Loss of a head without its logits, and its derivative: what each strategy keeps and does again.

Two strategies give the same numbers up to rounding:

* ``"recompute"`` keeps some numbers a row from the loss and forms the logits again for the
  gradient: 8 n d q FLOP (2 for the loss, 2 for the logits again, 4 for the products with the
  gradient), the smallest memory: one tile.
* ``"fused"`` forms the gradient beside the loss, from logits that are kept for a block of rows:
  6 n d q FLOP, with more traffic, and the gradient in ``w`` held once more. It needs the cotangent
  of each loss, which only a later derivative knows. So it takes an expected one, ``weights`` up to
  a common factor, which is right for a mean or a sum of the weighted losses; where the cotangent
  turns out to be something else, the gradient is recomputed.

``"auto"`` fuses where the arithmetic that it saves costs more than its traffic, by sizes alone.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, PyTree
from softmax_jax._dtypes import accumulation_type
from softmax_jax.data.blocks import Index, joined, rows_of, scan
from softmax_jax.head import shards, tiles
from softmax_jax.head.plan import Plan, Spec
from softmax_jax.head.statistics import State
from softmax_jax.head.targets import TargetWeights
from softmax_jax.head.tiles import Gradients, Operands, Row

Values = dict[str, State]
"""Values of statistics by their names, or the derivatives in them."""


class Smoothing(NamedTuple):
    """Scalars of the loss; None for a zero that is known when the loss is compiled."""

    label_smoothing: Float[Array, ""] | None
    z_loss: Float[Array, ""] | None


class Out(NamedTuple):
    """Results for each row. As a cotangent, None means zero."""

    loss: Float[Array, " n"] | None
    """``[n]`` losses before their weights."""
    values: Values


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_and_values(
    plan: Plan,
    operands: Operands,
    targets: TargetWeights,
    expected_cotangent: Float[Array, " n"],
    smoothing: Smoothing,
) -> Out:
    """Returns loss and statistics of each row; the expected cotangent is for derivatives only."""
    del expected_cotangent
    return _out(plan.spec, _measured(plan.spec, operands, targets), smoothing)


def _measured(spec: Spec, operands: Operands, targets: TargetWeights) -> Row:
    return shards.shared_out(
        spec,
        partial(_measured_here, spec),
        (operands, targets),
        (shards.of_operands(operands), shards.of_targets(targets)),
        shards.OF_ROWS,
    )


def _measured_here(spec: Spec, operands: Operands, targets: TargetWeights) -> Row:
    def visit(_, start, is_new):
        block = _block_of_rows(operands, targets, start, len(is_new))
        return None, tiles.measure(spec, *block)[0]

    n = len(operands.x)
    return joined(scan(visit, None, n, spec.rows)[1], n)


def _block_of_rows(
    operands: Operands, targets: TargetWeights, start: Index, size: int
) -> tuple[Operands, TargetWeights]:
    by_row = (targets.ids, targets.weights, targets.dense)
    ids, weights, dense = rows_of(by_row, start, size)
    return (
        operands._replace(x=rows_of(operands.x, start, size)),
        targets._replace(ids=ids, weights=weights, dense=dense),
    )


def _out(spec: Spec, row: Row, smoothing: Smoothing) -> Out:
    values = {
        statistic.name: statistic.value(row.saved[statistic.name], row.normalizer)
        for statistic in spec.statistics
    }
    return Out(_combined(values, smoothing), values)


def _combined(values: Values, smoothing: Smoothing) -> Float[Array, " n"]:
    """Returns the loss ``(1 - ε) nats + ε spread + z logsumexp²``."""
    loss, epsilon, z = values["nats"], smoothing.label_smoothing, smoothing.z_loss
    if epsilon is not None:
        # An impossible class makes the spread infinite, and as a target the nats, too.
        loss = jnp.where(epsilon == 1, 0, (1 - epsilon) * loss)
        loss += jnp.where(epsilon == 0, 0, epsilon * values["spread"])
    if z is not None:
        loss = loss + z * values["logsumexp"] ** 2
    return loss


def _through_loss(values: Values, smoothing: Smoothing, cotangent: Out) -> Values:
    """Returns the derivatives in the values alone, the one through the loss included."""
    found = {name: ct for name, ct in cotangent.values.items() if jax.tree.leaves(ct)}
    if cotangent.loss is None:
        return found
    terms = {"nats": values["nats"]}
    if smoothing.label_smoothing is not None:
        terms["spread"] = values["spread"]
    if smoothing.z_loss is not None:
        terms["logsumexp"] = values["logsumexp"]
    _, back = jax.vjp(lambda terms: _combined(terms, smoothing), terms)
    for name, ct in back(cotangent.loss)[0].items():
        found[name] = found[name] + ct if name in found else ct
    return found


class _Saved(NamedTuple):
    """Arrays that `_backward` needs from `_forward`."""

    operands: Operands
    targets: TargetWeights
    expected_cotangent: Float[Array, " n"]
    smoothing: Smoothing
    row: Row
    wanted: Gradients
    """() for each gradient that is wanted, None for the others: known when this is compiled."""
    total: Gradients | None
    """Gradients of the fused strategy."""


def _forward(plan: Plan, operands: PyTree, *others: PyTree) -> tuple[Out, _Saved]:
    """Evaluates `_loss_and_values`, and keeps what `_backward` needs."""

    def is_primal(leaf):
        return hasattr(leaf, "perturbed")

    wanted = Gradients._make(
        () if leaf is not None and leaf.perturbed else None for leaf in operands
    )
    operands, targets, expected_cotangent, smoothing = jax.tree.map(
        lambda leaf: leaf.value, (operands, *others), is_leaf=is_primal
    )
    if plan.fused is None:
        row, total = _measured(plan.spec, operands, targets), None
    else:
        row, total = _fused(plan.fused, operands, targets, expected_cotangent, smoothing, wanted)
    saved = _Saved(operands, targets, expected_cotangent, smoothing, row, wanted, total)
    return _out(plan.spec, row, smoothing), saved


def _fused(
    spec: Spec,
    operands: Operands,
    targets: TargetWeights,
    expected_cotangent: Float[Array, " n"],
    smoothing: Smoothing,
    wanted: Gradients,
) -> tuple[Row, Gradients]:
    """Returns the statistics, and the gradients for the expected cotangent of the loss."""
    return shards.shared_out(
        spec,
        partial(_fused_here, spec, wanted),
        (operands, targets, expected_cotangent, smoothing),
        (
            shards.of_operands(operands),
            shards.of_targets(targets),
            shards.OF_ROWS,
            shards.EVERYWHERE,
        ),
        (shards.OF_ROWS, shards.of_operands(_zeros(operands, wanted))),
    )


def _fused_here(
    spec: Spec,
    wanted: Gradients,
    operands: Operands,
    targets: TargetWeights,
    expected_cotangent: Float[Array, " n"],
    smoothing: Smoothing,
) -> tuple[Row, Gradients]:
    def visit(total, start, is_new):
        block = _block_of_rows(operands, targets, start, len(is_new))
        row, kept = tiles.measure(spec, *block, keep=True)
        expected = rows_of(expected_cotangent, start, len(is_new))
        expected = jnp.where(is_new, expected, 0)
        values = _out(spec, row, smoothing).values
        cotangents = _through_loss(values, smoothing, Out(expected, {}))
        return _plus_block(spec, block, row, cotangents, total, start, kept), row

    zeros = _zeros(operands, wanted)
    n = len(operands.x)
    total, rows = scan(visit, zeros, n, spec.rows)
    return joined(rows, n), _of_all_devices(spec, total)


def _of_all_devices(spec: Spec, own: Gradients) -> Gradients:
    """Returns the gradients of all rows and classes, of which each device has its own."""
    return Gradients(
        x=shards.over_classes(spec, own.x),
        w=shards.over_rows(spec, own.w),
        b=shards.over_rows(spec, own.b),
        temperature=shards.over_rows(spec, shards.over_classes(spec, own.temperature)),
    )


def _recomputed(
    spec: Spec,
    operands: Operands,
    targets: TargetWeights,
    row: Row,
    cotangents: Values,
    wanted: Gradients,
) -> Gradients:
    """Returns the gradients, with the logits formed anew."""
    return shards.shared_out(
        spec,
        partial(_recomputed_here, spec, wanted),
        (operands, targets, row, cotangents),
        (
            shards.of_operands(operands),
            shards.of_targets(targets),
            shards.OF_ROWS,
            shards.OF_ROWS,
        ),
        shards.of_operands(_zeros(operands, wanted)),
    )


def _recomputed_here(
    spec: Spec,
    wanted: Gradients,
    operands: Operands,
    targets: TargetWeights,
    row: Row,
    cotangents: Values,
) -> Gradients:
    def visit(total, start, is_new):
        size = len(is_new)
        own = jax.tree.map(
            lambda a: jnp.where(is_new.reshape(-1, *[1] * (a.ndim - 1)), a, 0),
            rows_of(cotangents, start, size),
        )
        block = _block_of_rows(operands, targets, start, size)
        own_row = rows_of(row, start, size)
        return _plus_block(spec, block, own_row, own, total, start), None

    zeros = _zeros(operands, wanted)
    total = scan(visit, zeros, len(operands.x), spec.rows)[0]
    return _of_all_devices(spec, total)


def _zeros(operands: Operands, wanted: Gradients) -> Gradients:
    """Returns zeros for the gradients that are wanted."""
    kind = accumulation_type(operands.x, operands.w)
    return Gradients._make(
        None if want is None or leaf is None else jnp.zeros(leaf.shape, kind)
        for want, leaf in zip(wanted, operands, strict=True)
    )


def _plus_block(
    spec: Spec,
    block: tuple[Operands, TargetWeights],
    row: Row,
    cotangents: Values,
    total: Gradients,
    start: Index,
    kept: tiles.Kept = tiles.NOTHING_KEPT,
) -> Gradients:
    """Adds the gradients of a block of rows."""
    operands, targets = block
    own = None if total.x is None else jnp.zeros(operands.x.shape, total.x.dtype)
    so_far = total._replace(x=own)
    added = tiles.add_gradients(spec, operands, targets, row, cotangents, so_far, kept)
    if total.x is None or added.x is None or total.x.shape == added.x.shape:
        return added
    there = rows_of(total.x, start, len(added.x))
    x = jax.lax.dynamic_update_slice_in_dim(total.x, there + added.x, start, axis=0)
    return added._replace(x=x)


def _backward(plan: Plan, saved: _Saved, cotangent: Out) -> tuple[Operands, None, None, None]:
    cotangent = jax.tree.map(
        lambda ct: None if _is_zero_cotangent(ct) else ct, cotangent, is_leaf=_is_zero_cotangent
    )
    wanted, total = saved.wanted, saved.total

    def recomputed(operands, targets, smoothing, row, cotangent):
        values = _out(plan.spec, row, smoothing).values
        cotangents = _through_loss(values, smoothing, cotangent)
        gradients = _recomputed(plan.spec, operands, targets, row, cotangents, wanted)
        return _in_types_of(operands, gradients)

    arguments = (saved.operands, saved.targets, saved.smoothing, saved.row, cotangent)
    if total is None or cotangent.loss is None:
        return recomputed(*arguments), None, None, None

    # The fused gradient is exact only at the expected cotangent, so differentiate the recomputed
    # one.
    @jax.custom_jvp
    def chosen(total, expected_cotangent, arguments):
        factor, is_valid = _factor(expected_cotangent, arguments[-1])
        scaled = jax.tree.map(lambda a: jnp.where(factor == 0, 0, factor * a), total)
        return jax.lax.cond(
            is_valid,
            lambda: _in_types_of(saved.operands, scaled),
            lambda: recomputed(*arguments),
        )

    @chosen.defjvp
    def _(primals, tangents):
        return chosen(*primals), jax.jvp(recomputed, primals[-1], tangents[-1])[1]

    return chosen(total, saved.expected_cotangent, arguments), None, None, None


def _factor(
    expected_cotangent: Float[Array, " n"], cotangent: Out
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """Returns the loss cotangent as a multiple of the expected one, and whether that is valid.

    It is if one factor fits every row and no other result has a cotangent.
    """
    assert cotangent.loss is not None
    largest = jnp.argmax(jnp.abs(expected_cotangent))
    scale = expected_cotangent[largest]
    factor = jnp.where(scale == 0, 0, cotangent.loss[largest] / scale)
    error = jnp.abs(cotangent.loss - factor * expected_cotangent)
    is_valid = jnp.all(error <= 8 * jnp.finfo(error.dtype).eps * jnp.abs(cotangent.loss))
    for other in jax.tree.leaves(cotangent.values):
        is_valid &= jnp.all(other == 0)
    return factor, is_valid


_loss_and_values.defvjp(_forward, _backward, symbolic_zeros=True)
loss_and_values = jax.jit(_loss_and_values, static_argnums=0)
measured = jax.jit(_measured, static_argnums=0)


def _is_zero_cotangent(ct: object) -> bool:
    return ct is None or isinstance(ct, jax.custom_derivatives.SymbolicZero)


def _in_types_of(operands: Operands, gradients: Gradients) -> Operands:
    return Operands._make(
        None if gradient is None or leaf is None else gradient.astype(leaf.dtype)
        for leaf, gradient in zip(operands, gradients, strict=True)
    )
