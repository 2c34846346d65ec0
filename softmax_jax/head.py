r"""The linear head of any size: its loss and what comes with it, never holding all the logits.

For ``n`` rows and ``v`` classes the logits ``x w + b`` are ``n v`` numbers, and their gradient as
many: with 2,048 rows and 65,536 classes a gigabyte beside weights of 64 MiB. Here they exist a
tile at a time (`softmax_jax._head_sweeps`), and derivatives are formed in closed form,
``softmax(o) - y`` (eq. 3.4.10), where the tile is. On any device of XLA; nothing is approximated.
The two strategies that there are give the same up to rounding; see `softmax_jax._head_core`.

Sources: the logsumexp over tiles is that of Milakov and Gimelshein (2018), "Online normalizer
calculation for softmax"; leaving the logits out that of Wijmans et al. (2024), "Cut your losses in
large-vocabulary language models"; the gradient beside the loss that of Hsu et al. (2024), "Liger
kernel".
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import _head_core, _head_sweeps, losses
from softmax_jax._head_core import STRATEGIES as STRATEGIES
from softmax_jax._head_sweeps import Head, Row, Spec, Targets
from softmax_jax._head_targets import made_targets
from softmax_jax.checks import as_array, as_real, checked_count
from softmax_jax.data.targets import SparseTargets as SparseTargets
from softmax_jax.data.targets import Targets as AnyTargets
from softmax_jax.model import ABSTAIN, Params, centred, committed

EXTRAS = ("nats", "logsumexp", "entropy", "collision", "argmax", "rank", "top_k")
LARGE = 2**24
"""Logits from which on it is better not to hold all of them: 64 MiB of float32."""


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


@jax.transfer_guard("allow")
def linear_cross_entropy(
    x: jax.Array,
    w: jax.Array,
    b: jax.Array | None,
    targets: jax.Array | AnyTargets,
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
    x, w, b = _operands(x, w, b)
    _check_options(extras, strategy, soft_cap, label_smoothing, z_loss, temperature)
    k = checked_count(k, "k")
    leading, (d, v) = x.shape[:-1], w.shape
    n = math.prod(leading)
    kind = _head_sweeps.accumulation_type(Head(x, w, b, jnp.ones(())))
    row_weights = losses.weights_of(jax.ShapeDtypeStruct(leading, kind), weights)
    if class_weights is not None:
        class_weights = as_real(class_weights, "class_weights").astype(kind)
        if class_weights.shape != (v,):
            raise ValueError(f"class_weights of shape {class_weights.shape} for {v} classes")
    made, counts = made_targets(targets, leading, v, class_weights, ignore_id, kind)
    row_weights = jnp.where(counts, row_weights, 0)
    if "rank" in extras and (made.ids is None or isinstance(targets, SparseTargets)):
        raise ValueError("the rank is that of a class id; these targets are distributions")
    smoothing = _constant(label_smoothing, kind)
    if smoothing is not None:
        uniform = jnp.ones((), kind) if class_weights is None else class_weights
        made = made._replace(uniform=uniform / v)
    plan = _head_core.make_plan(
        (max(n, 1), d, v),
        Spec(
            rows=_size(block_rows, "block_rows") or 0,
            classes=_size(block_classes, "block_classes") or 0,
            soft_cap=None if soft_cap is None else float(soft_cap),
            has_temperature=isinstance(temperature, jax.Array) or temperature != 1,
            has_entropy="entropy" in extras,
            has_collision="collision" in extras,
            k=min(k, v) if "top_k" in extras else int("argmax" in extras),
            has_rank="rank" in extras,
        ),
        kind,
        strategy,
        _size(memory, "memory"),
    )
    made = made._replace(
        ids=_some_rows(made.ids), weights=_some_rows(made.weights), dense=_some_rows(made.dense)
    )
    out = _head_core.compiled(
        plan,
        Head(_some_rows(x.reshape(n, d)), w, b, jnp.asarray(temperature, kind)),
        jax.lax.stop_gradient(made),
        jax.lax.stop_gradient(_some_rows(row_weights.reshape(n))),
        smoothing,
        _constant(z_loss, kind),
    )

    def shaped(a):
        return None if a is None else a[:n].reshape(*leading, *a.shape[1:])

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


@jax.transfer_guard("allow")
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
    q, k = jnp.shape(params.w)[-1], checked_count(k, "k")
    if k > q:
        raise ValueError(f"k must lie in [1, {q}] for {q} classes, got {k}")
    row, leading = _scored(params, x, k, memory)
    values, ids = row.top
    probabilities = jnp.exp((values - row.m[:, None]) - row.r[:, None])
    return TopK(probabilities.reshape(*leading, k), ids.reshape(*leading, k))


@jax.transfer_guard("allow")
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
    row, leading = _scored(params, x, 1, memory)
    # The largest probability is exp(m - m - r).
    confidence, classes = jnp.exp(-row.r).reshape(leading), row.top[1][:, 0].reshape(leading)
    return committed(classes, confidence, threshold)


def _scored(params: Params, x: Any, k: int, memory: int | None) -> tuple[Row, tuple[int, ...]]:
    """What there is to say of the rows of ``x`` without targets, and their leading axes."""
    x, w, b = _operands(x, params.w, params.b)
    head = Head(_some_rows(x.reshape(-1, x.shape[-1])), w, b, jnp.ones(()))
    sizes = (len(head.x), w.shape[0], w.shape[1])
    kind = _head_sweeps.accumulation_type(head)
    memory = _size(memory, "memory")
    plan = _head_core.make_plan(sizes, Spec(rows=0, classes=0, k=k), kind, "recompute", memory)
    row = _head_core.compiled_statistics(plan.spec, head, Targets())
    leading = x.shape[:-1]
    return jax.tree.map(lambda a: a[: math.prod(leading)], row), leading


def _some_rows(a: Any) -> Any:
    """``[n, ...]``, or a row of zeros where there is none: what is compiled takes one at least."""
    return jnp.zeros((1, *a.shape[1:]), a.dtype) if a is not None and len(a) == 0 else a


def _size(size: int | None, name: str) -> int | None:
    return None if size is None else checked_count(size, name)


def _constant(value: float | jax.Array, kind: Any) -> jax.Array | None:
    """None for a zero that is known now."""
    if not isinstance(value, jax.core.Tracer) and float(value) == 0:
        return None
    return jax.lax.stop_gradient(jnp.asarray(value, kind))


def _operands(x: Any, w: Any, b: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Features, weights and biases of the logits, checked; see `model.logits`."""
    x, w = as_array(x, "x"), as_array(w, "w")
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w must have shape [d, q], got {w.shape}")
    d, v = w.shape
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x of shape {x.shape} needs a last axis of the {d} features of w")
    bias: Any = np.zeros(v) if b is None else as_array(b, "b")
    if bias.shape != (v,):
        raise ValueError(f"b of shape {bias.shape} for the {v} classes of w")
    given = Params(w, bias)
    params, x = centred(given, x)
    has_bias = b is not None or params is not given
    return (
        as_real(x, "x"),
        as_real(params.w, "w"),
        as_real(params.b, "b") if has_bias else None,
    )


def _check_options(
    extras: Sequence[str],
    strategy: str,
    soft_cap: float | None,
    label_smoothing: float | jax.Array,
    z_loss: float | jax.Array,
    temperature: float | jax.Array,
) -> None:
    for name in extras:
        if name not in EXTRAS:
            raise ValueError(f"extras: choose some of {', '.join(EXTRAS)}, got {name!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: choose one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if soft_cap is not None and not 0 < soft_cap < math.inf:
        raise ValueError(f"soft_cap must be positive and finite, got {soft_cap}")
    scalars = {"label_smoothing": label_smoothing, "z_loss": z_loss, "temperature": temperature}
    for name, value in scalars.items():
        if jnp.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
    losses.check_label_smoothing(label_smoothing)
    if not isinstance(temperature, jax.core.Tracer) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
