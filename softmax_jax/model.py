"""The model: an affine map from features to one logit per class, and softmax on top.

Shapes: ``x: [..., d]``, ``w: [d, q]``, ``b: [q]``, logits ``[..., q]``. Leading axes are batch
axes, so each function serves one example, a minibatch, or anything under ``jax.vmap``.
Equation numbers are those of *Dive into Deep Learning*, section 3.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, ArrayLike, Float, Integer, NDArray, Shaped
from softmax_jax._dtypes import accumulation_type, at_least_float32
from softmax_jax.checks import as_array, as_real, exceeds_jax
from softmax_jax.normalizer import log_normalizer, softmax

ABSTAIN = -1
"""Answer of `predict` where it does not commit itself to a class."""


class Params(NamedTuple):
    """Weights ``w: [d, q]`` and biases ``b: [q]``; 4 features and 3 classes: 12 and 3 numbers.

    Several models are stacked along axes in front. On the host they may be arrays of NumPy.
    """

    w: Float[Array | NDArray, "*m d q"]
    """Weights, a column for each class."""
    b: Float[Array | NDArray, "*m q"]
    """Biases."""


@jax.transfer_guard("allow")
def init(
    key: Shaped[Array, "..."],
    *,
    num_features: int,
    num_classes: int,
    scale: float = 0.01,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Params:
    """Draws ``w ~ Normal(0, scale²)`` and sets ``b = 0``.

    The loss is convex in the parameters, so any start finds the optimum; a small one starts from
    nearly uniform predictions, a loss of about ``log q`` nats.

    Raises:
      ValueError: if ``num_features`` or ``num_classes`` is not positive.

    Example:
      >>> params = init(jax.random.key(0), num_features=4, num_classes=3)
      >>> params.w.shape, params.b.tolist()
      ((4, 3), [0.0, 0.0, 0.0])
    """
    if num_features < 1 or num_classes < 1:
        raise ValueError(
            "num_features and num_classes must be at least 1, "
            f"got {num_features} features and {num_classes} classes"
        )
    w = jnp.asarray(scale, dtype) * jax.random.normal(key, (num_features, num_classes), dtype)
    return Params(w=w, b=jnp.zeros((num_classes,), dtype))


@jax.transfer_guard("allow")
def logits(params: Params, x: AnyArray) -> Float[Array, "*batch q"]:
    """Returns affine scores ``o = x W + b``, eqs. 3.4.2 (one example) and 3.4.5 (a minibatch).

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features: arrays, lists or data frames of real numbers. Integers of any size
        are read as the numbers they are. (An int64 host array that is an argument of the caller's
        own ``jax.jit`` is wrapped to int32 before anything sees it.)

    Returns:
      ``[..., q]`` logits in float32 at least: bfloat16 inputs are multiplied as such and summed
      in float32. On a GPU or TPU ``jax_default_matmul_precision`` rules the products of float32.
      Of parameters and features that are both float64 on the host, as the solvers have them, large
      offsets are taken away in float64 first, see `centred`.

    Raises:
      ValueError: if the last axis of ``x`` is not ``d`` long, or ``x`` is no array of real numbers.

    Example:
      >>> logits(Params(jnp.array([[1.0, 2.0]]), jnp.array([0.0, 1.0])), [[3.0]]).tolist()
      [[3.0, 7.0]]
    """
    params, x = centred(params, x)
    w, b, x = as_real(params.w, "params.w"), as_real(params.b, "params.b"), as_real(x, "x")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"x has shape {x.shape}, but the last axis must hold the {w.shape[0]} features "
            f"that w, of shape {w.shape}, was made for"
        )
    dtype = accumulation_type(x, w)
    if x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        x, w = x.astype(dtype), w.astype(dtype)
    scores = jnp.matmul(x, w, preferred_element_type=dtype)
    return scores + jnp.broadcast_to(b.astype(dtype), scores.shape)


def centred(params: Params, x: AnyArray) -> tuple[Params, AnyArray]:
    """Returns parameters and features of the same logits, ``(W / g, b + c W)`` and ``(x - c) g``.

    A feature of 1e9 + z is nothing but 1e9 in float32, and one of 1e40 is infinite. Where
    parameters and features are on the host, and products with the means ``c`` of the features are
    so large that float32 would change logits by 1e-5, or features lie beyond 1e30 or below 1e-30,
    both are formed in float64. The factors ``g`` are powers of two. Anything else is returned as it
    is: a float32 bias has lost these digits before.

    Example:
      >>> params = Params(np.array([[2.0, 4.0]]), np.zeros(2))
      >>> params, x = centred(params, np.array([[1e9], [1e9 + 2]]))
      >>> params.b.tolist(), x.tolist()
      ([2000000002.0, 4000000004.0], [[-1.0], [1.0]])
    """
    w, b = as_array(params.w, "params.w"), as_array(params.b, "params.b")
    x = as_array(x, "x")
    if any(isinstance(a, jax.Array) for a in (w, b, x)):
        return params, x
    if not exceeds_jax(x.dtype) or x.size == 0 or w.shape != (x.shape[-1:] + b.shape):
        return params, x
    rows = x.reshape(-1, x.shape[-1])
    # A few rows tell where the others are.
    some = rows[:: len(rows) // 256 + 1].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        c, size = some.mean(axis=0), np.abs(some).max(axis=0)
        change = 2.0**-24 * np.sqrt(np.square(c[:, None] * w).sum(axis=0).max())
        is_extreme = ((size > 1e30) | ((size > 0) & (size < 1e-30))).any()
        if not (1e-5 < change < np.inf or is_extreme):
            return params, x
        # Beside a larger spread, small numbers would lose their digits.
        reach = np.abs(rows - c).max(axis=0)
        c = np.where(reach < np.abs(c) / 4, c, 0)
        if not (c.any() or is_extreme):
            return params, x
        w, x = w.astype(np.float64), x - c
        b = b + c @ w
        if is_extreme:
            reach = np.abs(x.reshape(rows.shape)).max(axis=0)
            power = np.where((reach > 0) & np.isfinite(reach), -np.frexp(reach)[1], 0)
            w, x = np.ldexp(w, -power[:, None]), np.ldexp(x, power)
        return Params(w, b), x


@jax.transfer_guard("allow")
def probabilities(params: Params, x: AnyArray) -> Float[Array, "*batch q"]:
    """Returns probabilities ``ŷ_j = exp(o_j) / Σ_k exp(o_k)``, eq. 3.4.3: ``[..., q]``.

    Non-negative and summing to one for any finite logits; a NaN or ``+inf`` logit has no softmax
    and gives NaN.

    Example:
      >>> probabilities(Params(jnp.eye(2), jnp.zeros(2)), [[0.0, 0.0]]).tolist()
      [[0.5, 0.5]]
    """
    return softmax(logits(params, x), axis=-1)


@jax.transfer_guard("allow")
def predict(params: Params, x: AnyArray, *, threshold: ArrayLike = 0.0) -> Integer[Array, "*batch"]:
    """Returns the most probable class, or `ABSTAIN` where its probability is below ``threshold``.

    ``argmax_j ŷ_j = argmax_j o_j`` (eq. 3.4.4): softmax keeps the order. Of equally probable
    classes the first is taken.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[..., d]`` features.
      threshold: least probability, in [0, 1], on which to commit; 0 never abstains (`committed`).

    Returns:
      ``[...]`` int32 class ids; `ABSTAIN` (-1) below the threshold and where there is no
      prediction at all, because the logits are NaN.

    Example:
      >>> params = Params(jnp.eye(2), jnp.zeros(2))
      >>> predict(params, [[2.0, 0.0], [0.1, 0.0]], threshold=0.8).tolist()
      [0, -1]
    """
    scores = logits(params, x)
    return committed(jnp.argmax(scores, axis=-1), confidence(scores), threshold)


@jax.transfer_guard("allow")
def confidence(logits: AnyArray) -> Float[Array, "*batch"]:
    r"""Returns the probability of the most probable class, ``max_j ŷ_j``: ``[..., q] -> [...]``.

    .. math:: \max_j \hat y_j = e^{-r}, \qquad r = \log\sum_k e^{o_k - \max_l o_l}

    It is formed in float32 at least. The same logits give the same bits whether it is jitted, as
    part of whatever else, or not. It is NaN where the largest logit is not finite.

    Example:
      >>> confidence(jnp.zeros((2, 4))).tolist()
      [0.25, 0.25]
    """
    return _confidence(at_least_float32(as_real(logits, "logits")))


@jax.custom_jvp
@jax.jit
def _confidence(logits: Float[Array, "*batch q"]) -> Float[Array, "*batch"]:
    # Between barriers, it is compiled into the same instructions everywhere.
    _, r = log_normalizer(jax.lax.optimization_barrier(logits))
    return jax.lax.optimization_barrier(jnp.exp(-r))


@_confidence.defjvp
def _(primals, tangents):
    (logits,), (tangent,) = primals, tangents
    _, slope = jax.jvp(lambda o: jnp.max(softmax(o, axis=-1), axis=-1), (logits,), (tangent,))
    return _confidence(logits), slope


def committed(
    classes: Integer[Array, "*batch"],
    confidence: Float[Array, "*batch"],
    threshold: ArrayLike,
) -> Integer[Array, "*batch"]:
    r"""Returns ``classes`` where the confidence reaches a threshold, else `ABSTAIN`: ``[...]``.

    Logits are known up to rounding, which depends on the order of their sums, and so on the number
    of rows at a time and on the device. A confidence ``c`` that is below the threshold by no more
    than that, ``c (1 + ε + 64 ε log(1 / c)) >= threshold`` with the ``ε`` of its type, is at it. So
    a row commits at the threshold that is its own confidence, wherever that was computed.

    Args:
      classes: ``[...]`` ids.
      confidence: ``[...]`` probabilities; NaN abstains.
      threshold: a number, or ``[...]``.

    Example:
      >>> committed(jnp.array([2, 0]), jnp.array([0.9, 0.4]), 0.5).tolist()
      [2, -1]
    """
    kind = confidence.dtype
    epsilon = jnp.asarray(jnp.finfo(kind).eps, kind)
    at_most = confidence * (1 + epsilon - 64 * epsilon * jnp.log(confidence))
    return jnp.where(at_most >= jnp.asarray(threshold, kind), classes, ABSTAIN)
