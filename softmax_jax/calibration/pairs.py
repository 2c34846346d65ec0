"""Pairs of a confidence and its outcome, from the logits of a classifier."""

import jax

from softmax_jax import metrics, model
from softmax_jax._annotations import AnyArray, Array, Float
from softmax_jax._dtypes import at_least_float32
from softmax_jax.checks import as_real, checked_count, is_known
from softmax_jax.data.host_targets import checked_targets
from softmax_jax.data.targets import Dense, Targets, distribution, parse
from softmax_jax.normalizer import softmax


@jax.transfer_guard("allow")
def top_label(logits: AnyArray, targets: AnyArray) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Returns the confidence in the predicted class, and whether it is right: ``[n]`` each.

    The confidence is `model.confidence`, so that a threshold taken from it, see `selective`, means
    the same in `model.predict`.

    Args:
      logits: ``[n, q]``.
      targets: class ids ``[n]``, or probabilities ``[n, q]``, of which the outcome is that of the
        predicted class.

    Raises:
      ValueError: as `data.targets.parse`, or if rows of probabilities do not sum to 1.

    Example:
      >>> confidence, outcome = top_label([[2.0, 0.0], [1.0, 0.0]], [0, 1])
      >>> [f"{c:.3f}" for c in confidence], outcome.tolist()
      (['0.881', '0.731'], [1.0, 0.0])
    """
    logits, parsed = _checked(logits, targets)
    confidence = model.confidence(logits)
    return confidence, metrics.correct(logits, parsed).astype(confidence.dtype)


@jax.transfer_guard("allow")
def class_wise(
    logits: AnyArray, targets: AnyArray
) -> tuple[Float[Array, "n q"], Float[Array, "n q"]]:
    """Returns the probability of each class, and whether it is the one: ``[n, q]`` each.

    Raises:
      ValueError: as `top_label`.

    Example:
      >>> confidence, outcome = class_wise([[2.0, 0.0], [1.0, 0.0]], [0, 1])
      >>> [f"{c:.3f}" for c in confidence[0]], outcome[0].tolist()
      (['0.881', '0.119'], [1.0, 0.0])
    """
    logits, parsed = _checked(logits, targets)
    y = distribution(parsed, logits.shape[-1], logits.dtype)
    return softmax(logits, axis=-1), y


@jax.transfer_guard("allow")
def of_class(
    logits: AnyArray, targets: AnyArray, j: int
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Returns the probability of class ``j``, and whether it is the one: ``[n]`` each.

    Raises:
      ValueError: as `top_label`, or if there is no class ``j``.

    Example:
      >>> confidence, outcome = of_class([[2.0, 0.0], [1.0, 0.0]], [0, 1], j=1)
      >>> [f"{c:.3f}" for c in confidence], outcome.tolist()
      (['0.119', '0.269'], [0.0, 1.0])
    """
    p, y = class_wise(logits, targets)
    if checked_count(j, "j", at_least=0) >= p.shape[1]:
        raise ValueError(f"there is no class {j} of {p.shape[1]}")
    return p[:, j], y[:, j]


def _checked(logits: AnyArray, targets: AnyArray) -> tuple[jax.Array, Targets]:
    logits = at_least_float32(as_real(logits, "logits"))
    if logits.ndim != 2:
        raise ValueError(f"logits of shape {logits.shape}; expected [n, q]")
    parsed = parse(targets, logits.shape)
    if isinstance(parsed, Dense) and is_known(targets) and len(logits):
        checked_targets(targets, len(logits), "targets")
    return logits, parsed
