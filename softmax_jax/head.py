r"""The linear head of any size: its loss and what comes with it, never holding all the logits.

For ``n`` rows and ``v`` classes the logits ``x w + b`` are ``n v`` numbers, and their gradient as
many: with 2,048 rows and 65,536 classes a gigabyte beside weights of 64 MiB. Here they exist a
tile at a time (`softmax_jax._head_sweeps`), and derivatives are formed in closed form,
``softmax(o) - y`` (eq. 3.4.10), where the tile is. On any device of XLA; nothing is approximated.

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

Sources: the logsumexp over tiles is that of Milakov and Gimelshein (2018), "Online normalizer
calculation for softmax"; leaving the logits out that of Wijmans et al. (2024), "Cut your losses in
large-vocabulary language models"; the gradient beside the loss that of Hsu et al. (2024), "Liger
kernel".
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import _head_sweeps as sweeps
from softmax_jax import losses
from softmax_jax._head_sweeps import (
    Coefficients,
    Gradients,
    Head,
    Row,
    Spec,
    Targets,
)
from softmax_jax.model import ABSTAIN, Params

EXTRAS = ("nats", "logsumexp", "entropy", "collision", "argmax", "rank", "top_k")
STRATEGIES = ("auto", "recompute", "sweep")
LARGE = 2**24
"""Logits from which on it is better not to hold all of them: 64 MiB of float32."""


class SparseTargets(NamedTuple):
    """Soft labels over few classes of a row, from a teacher's largest probabilities for example."""

    ids: jax.Array
    """``[..., t]`` integers; of a class that is named twice, the weights are added."""
    weights: jax.Array
    """``[..., t]``; they need not sum to one."""


class HeadOutput(NamedTuple):
    """What `linear_cross_entropy` returns for each row; None for what was not asked for."""

    loss: jax.Array
    """``[...]``, in nats."""
    nats: jax.Array | None = None
    """The cross-entropy with the targets, times class weights if there are any: no smoothing,
    z-loss or row weight in it. 0 for ignored rows."""
    logsumexp: jax.Array | None = None
    entropy: jax.Array | None = None
    """Of the prediction, in nats."""
    collision: jax.Array | None = None
    """``Σ_j p_j²``: how likely two draws from the prediction agree; a part of the Brier score."""
    argmax: jax.Array | None = None
    """int32; the first of equals, and `model.ABSTAIN` where the largest logit is not finite."""
    rank: jax.Array | None = None
    """int32: how many classes come before the target; 0 where the prediction is right. Of equal
    logits the lower class comes first. ``q``, as if after all, for ignored rows, for ids out of
    range and where there is no prediction."""
    top_values: jax.Array | None = None
    """``[..., k]`` largest logits."""
    top_ids: jax.Array | None = None
    """``[..., k]`` int32."""


class _Plan(NamedTuple):
    """What `_core` is compiled for."""

    spec: Spec
    sweep: Spec | None = None
    """None to recompute. The logits of its rows are kept."""


def linear_cross_entropy(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    targets: jax.Array | SparseTargets,
    *,
    weights: jax.Array | None = None,
    class_weights: jax.Array | None = None,
    ignore_id: int | None = None,
    label_smoothing: float | jax.Array = 0.0,
    z_loss: float | jax.Array = 0.0,
    soft_cap: float | None = None,
    temperature: float | jax.Array = 1.0,
    extras: Sequence[str] = (),
    k: int = 5,
    strategy: str = "auto",
    memory: int | None = None,
    block_rows: int | None = None,
    block_classes: int | None = None,
) -> HeadOutput:
    r"""Cross-entropy of a linear head with its targets, row by row, in nats.

    .. math:: o_i = c \tanh((x_i W + b) / c) / T, \qquad
        l_i = s_i \Big( \sum_j \tilde y_{ij} (\mathrm{lse}_i - o_{ij}) + z\, \mathrm{lse}_i^2
        \Big), \qquad \mathrm{lse}_i = \log\sum_j e^{o_{ij}}, \qquad
        \tilde y_{ij} = v_j ((1 - ε) y_{ij} + ε / q)

    With nothing but the first four arguments it is ``losses.cross_entropy(x @ w + b, targets)``.
    Derivatives in ``x``, ``w``, ``b`` and ``temperature``, of all that is returned and not
    integer, are exact, in reverse mode; ``jax.jvp(jax.grad(f))``, a Hessian product, takes about as
    much memory as two gradients. Targets, class weights, smoothing and z-loss are constants: no
    derivative.

    Under ``jax.vmap`` over ``m`` heads, tiles are ``m`` times as large; divide ``memory`` by it,
    and take the strategy ``"recompute"``, as the other one would do both.

    Args:
      x: ``[..., d]`` features; integers are read as the numbers they are.
      w: ``[d, q]``. Products of bfloat16 are summed in float32, as all sums are; the gradient of
        the logits is rounded to bfloat16 for its products then.
      b: ``[q]`` or None. ``-inf`` marks an impossible class.
      targets: class ids ``[...]``, probabilities ``[..., q]``, or `SparseTargets`.
      weights: ``[...]`` ``s_i``; None means 1. A row of weight 0 has loss 0, whatever else it has,
        as long as its logits are finite.
      class_weights: ``[q]`` ``v_j``.
      ignore_id: a class id, such as -1, that gives its row weight 0.
      label_smoothing: ``ε`` in [0, 1).
      z_loss: ``z``, of Chowdhery et al. (2022), "PaLM".
      soft_cap: ``c``, of Gemma Team (2024), "Gemma 2"; None for no cap.
      temperature: ``T > 0``, a scalar.
      extras: some of `EXTRAS`, computed in the same pass. (``"rank"`` costs one more where
        classes do not fit a tile: 2 n d q FLOP.)
      k: for ``"top_k"``; at most ``q`` are returned.
      strategy: one of `STRATEGIES`.
      memory: bytes of what is held at a time besides arguments, results and, in a sweep, the
        gradients; block sizes follow. By default 64 MiB on CPU, where tiles are of 8 MiB at most,
        and 2 GiB elsewhere. Below what a tile of 2,048 rows of a class takes it has no effect.
      block_rows: rows of a tile.
      block_classes: classes of a tile.

    Returns:
      `HeadOutput`, in float32 at least. Where the largest logit is not finite, NaN.

    Raises:
      ValueError: on shapes and options that do not fit, and on class ids outside [0, q). Under a
        jax transformation values cannot raise: there, an id out of range makes the loss of its
        own row NaN, and with it the gradient in ``x`` of that row, and all of those in ``w`` and
        ``b`` if the row has a weight.
    """
    x, w = jnp.asarray(x), jnp.asarray(w)
    b = None if b is None else jnp.asarray(b)
    _check_shapes(x, w, b)
    _check_options(
        extras,
        k,
        strategy,
        soft_cap,
        label_smoothing,
        z_loss,
        temperature,
        (memory, block_rows, block_classes),
    )
    leading, (d, v) = x.shape[:-1], w.shape
    n = math.prod(leading)
    if n == 0:
        raise ValueError(f"there are no rows: x has shape {x.shape}")
    kind = sweeps.accumulation_type(Head(x, w, b, jnp.ones(())))
    row_weights = losses.weights_of(
        jax.ShapeDtypeStruct(leading, kind), None if weights is None else jnp.asarray(weights)
    )
    if class_weights is not None:
        class_weights = jnp.asarray(class_weights, kind)
        if class_weights.shape != (v,):
            raise ValueError(f"class_weights of shape {class_weights.shape} for {v} classes")
    made, counts = _made_targets(targets, leading, v, class_weights, ignore_id, kind)
    row_weights = jnp.where(counts, row_weights, 0)
    if "rank" in extras and not _are_ids(targets, leading):
        raise ValueError("the rank is that of a class id; these targets are distributions")
    smoothing = _constant(label_smoothing, kind)
    if smoothing is not None:
        uniform = jnp.ones((), kind) if class_weights is None else class_weights
        made = made._replace(uniform=uniform / v)
    plan = _plan(
        (n, d, v),
        Spec(
            rows=block_rows or 0,
            classes=block_classes or 0,
            soft_cap=None if soft_cap is None else float(soft_cap),
            has_temperature=isinstance(temperature, jax.Array) or temperature != 1,
            has_entropy="entropy" in extras,
            has_collision="collision" in extras,
            k=min(k, v) if "top_k" in extras else int("argmax" in extras),
            has_rank="rank" in extras,
        ),
        kind,
        strategy,
        memory,
    )
    out = _compiled(
        plan,
        Head(x.reshape(n, d), w, b, jnp.asarray(temperature, kind)),
        jax.lax.stop_gradient(made),
        jax.lax.stop_gradient(row_weights.reshape(n)),
        smoothing,
        _constant(z_loss, kind),
    )

    def shaped(a):
        return None if a is None else a.reshape(*leading, *a.shape[1:])

    loss, ids = shaped(out.loss), shaped(out.top_ids)
    argmax = None
    if "argmax" in extras:
        argmax = jnp.where(jnp.isnan(shaped(out.logsumexp)), ABSTAIN, ids[..., 0])
    return HeadOutput(
        loss=row_weights * jnp.where((row_weights == 0) & ~jnp.isfinite(loss), 0, loss),
        nats=jnp.where(counts, shaped(out.nats), 0) if "nats" in extras else None,
        logsumexp=shaped(out.logsumexp) if "logsumexp" in extras else None,
        entropy=shaped(out.entropy),
        collision=shaped(out.collision),
        argmax=argmax,
        rank=None if out.rank is None else jnp.where(counts, shaped(out.rank), v),
        top_values=shaped(out.top_values) if "top_k" in extras else None,
        top_ids=ids if "top_k" in extras else None,
    )


class TopK(NamedTuple):
    """The most probable classes, the most probable one first, of equals the lower class."""

    probabilities: jax.Array
    """``[..., k]``."""
    ids: jax.Array
    """``[..., k]`` int32."""


def top_k(params: Params, x: jax.Array, *, k: int = 5, memory: int | None = None) -> TopK:
    """The ``k`` most probable classes of each row, a tile of logits at a time.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features.
      k: how many, at most ``q``.
      memory: see `linear_cross_entropy`.

    Raises:
      ValueError: on shapes that do not fit, and a ``k`` below 1 or above ``q``.
    """
    q = params.w.shape[-1]
    if not 1 <= k <= q:
        raise ValueError(f"k must lie in [1, {q}] for {q} classes, got {k}")
    row = _scored(params, x, k, memory)
    values, ids = row.top
    probabilities = jnp.exp((values - row.m[:, None]) - row.r[:, None])
    shape = (*jnp.shape(x)[:-1], k)
    return TopK(probabilities.reshape(shape), ids.reshape(shape))


def predict(
    params: Params,
    x: jax.Array,
    *,
    threshold: float | jax.Array = 0.0,
    memory: int | None = None,
) -> jax.Array:
    """`model.predict`, a tile of logits at a time; the arguments are the same.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features.
      threshold: least probability on which to commit.
      memory: see `linear_cross_entropy`.
    """
    row = _scored(params, x, 1, memory)
    # The largest probability is exp(m - m - r); NaN fails the comparison too.
    shape = jnp.shape(x)[:-1]
    confidence, classes = jnp.exp(-row.r).reshape(shape), row.top[1][:, 0].reshape(shape)
    return jnp.where(confidence >= threshold, classes, ABSTAIN)


def _scored(params: Params, x: jax.Array, k: int, memory: int | None) -> Row:
    """What there is to say of the rows of ``x`` without targets."""
    x, w, b = jnp.asarray(x), jnp.asarray(params.w), jnp.asarray(params.b)
    _check_shapes(x, w, b)
    if x.size == 0:
        raise ValueError(f"there are no rows: x has shape {x.shape}")
    _check_options((), k, "auto", None, 0.0, 0.0, 1.0, (memory,))
    head = Head(x.reshape(-1, x.shape[-1]), w, b, jnp.ones(()))
    sizes = (len(head.x), w.shape[0], w.shape[1])
    kind = sweeps.accumulation_type(head)
    plan = _plan(sizes, Spec(rows=0, classes=0, k=k), kind, "recompute", memory)
    return _statistics_compiled(plan.spec, head, Targets())


class _Out(NamedTuple):
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
    plan: _Plan,
    head: Head,
    targets: Targets,
    guess: jax.Array,
    smoothing: jax.Array | None,
    z: jax.Array | None,
) -> _Out:
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


def _out(row: Row, smoothing: jax.Array | None, z: jax.Array | None) -> _Out:
    logsumexp = row.m + row.r
    nats = row.below + row.mass * row.r
    loss = nats
    if smoothing is not None:
        spread = row.uniform_below + row.uniform_mass * row.r
        # An impossible class makes the spread infinite.
        loss = (1 - smoothing) * nats + jnp.where(smoothing == 0, 0, smoothing * spread)
    if z is not None:
        loss = loss + z * logsumexp**2
    return _Out(
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
    cotangent: _Out,
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


def _forward(plan: _Plan, head: Any, *others: Any) -> tuple[_Out, Any]:
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
        coefficients = _coefficients(row, smoothing, z, _Out(guessed))
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


def _backward(plan: _Plan, saved: Any, cotangent: _Out) -> tuple[Any, None, None, None, None]:
    head, targets, guess, smoothing, z, row, wanted, total = saved
    cotangent = _Out(*(None if _is_zero_cotangent(ct) else ct for ct in cotangent))

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


def _factor(guess: jax.Array, cotangent: _Out) -> tuple[jax.Array, jax.Array]:
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
_compiled = jax.jit(_core, static_argnums=0)
_statistics_compiled = jax.jit(_statistics, static_argnums=0)


def _is_zero_cotangent(ct: Any) -> bool:
    return ct is None or isinstance(ct, jax.custom_derivatives.SymbolicZero)


def _in_types_of(head: Head, gradients: Gradients) -> Head:
    rounded: list[Any] = [
        None if gradient is None else gradient.astype(leaf.dtype)
        for leaf, gradient in zip(head, gradients, strict=True)
    ]
    return Head(*rounded)


def _plan(
    sizes: tuple[int, int, int], spec: Spec, kind: Any, strategy: str, memory: int | None
) -> _Plan:
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
        return _Plan(tile)
    return _Plan(tile, sweep)


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


def _constant(value: float | jax.Array, kind: Any) -> jax.Array | None:
    """None for a zero that is known now."""
    if not isinstance(value, jax.core.Tracer) and float(value) == 0:
        return None
    return jax.lax.stop_gradient(jnp.asarray(value, kind))


def _are_ids(targets: Any, leading: tuple[int, ...]) -> bool:
    return not isinstance(targets, SparseTargets) and jnp.shape(targets) == leading


def _made_targets(
    targets: Any,
    leading: tuple[int, ...],
    v: int,
    class_weights: jax.Array | None,
    ignore_id: int | None,
    kind: Any,
) -> tuple[Targets, jax.Array]:
    """The targets by rows, and which rows ``[...]`` count."""
    n = math.prod(leading)
    counts = jnp.ones(leading, bool)
    if not isinstance(targets, SparseTargets):
        logits = jax.ShapeDtypeStruct((*leading, v), kind)
        ids = targets = (
            _as_array(targets) if jnp.shape(targets) == leading else jnp.asarray(targets)
        )
        if ignore_id is not None and targets.shape == leading:
            numpy = jnp if isinstance(targets, jax.core.Tracer) else np
            counts = targets != ignore_id
            ids = numpy.where(counts, targets, 0)
        if not losses.are_labels(logits, ids):
            if ignore_id is not None:
                raise ValueError("ignore_id is a class id; these targets are probabilities")
            return Targets(dense=targets.reshape(n, v), class_weights=class_weights), counts
        ids, weights = jnp.asarray(ids)[..., None], jnp.ones((*leading, 1), kind)
    else:
        if ignore_id is not None:
            raise ValueError("ignore_id is for class ids; give these rows weights of 0")
        ids, weights = _checked_sparse(targets, leading, v)
        ids, weights = jnp.asarray(ids), jnp.asarray(weights, kind)
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # small types cannot hold the v that they are compared with
    is_class = (ids >= 0) & (ids < v)
    ids = jnp.where(is_class, ids, 0).astype(jnp.int32)
    if class_weights is not None:
        weights = weights * class_weights[ids]
    weights = jnp.where(is_class, weights, jnp.nan)
    return Targets(ids=ids.reshape(n, -1), weights=weights.reshape(n, -1)), jnp.asarray(counts)


def _as_array(a: Any) -> Any:
    """Concrete ones by NumPy: under a transformation of something else, jnp would trace them."""
    return a if isinstance(a, jax.core.Tracer) else np.asarray(a)


def _checked_sparse(targets: SparseTargets, leading: tuple[int, ...], v: int) -> tuple[Any, Any]:
    ids, weights = _as_array(targets.ids), targets.weights
    if ids.shape != jnp.shape(weights) or ids.shape[:-1] != leading or ids.ndim == len(leading):
        raise ValueError(
            f"sparse targets need ids and weights of shape {(*leading, 't')}, got {ids.shape} and "
            f"{jnp.shape(weights)}"
        )
    if ids.shape[-1] == 0:
        raise ValueError("sparse targets need at least one class a row")
    # Each column is one of class ids.
    losses.are_labels(jax.ShapeDtypeStruct((*ids.shape, v), jnp.float32), ids)
    return ids, weights


def _check_shapes(x: jax.Array, w: jax.Array, b: jax.Array | None) -> None:
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w must have shape [d, q], got {w.shape}")
    d, v = w.shape
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x of shape {x.shape} needs a last axis of the {d} features of w")
    if b is not None and b.shape != (v,):
        raise ValueError(f"b of shape {b.shape} for the {v} classes of w")


def _check_options(
    extras: Sequence[str],
    k: int,
    strategy: str,
    soft_cap: float | None,
    label_smoothing: float | jax.Array,
    z_loss: float | jax.Array,
    temperature: float | jax.Array,
    sizes: Sequence[int | None],
) -> None:
    for name in extras:
        if name not in EXTRAS:
            raise ValueError(f"extras: choose some of {', '.join(EXTRAS)}, got {name!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: choose one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap must be positive and finite, got {soft_cap}")
    scalars = {"label_smoothing": label_smoothing, "z_loss": z_loss, "temperature": temperature}
    for name, value in scalars.items():
        if jnp.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
    losses.check_label_smoothing(label_smoothing)
    if not isinstance(temperature, jax.core.Tracer) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if any(size is not None and size < 1 for size in sizes):
        raise ValueError("memory, block_rows and block_classes must be at least 1")
