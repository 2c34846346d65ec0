r"""Cross-entropy of a linear head of any size, never holding all its logits.

For ``n`` rows and ``q`` classes the logits ``x w + b`` are ``n q`` numbers, and their gradient as
many: with 2,048 rows and 65,536 classes half a gigabyte each, beside weights of 64 MiB. Here they
exist a tile at a time, and derivatives are formed in closed form, ``softmax(o) - y`` (eq. 3.4.10),
where the tile is. On any device of XLA; nothing is approximated.

Sources: the logsumexp over tiles is that of Milakov and Gimelshein (2018), "Online normalizer
calculation for softmax"; leaving the logits out that of Wijmans et al. (2024), "Cut your losses in
large-vocabulary language models"; the gradient beside the loss that of Hsu et al. (2024), "Liger
kernel".
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses, parallel
from softmax_jax._annotations import AnyArray, Array, Float, Integer, Scalar
from softmax_jax._dtypes import accumulation_type
from softmax_jax.checks import checked_count
from softmax_jax.data.targets import Ids, Targets, parse_counted
from softmax_jax.head import table
from softmax_jax.head.derivative import Out, Smoothing, loss_and_values
from softmax_jax.head.operands import checked_operands, filled_up, with_rows
from softmax_jax.head.plan import Spec, Tiling, checked_tiling, make_plan, present_shards
from softmax_jax.head.scoring import TOP_K
from softmax_jax.head.statistics import State, Statistic
from softmax_jax.head.targets import mass_of, weights_of_classes
from softmax_jax.head.tiles import Operands
from softmax_jax.loss_options import (
    LossOptions,
    check_reduction,
    checked_options,
    is_one,
    is_zero,
    reduced,
)


class HeadOutput(NamedTuple):
    """Results of `linear_cross_entropy` for each row; None for those not asked for."""

    loss: Float[Array, "*batch"]
    """``[...]`` in nats, or a scalar if reduced."""
    nats: Float[Array, "*batch"] | None = None
    """Cross-entropy with the targets, times class weights if there are any: no smoothing, z-loss
    or row weight in it. 0 for ignored rows."""
    logsumexp: Float[Array, "*batch"] | None = None
    entropy: Float[Array, "*batch"] | None = None
    """Entropy of the prediction, in nats."""
    collision: Float[Array, "*batch"] | None = None
    """``Σ_j p_j²``, the probability that two draws from the prediction agree; a part of the Brier
    score."""
    argmax: Integer[Array, "*batch"] | None = None
    """int32; the first of equals, and `model.ABSTAIN` where the largest logit is not finite."""
    rank: Integer[Array, "*batch"] | None = None
    """int32 number of classes before the target; 0 where the prediction is right. Of equal logits
    the lower class comes first. ``q``, as if after all, for ignored rows, for ids out of range and
    where there is no prediction."""
    top_values: Float[Array, "*batch k"] | None = None
    """``[..., k]`` largest logits."""
    top_ids: Integer[Array, "*batch k"] | None = None
    """``[..., k]`` int32."""
    others: dict[str, State] | None = None
    """Values of the other statistics that ``extras`` names or gives as `Statistic`, by names."""


@jax.transfer_guard("allow")
def linear_cross_entropy(
    x: AnyArray,
    w: AnyArray,
    b: AnyArray | None,
    targets: AnyArray | Targets,
    *,
    weights: AnyArray | None = None,
    class_weights: AnyArray | None = None,
    ignore_id: int | None = None,
    label_smoothing: Scalar = 0.0,
    z_loss: Scalar = 0.0,
    soft_cap: float | None = None,
    temperature: Scalar = 1.0,
    extras: Sequence[str | Statistic] = (),
    k: int = TOP_K,
    strategy: str = "auto",
    memory: int | None = None,
    block_rows: int | None = None,
    block_classes: int | None = None,
    reduction: str = "none",
) -> HeadOutput:
    r"""Returns the cross-entropy of a linear head with its targets, row by row, in nats.

    .. math:: o_i = c \tanh((x_i W + b) / c) / T, \qquad
        l_i = s_i \Big( \sum_j \tilde y_{ij} (\mathrm{lse}_i - o_{ij}) + z\, \mathrm{lse}_i^2
        \Big), \qquad \mathrm{lse}_i = \log\sum_j e^{o_{ij}}, \qquad
        \tilde y_{ij} = v_j ((1 - ε) y_{ij} + ε / q)

    With nothing but the first four arguments it is ``losses.cross_entropy(x @ w + b, targets)``.
    Derivatives in ``x``, ``w``, ``b`` and ``temperature``, of all that is returned and not
    integer, are exact, in reverse mode; ``jax.jvp(jax.grad(f))``, a Hessian product, takes about as
    much memory as two gradients. Targets, class weights, smoothing and z-loss are constants: no
    derivative.

    There are two strategies, which give the same up to rounding. ``"recompute"`` holds a tile and
    takes 8 n d q FLOP for loss and gradient. ``"fused"`` forms the gradient beside the loss in
    6 n d q FLOP, with more memory and traffic; it is for cotangents that are the same for the
    losses of all rows, as those of a mean or a sum are, and recomputes for others. ``"auto"`` takes
    the faster one by the sizes. Under ``jax.vmap`` over ``m`` heads, tiles are ``m`` times as
    large; divide ``memory`` by ``m``, and take ``"recompute"``, as ``"fused"`` would do both.

    Args:
      x: ``[..., d]`` features; integers are read as the numbers they are, see `model.logits`.
      w: ``[d, q]``. Products of bfloat16 are summed in float32, as all sums are; the gradient of
        the logits is rounded to bfloat16 for its products then.
      b: ``[q]`` or None. ``-inf`` marks an impossible class.
      targets: class ids ``[...]``, probabilities ``[..., q]``, or `SparseTargets`.
      weights: ``[...]`` ``s_i``; None means 1. A row of weight 0 has loss 0, whatever else it has,
        as long as its logits are finite.
      class_weights: ``[q]`` ``v_j``.
      ignore_id: a class id, such as -1, that gives its row weight 0.
      label_smoothing: ``ε`` in [0, 1].
      z_loss: ``z``, of Chowdhery et al. (2022), "PaLM".
      soft_cap: ``c``, of Gemma Team (2024), "Gemma 2"; None for no cap.
      temperature: ``T > 0``, a scalar.
      extras: names in `EXTRAS`, computed in the same pass (``"rank"`` takes one more, 2 n d q
        FLOP); or a `Statistic` of your own.
      k: for ``"top_k"``; at most ``q`` are returned.
      strategy: one of `STRATEGIES`.
      memory: bytes that are held at a time besides arguments, results and, if fused, the
        gradients; block sizes follow. By default 64 MiB on CPU, where tiles are of 8 MiB at most,
        and 2 GiB elsewhere. Below what a tile of 2,048 rows of a class takes it has no effect.
      block_rows: rows of a tile.
      block_classes: classes of a tile.
      reduction: of the loss: ``"none"``; ``"sum"``; or ``"mean"``, the sum over the weights of all
        rows, ``Σ_i s_i Σ_j v_j y_ij``, or 0 where that is 0.

    Returns:
      `HeadOutput`, in float32 at least. Where the largest logit is not finite, NaN.

    Raises:
      ValueError: on shapes and options that do not fit, and on class ids outside [0, q). Under a
        jax transformation values cannot raise: there, an id out of range makes the loss of its
        own row NaN, and with it the gradient in ``x`` of that row, and all of those in ``w`` and
        ``b`` if the row has a weight.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from softmax_jax import linear_cross_entropy
      >>> x, labels = jnp.eye(2), jnp.array([0, 1])
      >>> w = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
      >>> out = linear_cross_entropy(x, w, None, labels, extras=("rank",))
      >>> [f"{nats:.4f}" for nats in out.loss], out.rank.tolist()
      (['0.4076', '1.0986'], [0, 1])
      >>> def mean(w):
      ...     return linear_cross_entropy(x, w, None, labels, reduction="mean").loss
      >>> [f"{derivative:.3f}" for derivative in jax.grad(mean)(w)[0]]
      ['-0.167', '0.045', '0.122']
    """
    check_reduction(reduction)
    x, w, b = checked_operands(x, w, b)
    leading, (d, q) = x.shape[:-1], w.shape
    n, kind = math.prod(leading), accumulation_type(x, w)
    options = checked_options(
        LossOptions(class_weights, ignore_id, label_smoothing, z_loss, soft_cap, temperature),
        q,
        kind,
    )
    asked = table.chosen(extras, min(checked_count(k, "k"), q))
    tiling = checked_tiling(Tiling(strategy, memory, block_rows, block_classes))
    parsed, counts = parse_counted(targets, (*leading, q), ignore_id)
    if not isinstance(parsed, Ids):
        _refuse_those_of_ids(asked)
    counts = jnp.ones(leading, bool) if counts is None else counts
    row_weights = losses.weights_of(jax.ShapeDtypeStruct(leading, kind), weights)
    row_weights = jnp.where(counts, row_weights, 0)
    of_classes = weights_of_classes(parsed, leading, q, options, kind)
    smoothing = Smoothing(_constant(options.label_smoothing, kind), _constant(options.z_loss, kind))
    spec = _spec(options, asked, q)

    def evaluated(x, w, b, temperature, of_classes, row_weights, smoothing):
        operands, of_classes = filled_up(Operands(x, w, b, temperature), of_classes)
        sizes = len(operands.x), operands.w.shape[0], operands.w.shape[1]
        out = loss_and_values(
            make_plan(sizes, spec, kind, tiling),
            operands,
            jax.lax.stop_gradient(of_classes),
            jax.lax.stop_gradient(with_rows(row_weights)),
            smoothing,
        )
        return jax.tree.map(lambda a: a[:n], out)

    temperature = jnp.asarray(options.temperature, kind)
    arguments = (x.reshape(n, d), w, b, temperature, of_classes, row_weights.reshape(n), smoothing)
    out = parallel.on_automatic_axes(evaluated, arguments, parallel.over_rows(n))
    out = jax.tree.map(lambda a: a.reshape(*leading, *a.shape[1:]), out)
    loss = jnp.where((row_weights == 0) & ~jnp.isfinite(out.loss), 0, out.loss)
    mass = None
    if reduction == "mean":
        mass = jax.lax.stop_gradient(mass_of(of_classes, kind)).reshape(leading)
    return _output(
        reduced(row_weights * loss, row_weights, mass, reduction), out, counts, q, extras
    )


def _refuse_those_of_ids(asked: tuple[Statistic, ...]) -> None:
    for statistic in asked:
        if statistic.needs_ids:
            raise ValueError(
                f"the {statistic.name} is that of a class id; these targets are distributions"
            )


def _spec(options: LossOptions, asked: tuple[Statistic, ...], q: int) -> Spec:
    """Returns the constants of the loss and of what is asked for; sizes of tiles are open."""
    terms = [] if is_zero(options.label_smoothing) else [table.SPREAD]
    terms += [] if is_zero(options.z_loss) else [table.LOGSUMEXP]
    # In this order they are the same programs, whatever the order of the extras.
    needed = dict.fromkeys((*terms, table.NATS, *sorted(asked, key=lambda s: s.name)))
    soft_cap = options.soft_cap
    return Spec(
        rows=0,
        classes=0,
        statistics=tuple(needed),
        soft_cap=None if soft_cap is None else float(soft_cap),
        has_temperature=not is_one(options.temperature),
        num_classes=q,
        shards=present_shards(),
    )


def _constant(value: Scalar, dtype: np.dtype) -> jax.Array | None:
    """Returns a scalar without a derivative, or None for a zero that is known now."""
    return None if is_zero(value) else jax.lax.stop_gradient(jnp.asarray(value, dtype))


def _output(
    loss: jax.Array, out: Out, counts: jax.Array, q: int, extras: Sequence[str | Statistic]
) -> HeadOutput:
    """Returns the loss and the values that are asked for."""
    values = out.values
    named = {name: values[name] for name in extras if isinstance(name, str) and name in values}
    found = {name: value for name, value in named.items() if name in HeadOutput._fields}
    # Rows that do not count.
    if "nats" in found:
        found["nats"] = jnp.where(counts, found["nats"], 0)
    if "rank" in found:
        found["rank"] = jnp.where(counts, found["rank"], q)
    if "argmax" in extras:
        found["argmax"] = values["top"].argmax
    if "top_k" in extras:
        found |= {"top_values": values["top"].values, "top_ids": values["top"].ids}
    others = {name: value for name, value in named.items() if name not in HeadOutput._fields}
    others |= {extra.name: values[extra.name] for extra in extras if isinstance(extra, Statistic)}
    return HeadOutput(loss, **found, others=others or None)
