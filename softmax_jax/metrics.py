"""Scores of a model, as sums that merge over batches, blocks and hosts.

`measure` turns the logits of one batch into `Metrics`, a pytree of sums; adding two of them
(`merge`) measures both batches; `summarize` divides. With soft targets every score is its
expectation under the target distribution, which for one-hot targets is the usual count.
"""

from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import information, losses
from softmax_jax._annotations import AnyArray, Array, Bool, Float, NDArray, Real
from softmax_jax.checks import as_real, checked_count
from softmax_jax.data.targets import Ids, Targets, distribution, hits, parse
from softmax_jax.head import linear_cross_entropy
from softmax_jax.head.scoring import TOP_K as TOP_K
from softmax_jax.model import Params

Sums = TypeVar("Sums")
"""A pytree of sums."""


Total: TypeAlias = Float[Array | NDArray | np.floating, "*blocks"]
"""A sum over examples, or one for each block of them; in NumPy where `total` has formed it."""


class Metrics(NamedTuple):
    """Weighted sums over examples; all scalars but ``confusion``."""

    weight: Total
    """``Σ s_i``; the number of examples where they are not weighted."""
    negative_log_likelihood: Total
    """``Σ s_i l_i`` in nats: minus the log of the likelihood, eqs. 3.4.6 and 3.4.7."""
    correct: Total
    """``Σ s_i`` of the examples whose most probable class is the target."""
    top_k_correct: Total
    """``Σ s_i`` of the examples whose target is among the k most probable classes."""
    squared_error: Total
    """``Σ s_i |ŷ_i - y_i|²``, the Brier score before division."""
    confusion: Float[Array | NDArray, "*blocks q q"] | None
    """``[q, q]``, or None: weight of the examples of class (row) predicted as class (column)."""


@jax.transfer_guard("allow")
def correct(logits: AnyArray, targets: AnyArray | Targets, *, k: int = 1) -> Float[Array, "*batch"]:
    """Returns 1 where the target is among the ``k`` largest logits, else 0: ``[...]``.

    With probabilities as targets, it is the probability that they give to those ``k`` classes.
    Among equal logits the lower class comes first. A row with a NaN logit predicts nothing and
    counts 0.

    Raises:
      ValueError: if ``k`` is not positive, or as `data.targets.parse`.

    Example:
      >>> logits, labels = jnp.array([[2.0, 0.0, 1.0], [1.0, 3.0, 2.0]]), jnp.array([0, 2])
      >>> correct(logits, labels).tolist(), correct(logits, labels, k=2).tolist()
      ([1.0, 0.0], [1.0, 1.0])
    """
    k = checked_count(k, "k")
    logits = as_real(logits, "logits")
    parsed = parse(targets, logits.shape)
    if k == 1:
        chosen = jnp.argmax(logits, axis=-1)[..., None]
    else:
        # Adding zero makes -0 a 0, which top_k would put below it, unlike argmax.
        chosen = jax.lax.top_k(logits + 0, min(k, logits.shape[-1]))[1]
    return jnp.where(_predicts_nothing(logits), 0, hits(chosen, parsed))


@jax.transfer_guard("allow")
def accuracy(
    logits: AnyArray,
    targets: AnyArray | Targets,
    weights: AnyArray | None = None,
    *,
    k: int = 1,
) -> Float[Array, ""]:
    """Returns correct predictions over predictions, weighted; for ``k > 1`` see `correct`.

    Example:
      >>> import jax.numpy as jnp
      >>> float(accuracy(jnp.array([[2.0, 0.0], [1.0, 3.0]]), jnp.array([0, 0])))
      0.5
    """
    return losses.weighted_mean(correct(logits, targets, k=k), weights)


@jax.transfer_guard("allow")
def squared_error(logits: AnyArray, targets: AnyArray | Targets) -> Float[Array, "*batch"]:
    """Returns ``|softmax(o) - y|²``, whose mean is the Brier score (Brier 1950): ``[...]``.

    Example:
      >>> squared_error(jnp.zeros((1, 2)), jnp.array([0])).tolist()
      [0.5]
    """
    error = losses.cross_entropy_gradient(logits, targets)
    return jnp.sum(error * error, axis=-1)


@jax.transfer_guard("allow")
def measure(
    logits: AnyArray,
    targets: AnyArray | Targets,
    weights: AnyArray | None = None,
    *,
    k: int = TOP_K,
    confusion: bool = False,
) -> Metrics:
    """Sums the scores of one batch.

    Args:
      logits: ``[n, q]``.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]`` example weights, None for 1; rows of weight zero take no part.
      k: for the top-k accuracy (at most ``q`` counts).
      confusion: whether to fill the ``[q, q]`` confusion matrix.

    Raises:
      ValueError: on shapes that do not fit, or as `losses.cross_entropy`.

    Example:
      >>> logits, labels = jnp.array([[2.0, 0.0], [1.0, 3.0]]), jnp.array([0, 0])
      >>> sums = measure(logits, labels, weights=jnp.array([1.0, 3.0]), confusion=True)
      >>> float(sums.weight), float(sums.correct), sums.confusion.tolist()
      (4.0, 1.0, [[1.0, 3.0], [0.0, 0.0]])
    """
    logits = as_real(logits, "logits")
    parsed = parse(targets, logits.shape)
    loss = losses.cross_entropy(logits, parsed)
    weights = losses.weights_of(loss, weights)

    def total(values):
        return jnp.sum(jnp.where(weights == 0, 0, weights * values.astype(weights.dtype)))

    return Metrics(
        weight=jnp.sum(weights),
        negative_log_likelihood=total(loss),
        correct=total(correct(logits, parsed)),
        top_k_correct=total(correct(logits, parsed, k=k)),
        squared_error=total(squared_error(logits, parsed)),
        confusion=_confusion(logits, parsed, weights) if confusion else None,
    )


def measure_head(
    params: Params,
    x: AnyArray,
    labels: AnyArray,
    weights: AnyArray | None = None,
    *,
    k: int = TOP_K,
    memory: int | None = None,
) -> Metrics:
    """Does as `measure` for a head so large that its logits are not held, see `softmax_jax.head`.

    Args:
      params: ``w: [d, q]``, ``b: [q]``.
      x: ``[n, d]`` features.
      labels: class ids ``[n]``.
      weights: ``[n]`` example weights, None for 1; rows of weight zero take no part.
      k: for the top-k accuracy.
      memory: see `head.linear_cross_entropy`.

    Returns:
      `Metrics` without confusion.

    Raises:
      ValueError: as `head.linear_cross_entropy`.

    Example:
      >>> params, labels = Params(w=jnp.eye(3), b=jnp.zeros(3)), jnp.array([0, 1, 0])
      >>> float(measure_head(params, jnp.eye(3), labels).correct)
      2.0
    """
    k, extras = checked_count(k, "k"), ("rank", "collision")
    out = linear_cross_entropy(x, params.w, params.b, labels, extras=extras, memory=memory)
    assert out.collision is not None
    assert out.rank is not None
    weights = losses.weights_of(out.loss, weights)

    def total(values):
        return jnp.sum(jnp.where(weights == 0, 0, weights * values.astype(weights.dtype)))

    # |p - y|² = Σ p² - 2 p_y + 1
    squared_error = out.collision - 2 * jnp.exp(-out.loss) + 1
    return Metrics(
        weight=jnp.sum(weights),
        negative_log_likelihood=total(out.loss),
        correct=total(out.rank == 0),
        top_k_correct=total(out.rank < k),
        squared_error=total(jnp.maximum(squared_error, 0)),
        confusion=None,
    )


def _confusion(
    logits: Real[Array, "n q"], targets: Targets, weights: Float[Array, " n"]
) -> Float[Array, "q q"]:
    q, kind = logits.shape[-1], weights.dtype
    chosen = jnp.where(_predicts_nothing(logits), -1, jnp.argmax(logits, axis=-1))
    true = distribution(targets, q, kind)
    if isinstance(targets, Ids):
        true = jnp.nan_to_num(true)  # an id out of range is of no class
    return jnp.einsum("n,ni,nj->ij", weights, true, jax.nn.one_hot(chosen, q, dtype=kind))


def _predicts_nothing(logits: Real[Array, "*batch q"]) -> Bool[Array, "*batch"]:
    return jnp.any(jnp.isnan(logits), axis=-1)


def merge(a: Sums, b: Sums) -> Sums:
    """Returns the sums over both, of `Metrics` or others.

    It is associative and commutative up to rounding.

    Example:
      >>> labels = jnp.array([0])
      >>> right, wrong = (measure(jnp.array([o]), labels) for o in ([1.0, 0.0], [0.0, 1.0]))
      >>> summarize(merge(right, wrong))["accuracy"]
      0.5
    """
    return jax.tree.map(lambda u, v: u + v, a, b)


def total(stacked: Sums) -> Sums:
    """Returns the sum over a leading axis, of blocks or hosts, in NumPy float64.

    It waits for the device.

    Example:
      >>> total({"weight": jnp.array([2.0, 3.0])})
      {'weight': np.float64(5.0)}
    """
    return jax.tree.map(lambda a: np.sum(a, axis=0, dtype=np.float64), jax.device_get(stacked))


def summarize(metrics: Metrics) -> dict[str, float]:
    """Returns means from sums, as plain numbers.

    Returns:
      ``examples`` (total weight), ``nats`` and ``bits`` (mean negative log-likelihood),
      ``accuracy``, ``top_k_accuracy`` and ``brier``.

    Raises:
      ValueError: if the total weight is zero: nothing was measured.

    Example:
      >>> logits = jnp.array([[2.0, 0.0], [1.0, 3.0]])
      >>> summarize(measure(logits, jnp.array([0, 0])))["accuracy"]
      0.5
    """
    weight = float(metrics.weight)
    if weight == 0:
        raise ValueError("the examples measured have a total weight of zero, so they have no mean")
    nats = float(metrics.negative_log_likelihood) / weight
    return {
        "examples": weight,
        "nats": nats,
        "bits": float(information.to_bits(nats)),
        "accuracy": float(metrics.correct) / weight,
        "top_k_accuracy": float(metrics.top_k_correct) / weight,
        "brier": float(metrics.squared_error) / weight,
    }
