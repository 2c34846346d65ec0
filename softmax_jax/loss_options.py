"""Options of a cross-entropy, checked once for every function that takes them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import AnyArray, Array, Float, Scalar
from softmax_jax.checks import as_real

REDUCTIONS = ("none", "sum", "mean")


class LossOptions(NamedTuple):
    r"""Options that change the loss of an example.

    .. math:: l = \sum_j \tilde y_j (\mathrm{lse} - o_j) + z\, \mathrm{lse}^2, \qquad
        \tilde y_j = v_j ((1 - ε) y_j + ε / q)
    """

    class_weights: AnyArray | None = None
    """``[q]`` factors ``v_j``; None means 1."""
    ignore_id: int | None = None
    """Class id whose examples get weight 0."""
    label_smoothing: Scalar = 0.0
    """``ε`` in [0, 1]."""
    z_loss: Scalar = 0.0
    """``z``, a scalar."""
    soft_cap: float | None = None
    """``c`` of the logits ``c tanh(o / c)``; None means no cap."""
    temperature: Scalar = 1.0
    """``T > 0``, by which logits are divided; a scalar."""


def checked_options(options: LossOptions, num_classes: int, dtype: jnp.dtype) -> LossOptions:
    """Returns the options with class weights in the given type.

    Raises:
      ValueError: if a value that is known now is out of its range, or a shape does not fit.

    Example:
      >>> checked_options(LossOptions(class_weights=[1, 2]), 2, jnp.dtype("float32")).class_weights
      Array([1., 2.], dtype=float32)
    """
    for name in ("label_smoothing", "z_loss", "temperature"):
        shape = jnp.shape(getattr(options, name))
        if shape != ():
            raise ValueError(f"{name} must be a scalar, got shape {shape}")
    check_label_smoothing(options.label_smoothing)
    cap, temperature = options.soft_cap, options.temperature
    if cap is not None and not 0 < cap < math.inf:
        raise ValueError(f"soft_cap must be positive and finite, got {cap}")
    if not isinstance(temperature, jax.core.Tracer) and not 0 < float(temperature) < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if options.class_weights is None:
        return options
    class_weights = as_real(options.class_weights, "class_weights").astype(dtype)
    if class_weights.shape != (num_classes,):
        raise ValueError(f"class_weights of shape {class_weights.shape} for {num_classes} classes")
    return options._replace(class_weights=class_weights)


def check_label_smoothing(label_smoothing: Scalar) -> None:
    """Raises a ValueError for a value, not under a transformation, outside [0, 1].

    Example:
      >>> check_label_smoothing(1.5)
      Traceback (most recent call last):
      ValueError: label_smoothing must lie in [0, 1], got 1.5
    """
    if not isinstance(label_smoothing, jax.core.Tracer) and not 0 <= float(label_smoothing) <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")


def check_reduction(reduction: str) -> None:
    """Raises a ValueError for a name that is not in `REDUCTIONS`.

    Example:
      >>> check_reduction("median")
      Traceback (most recent call last):
      ValueError: reduction: choose one of none, sum, mean, got 'median'
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: choose one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def is_zero(value: Scalar) -> bool:
    """Returns whether a scalar is a zero that is known now.

    Example:
      >>> is_zero(0.0), is_zero(jnp.float32(0.5))
      (True, False)
    """
    return not isinstance(value, jax.core.Tracer) and float(value) == 0


def is_one(value: Scalar) -> bool:
    """Returns whether a scalar is a one that is known without a look at the device.

    Example:
      >>> is_one(1), is_one(jnp.float32(1))
      (True, False)
    """
    return not isinstance(value, jax.Array) and float(value) == 1


def reduced(
    loss: Float[Array, "*batch"],
    weights: Float[Array, "*batch"],
    mass: Float[Array, "*batch"] | None,
    reduction: str,
) -> Float[Array, "..."]:
    r"""Returns losses ``[...]``, which have their weights in them, as `REDUCTIONS` names them.

    .. math:: \text{mean} = \sum_i l_i \Big/ \sum_i s_i \sum_j v_j y_{ij},

    or 0 where the denominator is 0.

    Args:
      loss: ``[...]`` weighted losses.
      weights: ``[...]`` example weights ``s_i``. What has weight 0 does not count.
      mass: ``[...]`` total class weight of each target, ``Σ_j v_j y_ij``; None for 1.
      reduction: one of `REDUCTIONS`.

    Example:
      >>> float(reduced(jnp.array([1.0, 6.0]), jnp.array([1.0, 3.0]), None, "mean"))
      1.75
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return jnp.sum(loss)
    total = jnp.sum(weights if mass is None else jnp.where(weights == 0, 0, weights * mass))
    return jnp.sum(loss) / jnp.where(total == 0, 1, total)
