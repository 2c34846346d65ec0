r"""Calibration after training: logits rescaled so that held-out labels are most likely (Guo 2017).

One temperature for all logits, or a factor and an offset for each class. Both are convex, and
solved to their optimum in float64, whatever ``jax_enable_x64`` says and in whatever unit the logits
are, never to a loss above that of the logits as they are. Where the optimum is at infinity they say
so.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses
from softmax_jax._annotations import AnyArray, Float, NDArray
from softmax_jax.calibration.held_out import HeldOut
from softmax_jax.data.targets import raw
from softmax_jax.normalizer import softmax
from softmax_jax.status import Status

MOST_CLASSES = 4096
"""Largest q of vector scaling, whose Hessian of ``(2 q)²`` numbers takes 512 MiB then."""
MAX_ITERATIONS = 200


class Temperature(NamedTuple):
    """Result of `fit_temperature`."""

    temperature: float
    """Divide logits by it; inf where no finite one is best."""
    inverse: float
    """Or multiply them with this, which is finite always."""
    nats_before: float
    """Mean loss of the calibration data with the logits as they are."""
    nats: float
    """Mean loss of the calibration data at this temperature."""
    gradient: float
    """Slope of the mean loss in the log of the inverse temperature, free of the unit of the logits;
    at infinite temperature 0."""
    status: Status
    """``optimal``, or which limit the loss falls to."""
    reason: str
    """Explanation of the status; empty if optimal."""


class Scaling(NamedTuple):
    """Result of `fit_vector_scaling`: calibrated logits are ``logits * factor + offset``."""

    factor: Float[NDArray, " q"]
    """``[q]``"""
    offset: Float[NDArray, " q"]
    """``[q]``, summing to zero."""
    nats_before: float
    """Mean loss of the calibration data with the logits as they are."""
    nats: float
    """Mean loss of the calibration data with the calibrated logits."""
    gradient: float
    """The largest entry, for logits of mean 0 and standard deviation 1 in each class."""
    status: Status
    """``optimal``, or why it is not."""
    reason: str
    """Explanation of the status; empty if optimal."""


@jax.transfer_guard("allow")
def fit_temperature(
    logits: AnyArray,
    targets: AnyArray,
    weights: AnyArray | None = None,
    *,
    tol: float = 1e-9,
    block_size: int | None = None,
) -> Temperature:
    r"""Returns the temperature T that minimises the loss of held-out examples.

    .. math:: f(\beta) = \frac{1}{\sum_i s_i} \sum_i s_i\, l(y_i, \beta\, o_i), \quad
        \beta = 1 / T, \qquad
        f' = \langle \mathrm{E}_p\, o - y^\top o \rangle, \quad
        f'' = \langle \mathrm{Var}_p\, o \rangle \ge 0

    It is convex in the inverse temperature. Newton steps are kept in a bracket of the root of f',
    so they cannot fail.

    Args:
      logits: ``[n, q]``, finite or ``-inf``.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]``, None for 1; rows of weight zero take no part.
      tol: largest :math:`|\beta f'|` to stop at.
      block_size: rows at a time, of influence by rounding only; by default such that there are
        `data.blocks.NUMBERS` logits.

    Returns:
      A `Temperature`. Of special cases: if no logits differ within a row, every temperature is the
      same and 1 is returned. If f' >= 0 at 0, a uniform guess is better than any other temperature:
      T is infinite, its inverse 0. If every label has the largest logit, the loss falls as T falls
      to 0, and one is returned at which the gradient is within 1e-6 of its limit 0.

    Raises:
      ValueError: on NaN or +inf, gaps beyond 1e±290, shapes that do not fit, a label of a logit
        ``-inf``, weights that are negative or all zero, or a ``tol`` that is not positive.

    Example:
      >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> round(fit_temperature(logits, [0, 1, 1]).temperature, 6)
      2.88539
    """
    _refuse_bad_tol(tol)
    problem = HeldOut.of(logits, targets, weights, block_size)
    unit, misses = problem.largest_gap()
    if unit != 0 and not 1e-290 < unit < 1e290:
        raise ValueError(f"logits: the largest gap is {unit}; expected 1e-290 to 1e290, or 0")

    def evaluate(beta: float) -> _Along:
        """Returns value and derivatives in units in which the largest gap of logits is one."""
        return _Along(*map(float, problem.mean(_along, beta, unit or 1.0)))

    before = evaluate(unit)
    if unit == 0:
        reason = "in every row all logits are equal: they predict nothing"
        return Temperature(1.0, 1.0, before.loss, before.loss, 0.0, Status.ALL_THE_SAME, reason)
    beta, status, reason = _best_inverse(evaluate, before.loss, misses, tol)
    at = evaluate(beta)
    if not at.loss <= before.loss:  # by rounding
        beta, at = unit, before
    return Temperature(
        temperature=unit / beta if beta > 0 else math.inf,
        inverse=beta / unit,
        nats_before=before.loss,
        nats=at.loss,
        gradient=beta * at.first,
        status=status,
        reason=reason,
    )


@jax.transfer_guard("allow")
def fit_vector_scaling(
    logits: AnyArray,
    targets: AnyArray,
    weights: AnyArray | None = None,
    *,
    tol: float = 1e-8,
    block_size: int | None = None,
) -> Scaling:
    r"""Returns factors and offsets of the classes that minimise the loss of held-out examples.

    .. math:: f(a, c) = \frac{1}{\sum_i s_i} \sum_i s_i\, l(y_i, a \odot o_i + c)

    Convex in both; damped Newton steps (Levenberg 1944) from the best temperature, each of n q²
    work. Made part of the model it is ``Params(w * factor, b * factor + offset)``.

    Args:
      logits: ``[n, q]``, finite or ``-inf``.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]``, None for 1; rows of weight zero take no part.
      tol: largest entry of the gradient to stop at, for logits of mean 0 and standard deviation 1.
      block_size: see `fit_temperature`.

    Returns:
      A `Scaling`. Where the gradient is that small but a Newton step would still move a logit by
      half a nat, the loss falls on and on towards infinity: a class occurs never, or hardly, or
      factors could tell some classes apart without error. It is then at most about ``tol`` above
      its limit, and the status says so.

    Raises:
      ValueError: as `fit_temperature`, or for more than `MOST_CLASSES` classes.

    Example:
      >>> scaling = fit_vector_scaling(np.zeros((4, 2)), [0, 1, 1, 1])
      >>> f"{np.exp(scaling.offset[1] - scaling.offset[0]):.4f}"  # the odds are three to one
      '3.0000'
    """
    _refuse_bad_tol(tol)
    problem = HeldOut.of(logits, targets, weights, block_size)
    q = problem.logits.shape[1]
    if q > MOST_CLASSES:
        raise ValueError(f"{q:,} classes; vector scaling takes up to {MOST_CLASSES:,}")
    one = fit_temperature(
        problem.logits, raw(problem.targets), problem.weights, block_size=block_size
    )
    center, unit = problem.columns()

    def evaluate(theta: np.ndarray) -> _AlongBoth:
        return _AlongBoth(*problem.mean(_along_both, theta[:q], theta[q:], center, unit))

    # In the centred columns a temperature is a factor and an offset for each class, too.
    offset = one.inverse * center
    theta = np.concatenate([one.inverse * unit, offset - offset.mean()])
    theta, at, status, reason = _damped_newton(evaluate, theta, tol)
    if status == Status.OPTIMAL:
        step = np.linalg.lstsq(at.hessian, -at.gradient, rcond=1e-13)[0]
        if problem.largest_move(step[:q], step[q:], center, unit) > 0.5:
            status = Status.AT_INFINITY
            reason = "a class occurs never, or hardly, or some are told apart by factors alone"
    factor = theta[:q] / unit
    offset = theta[q:] - factor * center
    nats = float(at.loss)
    if not nats <= one.nats_before:  # by rounding
        factor, offset, nats = np.ones(q), np.zeros(q), one.nats_before
    return Scaling(
        factor=factor,
        offset=offset - offset.mean(),
        nats_before=one.nats_before,
        nats=nats,
        gradient=float(np.max(np.abs(at.gradient))),
        status=status,
        reason=reason,
    )


def _refuse_bad_tol(tol: float) -> None:
    if not 0 < tol < math.inf:
        raise ValueError(f"tol: {tol}; expected a positive number")


class _Along(NamedTuple):
    """Means over the rows."""

    loss: float
    first: float
    second: float


class _AlongBoth(NamedTuple):
    """Means over the rows."""

    loss: float
    gradient: np.ndarray
    """``[2 q]``"""
    hessian: np.ndarray
    """``[2 q, 2 q]``"""


def _best_inverse(
    evaluate: Callable[[float], _Along], loss_before: float, misses: bool, tol: float
) -> tuple[float, Status, str]:
    """Returns the best inverse temperature with a status and its reason.

    Args:
      evaluate: from an inverse temperature to the loss and its derivatives.
      loss_before: of the logits as they are.
      misses: whether some label does not have the largest logit.
      tol: see `fit_temperature`.
    """
    if evaluate(0.0).first >= 0:
        reason = "these logits are worse than a uniform guess: do labels and classes match?"
        return 0.0, Status.NO_INFORMATION, reason
    beta = 1.0
    at = evaluate(beta)
    if not misses:
        while beta * at.first < -1e-6 or at.loss > loss_before:
            beta *= 2
            at = evaluate(beta)
        reason = "every label has the largest logit: calibrate on data that was not trained on"
        return beta, Status.SEPARABLE, reason
    low, high = 0.0, math.inf
    for _ in range(MAX_ITERATIONS):
        low, high = (low, beta) if at.first > 0 else (beta, high)
        if abs(beta * at.first) <= tol or high - low <= 1e-15 * high < math.inf:
            return beta, Status.OPTIMAL, ""
        if high == math.inf or low == 0:
            outside = 10 * beta if high == math.inf else beta / 10
        else:
            outside = math.sqrt(low * high)
        step = beta - at.first / at.second if at.second > 0 else math.inf
        beta = step if low < step < min(high, 10 * beta) else outside
        at = evaluate(beta)
    reason = f"after {MAX_ITERATIONS} steps the gradient is {beta * at.first:.1e}"
    return beta, Status.NOT_CONVERGED, reason


def _damped_newton(
    evaluate: Callable[[np.ndarray], _AlongBoth], theta: np.ndarray, tol: float
) -> tuple[np.ndarray, _AlongBoth, Status, str]:
    """Minimises the loss by steps of Levenberg's method, none of which goes up.

    Args:
      evaluate: from parameters to the loss and its derivatives.
      theta: where to begin.
      tol: largest entry of the gradient to stop at.

    Returns:
      The parameters, what ``evaluate`` returns for them, a status, and its reason.
    """
    at = evaluate(theta)
    damping = 1e-3
    for _ in range(MAX_ITERATIONS):
        if np.max(np.abs(at.gradient)) <= tol:
            return theta, at, Status.OPTIMAL, ""
        scale = np.trace(at.hessian) / len(theta)
        ridge = damping * scale * np.eye(len(theta))
        step = np.linalg.solve(at.hessian + ridge, -at.gradient)
        new = evaluate(theta + step)
        if new.loss <= at.loss:
            theta, at, damping = theta + step, new, max(damping / 10, 1e-10)
        elif damping > 1e12:
            break
        else:
            damping *= 10
    reason = f"after {MAX_ITERATIONS} steps the gradient is above {tol:g}"
    return theta, at, Status.NOT_CONVERGED, reason


@jax.jit
def _along(
    o: jax.Array, y: jax.Array, s: jax.Array, beta: jax.Array, unit: jax.Array
) -> tuple[jax.Array, ...]:
    """Loss, first and second derivative in the inverse temperature, over a block of rows."""
    top = jnp.broadcast_to(jnp.max(o, axis=-1, keepdims=True), o.shape)
    # Of what does not depend on what all logits of a row have in common, no digits are lost.
    finite = jnp.where(jnp.isfinite(o), o - top, 0) / unit
    z = jnp.where(jnp.isfinite(o), beta * finite, -jnp.inf)
    p = softmax(z, axis=-1)
    mean = jnp.sum(p * finite, axis=-1, keepdims=True)
    deviation = finite - jnp.broadcast_to(mean, o.shape)
    loss = losses.cross_entropy(z, y)
    first = -jnp.sum(y * deviation, axis=-1)
    second = jnp.sum(p * deviation**2, axis=-1)
    return jnp.sum(s * loss), jnp.sum(s * first), jnp.sum(s * second)


@jax.jit
def _along_both(
    o: jax.Array,
    y: jax.Array,
    s: jax.Array,
    a: jax.Array,
    c: jax.Array,
    center: jax.Array,
    unit: jax.Array,
) -> tuple[jax.Array, ...]:
    """Loss, gradient ``[2 q]`` and Hessian in ``a`` and ``c``, over a block of rows."""
    finite = jnp.where(jnp.isfinite(o), (o - center[None]) / unit[None], 0)
    z = jnp.where(jnp.isfinite(o), finite * a[None] + c[None], -jnp.inf)
    p = softmax(z, axis=-1)
    weighted = s[:, None] * p
    error = weighted - s[:, None] * y
    gradient = jnp.concatenate([jnp.sum(error * finite, axis=0), jnp.sum(error, axis=0)])
    # Per row and in the logits it is diag(p) - p pᵀ.
    both = jnp.concatenate([p * finite, p], axis=1)
    diagonals = [[weighted * finite**2, weighted * finite], [weighted * finite, weighted]]
    hessian = jnp.block([[jnp.diag(jnp.sum(d, axis=0)) for d in row] for row in diagonals])
    hessian -= (both * s[:, None]).T @ both
    return jnp.sum(s * losses.cross_entropy(z, y)), gradient, hessian
