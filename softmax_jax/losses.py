"""Losses of softmax regression, their derivatives in closed form, and the objective.

Losses are per example, in nats and unreduced; the mean lives in `objective`. A target is either a
class id (an integer, ``labels: [...]``) or a distribution over the classes (``targets: [..., q]``;
one-hot is the special case). Which one is meant is read off the number of axes.

The surprisals carry their closed-form derivative as a `jax.custom_jvp`, so that ``jax.grad`` of
the cross-entropy computes ``softmax(o) - y``; higher derivatives in both modes follow from it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import model
from softmax_jax._annotations import AnyArray, Array, Bool, Float, Real, Scalar
from softmax_jax._dtypes import at_least_float32
from softmax_jax.checks import as_array, as_real, exceeds_jax
from softmax_jax.data.dataset import stored_features
from softmax_jax.data.targets import Ids, Targets, distribution, parse, parse_counted
from softmax_jax.loss_options import (
    LossOptions,
    check_label_smoothing,
    check_reduction,
    checked_options,
    is_one,
    is_zero,
    reduced,
)
from softmax_jax.model import Params
from softmax_jax.normalizer import softmax, surprisals
from softmax_jax.penalty import Penalty


@jax.transfer_guard("allow")
def cross_entropy(
    logits: AnyArray,
    targets: AnyArray | Targets,
    *,
    weights: AnyArray | None = None,
    class_weights: AnyArray | None = None,
    ignore_id: int | None = None,
    label_smoothing: Scalar = 0.0,
    z_loss: Scalar = 0.0,
    soft_cap: float | None = None,
    temperature: Scalar = 1.0,
    where: AnyArray | None = None,
    axis: int = -1,
    reduction: str = "none",
) -> Float[Array, "..."]:
    r"""Returns the cross-entropy of softmax predictions with their targets, in nats.

    .. math:: l(y, o) = -\sum_j y_j \log \mathrm{softmax}(o)_j
        = \log\sum_k e^{o_k} - \sum_j y_j o_j,

    eqs. 3.4.8 and 3.4.9 (the second form for targets that sum to one), never through
    ``log(softmax(o))``. For float32 logits and a class id the value is within 2 ulp of the exact
    value for those numbers, whatever their common offset and however small the loss, down to
    1e-30, and within 4 ulp for probabilities; see `softmax_jax.normalizer`.

    The options are those of `head.linear_cross_entropy`, and mean the same:

    .. math:: l_i = s_i \Big( -\sum_j \tilde y_{ij} \log \mathrm{softmax}(\tilde o_i)_j
        + z\, \mathrm{lse}(\tilde o_i)^2 \Big), \qquad
        \tilde y_{ij} = v_j ((1 - ε) y_{ij} + ε / q), \qquad
        \tilde o = c \tanh(o / c) / T

    Args:
      logits: ``[..., q]``; narrower types are widened to float32. ``-inf`` marks an impossible
        class: the loss is ``inf`` where the target gives it weight, and 0 · inf counts as 0.
      targets: class ids ``[...]`` (integers), probabilities ``[..., q]``, or `SparseTargets`.
      weights: ``[...]`` example weights ``s_i``; None means 1. A loss of weight 0 is 0.
      class_weights: ``[q]`` ``v_j``.
      ignore_id: a class id, such as -1, that gives its example weight 0.
      label_smoothing: ``ε`` in [0, 1]: targets become ``(1 - ε) y + ε / q``.
      z_loss: ``z``, of Chowdhery et al. (2022), "PaLM".
      soft_cap: ``c``, of Gemma Team (2024), "Gemma 2"; impossible classes stay so.
      temperature: ``T > 0``, a scalar.
      where: booleans that broadcast to the shape of ``logits``: the classes that take part, as if
        the others were cut off, from the targets too, and not counted in ``q``.
      axis: of the classes, in ``logits``, ``where`` and probabilities.
      reduction: ``"none"``; ``"sum"``; or ``"mean"``, the sum over the weights of all examples,
        ``Σ_i s_i Σ_j v_j y_ij``, or 0 where that is 0.

    Returns:
      ``[...]`` losses, or a scalar if reduced. NaN where the largest logit is not finite: NaN,
      ``+inf`` or all ``-inf``.

    Raises:
      ValueError: on shapes and options that do not fit, on class ids outside [0, q), and on ``ε``
        outside [0, 1]. Under a jax transformation values cannot raise: there, an id out of range
        gives NaN for its own row, in the loss and in its gradient; so does, always, an id that
        ``where`` cuts off.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
      >>> loss = cross_entropy(logits, jnp.array([0, -1]), ignore_id=-1)
      >>> [f"{nats:.4f}" for nats in loss]
      ['0.4076', '0.0000']
    """
    check_reduction(reduction)
    logits = at_least_float32(as_real(logits, "logits"))
    logits, targets, included = _with_classes_last(logits, targets, where, axis)
    parsed, counts = parse_counted(targets, logits.shape, ignore_id)
    y = distribution(parsed, logits.shape[-1], logits.dtype)
    options = checked_options(
        LossOptions(class_weights, ignore_id, label_smoothing, z_loss, soft_cap, temperature),
        logits.shape[-1],
        logits.dtype,
    )
    if soft_cap is not None or not is_one(temperature):
        logits = _capped(logits, soft_cap, temperature)
    if included is not None:
        logits = jnp.where(included, logits, -jnp.inf)
        lost = jnp.where(y > 0, jnp.nan, 0) if isinstance(parsed, Ids) else jnp.zeros_like(y)
        y = jnp.where(included, y, lost)
    v = options.class_weights
    if v is not None:
        v = jnp.broadcast_to(v, logits.shape)
    loss = _changed_loss(logits, y, v, included, options)
    if weights is None and counts is None and reduction == "none":
        return loss
    s = weights_of(loss, weights)
    s = s if counts is None else jnp.where(counts, s, 0)
    loss = jnp.where(s == 0, 0, s * loss)
    mass = jnp.sum(y if v is None else y * v, axis=-1) if reduction == "mean" else None
    return reduced(loss, s, mass, reduction)


def _changed_loss(
    logits: Float[Array, "*batch q"],
    y: Float[Array, "*batch q"],
    v: Float[Array, "*batch q"] | None,
    included: Bool[Array, "*batch q"] | None,
    options: LossOptions,
) -> Float[Array, "*batch"]:
    """Returns ``-Σ_j ỹ_j log softmax(o)_j + z lse(o)²``, of logits that are capped already."""
    smoothed = y
    if not is_zero(options.label_smoothing):
        smoothed = _smoothed(y, options.label_smoothing, included)
    if v is not None:
        smoothed = smoothed * v
    surprisal = surprisals(logits)
    impossible_and_irrelevant = (smoothed == 0) & jnp.isinf(surprisal)
    loss = jnp.sum(smoothed * jnp.where(impossible_and_irrelevant, 0, surprisal), axis=-1)
    if is_zero(options.z_loss):
        return loss
    z = jnp.asarray(options.z_loss, logits.dtype)
    return loss + z * jax.nn.logsumexp(logits, axis=-1) ** 2


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _with_classes_last(
    logits: Float[Array, "..."], targets: AnyArray, where: AnyArray | None, axis: int
) -> tuple[Float[Array, "..."], AnyArray, Bool[Array, "..."] | None]:
    """Returns logits, probabilities and ``where``, in the shape of logits, with that axis last.

    Raises:
      ValueError: if there is no such axis, or ``where`` does not broadcast to the logits.
    """
    rank = max(logits.ndim, 1)
    if not hasattr(axis, "__index__") or not -rank <= axis < rank:
        raise ValueError(f"axis: {axis!r}; expected an integer in [{-rank}, {rank})")
    if where is not None:
        if not _broadcasts(jnp.shape(where), logits.shape):
            raise ValueError(
                f"where: shape {jnp.shape(where)}; expected one that broadcasts to that of logits, "
                f"{logits.shape}"
            )
        where = jnp.broadcast_to(where, logits.shape)
    if axis % rank == rank - 1:
        return logits, targets, where
    if jnp.shape(targets) == logits.shape:
        targets = jnp.moveaxis(as_real(targets, "targets"), axis, -1)
    if where is not None:
        where = jnp.moveaxis(where, axis, -1)
    return jnp.moveaxis(logits, axis, -1), targets, where


def _capped(
    logits: Float[Array, "*batch q"], soft_cap: float | None, temperature: Scalar
) -> Float[Array, "*batch q"]:
    """Returns ``c tanh(o / c) / T``; impossible classes stay so."""
    possible = ~jnp.isneginf(logits)
    changed = jnp.where(possible, logits, 0)
    if soft_cap is not None:
        changed = soft_cap * jnp.tanh(changed / soft_cap)
    if not is_one(temperature):
        changed = changed / jnp.asarray(temperature, logits.dtype)
    return jnp.where(possible, changed, -jnp.inf)


@jax.transfer_guard("allow")
def cross_entropy_gradient(
    logits: AnyArray, targets: AnyArray | Targets, *, label_smoothing: Scalar = 0.0
) -> Float[Array, "*batch q"]:
    r"""Returns the first derivative of `cross_entropy` in the logits, eq. 3.4.10: ``[..., q]``.

    .. math:: \partial l / \partial o_j = \mathrm{softmax}(o)_j - y_j,

    the error of the prediction, as in linear regression. (Times ``Σ_k y_k`` on the softmax, for
    targets that do not sum to one.)

    Example:
      >>> cross_entropy_gradient(jnp.zeros(2), 1).tolist()
      [0.5, -0.5]
    """
    logits = at_least_float32(as_real(logits, "logits"))
    check_label_smoothing(label_smoothing)
    y = distribution(parse(targets, logits.shape), logits.shape[-1], logits.dtype)
    if not is_zero(label_smoothing):
        y = _smoothed(y, label_smoothing)
    mass = jnp.broadcast_to(jnp.sum(y, axis=-1, keepdims=True), y.shape)
    return mass * softmax(logits) - y


@jax.transfer_guard("allow")
def cross_entropy_hessian(logits: AnyArray) -> Float[Array, "*batch q q"]:
    r"""Returns the second derivative of `cross_entropy` in the logits: ``[..., q, q]``.

    .. math:: \partial^2 l / \partial o_i \partial o_j = p_i \delta_{ij} - p_i p_j,
        \qquad p = \mathrm{softmax}(o),

    the covariance of the predicted class: positive semi-definite, so the loss is convex, and the
    same for every target that sums to one, hence no ``targets`` argument.

    Example:
      >>> cross_entropy_hessian(jnp.zeros(2)).tolist()
      [[0.25, -0.25], [-0.25, 0.25]]
    """
    p = softmax(at_least_float32(as_real(logits, "logits")), axis=-1)
    identity = jnp.eye(p.shape[-1], dtype=p.dtype)
    return jnp.einsum("...i,ij->...ij", p, identity) - jnp.einsum("...i,...j->...ij", p, p)


def weighted_mean(
    values: Real[Array, "*batch"], weights: AnyArray | None = None
) -> Float[Array, ""]:
    """Returns ``Σ_i s_i v_i / Σ_i s_i`` over all axes; weights of zero hide any ``v_i``.

    Where every weight is zero there is nothing to average and the mean is 0, so that a batch of
    padding moves no parameter.

    Raises:
      ValueError: if there are no values, or the shapes differ.

    Example:
      >>> float(weighted_mean(jnp.array([1.0, 4.0, jnp.nan]), jnp.array([2.0, 1.0, 0.0])))
      2.0
    """
    weights, total = _weights_and_total(values, weights)
    return jnp.sum(jnp.where(weights == 0, 0, weights * values)) / total


def _weights_and_total(
    values: Real[Array, "*batch"], weights: AnyArray | None
) -> tuple[Real[Array, "*batch"], Real[Array, ""]]:
    """Returns weights in the type of ``values``, and their sum, or 1 where it is 0."""
    if values.size == 0:
        raise ValueError(f"there are no examples: an array of shape {values.shape}")
    weights = weights_of(values, weights)
    total = jnp.sum(weights)
    return weights, jnp.where(total == 0, 1, total)


def weights_of(
    values: Real[Array | jax.ShapeDtypeStruct, "*batch"], weights: AnyArray | None
) -> Real[Array, "*batch"]:
    """Returns the weight of each value, in the type of ``values``; 1 where ``weights`` is None.

    Raises:
      ValueError: if the shapes differ.

    Example:
      >>> weights_of(jnp.array([0.5, 0.7]), None).tolist()
      [1.0, 1.0]
    """
    if weights is None:
        return jnp.ones_like(values)
    weights = as_real(weights, "weights")
    if weights.shape != values.shape:
        raise ValueError(
            f"weights of shape {weights.shape} for {values.shape} examples; give one weight each"
        )
    return weights.astype(values.dtype)


@jax.transfer_guard("allow")
def objective(
    params: Params,
    x: AnyArray,
    targets: AnyArray | Targets,
    *,
    weights: AnyArray | None = None,
    l2: Scalar = 0.0,
    l1: Scalar = 0.0,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, ""]:
    r"""Returns what training minimises: the mean loss plus the penalty, in nats.

    .. math:: F(W, b) = \frac{\sum_i s_i l_i}{\sum_i s_i}
        + \frac{l_2}{2} \|W\|^2 + l_1 \|W\|_1

    With unit weights and no penalty, ``n F`` is minus the log of the likelihood
    ``P(Y | X) = Π_i P(y_i | x_i)`` (eqs. 3.4.6 and 3.4.7).

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[n, d]`` features, finite, also in rows of weight zero: 0 · NaN is NaN in a gradient.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]`` example weights ``s_i >= 0``; None means 1.
      l2: strength of the squared penalty (glmnet's convention: scikit-learn's
        ``C = 1 / (n l2)``).
      l1: strength of the absolute penalty.
      label_smoothing: see `cross_entropy`.

    Example:
      >>> params = Params(jnp.zeros((2, 4)), jnp.zeros(4))
      >>> float(objective(params, jnp.eye(2), jnp.array([0, 3]))).__round__(4)  # log 4
      1.3863
    """
    losses = cross_entropy(model.logits(params, x), targets, label_smoothing=label_smoothing)
    w = at_least_float32(as_real(params.w, "w"))
    return weighted_mean(losses, weights) + Penalty(l2, l1).value(w)


@jax.transfer_guard("allow")
def objective_gradient(
    params: Params,
    x: AnyArray,
    targets: AnyArray | Targets,
    *,
    weights: AnyArray | None = None,
    l2: Scalar = 0.0,
    l1: Scalar = 0.0,
    label_smoothing: Scalar = 0.0,
) -> Params:
    r"""Returns the gradient of `objective` in closed form; the arguments are the same.

    .. math:: \nabla_W F = X^\top R + l_2 W + l_1 \mathrm{sign}(W), \qquad
        \nabla_b F = \sum_i R_i, \qquad
        R_i = \frac{s_i}{\sum_k s_k} (\mathrm{softmax}(o_i) - y_i)

    At a zero weight the l1 part is the subgradient 0.

    Raises:
      ValueError: as `objective`; or for a feature on the host of which float32 would lose digits,
        see `data.from_arrays`. The gradient in the centered features of a fit has them.

    Example:
      >>> params = Params(jnp.ones((2, 2)), jnp.zeros(2))
      >>> objective_gradient(params, jnp.eye(2), jnp.array([0, 1]), l2=1.0)
      Params(w=Array([[0.75, 1.25],
             [1.25, 0.75]], dtype=float32), b=Array([0., 0.], dtype=float32))
    """
    x = as_array(x, "x")
    if not isinstance(x, jax.Array) and exceeds_jax(x.dtype):
        x = stored_features(x, "x")
    scores = model.logits(params, x)
    x = as_real(x, "x")
    error = cross_entropy_gradient(scores, targets, label_smoothing=label_smoothing)
    weights, total = _weights_and_total(error[:, 0], weights)
    residual = (weights / total)[:, None] * error
    # X^T R as the transpose of R^T X, which XLA's CPU backend computes faster; without
    # the barrier its simplifier turns the one into the other.
    data_part = jax.lax.optimization_barrier(residual.T @ x.astype(error.dtype)).T
    w, b = as_real(params.w, "params.w"), as_real(params.b, "params.b")
    kind = data_part.dtype
    penalty = Penalty(jnp.asarray(l2, kind), jnp.asarray(l1, kind))
    w_gradient = data_part + penalty.gradient(w.astype(kind))
    if not (isinstance(l1, int | float) and l1 == 0):
        w_gradient += penalty.subgradient(w.astype(kind))
    return Params(w=w_gradient.astype(w.dtype), b=jnp.sum(residual, axis=0).astype(b.dtype))


def _smoothed(
    y: Float[Array, "*batch q"],
    label_smoothing: Scalar,
    included: Bool[Array, "*batch q"] | None = None,
) -> Float[Array, "*batch q"]:
    """Returns ``(1 - ε) y + ε / q``, of the classes that are included."""
    epsilon = jnp.asarray(label_smoothing, y.dtype)
    if included is None:
        return (1 - epsilon) * y + epsilon / y.shape[-1]
    share = included.astype(y.dtype)
    share = share / jnp.broadcast_to(jnp.sum(share, axis=-1, keepdims=True), y.shape)
    return (1 - epsilon) * y + epsilon * share
